//! `[presence]`: who is there.

use serde::Deserialize;

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PresenceConfig {
    /// Whether users see of each other who is online. Default: `true`. Otherwise everybody is shown offline, and nobody can say how they are.
    pub enabled: bool,
}

impl Default for PresenceConfig {
    fn default() -> Self {
        Self { enabled: true }
    }
}
