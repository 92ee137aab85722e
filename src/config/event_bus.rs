//! `[event_bus]`: what connects the processes of a cluster.

use serde::{Deserialize, Deserializer, de::Error as _};

/// What connects the processes of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventBusConfig {
    /// `memory` for one process, or `redis://host:6379` (`rediss://` with TLS) for several on one PostgreSQL. Default: `memory`.
    pub url: EventBusUrl,
}

/// Which bus, and where.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum EventBusUrl {
    /// Inside of this process.
    #[default]
    Memory,
    /// A Redis server, by its URL.
    Redis(String),
}

impl<'de> Deserialize<'de> for EventBusUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "memory" => Ok(Self::Memory),
            redis if redis.starts_with("redis://") || redis.starts_with("rediss://") => Ok(Self::Redis(text)),
            // The value is not shown: it may hold a password.
            _ => Err(D::Error::custom("expected `memory` or `redis://host:port`")),
        }
    }
}

impl std::fmt::Debug for EventBusUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memory => "Memory",
            Self::Redis(_) => "Redis(..)",
        })
    }
}
