//! `[event_bus]`: what connects the processes of a cluster.

use std::fmt;

use serde::{Deserialize, Deserializer, de::Error as _};

/// What connects the processes of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventBusConfig {
    /// `memory`, inside of one process, or the URL of a Redis that all processes share. Default: `memory`.
    pub url: EventBusUrl,
}

/// Which bus.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum EventBusUrl {
    /// Inside of this process.
    #[default]
    Memory,
    /// A Redis: `redis://…`, or `rediss://…` for TLS.
    Redis(String),
}

/// Without the URL: it may hold a password.
impl fmt::Debug for EventBusUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Memory) { "Memory" } else { "Redis(…)" })
    }
}

impl<'de> Deserialize<'de> for EventBusUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "memory" => Ok(Self::Memory),
            redis if redis.starts_with("redis://") || redis.starts_with("rediss://") => Ok(Self::Redis(text)),
            // The value is not shown: it may hold a password.
            _ => Err(D::Error::custom("expected `memory` or a URL such as `redis://host:6379/`")),
        }
    }
}
