//! What requests can be about: users, rooms, events, and what earlier answers told.

use std::collections::{BTreeMap, VecDeque};

use model::Random;
use serde_json::{Value, json};

use super::dice::Dice;
use crate::{Http, TestUser, register_anyone, register_guest};

/// How many values are remembered of each kind.
const REMEMBERED_MAX: usize = 12;

/// The users and their things.
pub(super) struct World {
    pub(super) user: TestUser,
    pub(super) other: TestUser,
    pub(super) guest: Option<TestUser>,
    known: BTreeMap<&'static str, VecDeque<String>>,
}

impl World {
    pub(super) async fn new(http: &Http) -> Self {
        let user = register_anyone(http).await;
        let other = register_anyone(http).await;
        let mut world = Self { user, other, guest: None, known: BTreeMap::new() };
        world.refresh(http).await;
        world
    }

    /// Replaces users whose token is dead, and gives them a new room to spoil. The server must be well for this to succeed.
    pub(super) async fn refresh(&mut self, http: &Http) {
        let versions = http.request("GET", "/_matrix/client/versions", None, &Value::Null).await.ok();
        assert!(versions["versions"].is_array(), "the server lost its versions: {versions}");
        if !self.user.get("/account/whoami").await.status.is_success() {
            self.user = register_anyone(http).await;
        }
        if !self.other.get("/account/whoami").await.status.is_success() {
            self.other = register_anyone(http).await;
        }
        let guest_lives = match &self.guest {
            Some(guest) => guest.get("/account/whoami").await.status.is_success(),
            None => false,
        };
        if !guest_lives {
            self.guest = Some(register_guest(http).await);
        }
        let alias = Random::system().alphanumeric(12);
        let body = json!({
            "preset": "public_chat", "room_alias_name": alias,
            "initial_state": [{ "type": "m.room.guest_access", "content": { "guest_access": "can_join" } }],
        });
        let answer = self.user.post("/createRoom", &body).await;
        if answer.status.is_success() {
            let room = answer.json()["room_id"].as_str().unwrap_or_default().to_owned();
            let event = self.user.send_text(&room, "hello").await;
            self.other.join(&room).await;
            self.remember("room", &room);
            self.remember("event", &event);
            self.remember("alias", &format!("#{alias}:{}", self.server_name()));
        }
        for user in [&self.user, &self.other] {
            let (id, device) = (user.id().to_owned(), user.device_id().to_owned());
            remember(&mut self.known, "user", &id);
            remember(&mut self.known, "device", &device);
        }
    }

    /// The server's name.
    pub(super) fn server_name(&self) -> &str {
        self.user.id().split_once(':').map_or("localhost", |(_, name)| name)
    }

    /// Keeps what an answer names, for later requests.
    pub(super) fn learn(&mut self, answer: &Value) {
        let Some(object) = answer.as_object() else { return };
        for (key, value) in object {
            let kind = match key.as_str() {
                "room_id" => "room",
                "event_id" => "event",
                "device_id" => "device",
                "filter_id" => "filter",
                "next_batch" | "prev_batch" | "start" | "end" => "stream",
                "session" => "session",
                "refresh_token" => "refresh",
                "login_token" => "login",
                "version" => "version",
                _ => continue,
            };
            if let Some(text) = value.as_str() {
                self.remember(kind, text);
            }
        }
    }

    /// Something of this kind that exists, or did.
    pub(super) fn known(&self, kind: &str, dice: &mut Dice) -> Option<&str> {
        let values = self.known.get(kind)?;
        values.get(dice.below(values.len())).map(String::as_str)
    }

    fn remember(&mut self, kind: &'static str, value: &str) {
        remember(&mut self.known, kind, value);
    }
}

fn remember(known: &mut BTreeMap<&'static str, VecDeque<String>>, kind: &'static str, value: &str) {
    let values = known.entry(kind).or_default();
    if value.is_empty() || values.iter().any(|old| old == value) {
        return;
    }
    if values.len() == REMEMBERED_MAX {
        values.pop_front();
    }
    values.push_back(value.to_owned());
}
