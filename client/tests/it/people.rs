//! People with clients of ours.

use std::{path::PathBuf, sync::Arc, time::Duration};

use client::{Client, Event, Login, NewRoom, RoomEvent, Store, StoreKey};
use ruma::{EventId, OwnedRoomId, RoomId};
use serde_json::Value;
use test_kit::{TestServer, TestUser, encode};

/// How long anything may take.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Somebody with a client.
pub(crate) struct Person {
    pub(crate) client: Client,
    /// The same user by plain requests.
    pub(crate) user: TestUser,
    events: tokio::sync::Mutex<(client::Events, Vec<RoomEvent>)>,
    folder: Arc<tempfile::TempDir>,
    file: PathBuf,
}

pub(crate) fn key() -> StoreKey {
    StoreKey::raw([42; 32])
}

impl Person {
    /// Registers `name` and logs in.
    pub(crate) async fn new(server: &TestServer, name: &str) -> Self {
        Self::of(server.user(name).await).await
    }

    /// Logs in as a user.
    pub(crate) async fn of(user: TestUser) -> Self {
        let homeserver = user.http().base().to_owned();
        Self::by_way_of(&homeserver, user).await
    }

    /// Logs in as a user at a server's other address.
    pub(crate) async fn by_way_of(address: &str, user: TestUser) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let file = folder.path().join("store");
        let store = Store::open(&file, &key()).await.unwrap();
        let homeserver = address.parse().unwrap();
        let password = format!("{}'s password", user.localpart());
        let login = Login {
            homeserver: &homeserver,
            user: user.localpart(),
            password: &password,
            device_name: "a test's device",
        };
        let client = Client::login(store, login).await.unwrap();
        // What was said before is history; what is said from now on is heard.
        client.sync_once(Duration::ZERO).await.unwrap();
        Self::with(client, user, folder, file)
    }

    fn with(client: Client, user: TestUser, folder: Arc<tempfile::TempDir>, file: PathBuf) -> Self {
        let events = tokio::sync::Mutex::new((client.events(), Vec::new()));
        Self { client, user, events, folder, file }
    }

    /// The same user on another device.
    pub(crate) async fn another_device(&self) -> Self {
        Self::of(self.user.clone()).await
    }

    /// The program ends and starts again.
    pub(crate) async fn restarted(self) -> Self {
        self.client.close().await;
        let client = Client::restore(Store::open(&self.file, &key()).await.unwrap()).await.unwrap();
        Self::with(client, self.user, self.folder, self.file)
    }

    /// The program is killed, and starts again: what it was at is dropped.
    pub(crate) async fn killed(self) -> Self {
        let Self { client, user, events, folder, file } = self;
        drop((client, events));
        let client = Client::restore(Store::open(&file, &key()).await.unwrap()).await.unwrap();
        Self::with(client, user, folder, file)
    }

    /// Syncs once without waiting.
    pub(crate) async fn sync(&self) {
        self.client.sync_once(Duration::ZERO).await.unwrap();
    }

    /// Syncs until an event comes.
    pub(crate) async fn hears(&self, event_id: &EventId) -> RoomEvent {
        let mut events = self.events.lock().await;
        let (stream, heard) = &mut *events;
        let wait = async {
            loop {
                if let Some(event) = heard.iter().find(|event| event.event_id == event_id) {
                    return event.clone();
                }
                tokio::select! {
                    biased;
                    event = stream.next() => match event.expect("the client is there") {
                        Event::Room(event) | Event::Late(event) => heard.push(event),
                        _ => {}
                    },
                    synced = self.client.sync_once(Duration::from_secs(1)) => synced.unwrap(),
                }
            }
        };
        tokio::time::timeout(WAIT_MAX, wait).await.expect("the event comes")
    }

    /// An encrypted room with these members.
    pub(crate) async fn room_with(&self, others: &[&Self], new: NewRoom) -> OwnedRoomId {
        let invite = others.iter().map(|other| other.client.user_id().to_owned()).collect();
        let room = self.client.create_room(NewRoom { invite, ..new }).await.unwrap();
        for other in others {
            other.sync().await;
            other.client.join(room.clone().into()).await.unwrap();
        }
        self.sync().await;
        room
    }

    /// An event as the server has it.
    pub(crate) async fn raw_event(&self, room: &RoomId, event_id: &EventId) -> Value {
        let path = format!("/rooms/{}/event/{}", encode(room.as_str()), encode(event_id.as_str()));
        self.user.get(&path).await.ok()
    }

    /// The session by which an event was encrypted.
    pub(crate) async fn session_of(&self, room: &RoomId, event_id: &EventId) -> String {
        self.raw_event(room, event_id).await["content"]["session_id"].as_str().expect("an encrypted event").to_owned()
    }
}

/// An encrypted room with these members.
pub(crate) async fn encrypted_room(owner: &Person, others: &[&Person]) -> OwnedRoomId {
    owner.room_with(others, NewRoom::default()).await
}

/// The texts of a room, oldest first, as far as they can be read.
pub(crate) async fn texts(person: &Person, room: &RoomId) -> Vec<String> {
    let events = person.client.history(room, None, None).await.unwrap().events;
    events.iter().rev().filter_map(|event| event.body().map(str::to_owned)).collect()
}
