//! One of the three servers: its database, its rooms and its people.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use accounts::Requester;
use model::{Clock, KeyPair, LocalServer, LocalServers, Pdu, Position, Random};
use rooms::{
    Error, NewRoomRequest, Options, Preset, Received, Rooms,
    testing::{self, KnownKeys},
};
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, ServerName, UserId,
    serde::{Base64, base64::Standard},
    signatures::PublicKeyMap,
};
use serde_json::{Value, json, value::to_raw_value};
use storage::Storage;

/// The servers. On each is `@anchor`, who stays and is above all others, and `@one` and `@two`, who do what comes to their minds.
pub(crate) const NAMES: [&str; 3] = ["a", "b", "c"];
pub(crate) const PEOPLE: [&str; 3] = ["anchor", "one", "two"];

/// When all begins, in milliseconds since 1970.
const BEGAN_MS: i64 = 1_700_000_000_000;

/// A database with a room of each version, which all three servers start with.
pub(crate) struct Template {
    folder: tempfile::TempDir,
    rooms: BTreeMap<u8, OwnedRoomId>,
    /// With what all events are verified.
    keys: PublicKeyMap,
}

impl Template {
    /// Made by one deployment with the names of all three, so that everybody can be in the rooms.
    pub(crate) async fn new() -> Self {
        let folder = folder();
        let (random, clock) = (Random::seeded(0), Clock::manual(BEGAN_MS));
        let storage = open(folder.path(), clock.clone(), random).await;
        let servers = LocalServers::new(NAMES.map(local_server).into());
        let rooms = Rooms::new(storage.clone(), servers, Options::default());
        let mut keys = PublicKeyMap::new();
        for name in NAMES {
            let key = key_of(name);
            let public = Base64::<Standard>::parse(key.public_key()).unwrap();
            keys.entry(name.to_owned()).or_default().insert(key.id().to_string(), public);
        }
        let mut made = BTreeMap::new();
        for number in 1..=12 {
            let version = RoomVersionId::try_from(number.to_string()).unwrap();
            let anchors = NAMES.map(|name| id_of(PEOPLE[0], name));
            let has_creators = version.rules().unwrap().authorization.explicitly_privilege_room_creators;
            let mut users: BTreeMap<&OwnedUserId, u8> =
                anchors.iter().skip(usize::from(has_creators)).map(|id| (id, 100)).collect();
            let people = NAMES.map(|name| id_of(PEOPLE[1], name));
            users.extend(people.iter().map(|id| (id, 50)));
            let levels = json!({"users": users, "events": {"m.room.topic": 25}, "invite": 0});
            let request = NewRoomRequest {
                version: Some(version),
                power_level_content_override: Some(to_raw_value(&levels).unwrap()),
                ..NewRoomRequest::new(Preset::PublicChat)
            };
            let room = rooms.create_room(&requester(&storage, PEOPLE[0], NAMES[0]).await, request).await.unwrap();
            for (person, name) in [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
                clock.advance_ms(10);
                rooms.join(&requester(&storage, PEOPLE[person], NAMES[name]).await, &room, None).await.unwrap();
            }
            made.insert(number, room);
        }
        storage.close().await;
        Self { folder, rooms: made, keys }
    }
}

/// A server with its own copy of the database.
pub(crate) struct World {
    pub(crate) name: &'static str,
    pub(crate) room: OwnedRoomId,
    pub(crate) rooms: Rooms,
    pub(crate) clock: Clock,
    pub(crate) people: Vec<Requester>,
    pub(crate) storage: Storage,
    /// Up to where its own events were told to the others.
    told: Position,
    _folder: tempfile::TempDir,
}

impl World {
    /// Its clock is not quite that of the others.
    pub(crate) async fn start(template: &Template, index: usize, version: u8, seed: u64) -> Self {
        let folder = folder();
        for file in std::fs::read_dir(template.folder.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        let clock = Clock::manual(BEGAN_MS + 10_000 + i64::try_from(index).unwrap() * 700);
        let random = Random::seeded(seed * 3 + index as u64);
        let storage = open(folder.path(), clock.clone(), random).await;
        let name = NAMES[index];
        let servers = LocalServers::new(vec![local_server(name)]);
        let others = Arc::new(KnownKeys(template.keys.clone()));
        let rooms = Rooms::federating(storage.clone(), servers, Options::default(), others);
        let mut people = Vec::new();
        for person in PEOPLE {
            people.push(requester(&storage, person, name).await);
        }
        let told = storage.published();
        Self { name, room: template.rooms[&version].clone(), rooms, clock, people, storage, told, _folder: folder }
    }

    /// Takes in an event of another server.
    pub(crate) async fn receive(&self, pdu: &Pdu) -> Result<Received, Error> {
        testing::receive(&self.rooms, serde_json::from_str(&pdu.json).unwrap()).await
    }

    /// Its own events that nobody was told of yet.
    pub(crate) async fn news(&mut self) -> Vec<Arc<Pdu>> {
        let upto = self.storage.published();
        let numbers = self.storage.list_events_after(self.told, upto, 1_000).await.unwrap();
        self.told = upto;
        let events = self.storage.get_events(&numbers).await.unwrap();
        let pdus = numbers.iter().map(|nr| events[nr].pdu.clone());
        pdus.filter(|pdu| pdu.sender.server_name().as_str() == self.name && pdu.room_id == self.room).collect()
    }

    /// An event that it has.
    pub(crate) async fn pdu(&self, event_id: &EventId) -> Option<Arc<Pdu>> {
        Some(self.storage.find_event(event_id).await.unwrap()?.pdu.clone())
    }

    /// The events that no event follows.
    pub(crate) async fn extremities(&self) -> Vec<Arc<Pdu>> {
        let room = self.rooms.room(&self.room).await.unwrap();
        let head = self.storage.get_head(room.nr).await.unwrap().unwrap();
        let events = self.storage.get_events(&head.extremities).await.unwrap();
        head.extremities.iter().map(|nr| events[nr].pdu.clone()).collect()
    }

    /// The room's current state: by type and state key the event.
    pub(crate) async fn state(&self) -> BTreeMap<(String, String), OwnedEventId> {
        let room = self.rooms.room(&self.room).await.unwrap();
        let head = self.storage.get_head(room.nr).await.unwrap().unwrap();
        let state = self.storage.list_state(room.nr, head.state).await.unwrap();
        let numbers: Vec<_> = state.iter().map(|(_, nr)| *nr).collect();
        let events: HashMap<_, _> = self.storage.get_events(&numbers).await.unwrap();
        let by_words = events.values().map(|event| {
            let pdu = &event.pdu;
            ((pdu.event_type.to_string(), pdu.state_key.clone().unwrap()), pdu.event_id.clone())
        });
        let by_words: BTreeMap<_, _> = by_words.collect();
        assert_eq!(by_words.len(), state.len(), "a state has one event for each key");
        by_words
    }

    /// Checks what is kept of the members against the state.
    pub(crate) async fn check_members(&self) {
        let room = self.rooms.room(&self.room).await.unwrap();
        let state = self.state().await;
        for server in NAMES {
            for person in PEOPLE {
                let user_id = id_of(person, server);
                let nr = self.storage.user_nr(&user_id).await.unwrap();
                let kept = self.storage.get_membership(room.nr, nr).await.unwrap();
                let kept = kept.map(|row| row.membership.as_str());
                let event = match state.get(&("m.room.member".to_owned(), user_id.to_string())) {
                    Some(event_id) => self.pdu(event_id).await,
                    None => None,
                };
                let said =
                    event.map(|pdu| serde_json::from_str::<Value>(pdu.content.get()).unwrap()["membership"].clone());
                let said = said.and_then(|said| said.as_str().map(str::to_owned));
                // Whose key is gone from the state is kept as one who left.
                let said = said.or(kept.is_some().then(|| "leave".to_owned()));
                assert_eq!(kept, said.as_deref(), "what {} keeps of {user_id}", self.name);
            }
        }
    }

    /// Which of these it does not have.
    pub(crate) async fn lacks(&self, all: &HashSet<OwnedEventId>) -> Vec<OwnedEventId> {
        let all: Vec<OwnedEventId> = all.iter().cloned().collect();
        let found = self.storage.find_event_nrs(&all).await.unwrap();
        all.into_iter().filter(|id| !found.contains_key(id)).collect()
    }
}

pub(crate) fn id_of(person: &str, server: &str) -> OwnedUserId {
    UserId::parse(format!("@{person}:{server}")).unwrap()
}

fn key_of(name: &str) -> KeyPair {
    KeyPair::generate(&Random::seeded(u64::from(name.as_bytes()[0])))
}

fn local_server(name: &str) -> LocalServer {
    LocalServer::new(<&ServerName>::try_from(name).unwrap().to_owned(), key_of(name))
}

/// In memory where there is such a folder: nothing of it is kept.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

async fn open(folder: &Path, clock: Clock, random: Random) -> Storage {
    let options = storage::Options::Sqlite { path: folder.join("simulation.db"), read_connections: 1 };
    Storage::open(options, clock, random).await.unwrap()
}

async fn requester(storage: &Storage, person: &str, server: &str) -> Requester {
    let user_id = id_of(person, server);
    Requester {
        user_nr: storage.user_nr(&user_id).await.unwrap(),
        user_id,
        device_id: Some("D".into()),
        is_guest: false,
        is_admin: false,
        app_service: None,
    }
}
