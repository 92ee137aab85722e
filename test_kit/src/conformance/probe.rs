//! Asks a running server which endpoints it has.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Operation, Table, optional};
use crate::{Http, encode, register_anyone};

/// Whether an endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It does something else than say that it does not know the request.
    Answers,
    /// `M_UNRECOGNIZED`.
    Missing,
    /// `M_UNRECOGNIZED`, and the server does not offer the way to log in that the endpoint belongs to.
    NotOffered,
}

/// What a server has, by the name of the operation.
pub type Probes = BTreeMap<String, Presence>;

/// Asks for every endpoint that a homeserver may have, once without a token and once with one.
///
/// An endpoint answers if neither request gets `M_UNRECOGNIZED`, which is what a server says to requests that it does not know
/// (Client-Server API, "Common error codes").
///
/// # Panics
///
/// When the server stops answering, or does not let the prober register.
pub async fn probe(http: &Http, table: &Table) -> Probes {
    let mut probes = Probes::new();
    let mut user = None;
    let offered = optional::offered(http).await;
    for operation in table.operations.iter().filter(|operation| operation.is_ours()) {
        let mut answers = answers(http, operation, None).await;
        if answers && operation.auth.starts_with("accessToken") {
            // Each gets a user of its own if the one before may have lost its token.
            let probing = match user.take() {
                Some(user) => user,
                None => register_anyone(http).await,
            };
            answers = self::answers(http, operation, Some(probing.token())).await;
            user = probing.get("/account/whoami").await.status.is_success().then_some(probing);
        }
        let presence = match optional::flow_of(operation) {
            _ if answers => Presence::Answers,
            Some(flow) if !offered.contains(flow.name) => Presence::NotOffered,
            _ => Presence::Missing,
        };
        probes.insert(operation.name(), presence);
    }
    probes
}

async fn answers(http: &Http, operation: &Operation, token: Option<&str>) -> bool {
    let path = fill_path(operation, |_| None);
    let body = if operation.body.is_some() { json!({}) } else { Value::Null };
    !http.request(&operation.method, &path, token, &body).await.is_unrecognized()
}

/// The path with its parameters filled in by `choose`, or with something of the right shape.
#[must_use]
pub fn fill_path(operation: &Operation, choose: impl Fn(&str) -> Option<String>) -> String {
    let mut path = operation.path.clone();
    for parameter in &operation.path_parameters {
        let value = choose(&parameter.name).unwrap_or_else(|| {
            let allowed = parameter.schema.allowed.first().and_then(Value::as_str);
            let text = allowed.unwrap_or_else(|| match parameter.schema.format.as_deref() {
                Some("mx-user-id") => "@nobody:localhost",
                Some("mx-room-id") => "!nowhere:localhost",
                Some("mx-room-alias") => "#nowhere:localhost",
                Some("mx-event-id") => "$nothing",
                Some("mx-server-name") => "localhost",
                _ if parameter.name == "roomIdOrAlias" => "!nowhere:localhost",
                _ if parameter.name == "userId" => "@nobody:localhost",
                _ => "x",
            });
            encode(text)
        });
        path = path.replace(&format!("{{{}}}", parameter.name), &value);
    }
    path
}
