//! What people note about rooms: tags and direct chats, and the image packs that they choose.

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

use crate::sliding_sync::{FORMS, Form, pos};

fn own(user: &TestUser) -> String {
    format!("/user/{}", encode(user.id()))
}

fn tags(user: &TestUser, room: &str) -> String {
    format!("{}/rooms/{}/tags", own(user), encode(room))
}

/// The account data of a room in an answer of `/sync`.
fn of_room<'a>(sync: &'a Value, room: &str) -> &'a Value {
    &sync["rooms"]["join"][room]["account_data"]["events"]
}

/// The content of the account data of a type in a list of events.
fn content<'a>(events: &'a Value, event_type: &str) -> &'a Value {
    let mut events = events.as_array().into_iter().flatten();
    events.find(|event| event["type"] == event_type).map_or(&Value::Null, |event| &event["content"])
}

fn token(sync: &Value) -> &str {
    sync["next_batch"].as_str().unwrap()
}

async fn delete(user: &TestUser, path: &str) -> test_kit::Answer {
    user.request("DELETE", path, &Value::Null).await
}

on_each_database! {
    /// Client-Server API, "Room Tagging".
    // shows: setRoomTag, getRoomTags, deleteRoomTag
    async fn tags_reach_the_other_devices_by_every_sync(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let phone = alice.log_in_again().await;
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let path = tags(&alice, &room);
        let mut since = token(&phone.sync(None).await).to_owned();
        let body = |form: Form| {
            let extension = json!({ "account_data": { "enabled": true } });
            json!({ "lists": { "all": form.list([0, 9], 1, &[]) }, "extensions": extension })
        };
        let mut slides = Vec::new();
        for form in FORMS {
            let device = alice.log_in_again().await;
            let at = pos(&form.sync(&device, None, 0, &body(form)).await).to_owned();
            slides.push((form, device, at));
        }
        let order = |order: Value| json!({ "order": order });
        // Each change, and what the room has then.
        for (method, tag, info, expected) in [
            ("PUT", "m.favourite", order(json!(0.5)), json!({ "m.favourite": { "order": 0.5 } })),
            ("PUT", "u.work", json!({}), json!({ "m.favourite": { "order": 0.5 }, "u.work": {} })),
            ("PUT", "m.favourite", order(json!(0.25)), json!({ "m.favourite": { "order": 0.25 }, "u.work": {} })),
            // Clients of old send the order as text.
            ("PUT", "u.work", order(json!("0.75")), json!({ "m.favourite": { "order": 0.25 }, "u.work": { "order": 0.75 } })),
            ("DELETE", "m.favourite", Value::Null, json!({ "u.work": { "order": 0.75 } })),
        ] {
            alice.request(method, &format!("{path}/{tag}"), &info).await.ok();
            let expected = json!({ "tags": expected });
            assert_eq!(alice.get(&path).await.ok(), expected);
            let sync = phone.sync(Some(&since)).await;
            assert_eq!(*content(of_room(&sync, &room), "m.tag"), expected, "{sync}");
            since = token(&sync).to_owned();
            assert_eq!(*content(of_room(&phone.sync(None).await, &room), "m.tag"), expected);
            for (form, device, at) in &mut slides {
                let answer = form.sync(device, Some(at), 0, &body(*form)).await;
                let events = &answer["extensions"]["account_data"]["rooms"][&room];
                assert_eq!(*content(events, "m.tag"), expected, "{form:?} {answer}");
                *at = pos(&answer).to_owned();
            }
        }
        // Nobody else sees them.
        assert_eq!(*content(of_room(&bob.sync(None).await, &room), "m.tag"), Value::Null);
        bob.get(&path).await.is_error(403, "M_FORBIDDEN");
        bob.put(&format!("{path}/u.x"), &json!({})).await.is_error(403, "M_FORBIDDEN");
        delete(&bob, &format!("{path}/u.work")).await.is_error(403, "M_FORBIDDEN");
    }

    // shows: setRoomTag, getRoomTags, deleteRoomTag
    async fn tags_have_bounds(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let path = tags(&alice, &room);
        let longest = "u".repeat(255);
        alice.put(&format!("{path}/{longest}"), &json!({})).await.ok();
        alice.put(&format!("{path}/{longest}u"), &json!({})).await.is_error(400, "M_INVALID_PARAM");
        alice.put(&format!("{path}/u.x"), &json!({ "order": "first" })).await.is_error(400, "M_BAD_JSON");
        alice.put(&format!("{path}/u.x"), &json!({ "order": [] })).await.is_error(400, "M_BAD_JSON");
        for n in 1..100 {
            alice.put(&format!("{path}/u.{n}"), &json!({})).await.ok();
        }
        alice.put(&format!("{path}/u.100"), &json!({})).await.is_error(400, "M_INVALID_PARAM");
        alice.put(&format!("{path}/u.99"), &json!({ "order": 1 })).await.ok();
        delete(&alice, &format!("{path}/u.100")).await.ok();
        assert_eq!(alice.get(&path).await.ok()["tags"].as_object().unwrap().len(), 100);
    }

    /// Whoever may not know of a room learns nothing of it by noting something about it.
    // shows: setRoomTag, setAccountDataPerRoom, getAccountDataPerRoom
    async fn a_stranger_cannot_tell_a_room_from_none_by_notes(server: TestServer) {
        let (alice, bob, guest) = (server.user("alice").await, server.user("bob").await, server.guest().await);
        let (room, left) = (alice.create_room().await, alice.create_public_room().await);
        bob.join(&left).await;
        bob.leave(&left).await;
        for room in [&*room, "!nowhere:localhost"] {
            let data = format!("{}/rooms/{}/account_data/org.example.x", own(&bob), encode(room));
            bob.get(&tags(&bob, room)).await.is_error(403, "M_FORBIDDEN");
            bob.put(&format!("{}/u.x", tags(&bob, room)), &json!({})).await.is_error(403, "M_FORBIDDEN");
            delete(&bob, &format!("{}/u.x", tags(&bob, room))).await.is_error(403, "M_FORBIDDEN");
            bob.put(&data, &json!({})).await.is_error(403, "M_FORBIDDEN");
            bob.get(&data).await.is_error(403, "M_FORBIDDEN");
            guest.put(&format!("{}/u.x", tags(&guest, room)), &json!({})).await.is_error(403, "M_GUEST_ACCESS_FORBIDDEN");
        }
        // Of a room that one has left, or is invited to, one may.
        alice.invite(&room, &bob).await;
        for room in [&room, &left] {
            bob.put(&format!("{}/u.x", tags(&bob, room)), &json!({})).await.ok();
            assert_eq!(bob.get(&tags(&bob, room)).await.ok(), json!({ "tags": { "u.x": {} } }));
        }
    }

    /// Client-Server API, "Direct Messaging".
    // shows: createRoom, setAccountData
    async fn an_invitation_to_a_direct_chat_says_so(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let body = json!({ "is_direct": true, "invite": [bob.id()], "preset": "trusted_private_chat" });
        let direct = alice.create_room_with(&body).await;
        let other = alice.create_room_with(&json!({ "invite": [bob.id()] })).await;
        let sync = bob.sync(None).await;
        let of_bob = |events: &Value| {
            let events = events.as_array().unwrap();
            let event = events.iter().find(|event| event["type"] == "m.room.member" && event["state_key"] == bob.id());
            event.unwrap()["content"].clone()
        };
        let invited = |room: &str| of_bob(&sync["rooms"]["invite"][room]["invite_state"]["events"]);
        assert_eq!(invited(&direct), json!({ "membership": "invite", "is_direct": true }));
        assert_eq!(invited(&other), json!({ "membership": "invite" }));
        for (form, key) in FORMS.into_iter().zip(["invite_state", "stripped_state"]) {
            let body = json!({ "lists": { "all": form.list([0, 9], 1, &[]) } });
            let answer = form.sync(&bob, None, 0, &body).await;
            assert_eq!(of_bob(&answer["rooms"][&direct][key])["is_direct"], true, "{form:?} {answer}");
        }
        // Both note it, and are shown it.
        bob.join(&direct).await;
        let since = token(&bob.sync(None).await).to_owned();
        for (who, with) in [(&alice, &bob), (&bob, &alice)] {
            let chats = json!({ with.id(): [&direct] });
            who.put(&format!("{}/account_data/m.direct", own(who)), &chats).await.ok();
            let sync = who.sync(None).await;
            assert_eq!(*content(&sync["account_data"]["events"], "m.direct"), chats);
            for form in FORMS {
                let mut list = form.list([0, 9], 1, &[]);
                list["filters"] = json!({ "is_dm": true });
                let answer = form.sync(who, None, 0, &json!({ "lists": { "direct": list } })).await;
                let rooms: Vec<&String> = answer["rooms"].as_object().unwrap().keys().collect();
                assert_eq!(rooms, [&direct], "{form:?} {answer}");
                assert_eq!(answer["rooms"][&direct]["is_dm"], true);
            }
        }
        let sync = bob.sync(Some(&since)).await;
        assert_eq!(*content(&sync["account_data"]["events"], "m.direct"), json!({ alice.id(): [&direct] }));
    }

    /// Client-Server API, "Image packs": any number of packs by state key, and those of other rooms that a user chooses.
    // shows: setRoomStateWithKey, setAccountData, upgradeRoom
    async fn image_packs_are_state_that_an_upgrade_keeps(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room_with(&json!({ "preset": "public_chat", "room_version": "11" })).await;
        bob.join(&room).await;
        let pack = |name: &str, images: usize| {
            let image = |n: usize| (format!("image-{n}"), json!({ "url": format!("mxc://localhost/{n}"), "body": "a cat" }));
            let images: serde_json::Map<String, Value> = (0..images).map(image).collect();
            json!({ "images": images, "pack": { "display_name": name, "usage": ["emoticon"] } })
        };
        let since = token(&bob.sync(None).await).to_owned();
        let (cats, dogs) = (pack("Cats", 3), pack("Dogs", 500));
        alice.set_state(&room, "m.room.image_pack", "", &cats).await;
        alice.set_state(&room, "m.room.image_pack", "dogs", &dogs).await;
        alice.set_state(&room, "im.ponies.room_emotes", "cats", &cats).await;
        alice.set_state(&room, "m.room.image_pack", "gone", &cats).await;
        alice.set_state(&room, "m.room.image_pack", "gone", &json!({})).await;
        // As large as an event may be, and no larger; and only by who may change the room.
        let too_large = alice.try_set_state(&room, "m.room.image_pack", "x", &pack("x", 2_000)).await;
        too_large.is_error(413, "M_TOO_LARGE");
        bob.try_set_state(&room, "m.room.image_pack", "bobs", &cats).await.is_error(403, "M_FORBIDDEN");
        let shown = |events: &Value, key: &str| {
            let events = events.as_array().into_iter().flatten();
            let mut packs = events.filter(|event| event["type"] == "m.room.image_pack" && event["state_key"] == key);
            packs.next_back().map(|event| event["content"].clone())
        };
        let sync = bob.sync(Some(&since)).await;
        let timeline = &sync["rooms"]["join"][&room]["timeline"]["events"];
        assert_eq!((shown(timeline, ""), shown(timeline, "dogs")), (Some(cats.clone()), Some(dogs.clone())), "{sync}");
        for form in FORMS {
            let list = form.list([0, 9], 0, &[["m.room.image_pack", "*"]]);
            let answer = form.sync(&bob, None, 0, &json!({ "lists": { "all": list } })).await;
            let state = &answer["rooms"][&room]["required_state"];
            assert_eq!((shown(state, ""), shown(state, "dogs")), (Some(cats.clone()), Some(dogs.clone())), "{form:?}");
        }
        // Bob uses them everywhere.
        let chosen = |rooms: Value| json!({ "rooms": rooms });
        let data = format!("{}/account_data/m.image_pack.rooms", own(&bob));
        bob.put(&data, &chosen(json!({ &room: { "": {}, "dogs": {} } }))).await.ok();
        let large: serde_json::Map<String, Value> = (0..3_000).map(|n| (format!("!room{n}:localhost"), json!({ "": {} }))).collect();
        bob.put(&data, &chosen(Value::Object(large))).await.is_error(413, "M_TOO_LARGE");
        let events = &bob.sync(None).await["account_data"]["events"];
        assert_eq!(*content(events, "m.image_pack.rooms"), chosen(json!({ &room: { "": {}, "dogs": {} } })));
        // The room that takes its place has them, too, and whoever chose them there has chosen them here.
        let upgraded = alice.in_room(&room, "upgrade", &json!({ "new_version": "12" })).await.ok();
        let new = upgraded["replacement_room"].as_str().unwrap();
        let state = async |event_type: &str, key: &str| {
            alice.get(&format!("/rooms/{}/state/{event_type}/{key}", encode(new))).await
        };
        assert_eq!(state("m.room.image_pack", "").await.ok(), cats);
        assert_eq!(state("m.room.image_pack", "dogs").await.ok(), dogs);
        assert_eq!(state("im.ponies.room_emotes", "cats").await.ok(), cats);
        state("m.room.image_pack", "gone").await.is_error(404, "M_NOT_FOUND");
        bob.join(new).await;
        let both = json!({ &room: { "": {}, "dogs": {} }, new: { "": {}, "dogs": {} } });
        assert_eq!(bob.get(&data).await.ok(), chosen(both));
    }
}
