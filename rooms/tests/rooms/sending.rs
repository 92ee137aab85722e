//! Sending into rooms of every version.

use rooms::{Error, NewRoomRequest, Preset};
use ruma::RoomVersionId;
use storage::testing::TestDatabase;

use crate::house::{House, room};

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
