//! Member events follow the profiles.

use std::sync::Arc;

use accounts::Requester;
use model::Clock;
use rooms::{NewRoomRequest, Preset};
use ruma::{RoomId, events::TimelineEventType};
use serde_json::{Value, json};
use storage::{TimelineDirection, testing::TestDatabase};

use crate::house::{House, content, page, room};

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
