//! Which rooms a list shows, and how a room is called and counted in it.

use serde_json::{Value, json};
use test_kit::{encode, on_each_database};

use super::{FORMS, Form, pos, rooms, state_keys, texts};

on_each_database! {
    async fn a_list_shows_the_most_active_rooms_with_their_newest_events(server: TestServer) {
        let alice = server.user("alice").await;
        let mut made = Vec::new();
        for number in 0..4 {
            let room = alice.create_room_with(&json!({ "name": format!("room {number}") })).await;
            alice.send_text(&room, "old").await;
            alice.send_text(&room, &format!("text {number}")).await;
            made.push(room);
        }
        alice.send_text(&made[0], "newest").await;
        for form in FORMS {
            let body = json!({ "lists": { "all": form.list([0, 1], 1, &[["m.room.create", ""]]) } });
            let answer = form.sync(&alice, None, 0, &body).await;
            assert_eq!(answer["lists"]["all"]["count"], 4, "{answer}");
            let mut expected = vec![&made[0], &made[3]];
            expected.sort_unstable();
            assert_eq!(rooms(&answer), expected);
            let room = &answer["rooms"][&made[0]];
            assert_eq!((texts(room), &room["limited"], &room["initial"]), (vec!["newest".to_owned()], &json!(true), &json!(true)));
            assert_eq!((&room["name"], &room["joined_count"]), (&json!("room 0"), &json!(1)));
            assert_eq!(state_keys(room, "m.room.create"), [""], "{room}");
            assert_eq!(room["required_state"].as_array().unwrap().len(), 1, "{room}");
            // What is asked from there goes on without a hole.
            let from = encode(room["prev_batch"].as_str().unwrap());
            let page = alice.get(&format!("/rooms/{}/messages?dir=b&limit=1&from={from}", encode(&made[0]))).await.ok();
            assert_eq!(page["chunk"][0]["content"]["body"], "text 0", "{page}");
            let (newer, older) = (&room["bump_stamp"], &answer["rooms"][&made[3]]["bump_stamp"]);
            assert!(newer.as_i64().unwrap() > older.as_i64().unwrap(), "{answer}");
            // A larger range brings the others only.
            let body = json!({ "lists": { "all": form.list([0, 9], 1, &[["m.room.create", ""]]) } });
            let more = form.sync(&alice, Some(pos(&answer)), 0, &body).await;
            let mut expected = vec![&made[1], &made[2]];
            expected.sort_unstable();
            assert_eq!(rooms(&more), expected);
            if form == Form::V4 {
                assert_eq!(room["membership"], "join");
                assert_eq!(room["lists"], json!(["all"]));
            }
        }
    }

    async fn a_room_that_falls_out_of_the_range_is_caught_up_with(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut made = Vec::new();
        for _ in 0..3 {
            let room = alice.create_public_room().await;
            bob.join(&room).await;
            made.push(room);
        }
        for form in FORMS {
            let body = |last: u64| json!({ "lists": { "all": form.list([0, last], 10, &[]) } });
            let first = form.sync(&bob, None, 0, &body(2)).await;
            for (room, text) in [(&made[0], "a"), (&made[1], "b"), (&made[2], "c")] {
                alice.send_text(room, text).await;
            }
            // Two have news and lie outside.
            let second = form.sync(&bob, Some(pos(&first)), 0, &body(0)).await;
            assert_eq!(rooms(&second), [&made[2]]);
            alice.send_text(&made[0], "d").await;
            let third = form.sync(&bob, Some(pos(&second)), 0, &body(2)).await;
            assert_eq!(texts(&third["rooms"][&made[0]]), ["a", "d"], "{third}");
            assert_eq!(texts(&third["rooms"][&made[1]]), ["b"], "{third}");
            assert!(third["rooms"][&made[0]]["initial"].is_null());
            assert!(third["rooms"][&made[2]].is_null(), "{third}");
        }
    }

    async fn filters_choose_rooms(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let plain = alice.create_room_with(&json!({ "name": "The Plain One" })).await;
        let encryption = json!({ "type": "m.room.encryption", "state_key": "", "content": { "algorithm": "m.megolm.v1.aes-sha2" } });
        let encrypted = alice.create_room_with(&json!({ "initial_state": [encryption] })).await;
        let space = alice.create_room_with(&json!({ "creation_content": { "type": "m.space" } })).await;
        alice.set_state(&space, "m.space.child", &encrypted, &json!({ "via": ["localhost"] })).await;
        alice.set_state(&space, "m.space.child", &plain, &json!({})).await;
        let invitation = bob.create_room().await;
        bob.invite(&invitation, &alice).await;
        let direct = json!({ bob.id(): [&plain] });
        alice.put(&format!("/user/{}/account_data/m.direct", encode(alice.id())), &direct).await.ok();
        let tags = format!("/user/{}/rooms/{}/tags/m.favourite", encode(alice.id()), encode(&encrypted));
        alice.put(&tags, &json!({ "order": 0.5 })).await.ok();
        for form in FORMS {
            let invite = if form == Form::V4 { "is_invited" } else { "is_invite" };
            let cases: Vec<(Value, Vec<&String>)> = vec![
                (json!({ "is_dm": true }), vec![&plain]),
                (json!({ "is_dm": false, "room_types": [null], invite: false }), vec![&encrypted]),
                (json!({ "is_encrypted": true }), vec![&encrypted]),
                (json!({ "is_encrypted": false, invite: false }), vec![&plain, &space]),
                (json!({ invite: true }), vec![&invitation]),
                (json!({ "room_types": ["m.space"] }), vec![&space]),
                (json!({ "not_room_types": ["m.space"], "is_invite": false, "is_invited": false }), vec![&plain, &encrypted]),
                (json!({ "room_types": ["m.space"], "not_room_types": ["m.space"] }), vec![]),
                (json!({ "spaces": [&space, "!unknown:x", "nonsense"] }), vec![&encrypted]),
                (json!({ "spaces": ["!unknown:x"] }), vec![]),
                (json!({ "tags": ["m.favourite", "u.x"] }), vec![&encrypted]),
                (json!({ "not_tags": ["m.favourite"], "is_invite": false, "is_invited": false }), vec![&plain, &space]),
                (json!({ "tags": ["m.favourite"], "not_tags": ["m.favourite"] }), vec![]),
                (json!({ "room_name_like": "pLaIn" }), vec![&plain]),
            ];
            for (filters, mut expected) in cases {
                let mut list = form.list([0, 9], 0, &[]);
                list["filters"] = filters.clone();
                let answer = form.sync(&alice, None, 0, &json!({ "lists": { "some": list } })).await;
                expected.sort_unstable();
                assert_eq!(rooms(&answer), expected, "{form:?} {filters}");
                assert_eq!(answer["lists"]["some"]["count"], expected.len());
            }
        }
        let body = json!({ "lists": { "all": Form::V4.list([0, 9], 0, &[]) } });
        let answer = Form::V4.sync(&alice, None, 0, &body).await;
        assert_eq!(answer["rooms"][&plain]["is_dm"], true, "{answer}");
        assert_eq!(answer["rooms"][&encrypted]["is_dm"], Value::Null);
        // It is told when it changes, and wakes who waits.
        let path = format!("/user/{}/account_data/m.direct", encode(alice.id()));
        let none = json!({});
        let change = alice.put(&path, &none);
        let (answer, _) = tokio::join!(Form::V4.sync(&alice, Some(pos(&answer)), 30_000, &body), change);
        assert_eq!(answer["rooms"], json!({ &plain: answer["rooms"][&plain] }));
        assert_eq!(answer["rooms"][&plain]["is_dm"], false, "{answer}");
    }

    async fn a_nameless_room_is_called_by_its_heroes(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let path = format!("/profile/{}/displayname", encode(bob.id()));
        bob.put(&path, &json!({ "displayname": "Bob" })).await.ok();
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        for form in FORMS {
            let body = json!({ "lists": { "all": form.list([0, 9], 1, &[]) } });
            let first = form.sync(&alice, None, 0, &body).await;
            let shown = &first["rooms"][&room];
            assert_eq!(shown["heroes"], json!([{ "user_id": bob.id(), "displayname": "Bob" }]), "{first}");
            assert!(shown["name"].is_null() && shown["joined_count"] == 2);
            alice.set_state(&room, "m.room.name", "", &json!({ "name": "named" })).await;
            let second = form.sync(&alice, Some(pos(&first)), 0, &body).await;
            assert_eq!(second["rooms"][&room]["name"], "named", "{second}");
            assert!(second["rooms"][&room]["heroes"].is_null(), "{second}");
            alice.set_state(&room, "m.room.name", "", &json!({})).await;
            let third = form.sync(&alice, Some(pos(&second)), 0, &body).await;
            let shown = &third["rooms"][&room];
            assert_eq!(shown["heroes"][0]["user_id"], bob.id(), "{third}");
            if form == Form::V4 {
                assert!(shown.as_object().unwrap().contains_key("name") && shown["name"].is_null(), "{third}");
            }
        }
    }

    async fn what_was_not_read_is_counted_in_the_older_form(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let form = Form::Unstable;
        let body = json!({ "lists": { "all": form.list([0, 9], 1, &[]) } });
        let first = form.sync(&bob, None, 0, &body).await;
        let mentions = json!({ "msgtype": "m.text", "body": "you", "m.mentions": { "user_ids": [bob.id()] } });
        let event = alice.send(&room, "m.room.message", &mentions).await;
        let second = form.sync(&bob, Some(pos(&first)), 0, &body).await;
        let counts = |answer: &Value| {
            let room = &answer["rooms"][&room];
            (room["notification_count"].as_u64(), room["highlight_count"].as_u64())
        };
        assert_eq!(counts(&second), (Some(1), Some(1)), "{second}");
        // Having read it is told, too, and wakes who waits.
        let (path, empty) = (format!("/rooms/{}/receipt/m.read/{}", encode(&room), encode(&event)), json!({}));
        let (third, _) = tokio::join!(form.sync(&bob, Some(pos(&second)), 30_000, &body), bob.post(&path, &empty));
        assert_eq!(counts(&third), (Some(0), Some(0)), "{third}");
        assert!(third["rooms"][&room]["timeline"].as_array().is_none_or(Vec::is_empty), "{third}");
    }

    /// Counts of rooms that are not looked at, and of all rooms when what counts is chosen anew.
    async fn counts_that_changed_without_an_event_are_told(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (quiet, other) = (alice.create_public_room().await, alice.create_public_room().await);
        bob.join(&quiet).await;
        bob.join(&other).await;
        let form = Form::Unstable;
        let event = alice.send_text(&quiet, "hello").await;
        alice.send_text(&other, "hello").await;
        let body = |last: u64| json!({ "lists": { "all": form.list([0, last], 1, &[]) } });
        let count = |answer: &Value, room: &str| answer["rooms"][room]["notification_count"].as_u64();
        let first = form.sync(&bob, None, 0, &body(1)).await;
        assert_eq!((count(&first, &quiet), count(&first, &other)), (Some(1), Some(1)), "{first}");
        bob.post(&format!("/rooms/{}/receipt/m.read/{}", encode(&quiet), encode(&event)), &json!({})).await.ok();
        let second = form.sync(&bob, Some(pos(&first)), 0, &body(0)).await;
        assert_eq!(second["rooms"], json!({}), "{second}");
        let third = form.sync(&bob, Some(pos(&second)), 0, &body(1)).await;
        assert_eq!((count(&third, &quiet), count(&third, &other)), (Some(0), None), "{third}");
        // And each is told once.
        assert_eq!(form.sync(&bob, Some(pos(&third)), 0, &body(1)).await["rooms"], json!({}));
        let (rule, muted) = (format!("/pushrules/global/room/{}", encode(&other)), json!({ "actions": [] }));
        let body = body(1);
        let (fourth, _) = tokio::join!(form.sync(&bob, Some(pos(&third)), 30_000, &body), bob.put(&rule, &muted));
        assert_eq!(count(&fourth, &other), Some(0), "{fourth}");
    }

    async fn a_name_that_is_taken_away_is_told(server: TestServer) {
        let alice = server.user("alice").await;
        for form in FORMS {
            let room = alice.create_room_with(&json!({ "name": "Named" })).await;
            let body = json!({ "lists": { "all": form.list([0, 9], 1, &[]) } });
            let first = form.sync(&alice, None, 0, &body).await;
            assert_eq!(first["rooms"][&room]["name"], "Named");
            alice.set_state(&room, "m.room.name", "", &json!({})).await;
            let second = form.sync(&alice, Some(pos(&first)), 0, &body).await;
            // The older form has no null: there an empty name is none.
            let none = if form == Form::V4 { Value::Null } else { json!("") };
            assert_eq!(second["rooms"][&room].get("name"), Some(&none), "{second}");
        }
    }
}
