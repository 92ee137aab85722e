//! What hosts say of where their server is. Server-Server API, "Resolving server names", step 3.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode, header};
use model::Clock;
use moka::future::Cache;
use outbound::{Answer, Bounds, Outbound};
use ruma::OwnedServerName;
use serde::Deserialize;
use tracing::debug;
use url::Url;

const HOUR_MS: i64 = 3_600_000;

/// How long an answer counts that says nothing of it, in milliseconds.
const LIFETIME_DEFAULT_MS: i64 = 24 * HOUR_MS;

/// How long an answer counts at most, and at least: no host makes us ask it all the time.
const LIFETIME_MAX_MS: i64 = 48 * HOUR_MS;
const LIFETIME_MIN_MS: i64 = 5 * 60_000;

/// How long a host without an answer is left alone after its first failure; it doubles with each that follows, up to an hour.
const FAILURE_MS: i64 = 2 * 60_000;

const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(10), body_bytes_max: 50 * 1_024 };

/// Most hosts whose answers are kept.
const HOSTS_CACHED: u64 = 20_000;

/// Asks hosts for `/.well-known/matrix/server`, and keeps what they say.
pub(crate) struct WellKnowns {
    outbound: Outbound,
    clock: Clock,
    known: Cache<String, Arc<Known>>,
}

/// What a host said.
#[derive(Debug)]
struct Known {
    /// The server it names.
    server: Option<OwnedServerName>,
    /// Until when a server that it named before counts if it does not answer, in milliseconds since 1970.
    server_until_ms: i64,
    /// When to ask again.
    until_ms: i64,
    /// How often in a row it had no answer.
    failures: u32,
}

impl WellKnowns {
    pub(crate) fn new(outbound: Outbound, clock: Clock) -> Self {
        Self { outbound, clock, known: Cache::new(HOSTS_CACHED) }
    }

    /// The server that a host names, if it names one. Who asks for the same host at the same time waits for one answer.
    pub(crate) async fn get(&self, host: &str) -> Option<OwnedServerName> {
        let now_ms = self.clock.now_ms();
        let before = self.known.get(host).await;
        if let Some(known) = before.as_ref().filter(|known| known.until_ms > now_ms) {
            return known.server.clone();
        }
        let asking = async { Arc::new(self.ask(host, before.as_deref()).await) };
        let entry = self.known.entry_by_ref(host).or_insert_with_if(asking, |known| known.until_ms <= now_ms).await;
        entry.into_value().server.clone()
    }

    async fn ask(&self, host: &str, before: Option<&Known>) -> Known {
        let answer = match Url::parse(&format!("https://{host}/.well-known/matrix/server")) {
            Ok(url) => self.outbound.get(&url, BOUNDS).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let now_ms = self.clock.now_ms();
        match answer.and_then(|answer| Ok((read(&answer)?, answer.headers))) {
            Ok((server, headers)) => Known {
                server: Some(server),
                server_until_ms: now_ms + LIFETIME_MAX_MS,
                until_ms: now_ms + lifetime_ms(&headers),
                failures: 0,
            },
            Err(reason) => {
                debug!(server.host = host, reason, "{host} does not say where its server is");
                let failures = before.map_or(0, |known| known.failures);
                let still = before.filter(|known| known.server_until_ms > now_ms);
                Known {
                    server: still.and_then(|known| known.server.clone()),
                    server_until_ms: still.map_or(0, |known| known.server_until_ms),
                    until_ms: now_ms + (FAILURE_MS << failures.min(5)).min(HOUR_MS),
                    failures: failures.saturating_add(1),
                }
            }
        }
    }
}

/// The server in an answer. Its content type is not looked at.
fn read(answer: &Answer) -> Result<OwnedServerName, String> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "m.server")]
        server: OwnedServerName,
    }
    if answer.status != StatusCode::OK {
        return Err(format!("status {}", answer.status));
    }
    let body: Body = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    Ok(body.server)
}

/// How long an answer counts, by its `Cache-Control`, in milliseconds.
fn lifetime_ms(headers: &HeaderMap) -> i64 {
    let said = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut lifetime_ms = None;
    for directive in said.flat_map(|value| value.split(',')).map(|directive| directive.trim().to_ascii_lowercase()) {
        if directive == "no-store" || directive == "no-cache" {
            return LIFETIME_MIN_MS;
        }
        let seconds =
            directive.strip_prefix("max-age=").and_then(|seconds| seconds.trim_matches('"').parse::<i64>().ok());
        lifetime_ms = lifetime_ms.or(seconds.map(|seconds| seconds.saturating_mul(1_000)));
    }
    lifetime_ms.unwrap_or(LIFETIME_DEFAULT_MS).clamp(LIFETIME_MIN_MS, LIFETIME_MAX_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_as_long_as_it_says_within_bounds() {
        for (said, hours) in [
            (None, 24.0),
            (Some("public, max-age=7200"), 2.0),
            (Some("Max-Age=\"3600\""), 1.0),
            (Some("max-age=99999999"), 48.0),
            (Some("max-age=99999999999999999999"), 24.0),
            (Some("max-age=0"), 1.0 / 12.0),
            (Some("max-age=7200, no-cache"), 1.0 / 12.0),
            (Some("private"), 24.0),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(said.map(|said| (header::CACHE_CONTROL, said.parse().unwrap())));
            assert_eq!(lifetime_ms(&headers) as f64 / HOUR_MS as f64, hours, "{said:?}");
        }
    }

    #[test]
    fn only_a_name_under_200_is_an_answer() {
        let answer = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            read(&Answer { status, headers: HeaderMap::new(), body: body.to_owned().into() })
        };
        assert_eq!(answer(200, r#"{"m.server":"a.test:1"}"#).unwrap(), "a.test:1");
        for (status, body) in [
            (404, r#"{"m.server":"a.test"}"#),
            (200, "{}"),
            (200, "<html>"),
            (200, r#"{"m.server":1}"#),
            (200, r#"{"m.server":"a b"}"#),
            (200, r#"{"m.server":"https://a.test"}"#),
        ] {
            assert!(answer(status, body).is_err(), "{status} {body}");
        }
    }
}
