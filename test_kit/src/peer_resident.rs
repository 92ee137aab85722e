//! A [`Peer`] that serves a room of its own to whoever joins: whole or without its members, and its state by ids and event by event.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use ruma::OwnedServerName;
use serde_json::{Value, json};

use crate::{Asked, Peer, PeerEvent, PeerRoom, http::decode};

/// What it serves, made ready once: a room may have tens of thousands of events.
struct Resident {
    name: OwnedServerName,
    room: PeerRoom,
    /// All events that it knows, by id.
    events: HashMap<String, Value>,
    joined: Bytes,
    joined_without_members: Bytes,
    state: Bytes,
    state_ids: Bytes,
}

impl Peer {
    /// From now on it lets everybody into a room as it is now, takes their events, and serves all that a server asks that joins; `before`
    /// are events of the room that are not part of its state.
    ///
    /// Server-Server API, "Joining Rooms" (with `omit_members`), "Retrieving event authorization information", "Retrieving events".
    pub fn serve_room(&self, room: &PeerRoom, before: &[PeerEvent]) {
        let resident = Resident::of(self, room, before);
        self.respond_ready("", move |asked| resident.answer(asked));
    }
}

impl Resident {
    fn of(peer: &Peer, room: &PeerRoom, before: &[PeerEvent]) -> Self {
        let events = room.state.values().chain(before).map(|event| (event.id.clone(), event.json.clone())).collect();
        let mut resident = Self {
            name: peer.name().clone(),
            room: room.clone(),
            events,
            joined: Bytes::new(),
            joined_without_members: Bytes::new(),
            state: Bytes::new(),
            state_ids: Bytes::new(),
        };
        let is_member = |event: &&PeerEvent| event.json["type"] == "m.room.member";
        let state: Vec<&PeerEvent> = room.state.values().collect();
        let without_members: Vec<&PeerEvent> = state.iter().copied().filter(|event| !is_member(event)).collect();
        let list = |events: &[&PeerEvent]| events.iter().map(|event| event.json.clone()).collect::<Vec<_>>();
        let ids = |events: &[&PeerEvent]| events.iter().map(|event| event.id.clone()).collect::<Vec<_>>();
        let chain = resident.auth_chain(&ids(&state));
        let whole: Vec<&Value> = chain.iter().map(|id| &resident.events[id]).collect();
        let told: HashSet<String> = ids(&without_members).into_iter().collect();
        let least = resident.auth_chain(&ids(&without_members));
        let least: Vec<&Value> = least.iter().filter(|id| !told.contains(*id)).map(|id| &resident.events[id]).collect();
        let ready = |value: Value| Bytes::from(value.to_string());
        let joined = ready(json!({"origin": peer.name(), "state": list(&state), "auth_chain": whole}));
        let joined_without_members = ready(json!({
            "origin": peer.name(), "state": list(&without_members), "auth_chain": least, "members_omitted": true,
            "servers_in_room": [peer.name()],
        }));
        let by_ids = ready(json!({"pdu_ids": ids(&state), "auth_chain_ids": chain}));
        let state = ready(json!({"pdus": list(&state), "auth_chain": whole}));
        (resident.joined, resident.joined_without_members) = (joined, joined_without_members);
        (resident.state, resident.state_ids) = (state, by_ids);
        resident
    }

    /// The events that these rest upon, whether they are among them or not.
    fn auth_chain(&self, ids: &[String]) -> Vec<String> {
        let mut found = HashSet::new();
        let mut next: Vec<&str> = ids.iter().map(String::as_str).collect();
        while let Some(id) = next.pop() {
            for auth in self.events.get(id).and_then(|event| event["auth_events"].as_array()).into_iter().flatten() {
                // With their hashes in the first two versions.
                let Some(auth) = auth.as_str().or_else(|| auth[0].as_str()) else { continue };
                if found.insert(auth.to_owned()) {
                    next.push(auth);
                }
            }
        }
        found.into_iter().collect()
    }

    fn answer(&self, asked: &Asked) -> Option<(u16, Bytes)> {
        let (method, path) = asked.what.split_once(" /_matrix/federation/")?;
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let parts: Vec<String> = path.split('/').map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let argument =
            |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).map(decode);
        let ready = |value: Value| Some((200, Bytes::from(value.to_string())));
        let unknown = || Some((404, Bytes::from_static(br#"{"errcode": "M_NOT_FOUND", "error": "not known"}"#)));
        let in_room = |room: &str| room == self.room.id;
        match (method, parts.as_slice()) {
            ("GET", ["v1", "make_join", room, user]) if in_room(room) => ready(self.room.join_template(user)),
            ("PUT", ["v2", "send_join", room, _]) if in_room(room) => {
                let omits = argument("omit_members").as_deref() == Some("true");
                Some((200, if omits { self.joined_without_members.clone() } else { self.joined.clone() }))
            }
            ("GET", ["v1", kind @ ("state" | "state_ids"), room]) if in_room(room) => {
                // It has one state, which is that before the newest events and before whatever comes after them.
                let id = argument("event_id")?;
                if self.events.contains_key(&id) && !self.room.tips.contains(&id) {
                    return unknown();
                }
                Some((200, if *kind == "state" { self.state.clone() } else { self.state_ids.clone() }))
            }
            ("GET", ["v1", "event", id]) => match self.events.get(*id) {
                Some(event) => ready(json!({"origin": self.name, "origin_server_ts": 1, "pdus": [event]})),
                None => unknown(),
            },
            ("GET", ["v1", "event_auth", room, id]) if in_room(room) => {
                let chain = self.auth_chain(&[(*id).to_owned()]);
                ready(json!({"auth_chain": chain.iter().map(|id| &self.events[id]).collect::<Vec<_>>()}))
            }
            ("GET", ["v1", "backfill", room]) if in_room(room) => {
                let newest = self.room.tips.iter().filter_map(|id| self.events.get(id));
                ready(json!({"origin": self.name, "origin_server_ts": 1, "pdus": newest.collect::<Vec<_>>()}))
            }
            ("POST", ["v1", "get_missing_events", room]) if in_room(room) => ready(json!({"events": []})),
            ("PUT", ["v1", "send", _]) => ready(json!({"pdus": {}})),
            _ => None,
        }
    }
}
