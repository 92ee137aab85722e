//! `[federation]`: rooms shared with other servers.

use std::{collections::BTreeMap, num::NonZeroU32};

use ruma::{OwnedServerName, owned_server_name};
use serde::Deserialize;

/// Rooms shared with other servers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FederationConfig {
    /// Whether other servers are asked and answered. Default: `false`, until rooms can be shared with them. A server for this machine alone
    /// asks nobody in any case.
    pub enabled: bool,
    /// Servers that are asked for the signing keys of those that do not answer. Default: `["matrix.org"]`.
    pub notaries: Vec<OwnedServerName>,
    /// Where other servers reach names of this one: `"example.org" = "matrix.example.org:443"` tells it on
    /// `https://example.org/.well-known/matrix/server`. Default: none, which is port 8448 of the name itself, or where SRV records say.
    pub delegates: BTreeMap<OwnedServerName, OwnedServerName>,
    /// The only servers that are asked and answered, as patterns such as `"*.example.org"`; ports do not matter. Default: all.
    pub allow_servers: Vec<String>,
    /// Servers that are not, though they are allowed, as such patterns. Default: none.
    pub deny_servers: Vec<String>,
    /// Requests of one server, with all names under its own: a second in the long run. Default: 1000.
    pub server_requests_per_second: NonZeroU32,
    /// Requests of one server at once after a pause. Default: 5000.
    pub server_requests_burst: NonZeroU32,
    /// Requests of one network address whose signature is wrong or by a key that is not in memory: a second in the long run. Default: 5.
    pub stranger_requests_per_second: NonZeroU32,
    /// Such requests at once after a pause. Default: 200.
    pub stranger_requests_burst: NonZeroU32,
}

impl FederationConfig {
    /// The servers with which this one federates.
    #[must_use]
    pub fn server_lists(&self) -> ::federation::ServerLists {
        ::federation::ServerLists {
            allow: self.allow_servers.iter().collect(),
            deny: self.deny_servers.iter().collect(),
        }
    }
}

impl Default for FederationConfig {
    fn default() -> Self {
        let number = |number| NonZeroU32::new(number).expect("the defaults are not zero");
        Self {
            enabled: false,
            notaries: vec![owned_server_name!("matrix.org")],
            delegates: BTreeMap::new(),
            allow_servers: Vec::new(),
            deny_servers: Vec::new(),
            server_requests_per_second: number(1_000),
            server_requests_burst: number(5_000),
            stranger_requests_per_second: number(5),
            stranger_requests_burst: number(200),
        }
    }
}
