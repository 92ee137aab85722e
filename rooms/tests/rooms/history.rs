//! Who sees what of the history. Client-Server API, "Room history visibility".

use model::{Membership, Position};
use rooms::{Error, NewRoomRequest, Preset};
use ruma::events::TimelineEventType;
use serde_json::{json, value::to_raw_value};
use storage::{TimelineDirection, testing::TestDatabase};

use crate::house::{House, page, room};

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
