//! From a server name to where its requests go. Server-Server API, "Resolving server names".

use ruma::ServerName;

use crate::{Error, well_known::WellKnowns};

/// The port of a server whose name and records say nothing else.
pub(crate) const PORT_DEFAULT: u16 = 8_448;

/// The services by whose SRV records a server is found; the second is deprecated.
pub(crate) const SERVICES: &[&str] = &["_matrix-fed._tcp", "_matrix._tcp"];

/// Where the requests for a server go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The name in the `Host` header.
    pub(crate) host: String,
    /// The host whose certificate counts, and the port if that is settled. Without, SRV records say it.
    pub(crate) authority: String,
    /// Whether SRV records say where the host is.
    pub(crate) by_service: bool,
}

/// Finds where the requests for servers go.
pub(crate) struct Resolver {
    pub(crate) well_knowns: WellKnowns,
}

impl Resolver {
    /// Where the requests for `name` go. That it can be reached is not said.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] when its host could not be asked now: where it is without that answer may be somebody else's.
    pub(crate) async fn resolve(&self, name: &ServerName) -> Result<Destination, Error> {
        if is_settled(name) {
            return Ok(without_well_known(name));
        }
        // Step 3; what is no answer leads to steps 4 to 6.
        Ok(match self.well_knowns.get(name.host()).await? {
            Some(delegated) => without_well_known(&delegated),
            None => without_well_known(name),
        })
    }
}

/// Whether the name alone says where the server is: steps 1 and 2.
pub(crate) fn is_settled(name: &ServerName) -> bool {
    name.is_ip_literal() || name.port().is_some()
}

/// Steps 1 and 2, or 4 to 6; for a delegated name 3.1 to 3.5, which are the same.
pub(crate) fn without_well_known(name: &ServerName) -> Destination {
    let authority = match name.port() {
        Some(port) => format!("{}:{port}", name.host()),
        None if name.is_ip_literal() => format!("{}:{PORT_DEFAULT}", name.host()),
        None => name.host().to_owned(),
    };
    Destination { host: name.as_str().to_owned(), authority, by_service: !is_settled(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_settled_by_literals_and_ports() {
        for (name, authority, by_service) in [
            ("1.2.3.4", "1.2.3.4:8448", false),
            ("1.2.3.4:443", "1.2.3.4:443", false),
            ("[2001:db8::1]", "[2001:db8::1]:8448", false),
            ("[2001:db8::1]:80", "[2001:db8::1]:80", false),
            ("example.org:443", "example.org:443", false),
            ("example.org", "example.org", true),
        ] {
            let destination = without_well_known(name.try_into().unwrap());
            assert_eq!(destination.host, name);
            assert_eq!((destination.authority.as_str(), destination.by_service), (authority, by_service), "{name}");
        }
    }
}
