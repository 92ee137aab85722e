//! Rooms that take the place of others. Client-Server API, "Room upgrades".

use std::{collections::BTreeSet, sync::Arc};

use accounts::Requester;
use model::Membership;
use rooms::{Error, NewRoomRequest, Preset};
use ruma::{RoomVersionId, UserId, events::TimelineEventType};
use serde_json::{Value, json, value::to_raw_value};
use storage::{StoredEvent, TimelineDirection, testing::TestDatabase};

use crate::house::{House, content, page, room};

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

/// Whoever was kept out of the old room is kept out of the new one: also of those whom its making cannot hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_takes_all_bans_over() {
    const BANS: usize = 1_000;
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
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
        let new = house.upgrade(&alice, &id, RoomVersionId::V12).await.unwrap();
        assert_eq!(house.members_who_are(&alice, &new, Membership::Ban).await.len(), BANS);
        house.storage.close().await;
    }
}

/// An upgrade goes on to its end also when the client hangs up: half of one would leave people in a room without a way on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_does_not_stop_half_way() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let alice = house.user("alice").await;
        let id = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        let alias = ruma::room_alias_id!("#place:hs");
        house.rooms.create_alias(&alice, alias, &id).await.unwrap();
        {
            let upgrade = house.upgrade(&alice, &id, RoomVersionId::V12);
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
        assert_eq!(
            content(&tombstone)["replacement_room"],
            house.rooms.resolve_local_alias(alias).await.unwrap().0.as_str()
        );
        house.storage.close().await;
    }
}

/// Two who press the button at once: aliases, settings and people must not end up in different rooms. Whoever comes while a room is being
/// upgraded gets what comes of that; whoever comes after that upgrades it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_at_once_leave_no_room_that_nobody_is_led_to() {
    for database in TestDatabase::each().await {
        let is_postgres = matches!(database.options, storage::Options::Postgres { .. });
        let one = House::open(&database).await;
        // On PostgreSQL each asks another process.
        let other = if is_postgres { Some(House::open(&database).await) } else { None };
        let two = other.as_ref().unwrap_or(&one);
        let (alice, bob) = (one.user("alice").await, one.user("bob").await);
        let mut at_once = 0;
        for round in 0..6 {
            let request = NewRoomRequest { version: Some(RoomVersionId::V11), ..room(Preset::PublicChat) };
            let id = one.rooms.create_room(&alice, request).await.unwrap();
            one.rooms.join(&bob, &id, None).await.unwrap();
            let levels = two.state(&alice, &id, "m.room.power_levels", "").await;
            let mut levels = content(&levels);
            levels["users"][bob.user_id.as_str()] = json!(100);
            one.set(&alice, &id, "m.room.power_levels", "", levels).await.unwrap();
            let rooms_of = async |who: &Requester| one.rooms.joined_rooms(who).await.unwrap().len();
            let before = rooms_of(&alice).await + rooms_of(&bob).await;
            // The same person twice, who asks again, or two people.
            let second = if round % 2 == 0 { &alice } else { &bob };
            let results = <[_; 2]>::from(tokio::join!(
                one.upgrade(&alice, &id, RoomVersionId::V12),
                two.upgrade(second, &id, RoomVersionId::V12),
            ));
            let made: BTreeSet<_> = results.iter().flatten().collect();
            let refused = results.iter().filter(|result| matches!(result, Err(Error::NotAllowed(_)))).count();
            assert_eq!(results.iter().flatten().count() + refused, 2, "round {round}: {results:?}");
            assert!(refused == 0 || second.user_nr != alice.user_nr, "round {round}: {results:?}");
            at_once += usize::from(made.len() == 1);
            assert_eq!(rooms_of(&alice).await + rooms_of(&bob).await, before + made.len(), "{results:?}");
            // What the other process wrote is read, too.
            one.storage.newest_durable().await.unwrap();
            let page = one.rooms.messages(&alice, &id, page(TimelineDirection::Forward, 500), |_| true).await.unwrap();
            let is_tombstone = |event: &&Arc<StoredEvent>| event.pdu.event_type == TimelineEventType::RoomTombstone;
            let tombstones =
                page.events.iter().filter(is_tombstone).map(|event| content(event)["replacement_room"].clone());
            let named: BTreeSet<_> = tombstones.map(|id| id.as_str().unwrap().to_owned()).collect();
            assert_eq!(named, made.iter().map(ToString::to_string).collect(), "round {round}: {results:?}");
        }
        assert!(at_once > 0, "none of them came while the other was at it");
        one.storage.close().await;
    }
}
