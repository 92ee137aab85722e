//! Rooms on both databases.

use std::sync::Arc;

use accounts::Requester;
use model::{Clock, KeyPair, LocalServer, LocalServers, Membership, Position, Random};
use rooms::{
    Error, HierarchyRequest, MemberKinds, NewRoomRequest, Options, PageRequest, Preset, ReceiptKind, ReceiptRequest,
    Rooms,
};
use ruma::{RoomId, RoomVersionId, UserId, events::TimelineEventType, server_name};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use storage::{Commit, NewReceipt, Storage, StoredEvent, TimelineDirection, testing::TestDatabase};

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
        let names = [server_name!("hs"), server_name!("two")];
        let server = |name: &ruma::ServerName| {
            let key = KeyPair::generate(&Random::seeded(1));
            LocalServer { name: name.to_owned(), key }
        };
        let servers = LocalServers::new(names.map(server).into());
        let options = Options { default_version: RoomVersionId::V12 };
        Self { rooms: Rooms::new(storage.clone(), servers, options), storage }
    }

    async fn user(&self, name: &str) -> Requester {
        self.user_of(name, "hs").await
    }

    async fn user_of(&self, name: &str, server: &str) -> Requester {
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

    async fn say(&self, who: &Requester, room: &RoomId, txn: &str, body: &str) -> Result<ruma::OwnedEventId, Error> {
        let content = to_raw_value(&json!({"msgtype": "m.text", "body": body})).unwrap();
        self.rooms.send_message(who, room, TimelineEventType::RoomMessage, txn.into(), &content, None).await
    }

    async fn set(
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

    /// The event that a room has for a type and a state key.
    async fn state(&self, who: &Requester, room: &RoomId, event_type: &str, key: &str) -> Arc<StoredEvent> {
        self.rooms.state_event(who, room, event_type, key).await.unwrap().1
    }

    async fn members_who_are(&self, who: &Requester, room: &RoomId, membership: Membership) -> Vec<Value> {
        let kinds = MemberKinds { only: Some(membership), but: None };
        let list = self.rooms.members(who, room, None, kinds).await.unwrap();
        let mut members = Vec::new();
        for piece in list.pieces() {
            let json = String::from_utf8(list.events(piece).await.unwrap()).unwrap();
            members.extend(serde_json::from_str::<Vec<Value>>(&format!("[{}]", json.trim_end_matches(','))).unwrap());
        }
        members
    }

    async fn bodies(&self, who: &Requester, room: &RoomId) -> Vec<String> {
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

fn room(preset: Preset) -> NewRoomRequest {
    NewRoomRequest {
        version: None,
        preset,
        listed: false,
        alias: None,
        name: Some("Room".to_owned()),
        topic: None,
        invite: Vec::new(),
        is_direct: false,
        creation_content: None,
        initial_state: Vec::new(),
        power_level_content_override: None,
    }
}

/// Versions 1 to 12 differ in ids, references, redactions and creators; people talk in all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_talk_in_rooms_of_every_version() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob) = (house.user("alice").await, house.user("bob").await);
        for version in 1..=12 {
            let version = RoomVersionId::try_from(version.to_string()).unwrap();
            let request = NewRoomRequest { version: Some(version), ..room(Preset::PrivateChat) };
            let id = house.rooms.create_room(&alice, request).await.unwrap();
            assert!(matches!(house.rooms.join(&bob, &id, None).await, Err(Error::NotAllowed(_))));
            house.rooms.invite(&alice, &id, &bob.user_id, None).await.unwrap();
            house.rooms.join(&bob, &id, None).await.unwrap();
            house.say(&alice, &id, "1", "hello").await.unwrap();
            let second = house.say(&bob, &id, "1", "hi").await.unwrap();
            assert_eq!(house.say(&bob, &id, "1", "hi").await.unwrap(), second, "the same transaction, the same event");
            assert_eq!(house.bodies(&bob, &id).await, ["hello", "hi"]);
            house.rooms.redact(&alice, &id, &second, "r".into(), Some("no")).await.unwrap();
            assert_eq!(house.bodies(&bob, &id).await, ["hello"]);
            house.rooms.ban(&alice, &id, &bob.user_id, None).await.unwrap();
            assert!(matches!(house.say(&bob, &id, "2", "still here").await, Err(Error::NotAllowed(_))));
            assert!(house.rooms.ban(&bob, &id, &alice.user_id, None).await.is_err());
        }
        house.storage.close().await;
    }
}

/// What was sent before a crash of the process is there after it, with the same head to build upon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_goes_on_after_a_restart() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let alice = house.user("alice").await;
        let id = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        house.say(&alice, &id, "1", "before").await.unwrap();
        drop(house);
        let house = House::open(&database).await;
        let alice = house.user("alice").await;
        house.say(&alice, &id, "2", "after").await.unwrap();
        assert_eq!(house.bodies(&alice, &id).await, ["before", "after"]);
    }
}

/// Many at once: each is answered with its own event, and each event is there once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_sends_and_nothing_is_lost_or_doubled() {
    for database in TestDatabase::each().await {
        let house = std::sync::Arc::new(House::open(&database).await);
        let alice = house.user("alice").await;
        let id = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        let sends = (0..200).map(|n| {
            let (house, alice, id) = (house.clone(), alice.clone(), id.clone());
            tokio::spawn(async move { house.say(&alice, &id, &n.to_string(), &n.to_string()).await.unwrap() })
        });
        let mut ids = std::collections::HashSet::new();
        for send in sends.collect::<Vec<_>>() {
            assert!(ids.insert(send.await.unwrap()));
        }
        let mut bodies: Vec<usize> = house.bodies(&alice, &id).await.iter().map(|body| body.parse().unwrap()).collect();
        bodies.sort_unstable();
        assert_eq!(bodies, (0..200).collect::<Vec<_>>());
    }
}

/// A room of version 12 is named by its create event, which for rooms made in the same millisecond would be the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_makes_many_rooms_at_once() {
    for database in TestDatabase::each().await {
        let house = std::sync::Arc::new(House::open(&database).await);
        let alice = house.user("alice").await;
        let made = (0..8).map(|_| {
            let (house, alice) = (house.clone(), alice.clone());
            tokio::spawn(async move { house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap() })
        });
        let mut ids = std::collections::HashSet::new();
        for made in made.collect::<Vec<_>>() {
            assert!(ids.insert(made.await.unwrap()));
        }
    }
}

/// Two processes on one database must not make each other lose, and the stream stays in one order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_send_into_one_room_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let one = House::open(&database).await;
    let two = House::open(&database).await;
    let alice = one.user("alice").await;
    let id = one.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
    for n in 0..20 {
        let (first, second) = (format!("one {n}"), format!("two {n}"));
        let (a, b) = tokio::join!(one.say(&alice, &id, &first, &first), two.say(&alice, &id, &second, &second));
        a.unwrap();
        b.unwrap();
        if n % 5 == 0 {
            let topic = to_raw_value(&json!({"topic": n.to_string()})).unwrap();
            let house = if n % 2 == 0 { &one } else { &two };
            house.rooms.send_state(&alice, &id, TimelineEventType::RoomTopic, "", &topic, None).await.unwrap();
        }
    }
    let third = House::open(&database).await;
    assert_eq!(third.bodies(&alice, &id).await.len(), 40);
}

/// Client-Server API, "Room history visibility": each word lets in whom it says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_shown_to_whom_its_visibility_says() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob, eve) = (house.user("alice").await, house.user("bob").await, house.user("eve").await);
        let expected = [
            ("world_readable", vec!["early", "invited", "joined"]),
            ("shared", vec!["early", "invited", "joined"]),
            ("invited", vec!["invited", "joined"]),
            ("joined", vec!["joined"]),
        ];
        for (visibility, bodies) in expected {
            let content = to_raw_value(&json!({"history_visibility": visibility})).unwrap();
            let initial_state = vec![("m.room.history_visibility".to_owned(), String::new(), content)];
            let request = NewRoomRequest { initial_state, ..room(Preset::PrivateChat) };
            let id = house.rooms.create_room(&alice, request).await.unwrap();
            house.say(&alice, &id, "1", "early").await.unwrap();
            house.rooms.invite(&alice, &id, &bob.user_id, None).await.unwrap();
            house.say(&alice, &id, "2", "invited").await.unwrap();
            house.rooms.join(&bob, &id, None).await.unwrap();
            house.say(&alice, &id, "3", "joined").await.unwrap();
            assert_eq!(house.bodies(&bob, &id).await, bodies, "{visibility}");
            house.rooms.leave(&bob, &id, None).await.unwrap();
            house.say(&alice, &id, "4", "gone").await.unwrap();
            if visibility != "world_readable" {
                assert_eq!(house.bodies(&bob, &id).await, bodies, "{visibility}, after leaving");
                let read = house.rooms.messages(&eve, &id, page(TimelineDirection::Backward, 10), |_| true).await;
                assert!(matches!(read, Err(Error::NotMember)), "a stranger");
            }
        }
    }
}

/// Client-Server API, "Events on Change of Profile Information": member events show the profile, and a change reaches the rooms
/// that the user is in, but brings nobody back into one that they have left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_events_follow_the_profile() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob) = (house.user("alice").await, house.user("bob").await);
        let name = async |who: &Requester, reader: &Requester, id: &RoomId| {
            let (_, event) = house.rooms.state_event(reader, id, "m.room.member", who.user_id.as_str()).await.unwrap();
            serde_json::from_str::<serde_json::Value>(event.pdu.content.get()).unwrap()
        };
        let rename = async |who: &Requester, name: &str| {
            house.storage.insert_user(&who.user_id, storage::NewUser::default()).await.unwrap();
            let name = json!(name).to_string();
            house.storage.upsert_profile_field(who.user_nr, "displayname", &name, 1_000).await.unwrap();
        };
        rename(&alice, "Alice").await;
        rename(&bob, "Bob").await;
        let request = NewRoomRequest { invite: vec![bob.user_id.clone()], ..room(Preset::PublicChat) };
        let id = house.rooms.create_room(&alice, request).await.unwrap();
        let left = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        assert_eq!(name(&alice, &alice, &id).await, json!({"membership": "join", "displayname": "Alice"}));
        assert_eq!(name(&bob, &alice, &id).await, json!({"membership": "invite", "displayname": "Bob"}));
        house.rooms.join(&bob, &id, None).await.unwrap();
        house.rooms.join(&bob, &left, None).await.unwrap();
        house.rooms.leave(&bob, &left, None).await.unwrap();
        rename(&bob, "Robert").await;
        house.rooms.profile_changed(bob.user_nr, &bob.user_id).await.unwrap();
        assert_eq!(name(&bob, &alice, &id).await, json!({"membership": "join", "displayname": "Robert"}));
        assert_eq!(name(&bob, &alice, &left).await, json!({"membership": "leave"}));

        // What is not done before the answer is done by who follows the stream.
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let rooms = house.rooms.clone();
        let following = rooms.follow_profiles(async { drop(stopped.await) });
        let changing = async {
            rename(&bob, "Rob").await;
            let commit = storage::Commit { profiles: vec![bob.user_nr], ..storage::Commit::default() };
            // The follower listens before it is first asked to go on.
            tokio::task::yield_now().await;
            house.storage.commit(commit).await.unwrap();
            while name(&bob, &alice, &id).await["displayname"] != "Rob" {
                tokio::task::yield_now().await;
            }
            stop.send(()).unwrap();
        };
        tokio::join!(following, changing);
        house.storage.close().await;
    }
}

/// A client that was told of an event by one process and asks another, which has not heard of it, gets the page that it asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_process_that_is_ahead_is_good_at_another_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let (ahead, behind) = (House::open(&database).await, House::open(&database).await);
    let alice = ahead.user("alice").await;
    let id = ahead.rooms.create_room(&alice, room(Preset::PrivateChat)).await.unwrap();
    for n in 0..3 {
        ahead.say(&alice, &id, &n.to_string(), &n.to_string()).await.unwrap();
    }
    assert!(behind.storage.published() < ahead.storage.published());
    let token = model::StreamToken::at(ahead.storage.published()).to_string();
    let asked = PageRequest { from: Some(&token), ..page(TimelineDirection::Backward, 2) };
    let found = behind.rooms.messages(&alice, &id, asked, |_| true).await.unwrap().events;
    let bodies: Vec<&str> = found.iter().map(|event| event.pdu.content.get()).collect();
    assert_eq!(bodies, [r#"{"body":"2","msgtype":"m.text"}"#, r#"{"body":"1","msgtype":"m.text"}"#]);
}

/// A process that dies in the midst of it leaves the rest to the next one, and what it had done is not done again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_reaches_all_rooms_though_the_process_dies_on_the_way() {
    const ROOMS: usize = 45;
    for database in TestDatabase::each().await {
        let clock = Clock::manual(1_700_000_000_000);
        let dying = House::open_at(&database, clock.clone()).await;
        let alice = dying.user("alice").await;
        let mut rooms = Vec::new();
        for _ in 0..ROOMS {
            // In version 12 the id of a room is the hash of its first event, which has the time in it.
            clock.advance_ms(1);
            rooms.push(dying.rooms.create_room(&alice, room(Preset::PrivateChat)).await.unwrap());
        }
        dying.storage.insert_user(&alice.user_id, storage::NewUser::default()).await.unwrap();
        let count = async |house: &House, name: &str| {
            let mut count = 0;
            for id in &rooms {
                let page =
                    house.rooms.messages(&alice, id, page(TimelineDirection::Forward, 500), |_| true).await.unwrap();
                let of_member =
                    page.events.iter().filter(|event| event.pdu.event_type == TimelineEventType::RoomMember);
                let named = of_member.filter(|event| event.pdu.content.get().contains(name)).count();
                assert!(named <= 1, "the name is there twice");
                count += named;
            }
            count
        };
        let rename = async |house: &House, name: &str| {
            let name = json!(name).to_string();
            house.storage.upsert_profile_field(alice.user_nr, "displayname", &name, 1_000).await.unwrap();
            let commit = storage::Commit { profiles: vec![alice.user_nr], ..storage::Commit::default() };
            house.storage.commit(commit).await.unwrap();
        };
        rename(&dying, "Alicia").await;
        // It dies after some rooms: what runs is dropped, nothing is said to anybody.
        let mut stream = dying.storage.subscribe();
        let some = async {
            for _ in 0..10 {
                stream.recv().await.unwrap();
            }
        };
        tokio::select! {
            () = dying.rooms.follow_profiles(std::future::pending()) => panic!("it ended"),
            () = some => {}
        }
        dying.storage.close().await;
        let next = House::open_at(&database, clock.clone()).await;
        let done = count(&next, "Alicia").await;
        assert!((1..ROOMS).contains(&done), "it died neither before nor after the work: {done}");

        let follow = async |house: &House, name: &str| {
            let all = async {
                while count(house, name).await < ROOMS {
                    // The time of the dead one has to end first, where there may be several.
                    clock.advance_ms(1_000);
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                () = house.rooms.follow_profiles(std::future::pending()) => panic!("it ended"),
                done = tokio::time::timeout(std::time::Duration::from_secs(60), all) => done.unwrap(),
            }
        };
        follow(&next, "Alicia").await;
        rename(&next, "Alix").await;
        follow(&next, "Alix").await;
        assert_eq!(count(&next, "Alicia").await, ROOMS, "nothing is done again");
        next.storage.close().await;
    }
}

/// Several processes follow, one of them works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_leaves_another_follows_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let (here, there) = (House::open(&database).await, House::open(&database).await);
    let alice = here.user("alice").await;
    let id = here.rooms.create_room(&alice, room(Preset::PrivateChat)).await.unwrap();
    let name = json!("Alicia").to_string();
    here.storage.insert_user(&alice.user_id, storage::NewUser::default()).await.unwrap();
    here.storage.upsert_profile_field(alice.user_nr, "displayname", &name, 1_000).await.unwrap();
    let commit = storage::Commit { profiles: vec![alice.user_nr], ..storage::Commit::default() };
    // Nobody follows here.
    let written = here.storage.commit(commit).await.unwrap().position;
    let is_done = async {
        while there.storage.get_consumer("profiles").await.unwrap() < written {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = there.rooms.follow_profiles(std::future::pending()) => panic!("it ended"),
        done = tokio::time::timeout(std::time::Duration::from_secs(30), is_done) => done.unwrap(),
    }
    let (_, event) = here.rooms.state_event(&alice, &id, "m.room.member", alice.user_id.as_str()).await.unwrap();
    assert!(event.pdu.content.get().contains("Alicia"));
    assert_eq!(
        here.storage.lease_consumer("profiles", 1_000).await.unwrap(),
        Some(written),
        "the lease was given back"
    );
    assert_eq!(
        there.storage.lease_consumer("profiles", 1_000).await.unwrap(),
        None,
        "and one process has it at a time"
    );
}

/// Client-Server API, "Room history visibility": who was joined sees up to when that ended, whatever became of them later; who never
/// was sees only what they are to the room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_joined_any_more_sees_nothing_later() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob, eve) = (house.user("alice").await, house.user("bob").await, house.user("eve").await);
        let id = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        let topic = async |text: &str| {
            let content = to_raw_value(&json!({"topic": text})).unwrap();
            house.rooms.send_state(&alice, &id, TimelineEventType::RoomTopic, "", &content, None).await.unwrap();
        };
        house.rooms.join(&bob, &id, None).await.unwrap();
        house.rooms.invite(&alice, &id, &eve.user_id, None).await.unwrap();
        topic("then").await;
        house.say(&alice, &id, "1", "heard").await.unwrap();
        house.rooms.leave(&bob, &id, None).await.unwrap();
        let unheard = house.say(&alice, &id, "2", "unheard").await.unwrap();
        topic("now").await;
        house.rooms.ban(&alice, &id, &bob.user_id, None).await.unwrap();
        house.rooms.leave(&eve, &id, None).await.unwrap();

        assert_eq!(house.bodies(&bob, &id).await, ["heard"]);
        assert!(matches!(house.rooms.event(&bob, &id, &unheard).await, Err(Error::EventUnknown)));
        let (_, event) = house.rooms.state_event(&bob, &id, "m.room.topic", "").await.unwrap();
        assert_eq!(event.pdu.content.get(), r#"{"topic":"then"}"#);
        assert_eq!(house.members_who_are(&bob, &id, Membership::Ban).await.len(), 0, "the ban came later");
        // An invitation opens nothing before it is taken.
        house.rooms.unban(&alice, &id, &bob.user_id, None).await.unwrap();
        house.rooms.invite(&alice, &id, &bob.user_id, None).await.unwrap();
        assert_eq!(house.bodies(&bob, &id).await, ["heard"]);

        assert!(matches!(
            house.rooms.messages(&eve, &id, page(TimelineDirection::Backward, 10), |_| true).await,
            Err(Error::NotMember)
        ));
        let row = house.storage.find_room(&id).await.unwrap().unwrap();
        let membership = house.storage.get_membership(row.nr, eve.user_nr).await.unwrap();
        let reader = house.rooms.reader_of(&eve, membership, row.clone().into()).await.unwrap();
        let events = house.storage.list_events_after(Position(0), house.storage.published(), 1_000).await.unwrap();
        let mut events: Vec<_> = house.storage.get_events(&events).await.unwrap().into_values().collect();
        events.sort_unstable_by_key(|event| event.nr);
        let seen = house.rooms.visible(&reader, events.clone()).await.unwrap();
        let seen: Vec<_> = seen.iter().map(|event| event.pdu.state_key.clone()).collect();
        assert_eq!(seen, [Some(eve.user_id.to_string()), Some(eve.user_id.to_string())]);

        // Each event says what the reader was when it came, where that costs nothing to tell.
        let membership = house.storage.get_membership(row.nr, bob.user_nr).await.unwrap();
        let reader = house.rooms.reader_of(&bob, membership, row.into()).await.unwrap();
        let seen = house.rooms.visible(&reader, events).await.unwrap();
        let rendered = house.rooms.render(&reader, &seen, false).await.unwrap();
        let rendered = rendered.iter().map(|json| serde_json::from_str::<serde_json::Value>(json.get()).unwrap());
        let own: Vec<_> = rendered
            .filter(|event| event["state_key"] == bob.user_id.as_str() || event["content"]["body"] == "heard")
            .map(|event| event["unsigned"]["membership"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(own, ["join", "join", "leave", "ban", "leave", "invite"]);
        house.storage.close().await;
    }
}

/// Client-Server API, "Room history visibility": before a room says how its history is seen, it is shared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_history_visibility_is_seen_by_who_saw_the_room_before_it() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob) = (house.user("alice").await, house.user("bob").await);
        let content = to_raw_value(&json!({"history_visibility": "joined"})).unwrap();
        let initial_state = vec![("m.room.history_visibility".to_owned(), String::new(), content)];
        let request = NewRoomRequest { initial_state, ..room(Preset::PublicChat) };
        let id = house.rooms.create_room(&alice, request).await.unwrap();
        house.rooms.join(&bob, &id, None).await.unwrap();
        let seen = house.rooms.messages(&bob, &id, page(TimelineDirection::Forward, 50), |_| true).await.unwrap();
        let types: Vec<_> = seen.events.iter().map(|event| event.pdu.event_type.to_string()).collect();
        assert_eq!(types.last().unwrap(), "m.room.member");
        assert!(types.contains(&"m.room.history_visibility".to_owned()), "{types:?}");
        assert!(!types.contains(&"m.room.name".to_owned()), "{types:?}");
        house.storage.close().await;
    }
}

fn initial(event_type: &str, content: Value) -> (String, String, Box<RawValue>) {
    (event_type.to_owned(), String::new(), to_raw_value(&content).unwrap())
}

fn content(event: &StoredEvent) -> Value {
    serde_json::from_str(event.pdu.content.get()).unwrap()
}

/// Client-Server API, "Restricted rooms": who is in one of the rooms that are allowed comes in, vouched for by a member whom the
/// server chooses. Nobody chooses for themselves: the server's signature under the event is what lets them in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restricted_room_lets_in_who_is_in_an_allowed_room() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob, eve) = (house.user("alice").await, house.user("bob").await, house.user("eve").await);
        let carl = house.user_of("carl", "two").await;
        let space = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        house.rooms.join(&bob, &space, None).await.unwrap();
        house.rooms.join(&carl, &space, None).await.unwrap();
        let rules = (8..=12).map(|version| (version, "restricted"));
        for (version, rule) in rules.chain((10..=12).map(|version| (version, "knock_restricted"))) {
            let allow = json!([{"type": "m.room_membership", "room_id": "!elsewhere:hs"},
                               {"type": "m.room_membership", "room_id": space}]);
            let request = NewRoomRequest {
                version: Some(RoomVersionId::try_from(version.to_string()).unwrap()),
                initial_state: vec![initial("m.room.join_rules", json!({"join_rule": rule, "allow": allow}))],
                ..room(Preset::PrivateChat)
            };
            let id = house.rooms.create_room(&alice, request).await.unwrap();
            let refused = house.rooms.join(&eve, &id, None).await;
            assert!(matches!(refused, Err(Error::NotAllowed(_))), "{rule} in version {version}: {refused:?}");
            // Not even who may write there names somebody who lets them in.
            house.rooms.ban(&alice, &id, &eve.user_id, None).await.unwrap();
            house.rooms.unban(&alice, &id, &eve.user_id, None).await.unwrap();
            let named = json!({"membership": "join", "join_authorised_via_users_server": alice.user_id});
            let refused = house.set(&eve, &id, "m.room.member", eve.user_id.as_str(), named.clone()).await;
            assert!(matches!(refused, Err(Error::NotAllowed(_))), "{rule} in version {version}: {refused:?}");

            house.rooms.join(&bob, &id, None).await.unwrap();
            let joined = house.state(&alice, &id, "m.room.member", bob.user_id.as_str()).await;
            assert_eq!(content(&joined)["join_authorised_via_users_server"], alice.user_id.as_str());
            // As state, too; another server's user has both signatures.
            let _ = house.rooms.knock(&carl, &id, None).await;
            house.set(&alice, &id, "m.room.power_levels", "", power(&alice, version)).await.unwrap();
            let knows = json!({"membership": "join", "join_authorised_via_users_server": bob.user_id});
            if version >= 10 && rule == "knock_restricted" {
                house.set(&carl, &id, "m.room.member", carl.user_id.as_str(), knows).await.unwrap();
            } else {
                house.rooms.join(&carl, &id, None).await.unwrap();
            }
            let joined = house.state(&alice, &id, "m.room.member", carl.user_id.as_str()).await;
            assert_eq!(content(&joined)["join_authorised_via_users_server"], alice.user_id.as_str());
            let json: Value = serde_json::from_str(&joined.pdu.json).unwrap();
            let signed: Vec<&String> = json["signatures"].as_object().unwrap().keys().collect();
            assert_eq!(signed, ["hs", "two"], "{rule} in version {version}");
            // What somebody who is in says of it is not believed either.
            house.set(&bob, &id, "m.room.member", bob.user_id.as_str(), named).await.unwrap();
            let renamed = house.state(&alice, &id, "m.room.member", bob.user_id.as_str()).await;
            assert_eq!(content(&renamed), json!({"membership": "join"}));
        }
        house.storage.close().await;
    }
}

/// Only the one who made the room may invite.
fn power(maker: &Requester, version: u32) -> Value {
    match version {
        12 => json!({"invite": 100, "users": {}, "events": {"m.room.tombstone": 150}}),
        _ => json!({"invite": 100, "users": {maker.user_id.as_str(): 100}}),
    }
}

/// What a room shows of itself is what is left of its state: a redacted name is no name, and a redacted welcome no welcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redacted_state_event_says_nothing_of_the_room_any_more() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, mut guest) = (house.user("alice").await, house.user("guest").await);
        let new = storage::NewUser { is_guest: true, ..storage::NewUser::default() };
        house.storage.insert_user(&guest.user_id, new).await.unwrap();
        guest.is_guest = true;
        let request = NewRoomRequest {
            initial_state: vec![initial("m.room.guest_access", json!({"guest_access": "can_join"}))],
            ..room(Preset::PublicChat)
        };
        let id = house.rooms.create_room(&alice, request).await.unwrap();
        house.rooms.join(&guest, &id, None).await.unwrap();
        let old = house.state(&alice, &id, "m.room.name", "").await;
        house.set(&alice, &id, "m.room.name", "", json!({"name": "Other"})).await.unwrap();
        let room_nr = house.storage.find_room(&id).await.unwrap().unwrap().nr;
        let summary = async || house.storage.get_summaries(&[room_nr]).await.unwrap().remove(&room_nr).unwrap().0;

        house.rooms.redact(&alice, &id, &old.pdu.event_id, "1".into(), None).await.unwrap();
        assert_eq!(summary().await.name.as_deref(), Some("Other"), "an older name says nothing of the room of now");
        let name = house.state(&alice, &id, "m.room.name", "").await;
        house.rooms.redact(&alice, &id, &name.pdu.event_id, "2".into(), None).await.unwrap();
        assert_eq!(summary().await.name, None);

        let access = house.state(&alice, &id, "m.room.guest_access", "").await;
        house.rooms.redact(&alice, &id, &access.pdu.event_id, "3".into(), None).await.unwrap();
        assert_eq!(summary().await.guest_access, "forbidden");
        let member = house.state(&alice, &id, "m.room.member", guest.user_id.as_str()).await;
        assert_eq!(content(&member)["membership"], "leave");
        assert!(matches!(house.rooms.join(&guest, &id, None).await, Err(Error::GuestsForbidden)));
        house.storage.close().await;
    }
}

/// Client-Server API, "PUT /rooms/{roomId}/send/{eventType}/{txnId}": a redaction is sent like any other event in all versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redaction_is_sent_as_an_event() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let alice = house.user("alice").await;
        for version in ["1", "10", "11", "12"] {
            let request = NewRoomRequest { version: Some(version.try_into().unwrap()), ..room(Preset::PublicChat) };
            let id = house.rooms.create_room(&alice, request).await.unwrap();
            let said = house.say(&alice, &id, "1", "unsaid").await.unwrap();
            let send = async |transaction: &str, content: Value| {
                let (redaction, content) = (TimelineEventType::RoomRedaction, to_raw_value(&content).unwrap());
                house.rooms.send_message(&alice, &id, redaction, transaction.into(), &content, None).await
            };
            for bad in [json!({}), json!({"redacts": 5}), json!({"redacts": "nothing"})] {
                assert!(matches!(send("2", bad).await, Err(Error::BadEvent(_))));
            }
            assert!(matches!(send("2", json!({"redacts": "$nothing"})).await, Err(Error::EventUnknown)));
            let sent = send("2", json!({"redacts": said, "reason": "mistake"})).await.unwrap();
            assert!(house.bodies(&alice, &id).await.is_empty());
            let (_, redaction) = house.rooms.event(&alice, &id, &sent).await.unwrap();
            let json: Value = serde_json::from_str(&redaction.pdu.json).unwrap();
            let (above, inside) = (json.get("redacts"), json["content"].get("redacts"));
            let said = json!(said);
            let expected = if ["1", "10"].contains(&version) { (Some(&said), None) } else { (None, Some(&said)) };
            assert_eq!((above, inside), expected, "in version {version}");
            assert_eq!(json["content"]["reason"], "mistake");
        }
        house.storage.close().await;
    }
}

/// Client-Server API, "POST /createRoom": from version 12 on the level of `m.room.tombstone` is above that of other state, so that
/// a room is upgraded by who made it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_needs_more_than_other_state_whatever_the_levels() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let alice = house.user("alice").await;
        let cases = [
            ("12", json!({}), json!(150)),
            ("12", json!({"events": {"m.room.name": 10}}), json!(150)),
            ("12", json!({"events": {}, "state_default": 200}), json!(201)),
            ("12", json!({"events": {"m.room.tombstone": 75}}), json!(75)),
            ("11", json!({}), json!(100)),
            ("11", json!({"events": {}}), Value::Null),
        ];
        for (version, levels, expected) in cases {
            let request = NewRoomRequest {
                version: Some(version.try_into().unwrap()),
                power_level_content_override: Some(to_raw_value(&levels).unwrap()),
                ..room(Preset::PublicChat)
            };
            let id = house.rooms.create_room(&alice, request).await.unwrap();
            let event = house.state(&alice, &id, "m.room.power_levels", "").await;
            assert_eq!(content(&event)["events"]["m.room.tombstone"], expected, "in version {version} with {levels}");
        }
        house.storage.close().await;
    }
}

/// PostgreSQL keeps no zero bytes: what has one is refused, and does not fail in the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_id_with_a_zero_byte_is_refused() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let alice = house.user("alice").await;
        let id = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        assert!(matches!(house.say(&alice, &id, "a\0b", "hello").await, Err(Error::InvalidParam(_))));
        assert!(house.bodies(&alice, &id).await.is_empty());
        house.storage.close().await;
    }
}

/// Whoever was kept out of the old room is kept out of the new one: also of those whom its making cannot hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_takes_all_bans_over() {
    const BANS: usize = 1_000;
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let accounts =
            accounts::Accounts::new(house.storage.clone(), house.rooms.servers().clone(), Default::default());
        let alice = house.user("alice").await;
        let id = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        let mut bans = tokio::task::JoinSet::new();
        for index in 0..BANS {
            let (rooms, alice, id) = (house.rooms.clone(), alice.clone(), id.clone());
            bans.spawn(async move {
                let user_id = UserId::parse(format!("@banned{index}:far.example.org")).unwrap();
                rooms.ban(&alice, &id, &user_id, None).await
            });
        }
        assert!(bans.join_all().await.iter().all(Result::is_ok));
        let new = house.rooms.upgrade(&accounts, &alice, &id, RoomVersionId::V12, Vec::new()).await.unwrap();
        assert_eq!(house.members_who_are(&alice, &new, Membership::Ban).await.len(), BANS);
        house.storage.close().await;
    }
}

/// What is looked at for a page of a space is bounded, however many rooms somebody puts into it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_with_very_many_rooms_is_looked_at_in_part() {
    const LOOKED_AT: usize = 2_000;
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let alice = house.user("alice").await;
        let create = |name: &str, kind: Option<&str>| NewRoomRequest {
            name: Some(name.to_owned()),
            creation_content: kind.map(|kind| to_raw_value(&json!({"type": kind})).unwrap()),
            ..room(Preset::PublicChat)
        };
        let space = house.rooms.create_room(&alice, create("space", Some("m.space"))).await.unwrap();
        let (first, last) = (create("first", None), create("last", None));
        let first = house.rooms.create_room(&alice, first).await.unwrap();
        let last = house.rooms.create_room(&alice, last).await.unwrap();
        // Between the two as many rooms as are looked at, of which we know nothing.
        let mut children = tokio::task::JoinSet::new();
        for index in 0..LOOKED_AT {
            let (rooms, alice, space) = (house.rooms.clone(), alice.clone(), space.clone());
            children.spawn(async move {
                let content = to_raw_value(&json!({"via": ["far.example.org"], "order": "m"})).unwrap();
                let child = format!("!far{index}:far.example.org");
                rooms.send_state(&alice, &space, "m.space.child".into(), &child, &content, None).await
            });
        }
        assert!(children.join_all().await.iter().all(Result::is_ok));
        for (child, order) in [(&first, "a"), (&last, "z")] {
            let content = json!({"via": ["hs"], "order": order});
            house.set(&alice, &space, "m.space.child", child.as_str(), content).await.unwrap();
        }
        let asked = HierarchyRequest { from: None, limit: 10, max_depth: None, suggested_only: false };
        let page = house.rooms.hierarchy(&alice, &space, &asked).await.unwrap();
        let names: Vec<_> = page.rooms.iter().filter_map(|room| room.summary.name.as_deref()).collect();
        assert_eq!((names, page.next), (vec!["space", "first"], None));
        assert_eq!(page.rooms[0].children.len(), LOOKED_AT + 2);
        house.storage.close().await;
    }
}

/// An upgrade goes on to its end also when the client hangs up: half of one would leave people in a room without a way on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_does_not_stop_half_way() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let accounts =
            accounts::Accounts::new(house.storage.clone(), house.rooms.servers().clone(), Default::default());
        let alice = house.user("alice").await;
        let id = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        let alias = ruma::room_alias_id!("#place:hs");
        house.rooms.create_alias(&alice, alias, &id).await.unwrap();
        {
            let upgrade = house.rooms.upgrade(&accounts, &alice, &id, RoomVersionId::V12, Vec::new());
            tokio::select! {
                biased;
                _ = upgrade => panic!("it takes longer than this"),
                () = tokio::task::yield_now() => {}
            }
        }
        let quiet = async || {
            let levels = house.state(&alice, &id, "m.room.power_levels", "").await;
            content(&levels)["events_default"] == 50
        };
        while !quiet().await {
            tokio::task::yield_now().await;
        }
        let tombstone = house.state(&alice, &id, "m.room.tombstone", "").await;
        assert_eq!(content(&tombstone)["replacement_room"], house.rooms.resolve_alias(alias).await.unwrap().0.as_str());
        house.storage.close().await;
    }
}

/// However changes of a profile run into each other, in the end rooms show the profile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_show_the_last_of_two_profiles() {
    for database in TestDatabase::each().await {
        let house = Arc::new(House::open(&database).await);
        let alice = house.user("alice").await;
        house.storage.insert_user(&alice.user_id, storage::NewUser::default()).await.unwrap();
        let mut rooms = Vec::new();
        for _ in 0..3 {
            rooms.push(house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap());
        }
        for round in 0..40 {
            let changes = ["first", "second", "third"].map(|name| {
                let (house, alice, name) = (house.clone(), alice.clone(), json!(format!("{name} {round}")).to_string());
                tokio::spawn(async move {
                    house.storage.upsert_profile_field(alice.user_nr, "displayname", &name, 1_000).await.unwrap();
                    house.rooms.profile_changed(alice.user_nr, &alice.user_id).await.unwrap();
                })
            });
            for change in changes {
                change.await.unwrap();
            }
            let profile = house.storage.list_profiles(&[alice.user_nr]).await.unwrap();
            let name: Value = serde_json::from_str(&profile[0].2).unwrap();
            for id in &rooms {
                let member = house.state(&alice, id, "m.room.member", alice.user_id.as_str()).await;
                assert_eq!(content(&member)["displayname"], name, "in round {round}");
            }
        }
        house.storage.close().await;
    }
}

/// Receipts never go back, whichever of those that are sent at once comes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_that_are_sent_at_once_do_not_go_back() {
    for database in TestDatabase::each().await {
        let house = Arc::new(House::open(&database).await);
        let (alice, bob) = (house.user("alice").await, house.user("bob").await);
        let id = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        let room_nr = house.storage.find_room(&id).await.unwrap().unwrap().nr;
        house.rooms.join(&bob, &id, None).await.unwrap();
        for round in 0..10 {
            let mut events = Vec::new();
            for n in 0..10 {
                events.push(house.say(&alice, &id, &format!("{round} {n}"), "text").await.unwrap());
            }
            let (first, last) = (events[0].clone(), events.last().unwrap().to_string());
            let marks: Vec<_> = events
                .into_iter()
                .rev()
                .map(|event_id| {
                    let (house, bob, id) = (house.clone(), bob.clone(), id.clone());
                    tokio::spawn(async move {
                        let kinds = [ReceiptKind::Read, ReceiptKind::FullyRead];
                        let request = |kind| ReceiptRequest { kind, event_id: event_id.clone(), thread: None };
                        house.rooms.mark_read(&bob, &id, kinds.map(request).into()).await.unwrap();
                    })
                })
                .collect();
            for mark in marks {
                mark.await.unwrap();
            }
            let receipt = house.storage.get_receipt(room_nr, bob.user_nr, "m.read", "").await.unwrap().unwrap();
            assert_eq!(receipt.event_id, last, "in round {round}");
            let marker = house.storage.get_account_data(bob.user_nr, room_nr, "m.fully_read").await.unwrap().unwrap();
            assert!(marker.contains(&last), "in round {round}: {marker}");
            // Another process may have compared before this one wrote.
            let late = NewReceipt {
                room_nr,
                user_nr: bob.user_nr,
                receipt_type: "m.read".to_owned(),
                thread: String::new(),
                event_id: first,
                at_ms: 1,
                read_upto: None,
            };
            house.storage.commit(Commit { receipts: vec![late], ..Commit::default() }).await.unwrap();
            let receipt = house.storage.get_receipt(room_nr, bob.user_nr, "m.read", "").await.unwrap().unwrap();
            assert_eq!(receipt.event_id, last, "in round {round}");
        }
        house.storage.close().await;
    }
}

/// A room starts with many invitations to people who are new here, but not with any number of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_starts_with_a_bounded_number_of_invitations() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let alice = house.user("alice").await;
        let stranger = |n: usize| UserId::parse(format!("@new{n:03}:hs")).unwrap();
        let invite = |count: usize| NewRoomRequest {
            invite: (0..count).rev().map(stranger).collect(),
            ..room(Preset::TrustedPrivateChat)
        };
        assert!(matches!(house.rooms.create_room(&alice, invite(201)).await, Err(Error::InvalidParam(_))));
        assert_eq!(house.storage.find_user_nr(&stranger(0)).await.unwrap(), None);
        let id = house.rooms.create_room(&alice, invite(200)).await.unwrap();
        assert_eq!(house.members_who_are(&alice, &id, Membership::Invite).await.len(), 200);
        // They got their numbers together, so in the order of their names; one by one it would be that of the invitations.
        let first = house.storage.find_user_nr(&stranger(0)).await.unwrap().unwrap();
        let last = house.storage.find_user_nr(&stranger(199)).await.unwrap().unwrap();
        assert_eq!(last.0 - first.0, 199);
        house.storage.close().await;
    }
}

fn page(direction: TimelineDirection, limit: u32) -> PageRequest<'static> {
    PageRequest { direction, from: None, to: None, limit }
}

/// A client that lost the answer asks again: what became of its event in the meantime does not matter.
#[tokio::test]
async fn a_repeated_request_gets_its_event_even_when_its_sender_has_left() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob) = (house.user("alice").await, house.user("bob").await);
        let made = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        house.rooms.join(&bob, &made, None).await.unwrap();
        let sent = house.say(&bob, &made, "1", "hello").await.unwrap();
        house.rooms.leave(&bob, &made, None).await.unwrap();
        assert_eq!(house.say(&bob, &made, "1", "hello").await.unwrap(), sent);
        assert!(house.say(&bob, &made, "2", "hello").await.is_err(), "he has left");
        assert_eq!(house.bodies(&alice, &made).await, ["hello"]);
    }
}

/// Client-Server API, "Reporting Content": for those who administer the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_reported_is_kept() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, eve) = (house.user("alice").await, house.user("eve").await);
        let id = house.rooms.create_room(&alice, room(Preset::PrivateChat)).await.unwrap();
        let said = house.say(&alice, &id, "1", "a bad thing").await.unwrap();
        house.rooms.report_event(&alice, &id, &said, "first\0").await.unwrap();
        house.rooms.report_room(&eve, &id, "second").await.unwrap();
        house.rooms.report_user(&eve, &alice.user_id, "").await.unwrap();
        // What is not known here, and what may not be reported, is not kept.
        house.rooms.report_room(&eve, ruma::room_id!("!none:hs"), "no").await.unwrap();
        house.rooms.report_user(&eve, ruma::user_id!("@nobody:hs"), "no").await.unwrap();
        assert!(matches!(house.rooms.report_event(&eve, &id, &said, "no").await, Err(Error::EventUnknown)));
        let rows = house.storage.list_reports(i64::MAX, 100).await.unwrap();
        let shown: Vec<_> = rows
            .iter()
            .map(|row| {
                (row.reporter_nr, row.report.reason.as_str(), row.report.event_id.as_str(), row.report.user_id.as_str())
            })
            .collect();
        let (said, alice_id) = (said.as_str(), alice.user_id.as_str());
        let expected = [
            (eve.user_nr, "", "", alice_id),
            (eve.user_nr, "second", "", ""),
            (alice.user_nr, "first\u{FFFD}", said, ""),
        ];
        assert_eq!(shown, expected);
        assert_eq!((rows[0].report.room_id.as_str(), rows[1].report.room_id.as_str()), ("", id.as_str()));
        assert_eq!(house.storage.list_reports(rows[1].report_nr, 100).await.unwrap(), rows[2..]);
    }
}

/// Client-Server API, "Avoiding duplicate annotations": the processes of a cluster do not know of each other what they are about to send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_equal_reactions_in_two_processes_one_passes_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let (one, two) = (House::open(&database).await, House::open(&database).await);
    let alice = one.user("alice").await;
    let id = one.rooms.create_room(&alice, room(Preset::PrivateChat)).await.unwrap();
    for round in 0..10 {
        let parent = one.say(&alice, &id, &format!("p{round}"), "parent").await.unwrap();
        let relates_to = json!({"rel_type": "m.annotation", "event_id": parent, "key": "a"});
        let content = to_raw_value(&json!({"m.relates_to": relates_to})).unwrap();
        let (first, second) = (format!("a{round}"), format!("b{round}"));
        let react = async |house: &House, txn: &str| {
            house.rooms.send_message(&alice, &id, "m.reaction".into(), txn.into(), &content, None).await
        };
        let results = <[_; 2]>::from(tokio::join!(react(&one, &first), react(&two, &second)));
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "round {round}: {results:?}");
        assert!(results.iter().any(|result| matches!(result, Err(Error::DuplicateAnnotation))), "{results:?}");
        let sent = results.into_iter().find_map(Result::ok).unwrap();
        two.rooms.redact(&alice, &id, &sent, first.as_str().into(), None).await.unwrap();
        react(&two, &format!("c{round}")).await.unwrap();
    }
}

/// What many rooms are asked together is what each of them says alone.
#[tokio::test]
async fn many_rooms_are_read_in_one_statement() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob) = (house.user("alice").await, house.user("bob").await);
        let mut rooms = Vec::new();
        for count in [0, 3, 12] {
            let id = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
            house.rooms.join(&bob, &id, None).await.unwrap();
            for number in 0..count {
                house.say(&alice, &id, &format!("{count} {number}"), "hello").await.unwrap();
            }
            rooms.push(house.rooms.room(&id).await.unwrap().nr);
        }
        let storage = &house.storage;
        let newest = storage.published();
        let middle = Position(newest.0 / 2);
        for (after, upto, limit) in [
            (Position(i64::MIN), newest, 5),
            (Position(i64::MIN), newest, 500),
            (middle, newest, 5),
            (Position(i64::MIN), middle, 4),
            (newest, newest, 5),
        ] {
            let together = storage.list_timelines(&rooms, (after, upto), limit).await.unwrap();
            for room_nr in &rooms {
                let backward = TimelineDirection::Backward;
                let (from, to) = ((upto, i64::MAX), (after, i64::MAX));
                let alone = storage.list_timeline(*room_nr, backward, from, to, limit).await.unwrap();
                assert_eq!(together.get(room_nr).cloned().unwrap_or_default(), alone, "{after:?} {upto:?} {limit}");
            }
        }
        let places: Vec<_> = rooms.iter().flat_map(|room_nr| [(*room_nr, newest), (*room_nr, middle)]).collect();
        let states = storage.list_states_at(&places).await.unwrap();
        for place in places {
            let alone = storage.get_state_at(place.0, place.1).await.unwrap();
            assert_eq!(states.get(&place).copied().unwrap_or(model::NodeNr(0)), alone);
        }
        for (kinds, limit) in [(&[Membership::Join][..], 1), (&[Membership::Join, Membership::Leave], 9)] {
            let together = storage.list_oldest_members(&rooms, kinds, limit).await.unwrap();
            for room_nr in &rooms {
                let alone = storage.list_members_of_kinds(*room_nr, kinds, limit).await.unwrap();
                let alone: Vec<_> = alone.into_iter().map(|row| (row.user_nr, row.event_nr)).collect();
                assert_eq!(together[room_nr], alone);
            }
        }
    }
}
