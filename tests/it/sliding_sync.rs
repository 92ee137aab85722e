//! Rooms by lists and by name, in both wire formats.

mod connections;
mod extensions;
mod lists;
mod memberships;
mod rooms;

use serde_json::{Value, json};
use test_kit::{TestUser, encode};

/// A wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Unstable,
    V4,
}

pub(crate) const FORMS: [Form; 2] = [Form::Unstable, Form::V4];

impl Form {
    /// A list over places, with state by type and key.
    pub(crate) fn list(self, range: [u64; 2], timeline_limit: u64, state: &[[&str; 2]]) -> Value {
        let mut list = self.config(timeline_limit, state);
        match self {
            Self::Unstable => list["ranges"] = json!([range]),
            Self::V4 => list["range"] = json!(range),
        }
        list
    }

    /// What is wanted of a room.
    pub(crate) fn config(self, timeline_limit: u64, state: &[[&str; 2]]) -> Value {
        let required_state = match self {
            Self::Unstable => json!(state),
            Self::V4 => {
                let elements = state.iter().filter(|[_, key]| *key != "$LAZY").map(|[event_type, key]| {
                    let mut element = json!({});
                    if *event_type != "*" {
                        element["type"] = json!(event_type);
                    }
                    if *key != "*" {
                        element["state_key"] = json!(key);
                    }
                    element
                });
                let lazy = state.iter().any(|[_, key]| *key == "$LAZY");
                json!({ "include": elements.collect::<Vec<_>>(), "lazy_members": lazy })
            }
        };
        json!({ "timeline_limit": timeline_limit, "required_state": required_state })
    }

    /// A request that must succeed.
    pub(crate) async fn sync(self, user: &TestUser, pos: Option<&str>, timeout_ms: u64, body: &Value) -> Value {
        self.try_sync(user, pos, timeout_ms, body).await.ok()
    }

    pub(crate) async fn try_sync(
        self,
        user: &TestUser,
        pos: Option<&str>,
        timeout_ms: u64,
        body: &Value,
    ) -> test_kit::Answer {
        match self {
            Self::Unstable => {
                let pos = pos.map(|pos| format!("&pos={}", encode(pos))).unwrap_or_default();
                let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
                user.post(&format!("{path}?timeout={timeout_ms}{pos}"), body).await
            }
            Self::V4 => {
                let mut body = body.clone();
                body["timeout"] = json!(timeout_ms);
                if let Some(pos) = pos {
                    body["pos"] = json!(pos);
                }
                user.post("/_matrix/client/v4/sync", &body).await
            }
        }
    }
}

pub(crate) fn pos(answer: &Value) -> &str {
    answer["pos"].as_str().expect("a pos")
}

fn texts(room: &Value) -> Vec<String> {
    let events = room["timeline"].as_array().cloned().unwrap_or_default();
    events.iter().filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
}

fn rooms(answer: &Value) -> Vec<&String> {
    answer["rooms"].as_object().expect("rooms").keys().collect()
}

/// The keys of the state of a type that a room was told with.
fn state_keys(room: &Value, event_type: &str) -> Vec<String> {
    let state = room["required_state"].as_array().cloned().unwrap_or_default();
    let of_type = state.iter().filter(|event| event["type"] == event_type);
    let mut keys: Vec<String> = of_type.map(|event| event["state_key"].as_str().unwrap().to_owned()).collect();
    keys.sort_unstable();
    keys
}
