//! A person with a device, who talks to a server.

use std::sync::atomic::{AtomicU64, Ordering};

use model::Random;
use serde_json::{Value, json};

use crate::{Answer, Http, encode};

/// Transaction ids are never used twice in a process.
static TRANSACTIONS: AtomicU64 = AtomicU64::new(0);

/// A logged-in user.
#[derive(Clone, Debug)]
pub struct TestUser {
    http: Http,
    id: String,
    device_id: String,
    token: String,
}

/// Registers `name` with the password `"{name}'s password"`.
///
/// # Panics
///
/// When the server does not allow it.
pub async fn register(http: &Http, name: &str) -> TestUser {
    let body = json!({
        "username": name, "password": format!("{name}'s password"), "auth": { "type": "m.login.dummy" },
    });
    let answer = http.request("POST", "/_matrix/client/v3/register", None, &body).await.ok();
    TestUser::of(http, &answer)
}

/// Registers somebody whose name nobody has, also at a server that is older than the test.
pub(crate) async fn register_anyone(http: &Http) -> TestUser {
    register(http, &format!("somebody{}", Random::system().alphanumeric(12).to_lowercase())).await
}

/// Registers a guest.
///
/// # Panics
///
/// When the server does not allow it.
pub async fn register_guest(http: &Http) -> TestUser {
    let answer = http.request("POST", "/_matrix/client/v3/register?kind=guest", None, &json!({})).await.ok();
    TestUser::of(http, &answer)
}

impl TestUser {
    /// The user of an answer to a login or registration.
    ///
    /// # Panics
    ///
    /// When it lacks something.
    #[must_use]
    #[track_caller]
    pub fn of(http: &Http, answer: &Value) -> Self {
        let text = |key: &str| answer[key].as_str().unwrap_or_else(|| panic!("{answer} lacks {key}")).to_owned();
        Self { http: http.clone(), id: text("user_id"), device_id: text("device_id"), token: text("access_token") }
    }

    /// The same person on another device.
    ///
    /// # Panics
    ///
    /// When the server does not allow it.
    pub async fn log_in_again(&self) -> Self {
        let name = self.localpart();
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": name },
            "password": format!("{name}'s password"),
        });
        Self::of(&self.http, &self.http.request("POST", "/_matrix/client/v3/login", None, &body).await.ok())
    }

    /// The same user at a server that was restarted, so at another port.
    #[must_use]
    pub fn at(&self, http: &Http) -> Self {
        Self { http: http.clone(), ..self.clone() }
    }

    /// The user id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What stands between `@` and `:`.
    #[must_use]
    pub fn localpart(&self) -> &str {
        self.id[1..].split(':').next().unwrap_or_default()
    }

    /// The device id.
    #[must_use]
    pub fn device_id(&self) -> &str {
        &self.device_id
    }

    /// The access token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A client for the user's server.
    #[must_use]
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// Sends any request below `/_matrix/client/v3`, or anywhere if `path` starts with `/_`; null sends no body.
    pub async fn request(&self, method: &str, path: &str, body: &Value) -> Answer {
        let path = if path.starts_with("/_") { path.to_owned() } else { format!("/_matrix/client/v3{path}") };
        self.http.request(method, &path, Some(&self.token), body).await
    }

    /// Asks for `path`.
    pub async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &Value::Null).await
    }

    /// Posts `body` to `path`.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, body).await
    }

    /// Puts `body` at `path`.
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.request("PUT", path, body).await
    }

    /// Creates a private room.
    pub async fn create_room(&self) -> String {
        self.create_room_with(&json!({})).await
    }

    /// Creates a room that anyone may join.
    pub async fn create_public_room(&self) -> String {
        self.create_room_with(&json!({ "preset": "public_chat" })).await
    }

    /// Creates a room as `body` says.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn create_room_with(&self, body: &Value) -> String {
        text(&self.post("/createRoom", body).await.ok(), "room_id")
    }

    /// Invites somebody.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn invite(&self, room: &str, user: &Self) {
        self.in_room(room, "invite", &json!({ "user_id": user.id })).await.ok();
    }

    /// Joins.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn join(&self, room: &str) {
        self.in_room(room, "join", &json!({})).await.ok();
    }

    /// Leaves.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn leave(&self, room: &str) {
        self.in_room(room, "leave", &json!({})).await.ok();
    }

    /// Kicks, bans or unbans (`action`) somebody.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn remove(&self, room: &str, action: &str, user: &Self) {
        self.in_room(room, action, &json!({ "user_id": user.id })).await.ok();
    }

    /// Posts `body` to `/rooms/{room}/{action}`.
    pub async fn in_room(&self, room: &str, action: &str, body: &Value) -> Answer {
        self.post(&format!("/rooms/{}/{action}", encode(room)), body).await
    }

    /// Sends a text message; returns its event id.
    pub async fn send_text(&self, room: &str, body: &str) -> String {
        self.send(room, "m.room.message", &json!({ "msgtype": "m.text", "body": body })).await
    }

    /// Sends an event; returns its event id.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn send(&self, room: &str, event_type: &str, content: &Value) -> String {
        text(&self.try_send(room, event_type, content).await.ok(), "event_id")
    }

    /// Sends an event that may be refused.
    pub async fn try_send(&self, room: &str, event_type: &str, content: &Value) -> Answer {
        let transaction = TRANSACTIONS.fetch_add(1, Ordering::Relaxed);
        self.put(&format!("/rooms/{}/send/{}/t{transaction}", encode(room), encode(event_type)), content).await
    }

    /// Sets a piece of state; returns its event id.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn set_state(&self, room: &str, event_type: &str, state_key: &str, content: &Value) -> String {
        text(&self.try_set_state(room, event_type, state_key, content).await.ok(), "event_id")
    }

    /// Sets a piece of state that may be refused.
    pub async fn try_set_state(&self, room: &str, event_type: &str, state_key: &str, content: &Value) -> Answer {
        let path = format!("/rooms/{}/state/{}/{}", encode(room), encode(event_type), encode(state_key));
        self.put(&path, content).await
    }

    /// Redacts an event; returns the redaction's id.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn redact(&self, room: &str, event: &str) -> String {
        let transaction = TRANSACTIONS.fetch_add(1, Ordering::Relaxed);
        let path = format!("/rooms/{}/redact/{}/t{transaction}", encode(room), encode(event));
        text(&self.put(&path, &json!({})).await.ok(), "event_id")
    }

    /// Syncs: from the beginning without `since`, without waiting.
    pub async fn sync(&self, since: Option<&str>) -> Value {
        self.sync_waiting(since, 0).await
    }

    /// Syncs and waits up to `timeout_ms` for something new; nobody sees by it that the user is there.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn sync_waiting(&self, since: Option<&str>, timeout_ms: u64) -> Value {
        let since = since.map(|since| format!("&since={}", encode(since))).unwrap_or_default();
        self.get(&format!("/sync?set_presence=offline&timeout={timeout_ms}{since}")).await.ok()
    }

    /// The texts that the newest 100 events of a room say, oldest first.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn texts(&self, room: &str) -> Vec<String> {
        let answer = self.get(&format!("/rooms/{}/messages?dir=b&limit=100", encode(room))).await.ok();
        let events = answer["chunk"].as_array().cloned().unwrap_or_default();
        let bodies = events.iter().rev().filter(|event| event["type"] == "m.room.message");
        bodies.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
    }
}

#[track_caller]
fn text(answer: &Value, key: &str) -> String {
    answer[key].as_str().unwrap_or_else(|| panic!("{answer} lacks {key}")).to_owned()
}
