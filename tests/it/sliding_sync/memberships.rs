//! What those see of a room who are invited, left, were removed, or never were in it.

use serde_json::{Value, json};
use test_kit::on_each_database;

use super::{FORMS, Form, pos, state_keys, texts};

on_each_database! {
    async fn a_stranger_and_a_banned_user_learn_nothing_of_a_room(server: TestServer) {
        let (alice, bob, carol) = (server.user("alice").await, server.user("bob").await, server.user("carol").await);
        let room = alice.create_room_with(&json!({ "name": "a secret" })).await;
        alice.send_text(&room, "a secret").await;
        // Banned without ever having been there.
        alice.remove(&room, "ban", &carol).await;
        for form in FORMS {
            let body = json!({
                "lists": { "all": form.list([0, 9], 10, &[["*", "*"]]) },
                "room_subscriptions": { &room: form.config(10, &[["*", "*"]]) },
                "extensions": { "receipts": { "enabled": true }, "typing": { "enabled": true }, "account_data": { "enabled": true } },
            });
            for user in [&bob, &carol] {
                let answer = form.sync(user, None, 0, &body).await;
                assert_eq!(answer["rooms"], json!({}), "{answer}");
                assert_eq!(answer["lists"]["all"]["count"], 0);
            }
        }
    }

    /// MSC4186, "Subscriptions": only rooms that the user has or had to do with, "otherwise, the room will not be returned".
    async fn a_room_that_the_world_may_read_is_not_shown_to_a_stranger(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let visibility = json!({ "type": "m.room.history_visibility", "content": { "history_visibility": "world_readable" } });
        let room = alice.create_room_with(&json!({ "preset": "public_chat", "initial_state": [visibility] })).await;
        for form in FORMS {
            let on = json!({ "enabled": true });
            let body = json!({
                "room_subscriptions": { &room: form.config(10, &[["*", "*"]]) },
                "extensions": { "receipts": on, "typing": on, "account_data": on },
            });
            let answer = form.sync(&bob, None, 0, &body).await;
            assert_eq!(answer["rooms"], json!({}), "{answer}");
            alice.send_text(&room, "hello").await;
            let answer = form.sync(&bob, Some(pos(&answer)), 0, &body).await;
            assert_eq!(answer["rooms"], json!({}), "{answer}");
            // It comes with the first membership.
            bob.join(&room).await;
            let answer = form.sync(&bob, Some(pos(&answer)), 0, &body).await;
            assert_eq!(answer["rooms"][&room]["initial"], true, "{answer}");
            bob.leave(&room).await;
            bob.in_room(&room, "forget", &json!({})).await.ok();
        }
    }

    async fn who_was_removed_sees_how_and_nothing_later(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for form in FORMS {
            let room = alice.create_public_room().await;
            bob.join(&room).await;
            let body = json!({
                "lists": { "all": form.list([0, 99], 10, &[["m.room.member", bob.id()], ["m.room.name", ""]]) },
            });
            let first = form.sync(&bob, None, 0, &body).await;
            alice.send_text(&room, "before").await;
            alice.remove(&room, "kick", &bob).await;
            alice.send_text(&room, "after").await;
            alice.set_state(&room, "m.room.name", "", &json!({ "name": "a secret" })).await;
            for answer in [form.sync(&bob, Some(pos(&first)), 0, &body).await, form.sync(&bob, None, 0, &body).await] {
                let shown = &answer["rooms"][&room];
                assert_eq!(texts(shown), ["before"], "{answer}");
                let state = shown["required_state"].as_array().unwrap();
                assert_eq!(state.len(), 1, "{answer}");
                assert_eq!(state[0]["content"]["membership"], "leave", "{answer}");
                assert!(!answer.to_string().contains("a secret"), "{answer}");
            }
        }
    }

    async fn who_left_is_told_on_the_connection_that_knew_the_room_only(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for form in FORMS {
            let room = alice.create_public_room().await;
            bob.join(&room).await;
            let body = json!({ "lists": { "all": form.list([0, 99], 10, &[["m.room.member", bob.id()]]) } });
            let first = form.sync(&bob, None, 0, &body).await;
            bob.leave(&room).await;
            let answer = form.sync(&bob, Some(pos(&first)), 0, &body).await;
            assert_eq!(answer["rooms"][&room]["required_state"][0]["content"]["membership"], "leave", "{answer}");
            assert_eq!(form.sync(&bob, Some(pos(&answer)), 0, &body).await["rooms"], json!({}));
            let mut other = body.clone();
            other["conn_id"] = json!("another");
            assert!(form.sync(&bob, None, 0, &other).await["rooms"][&room].is_null());
            // And who comes back gets all of it.
            bob.join(&room).await;
            let answer = form.sync(&bob, Some(pos(&answer)), 0, &body).await;
            assert_eq!(answer["rooms"][&room]["initial"], true, "{answer}");
            bob.leave(&room).await;
        }
    }

    async fn an_invitation_shows_its_state_and_then_the_room(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for form in FORMS {
            let room = alice.create_room_with(&json!({ "name": "a name" })).await;
            let body = json!({ "lists": { "all": form.list([0, 99], 10, &[["m.room.member", bob.id()]]) } });
            let first = form.sync(&bob, None, 0, &body).await;
            let invite = alice.invite(&room, &bob);
            let (answer, ()) = tokio::join!(form.sync(&bob, Some(pos(&first)), 30_000, &body), invite);
            let shown = &answer["rooms"][&room];
            let stripped = if form == Form::V4 { &shown["stripped_state"] } else { &shown["invite_state"] };
            let names: Vec<_> = stripped.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
            assert!(names.contains(&"m.room.name") && names.contains(&"m.room.member"), "{answer}");
            assert!(shown["timeline"].is_null() && shown["bump_stamp"].is_i64(), "{answer}");
            assert!(shown["required_state"].is_null(), "{answer}");
            bob.join(&room).await;
            let joined = form.sync(&bob, Some(pos(&answer)), 0, &body).await;
            let shown = &joined["rooms"][&room];
            assert_eq!((&shown["initial"], &shown["name"]), (&json!(true), &json!("a name")), "{joined}");
        }
    }

    async fn a_declined_invitation_is_told_and_shows_nothing_else(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for form in FORMS {
            let room = alice.create_room_with(&json!({ "name": "a name" })).await;
            let body = json!({ "lists": { "all": form.list([0, 99], 10, &[["*", "*"]]) } });
            alice.invite(&room, &bob).await;
            let first = form.sync(&bob, None, 0, &body).await;
            bob.leave(&room).await;
            let answer = form.sync(&bob, Some(pos(&first)), 0, &body).await;
            let shown = &answer["rooms"][&room];
            assert_eq!(state_keys(shown, "m.room.member"), [bob.id()], "{answer}");
            assert_eq!(shown["required_state"][0]["content"]["membership"], "leave");
            assert_eq!(shown["required_state"].as_array().unwrap().len(), 1, "{answer}");
            assert_eq!(shown["limited"], Value::Null, "there is nothing to page through");
        }
    }
}
