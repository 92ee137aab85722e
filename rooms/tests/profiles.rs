//! Names and pictures in member events, on both databases. Client-Server API, "Events on Change of Profile Information".

use std::{sync::Arc, time::Duration};

use accounts::Requester;
use model::{Clock, KeyPair, LocalServer, LocalServers, Position, Random};
use rooms::{NewRoomRequest, Options, PageRequest, Preset, Rooms};
use ruma::{OwnedRoomId, RoomId, RoomVersionId, UserId, events::TimelineEventType, server_name};
use serde_json::{Value, json};
use storage::{ChangedProfile, Commit, Item, NewUser, Storage, TimelineDirection, testing::TestDatabase};

/// Longest that anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

struct House {
    storage: Storage,
    rooms: Rooms,
}

impl House {
    async fn open(database: &TestDatabase) -> Self {
        Self::open_at(database, Clock::system()).await
    }

    async fn open_at(database: &TestDatabase, clock: Clock) -> Self {
        let storage = Storage::open(database.options.clone(), clock, Random::system()).await.unwrap();
        let key = KeyPair::generate(&Random::seeded(1));
        let servers = LocalServers::new(vec![LocalServer::new(server_name!("hs").to_owned(), key)]);
        let options = Options { default_version: RoomVersionId::V11, ..Options::default() };
        Self { rooms: Rooms::new(storage.clone(), servers, options), storage }
    }

    async fn user(&self, name: &str) -> Requester {
        let user_id = UserId::parse(format!("@{name}:hs")).unwrap();
        self.storage.insert_user(&user_id, NewUser::default()).await.unwrap();
        Requester {
            user_nr: self.storage.user_nr(&user_id).await.unwrap(),
            user_id,
            device_id: Some("D".into()),
            is_guest: false,
            is_admin: false,
            app_service: None,
        }
    }

    async fn room(&self, maker: &Requester, invite: &[&Requester]) -> OwnedRoomId {
        let request = NewRoomRequest {
            version: None,
            preset: Preset::PublicChat,
            listed: false,
            alias: None,
            name: None,
            topic: None,
            invite: invite.iter().map(|requester| requester.user_id.clone()).collect(),
            is_direct: false,
            creation_content: None,
            initial_state: Vec::new(),
            power_level_content_override: None,
        };
        self.rooms.create_room(maker, request).await.unwrap()
    }

    async fn rooms(&self, maker: &Requester, count: usize) -> Vec<OwnedRoomId> {
        let mut rooms = Vec::with_capacity(count);
        for _ in 0..count {
            rooms.push(self.room(maker, &[]).await);
        }
        rooms
    }

    /// Changes a name, and tells of it; gives where in the stream.
    async fn rename(&self, who: &Requester, name: &str) -> Position {
        let name = json!(name).to_string();
        self.storage.upsert_profile_field(who.user_nr, "displayname", &name, 1_000).await.unwrap();
        let profiles = vec![ChangedProfile { user_nr: who.user_nr, is_in_rooms: true }];
        self.storage.commit(Commit { profiles, ..Commit::default() }).await.unwrap().position
    }

    /// The content of somebody's member event.
    async fn member(&self, room: &RoomId, who: &Requester, reader: &Requester) -> Value {
        let event = self.rooms.state_event(reader, room, "m.room.member", who.user_id.as_str()).await.unwrap().1;
        serde_json::from_str(event.pdu.content.get()).unwrap()
    }

    /// How often rooms show a name, in all of their history: never twice.
    async fn count(&self, rooms: &[OwnedRoomId], reader: &Requester, name: &str) -> usize {
        let mut count = 0;
        for room in rooms {
            let page = PageRequest { from: None, to: None, direction: TimelineDirection::Forward, limit: 500 };
            let page = self.rooms.messages(reader, room, page, |_| true).await.unwrap();
            let members = page.events.iter().filter(|event| event.pdu.event_type == TimelineEventType::RoomMember);
            let named = members.filter(|event| event.pdu.content.get().contains(name)).count();
            assert!(named <= 1, "the name is there twice");
            count += named;
        }
        count
    }

    /// Up to where all rooms have followed.
    async fn followed(&self) -> Position {
        self.storage.get_consumer("profiles").await.unwrap()
    }

    /// Follows changes of profiles until something is done.
    async fn follow_until<T>(&self, done: impl Future<Output = T>) -> T {
        tokio::select! {
            () = self.rooms.follow_profiles(std::future::pending()) => panic!("it ended"),
            done = tokio::time::timeout(PATIENCE, done) => done.expect("it is done in time"),
        }
    }

    async fn follow_to(&self, position: Position) {
        self.follow_until(self.wait_for(position)).await;
    }

    /// Until no change waits any more, also of those that a room causes which was made meanwhile.
    async fn wait_for_all(&self) {
        while !self.storage.list_profile_changes(Position(0), Position(i64::MAX), 1).await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    async fn wait_for(&self, position: Position) {
        while self.followed().await < position {
            tokio::task::yield_now().await;
        }
    }
}

/// Member events show the profile from the start, and a change reaches the rooms that the user is in, and only those.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_events_follow_the_profile() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob) = (house.user("alice").await, house.user("bob").await);
        house.rename(&alice, "Alice").await;
        house.rename(&bob, "Bob").await;
        let (id, left) = (house.room(&alice, &[&bob]).await, house.room(&alice, &[]).await);
        assert_eq!(house.member(&id, &alice, &alice).await, json!({"membership": "join", "displayname": "Alice"}));
        assert_eq!(house.member(&id, &bob, &alice).await, json!({"membership": "invite", "displayname": "Bob"}));
        house.rooms.join(&bob, &id, None).await.unwrap();
        assert_eq!(house.member(&id, &bob, &alice).await, json!({"membership": "join", "displayname": "Bob"}));
        house.rooms.join(&bob, &left, None).await.unwrap();
        house.rooms.leave(&bob, &left, None).await.unwrap();
        let renamed = house.rename(&bob, "Robert").await;
        house.follow_to(renamed).await;
        assert_eq!(house.member(&id, &bob, &alice).await, json!({"membership": "join", "displayname": "Robert"}));
        assert_eq!(house.member(&left, &bob, &alice).await, json!({"membership": "leave"}));
        // Whoever follows hears of the next one by itself.
        let rooms = house.rooms.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let following = tokio::spawn(async move { rooms.follow_profiles(async { drop(stopped.await) }).await });
        let renamed = house.rename(&bob, "Rob").await;
        tokio::time::timeout(PATIENCE, house.wait_for(renamed)).await.unwrap();
        assert_eq!(house.member(&id, &bob, &alice).await["displayname"], "Rob");
        stop.send(()).unwrap();
        following.await.unwrap();
        house.storage.close().await;
    }
}

/// A process that dies in the midst of it leaves the rest to the next one, and what it had done is not done again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_reaches_all_rooms_though_the_process_dies_on_the_way() {
    const ROOMS: usize = 100;
    for database in TestDatabase::each().await {
        let clock = Clock::manual(1_700_000_000_000);
        let dying = House::open_at(&database, clock.clone()).await;
        let alice = dying.user("alice").await;
        let rooms = dying.rooms(&alice, ROOMS).await;
        dying.rename(&alice, "Alicia").await;
        // It dies after some rooms: what runs is dropped, nothing is said to anybody.
        let mut stream = dying.storage.subscribe();
        let is_event = |(_, item): &(Position, Item)| matches!(item, Item::Event(_));
        let first = async { while !stream.recv().await.unwrap().items.iter().any(is_event) {} };
        dying.follow_until(first).await;
        dying.storage.close().await;
        let next = House::open_at(&database, clock.clone()).await;
        let done = next.count(&rooms, &alice, "Alicia").await;
        assert!((1..ROOMS).contains(&done), "it died neither before nor after the work: {done}");
        let follow = async |name: &str| {
            let all = async {
                while next.count(&rooms, &alice, name).await < ROOMS {
                    // The time of the dead one has to end first, where there may be several.
                    clock.advance_ms(1_000);
                    tokio::task::yield_now().await;
                }
            };
            next.follow_until(all).await;
        };
        follow("Alicia").await;
        next.rename(&alice, "Alix").await;
        follow("Alix").await;
        assert_eq!(next.count(&rooms, &alice, "Alicia").await, ROOMS, "nothing is done again");
        next.storage.close().await;
    }
}

/// Several processes follow, one of them works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_leaves_another_follows_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let (here, there) = (House::open(&database).await, House::open(&database).await);
    let alice = here.user("alice").await;
    let id = here.room(&alice, &[]).await;
    // Nobody follows here.
    let written = here.rename(&alice, "Alicia").await;
    there.follow_to(written).await;
    assert_eq!(here.member(&id, &alice, &alice).await["displayname"], "Alicia");
    let lease = here.storage.lease_consumer("profiles", 1_000).await.unwrap();
    assert_eq!(lease, Some(written), "the lease was given back");
    let lease = there.storage.lease_consumer("profiles", 1_000).await.unwrap();
    assert_eq!(lease, None, "and one process has it at a time");
}

/// However changes of a profile run into each other, in the end rooms show the profile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_show_the_last_of_several_profiles() {
    for database in TestDatabase::each().await {
        let house = Arc::new(House::open(&database).await);
        let alice = house.user("alice").await;
        let rooms = house.rooms(&alice, 5).await;
        let checked = async {
            for round in 0..30 {
                let changes = ["first", "second", "third"].map(|name| {
                    let (house, alice, name) = (house.clone(), alice.clone(), format!("{name} {round}"));
                    tokio::spawn(async move { house.rename(&alice, &name).await })
                });
                // Who comes in meanwhile shows it, too.
                let joined = house.room(&alice, &[]).await;
                for change in changes {
                    change.await.unwrap();
                }
                house.wait_for_all().await;
                let profile = house.storage.list_profiles(&[alice.user_nr]).await.unwrap();
                let name: Value = serde_json::from_str(&profile[0].2).unwrap();
                for (index, id) in rooms.iter().chain([&joined]).enumerate() {
                    let shown = house.member(id, &alice, &alice).await;
                    assert_eq!(shown["displayname"], name, "in round {round}, room {index}");
                }
            }
        };
        Box::pin(house.follow_until(checked)).await;
        house.storage.close().await;
    }
}

/// Who leaves, or is banned, while the name is on its way stays out: also where anybody may come in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_profile_brings_nobody_back() {
    const ROOMS: usize = 60;
    for database in TestDatabase::each().await {
        let house = Arc::new(House::open(&database).await);
        let (alice, bob) = (house.user("alice").await, house.user("bob").await);
        let rooms = house.rooms(&alice, ROOMS).await;
        for id in &rooms {
            house.rooms.join(&bob, id, None).await.unwrap();
        }
        let changed = house.rename(&bob, "Bobby").await;
        let going = async {
            // The last of them are reached last.
            for (index, id) in rooms.iter().enumerate().rev() {
                match index % 3 {
                    0 => house.rooms.leave(&bob, id, None).await.unwrap(),
                    1 => house.rooms.ban(&alice, id, &bob.user_id, None).await.unwrap(),
                    _ => {}
                }
            }
            house.wait_for(changed).await;
        };
        Box::pin(house.follow_until(going)).await;
        for (index, id) in rooms.iter().enumerate() {
            let expected = match index % 3 {
                0 => json!({"membership": "leave"}),
                1 => json!({"membership": "ban"}),
                _ => json!({"membership": "join", "displayname": "Bobby"}),
            };
            assert_eq!(house.member(id, &bob, &alice).await, expected, "in room {index}");
        }
        house.storage.close().await;
    }
}

/// Users take turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_behind_who_is_in_many_rooms() {
    const ROOMS: usize = 150;
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob) = (house.user("alice").await, house.user("bob").await);
        house.rooms(&alice, ROOMS).await;
        house.room(&bob, &[]).await;
        let mut stream = house.storage.subscribe();
        house.rename(&alice, "Alicia").await;
        let last = house.rename(&bob, "Bobby").await;
        house.follow_to(last).await;
        let mut senders = Vec::new();
        while let Ok(published) = stream.try_recv() {
            senders.extend(published.items.iter().filter_map(|(_, item)| match item {
                Item::Event(event) => Some(event.sender_nr),
                _ => None,
            }));
        }
        assert_eq!(senders.len(), ROOMS + 1);
        let place = senders.iter().position(|sender| *sender == bob.user_nr).expect("bob's room followed");
        assert!(place < ROOMS / 2, "{place} rooms of alice's came before bob's");
        house.storage.close().await;
    }
}
