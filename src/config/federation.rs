//! `[federation]`: rooms shared with other servers.

use std::collections::BTreeMap;

use ruma::{OwnedServerName, owned_server_name};
use serde::Deserialize;

/// Rooms shared with other servers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FederationConfig {
    /// Whether users share rooms with those of other servers. Default: `true`; but a server for this machine alone asks nobody.
    pub enabled: bool,
    /// Servers that are asked for the signing keys of those that do not answer. Default: `["matrix.org"]`.
    pub notaries: Vec<OwnedServerName>,
    /// Where other servers reach names of this one: `"example.org" = "matrix.example.org:443"` tells it on
    /// `https://example.org/.well-known/matrix/server`. Default: none, which is port 8448 of the name itself, or where SRV records say.
    pub delegates: BTreeMap<OwnedServerName, OwnedServerName>,
}

impl Default for FederationConfig {
    fn default() -> Self {
        Self { enabled: true, notaries: vec![owned_server_name!("matrix.org")], delegates: BTreeMap::new() }
    }
}
