//! What a handshake leaves behind.

mod crafted;

use accounts::Requester;
use crafted::{Crafted, Keys, versions};
use model::Pdu;
use rooms::{Asker, Handshake, NewRoomRequest, Options, Preset, Received, testing};
use ruma::{OwnedEventId, RoomVersionId, UserId, server_name, user_id};
use serde_json::{Value, json};
use storage::testing::TestDatabase;

/// Nobody else does: the server of an event that came by a handshake is not in the room. What its server has sent to all is not sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn we_pass_on_what_came_by_a_handshake_and_nothing_else() {
    for (database, (_, version)) in databases_and_versions().await {
        let storage = database.open().await;
        let rules = version.rules().unwrap();
        let keys = Keys::new();
        let options = Options { default_version: version, ..Options::default() };
        let rooms = keys.rooms(storage.clone(), options);
        let alice = Requester {
            user_nr: storage.user_nr(user_id!("@alice:hs")).await.unwrap(),
            user_id: UserId::parse("@alice:hs").unwrap(),
            device_id: Some("D".into()),
            is_guest: false,
            is_admin: false,
            app_service: None,
        };
        let room = rooms.create_room(&alice, NewRoomRequest::new(Preset::PublicChat)).await.unwrap();
        let asker = Asker { origin: server_name!("other"), destination: server_name!("hs") };
        let bob = user_id!("@bob:other");
        let template = rooms.handshake_template(asker, &room, bob, Handshake::Join, None).await.unwrap();
        let template: Value = serde_json::from_str(template.event.get()).unwrap();
        let id = |reference: &Value| reference.as_str().or(reference[0].as_str()).unwrap().try_into().unwrap();
        let ids = |field: &str| -> Vec<OwnedEventId> { template[field].as_array().unwrap().iter().map(id).collect() };
        let craft = |event_type, state_key, content, prev: &[OwnedEventId], auth: &[OwnedEventId], depth| {
            let crafted = Crafted {
                room_id: Some(room.as_str()),
                sender: bob.as_str(),
                event_type,
                state_key,
                content,
                redacts: None,
                prev,
                auth,
                depth,
                origin_server_ts: storage.clock().now_ms(),
            };
            crafted.sign(&keys, &rules, storage.random())
        };
        let (prev, auth) = (ids("prev_events"), ids("auth_events"));
        let depth = template["depth"].as_i64().unwrap();
        let content = json!({"membership": "join"});
        let (join, Pdu { event_id: join_id, .. }) =
            craft("m.room.member", Some(bob.as_str()), content, &prev, &auth, depth);
        rooms.accept_handshake(asker, (&room, &join_id), Handshake::Join, join).await.unwrap();
        let create = rooms.state_event(&alice, &room, "m.room.create", "").await.unwrap().1.pdu.event_id.clone();
        let levels = rooms.state_event(&alice, &room, "m.room.power_levels", "").await.unwrap().1.pdu.event_id.clone();
        let mut auth = vec![join_id.clone(), levels];
        auth.extend((!rules.authorization.room_create_event_id_as_room_id).then_some(create));
        let body = json!({"body": "hi"});
        let (message, pdu) = craft("m.room.message", None, body, std::slice::from_ref(&join_id), &auth, depth + 1);
        assert_eq!(testing::receive(&rooms, message).await.unwrap(), Received::Accepted);
        storage.forget_all();
        for (event_id, passed_on) in [(join_id, true), (pdu.event_id, false)] {
            assert_eq!(storage.find_event(&event_id).await.unwrap().unwrap().passed_on, passed_on);
        }
    }
}

async fn databases_and_versions() -> Vec<(TestDatabase, (u8, RoomVersionId))> {
    let mut all = Vec::new();
    for version in versions() {
        all.extend(TestDatabase::each().await.into_iter().map(|database| (database, version.clone())));
    }
    all
}
