//! A deployment without doors: the database and the rooms in it.

use std::sync::Arc;

use accounts::Requester;
use model::{Clock, KeyPair, LocalServer, LocalServers, Membership, Random};
use rooms::{Error, MemberKinds, NewRoomRequest, Options, PageRequest, Preset, Rooms};
use ruma::{OwnedRoomId, RoomId, RoomVersionId, UserId, events::TimelineEventType, server_name};
use serde_json::{Value, json, value::RawValue, value::to_raw_value};
use storage::{Storage, StoredEvent, TimelineDirection, testing::TestDatabase};

pub(crate) struct House {
    pub(crate) storage: Storage,
    pub(crate) rooms: Rooms,
}

impl House {
    pub(crate) async fn open(database: &TestDatabase) -> Self {
        Self::open_at(database, Clock::system()).await
    }

    pub(crate) async fn open_at(database: &TestDatabase, clock: Clock) -> Self {
        let storage = Storage::open(database.options.clone(), clock, Random::system()).await.unwrap();
        let names = [server_name!("hs"), server_name!("two")];
        let server = |name: &ruma::ServerName| {
            let key = KeyPair::generate(&Random::seeded(1));
            LocalServer::new(name.to_owned(), key)
        };
        let servers = LocalServers::new(names.map(server).into());
        let options = Options { default_version: RoomVersionId::V12, ..Default::default() };
        Self { rooms: Rooms::new(storage.clone(), servers, options), storage }
    }

    pub(crate) async fn user(&self, name: &str) -> Requester {
        self.user_of(name, "hs").await
    }

    pub(crate) async fn user_of(&self, name: &str, server: &str) -> Requester {
        let user_id = UserId::parse(format!("@{name}:{server}")).unwrap();
        Requester {
            user_nr: self.storage.user_nr(&user_id).await.unwrap(),
            user_id,
            device_id: Some("D".into()),
            is_guest: false,
            is_admin: false,
            app_service: None,
        }
    }

    pub(crate) async fn say(
        &self,
        who: &Requester,
        room: &RoomId,
        txn: &str,
        body: &str,
    ) -> Result<ruma::OwnedEventId, Error> {
        let content = to_raw_value(&json!({"msgtype": "m.text", "body": body})).unwrap();
        self.rooms.send_message(who, room, TimelineEventType::RoomMessage, txn.into(), &content, None).await
    }

    pub(crate) async fn set(
        &self,
        who: &Requester,
        room: &RoomId,
        event_type: &str,
        key: &str,
        content: Value,
    ) -> Result<(), Error> {
        let content = to_raw_value(&content).unwrap();
        self.rooms.send_state(who, room, event_type.into(), key, &content, None).await.map(|_| ())
    }

    pub(crate) async fn upgrade(
        &self,
        who: &Requester,
        room: &RoomId,
        version: RoomVersionId,
    ) -> Result<OwnedRoomId, Error> {
        let servers = self.rooms.servers().clone();
        let accounts = accounts::Accounts::new(self.storage.clone(), servers, Default::default());
        self.rooms.upgrade(&accounts, who, room, version, Vec::new()).await
    }

    /// The event that a room has for a type and a state key.
    pub(crate) async fn state(&self, who: &Requester, room: &RoomId, event_type: &str, key: &str) -> Arc<StoredEvent> {
        self.rooms.state_event(who, room, event_type, key).await.unwrap().1
    }

    pub(crate) async fn members_who_are(&self, who: &Requester, room: &RoomId, membership: Membership) -> Vec<Value> {
        let kinds = MemberKinds { only: Some(membership), but: None };
        let list = self.rooms.members(who, room, None, kinds).await.unwrap();
        let mut members = Vec::new();
        for piece in list.pieces() {
            let json = String::from_utf8(list.events(piece).await.unwrap()).unwrap();
            members.extend(serde_json::from_str::<Vec<Value>>(&format!("[{}]", json.trim_end_matches(','))).unwrap());
        }
        members
    }

    pub(crate) async fn bodies(&self, who: &Requester, room: &RoomId) -> Vec<String> {
        let page = self.rooms.messages(who, room, page(TimelineDirection::Forward, 500), |_| true).await.unwrap();
        page.events
            .iter()
            .filter_map(|event| {
                let content: serde_json::Value = serde_json::from_str(event.pdu.content.get()).ok()?;
                content["body"].as_str().map(str::to_owned)
            })
            .collect()
    }
}

pub(crate) fn room(preset: Preset) -> NewRoomRequest {
    NewRoomRequest { name: Some("Room".to_owned()), ..NewRoomRequest::new(preset) }
}

pub(crate) fn page(direction: TimelineDirection, limit: u32) -> PageRequest<'static> {
    PageRequest { direction, from: None, to: None, limit }
}

pub(crate) fn initial(event_type: &str, content: Value) -> (String, String, Box<RawValue>) {
    (event_type.to_owned(), String::new(), to_raw_value(&content).unwrap())
}

pub(crate) fn content(event: &StoredEvent) -> Value {
    serde_json::from_str(event.pdu.content.get()).unwrap()
}

/// Only the one who made the room may invite.
pub(crate) fn power(maker: &Requester, version: u32) -> Value {
    match version {
        12 => json!({"invite": 100, "users": {}, "events": {"m.room.tombstone": 150}}),
        _ => json!({"invite": 100, "users": {maker.user_id.as_str(): 100}}),
    }
}
