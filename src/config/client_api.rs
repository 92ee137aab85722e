//! `[client_api]`: the Matrix client-server API.

use std::num::NonZeroU32;

use serde::{Deserialize, Deserializer, de::Error as _};

/// The Matrix client-server API.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientApiConfig {
    /// Where clients reach this server, told to them by `/.well-known/matrix/client`. Default: not set, which answers there with 404.
    #[serde(deserialize_with = "http_url")]
    pub public_url: Option<String>,
    /// Requests of one user that change something, a second in the long run. Default: 20.
    pub user_requests_per_second: NonZeroU32,
    /// The same at once after a pause. Default: 200.
    pub user_requests_burst: NonZeroU32,
    /// Requests of one address without a token that change something, such as logging in, a second in the long run. Default: 2.
    pub address_requests_per_second: NonZeroU32,
    /// The same at once after a pause. Default: 30.
    pub address_requests_burst: NonZeroU32,
    /// Requests of one address without a valid token that change nothing, or are refused for want of one, a second in the long run.
    /// Default: 50.
    pub address_reads_per_second: NonZeroU32,
    /// The same at once after a pause. Default: 1000.
    pub address_reads_burst: NonZeroU32,
}

impl Default for ClientApiConfig {
    fn default() -> Self {
        Self {
            public_url: None,
            user_requests_per_second: const { NonZeroU32::new(20).unwrap() },
            user_requests_burst: const { NonZeroU32::new(200).unwrap() },
            address_requests_per_second: const { NonZeroU32::new(2).unwrap() },
            address_requests_burst: const { NonZeroU32::new(30).unwrap() },
            address_reads_per_second: const { NonZeroU32::new(50).unwrap() },
            address_reads_burst: const { NonZeroU32::new(1_000).unwrap() },
        }
    }
}

fn http_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && !text.contains(['?', '#', ' ']) => Ok(Some(text)),
        _ => Err(D::Error::custom(format!("`{text}` is not a URL such as `https://matrix.example.org`"))),
    }
}
