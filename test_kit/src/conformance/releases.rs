//! Which releases of the specification a server may advertise.

use super::{Presence, Probes, Table};

/// The releases of the specification, judged by their endpoints in the client-server API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Releases {
    /// Those whose endpoints, and those of all releases from v1.1 on before them, exist: `v1.1` and so on, oldest first. Endpoints of a
    /// way to log in that the server may leave out, and does not offer, need not exist.
    pub complete: Vec<String>,
    /// For each of the others the endpoints that it added and that do not exist.
    pub incomplete: Vec<(String, Vec<String>)>,
}

impl Releases {
    /// Judges the server that `probes` were made of.
    #[must_use]
    pub fn of(table: &Table, probes: &Probes) -> Self {
        let mut releases = Self { complete: Vec::new(), incomplete: Vec::new() };
        for release in &table.releases {
            let added = table
                .operations
                .iter()
                .filter(|operation| operation.api == "client-server" && operation.added.as_ref() == Some(release));
            let missing: Vec<String> = added
                .filter(|operation| matches!(probes.get(&operation.name()), None | Some(Presence::Missing)))
                .map(|operation| operation.operation.clone())
                .collect();
            if missing.is_empty() && releases.incomplete.is_empty() {
                releases.complete.push(format!("v{release}"));
            } else {
                releases.incomplete.push((format!("v{release}"), missing));
            }
        }
        releases
    }
}

/// The Rust file that says what is advertised.
#[must_use]
pub fn source(releases: &Releases) -> String {
    let list: String = releases.complete.iter().map(|release| format!("    \"{release}\",\n")).collect();
    let list = if list.is_empty() { "&[]".to_owned() } else { format!("&[\n{list}]") };
    format!(
        "//! Written by `cargo run -p test_kit --bin conformance -- --write`; a test fails when it is stale.\n\n\
         /// The releases of the specification whose endpoints all exist, oldest first. Client-Server API, \"API Versions\".\n\
         #[rustfmt::skip]\n\
         pub(crate) const RELEASES: &[&str] = {list};\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::table;

    #[test]
    fn a_server_with_every_endpoint_has_every_release() {
        let probes = table().operations.iter().map(|operation| (operation.name(), Presence::Answers)).collect();
        let releases = Releases::of(table(), &probes);
        assert_eq!(releases.complete.last().map(String::as_str), Some("v1.19"));
        assert_eq!(releases.complete.len(), table().releases.len());
        assert!(releases.incomplete.is_empty());
    }

    /// Offering single sign-on without its endpoints is a fault; neither is not.
    #[test]
    fn a_release_is_complete_without_what_is_optional_and_not_offered() {
        let with = |presence| {
            let mut probes: Probes =
                table().operations.iter().map(|operation| (operation.name(), Presence::Answers)).collect();
            probes.insert("redirectToSSO".to_owned(), presence);
            Releases::of(table(), &probes)
        };
        assert_eq!(with(Presence::NotOffered).complete.len(), table().releases.len());
        assert_eq!(with(Presence::Missing).incomplete[0], ("v1.1".to_owned(), vec!["redirectToSSO".to_owned()]));
    }

    /// v1.3 is not offered by a server that lacks something of v1.2.
    #[test]
    fn a_missing_endpoint_ends_the_list() {
        let mut probes: Probes =
            table().operations.iter().map(|operation| (operation.name(), Presence::Answers)).collect();
        probes.insert("getSpaceHierarchy".to_owned(), Presence::Missing);
        let releases = Releases::of(table(), &probes);
        assert_eq!(releases.complete, ["v1.1"]);
        assert_eq!(releases.incomplete[0], ("v1.2".to_owned(), vec!["getSpaceHierarchy".to_owned()]));
        assert_eq!(releases.incomplete[1], ("v1.3".to_owned(), Vec::new()));
    }
}
