//! `[federation]`: rooms shared with other servers.

use std::collections::BTreeMap;

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
}

impl Default for FederationConfig {
    fn default() -> Self {
        Self { enabled: false, notaries: vec![owned_server_name!("matrix.org")], delegates: BTreeMap::new() }
    }
}
