//! What hosts say of where their server is. Server-Server API, "Resolving server names", step 3.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode, header};
use model::Clock;
use moka::sync::Cache;
use outbound::{Answer, Bounds, Outbound};
use ruma::OwnedServerName;
use serde::Deserialize;
use tracing::debug;
use url::Url;

use crate::{Error, shared_tasks::SharedTasks};

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

/// Most hosts that are asked at the same time.
const ASKED_AT_ONCE: usize = 500;

/// Asks hosts for `/.well-known/matrix/server`, and keeps what they say. Cheap to clone.
#[derive(Clone)]
pub(crate) struct WellKnowns {
    outbound: Outbound,
    clock: Clock,
    known: Cache<String, Arc<Known>>,
    asking: SharedTasks<Arc<Known>>,
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

/// Why a host names no server.
#[derive(Debug)]
enum Nothing {
    /// It says that there is none, or what makes no sense.
    Said(String),
    /// It cannot say at the moment.
    Unsaid(String),
}

impl WellKnowns {
    pub(crate) fn new(outbound: Outbound, clock: Clock) -> Self {
        Self { outbound, clock, known: Cache::new(HOSTS_CACHED), asking: SharedTasks::new(ASKED_AT_ONCE) }
    }

    /// The server that a host names, if it names one. Who asks for the same host at the same time waits for one answer, which is noted
    /// even when nobody waits any more.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] when too many hosts are being asked.
    pub(crate) async fn get(&self, host: &str) -> Result<Option<OwnedServerName>, Error> {
        let known = match self.current(host) {
            Some(known) => Some(known),
            None => {
                let (this, name) = (self.clone(), host.to_owned());
                self.asking.run(host, async move { this.ask(&name).await }).await
            }
        };
        Ok(known.ok_or(Error::Busy)?.server.clone())
    }

    /// What the host said, while that counts.
    fn current(&self, host: &str) -> Option<Arc<Known>> {
        self.known.get(host).filter(|known| known.until_ms > self.clock.now_ms())
    }

    async fn ask(&self, host: &str) -> Arc<Known> {
        // Somebody may have asked since it was looked for.
        if let Some(known) = self.current(host) {
            return known;
        }
        let answer = get(&self.outbound, host).await;
        let known = Arc::new(self.judge(host, answer));
        self.known.insert(host.to_owned(), known.clone());
        known
    }

    fn judge(&self, host: &str, answer: Result<(OwnedServerName, HeaderMap), Nothing>) -> Known {
        let now_ms = self.clock.now_ms();
        let before = self.known.get(host);
        let nothing = match answer {
            Ok((server, headers)) => {
                return Known {
                    server: Some(server),
                    server_until_ms: now_ms + LIFETIME_MAX_MS,
                    until_ms: now_ms + lifetime_ms(&headers),
                    failures: 0,
                };
            }
            Err(nothing) => nothing,
        };
        let (Nothing::Said(reason) | Nothing::Unsaid(reason)) = &nothing;
        debug!(server.host = host, reason, "{host} does not say where its server is");
        let failures = before.as_ref().map_or(0, |known| known.failures);
        // What it said before counts until it takes that back.
        let is_unsaid = matches!(nothing, Nothing::Unsaid(_));
        let still = before.filter(|known| is_unsaid && known.server_until_ms > now_ms);
        Known {
            server: still.as_ref().and_then(|known| known.server.clone()),
            server_until_ms: still.map_or(0, |known| known.server_until_ms),
            until_ms: now_ms + (FAILURE_MS << failures.min(5)).min(HOUR_MS),
            failures: failures.saturating_add(1),
        }
    }
}

impl Nothing {
    fn of_failure(error: &outbound::Error) -> Self {
        match error {
            outbound::Error::TooLarge { .. } | outbound::Error::BadRequest(_) => Self::Said(error.to_string()),
            _ => Self::Unsaid(error.to_string()),
        }
    }
}

/// What a host says now, and the headers of its answer.
async fn get(outbound: &Outbound, host: &str) -> Result<(OwnedServerName, HeaderMap), Nothing> {
    let url = Url::parse(&url_of(host)).map_err(|error| Nothing::Said(error.to_string()))?;
    let answer = outbound.get(&url, BOUNDS).await.map_err(|error| Nothing::of_failure(&error))?;
    Ok((read(&answer)?, answer.headers))
}

/// The server that a host names now, or why it names none.
pub(crate) async fn look(outbound: &Outbound, host: &str) -> Result<OwnedServerName, String> {
    match get(outbound, host).await {
        Ok((server, _)) => Ok(server),
        Err(Nothing::Said(reason) | Nothing::Unsaid(reason)) => Err(reason),
    }
}

/// Where a host says where its server is.
pub(crate) fn url_of(host: &str) -> String {
    format!("https://{host}/.well-known/matrix/server")
}

/// The server in an answer. Its content type is not looked at.
fn read(answer: &Answer) -> Result<OwnedServerName, Nothing> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "m.server")]
        server: OwnedServerName,
    }
    if answer.status.is_server_error() || answer.status == StatusCode::TOO_MANY_REQUESTS {
        return Err(Nothing::Unsaid(format!("status {}", answer.status)));
    }
    if answer.status != StatusCode::OK {
        return Err(Nothing::Said(format!("status {}", answer.status)));
    }
    let body: Body = serde_json::from_slice(&answer.body).map_err(|error| Nothing::Said(error.to_string()))?;
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
            assert!(matches!(answer(status, body), Err(Nothing::Said(_))), "{status} {body}");
        }
        // A server in trouble takes nothing back.
        for status in [429, 500, 503] {
            assert!(matches!(answer(status, "{}"), Err(Nothing::Unsaid(_))), "{status}");
        }
    }
}
