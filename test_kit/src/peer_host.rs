//! Rooms that a [`Peer`] has made and is alone in: it lets users of the servers under test in, and tells them what the test wants.

use std::collections::HashMap;

use model::Clock;
use ruma::{RoomVersionId, UserId, state_res};
use serde_json::{Value, json, value::to_raw_value};

use crate::{Peer, PeerEvent, PeerRoom, peer_room::references};

impl Peer {
    /// A room of `user`, one of this peer's, open to all, with more state events: types, state keys and contents.
    ///
    /// # Panics
    ///
    /// When these are no events.
    #[must_use]
    pub fn make_room(&self, version: &RoomVersionId, user: &str, more: &[(&str, &str, Value)]) -> PeerRoom {
        let rules = version.rules().expect("a known version");
        let is_named_by_hash = rules.authorization.room_create_event_id_as_room_id;
        let mut id = format!("!{}:{}", model::Random::system().alphanumeric(12), self.name());
        let mut content = json!({"room_version": version});
        if !rules.authorization.use_room_create_sender {
            content["creator"] = json!(user);
        }
        let mut create = json!({
            "type": "m.room.create", "state_key": "", "sender": user, "content": content, "depth": 1, "prev_events": [],
            "auth_events": [], "origin_server_ts": Clock::system().now_ms(),
        });
        if !is_named_by_hash {
            create["room_id"] = json!(id);
        }
        let create = self.sign_event(version, create);
        if is_named_by_hash {
            id = create.id.replacen('$', "!", 1);
        }
        let mut room = PeerRoom {
            id,
            version: version.clone(),
            user: user.to_owned(),
            answer: Value::Null,
            state: HashMap::new(),
            tips: Vec::new(),
            depth: 0,
        };
        room.follow(&create);
        let mut levels = json!({"users": {}});
        if !rules.authorization.explicitly_privilege_room_creators {
            levels["users"][user] = json!(100);
        }
        let own = [
            ("m.room.member", user, json!({"membership": "join"})),
            ("m.room.power_levels", "", levels),
            ("m.room.join_rules", "", json!({"join_rule": "public"})),
        ];
        for (event_type, state_key, content) in own.into_iter().chain(more.iter().cloned()) {
            let event = room.event(self, event_type, Some(state_key), content);
            room.follow(&event);
        }
        room
    }

    /// Lets a user of another server into a room as it is now, and tells this state with this `auth_chain`.
    ///
    /// # Panics
    ///
    /// When the user has no user id.
    pub fn let_in(&self, room: &PeerRoom, user: &str, state: &[PeerEvent], auth_chain: &[PeerEvent]) {
        let made = room.join_template(user);
        self.answer(&format!("GET /_matrix/federation/v1/make_join/{}/{user}*", room.id), 200, &made);
        let list = |events: &[PeerEvent]| events.iter().map(|event| event.json.clone()).collect::<Vec<_>>();
        let told = json!({"origin": self.name(), "state": list(state), "auth_chain": list(auth_chain)});
        self.respond(&format!("PUT /_matrix/federation/v2/send_join/{}/", room.id), move |_| (200, told.clone()));
    }
}

impl PeerRoom {
    /// What `make_join` answers to a user of another server.
    ///
    /// # Panics
    ///
    /// When the user has no user id.
    #[must_use]
    pub fn join_template(&self, user: &str) -> Value {
        let rules = self.version.rules().expect("a known version");
        let user_id = <&UserId>::try_from(user).expect("a user id");
        let content = json!({"membership": "join"});
        let raw = to_raw_value(&content).expect("JSON");
        let types =
            state_res::auth_types_for_event(&"m.room.member".into(), user_id, Some(user), &raw, &rules.authorization);
        let keys = types.expect("a member event").into_iter();
        let auth: Vec<String> =
            keys.filter_map(|(kind, key)| Some(self.state.get(&(kind.to_string(), key))?.id.clone())).collect();
        let event = json!({
            "type": "m.room.member", "state_key": user, "sender": user, "room_id": self.id, "content": content,
            "depth": self.depth + 1, "prev_events": references(&rules, &self.tips), "auth_events": references(&rules, &auth),
        });
        json!({"room_version": self.version, "event": event})
    }

    /// The events of the room's state.
    #[must_use]
    pub fn state_events(&self) -> Vec<PeerEvent> {
        self.state.values().cloned().collect()
    }
}
