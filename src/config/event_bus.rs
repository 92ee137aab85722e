//! `[event_bus]`: what connects the processes of a cluster.

use serde::{Deserialize, Deserializer, de::Error as _};

/// What connects the processes of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventBusConfig {
    /// `memory`, inside of one process. Default: `memory`.
    pub url: EventBusUrl,
}

/// Which bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventBusUrl {
    /// Inside of this process.
    #[default]
    Memory,
}

impl<'de> Deserialize<'de> for EventBusUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "memory" => Ok(Self::Memory),
            redis if redis.starts_with("redis://") || redis.starts_with("rediss://") => {
                Err(D::Error::custom("Redis is not built yet: only `memory` is allowed"))
            }
            // The value is not shown: it may hold a password.
            _ => Err(D::Error::custom("expected `memory`")),
        }
    }
}
