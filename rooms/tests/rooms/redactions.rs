//! What redactions leave. Client-Server API, "Redactions".

use rooms::{Error, NewRoomRequest, Preset};
use ruma::events::TimelineEventType;
use serde_json::{Value, json, value::to_raw_value};
use storage::testing::TestDatabase;

use crate::house::{House, content, initial, room};

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
