//! `[unsafe]`: what makes a server unsafe, for tests and test beds.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

use super::Network;

/// What makes a server unsafe, for tests and test beds. Start-up warns of each that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnsafeConfig {
    /// Allows `accounts.registration = "open"` on a server that others can reach. Default: `false`.
    pub open_registration: bool,
    /// Passwords are hashed so cheaply that whoever gets the database can guess them. Default: `false`.
    pub cheap_password_hashing: bool,
    /// No rate limits: passwords can be guessed and the server kept busy by anyone. Default: `false`.
    pub rate_limits_off: bool,
    /// PEM files of authorities that are trusted for federation beside those of the system. Default: none.
    pub federation_extra_authorities: Vec<PathBuf>,
    /// Where federation asks for names instead of the system's DNS servers, as address and port. Default: not set.
    pub federation_dns_server: Option<SocketAddr>,
    /// Private networks that outgoing requests may reach: people can make the server ask for things inside of them. Default: none.
    pub outgoing_private_networks: Vec<Network>,
    /// Certificates are not checked on outgoing requests other than federation. Default: `false`.
    pub outgoing_certificate_checks_off: bool,
}

impl UnsafeConfig {
    /// The options that are set, as their keys.
    #[must_use]
    pub fn in_force(&self) -> Vec<&'static str> {
        let options = [
            (self.open_registration, "unsafe.open_registration"),
            (self.cheap_password_hashing, "unsafe.cheap_password_hashing"),
            (self.rate_limits_off, "unsafe.rate_limits_off"),
            (!self.federation_extra_authorities.is_empty(), "unsafe.federation_extra_authorities"),
            (self.federation_dns_server.is_some(), "unsafe.federation_dns_server"),
            (!self.outgoing_private_networks.is_empty(), "unsafe.outgoing_private_networks"),
            (self.outgoing_certificate_checks_off, "unsafe.outgoing_certificate_checks_off"),
        ];
        options.into_iter().filter_map(|(is_set, key)| is_set.then_some(key)).collect()
    }
}
