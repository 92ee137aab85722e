//! What is told of a room: its timeline and the state that was asked for.

use serde_json::{Value, json};
use test_kit::{encode, on_each_database};

use super::{FORMS, Form, pos, rooms, state_keys, texts};

on_each_database! {
    async fn a_message_reaches_who_waits_once_and_says_that_it_is_new(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        for form in FORMS {
            let body = json!({ "lists": { "all": form.list([0, 9], 10, &[["m.room.member", "$LAZY"]]) } });
            let first = form.sync(&bob, None, 0, &body).await;
            let (news, _) = tokio::join!(form.sync(&bob, Some(pos(&first)), 30_000, &body), alice.send_text(&room, "hello"));
            let shown = &news["rooms"][&room];
            assert_eq!(texts(shown), ["hello"], "{news}");
            assert_eq!((&shown["num_live"], &shown["initial"]), (&json!(1), &Value::Null));
            // The client has alice already.
            assert!(shown["required_state"].is_null(), "{news}");
            let nothing = form.sync(&bob, Some(pos(&news)), 0, &body).await;
            assert_eq!(nothing["rooms"], json!({}), "{nothing}");
            assert_eq!(nothing["lists"]["all"]["count"], 1);
        }
    }

    async fn required_state_is_what_was_asked_for(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room_with(&json!({ "preset": "public_chat", "name": "a", "topic": "b" })).await;
        bob.join(&room).await;
        for key in ["one", "two"] {
            alice.set_state(&room, "org.example.x", key, &json!({ "v": key })).await;
        }
        for form in FORMS {
            let ask = async |state: &[[&str; 2]]| {
                let body = json!({ "room_subscriptions": { &room: form.config(0, state) } });
                form.sync(&alice, None, 0, &body).await["rooms"][&room].clone()
            };
            let all = ask(&[["*", "*"]]).await;
            assert!(state_keys(&all, "m.room.member").len() == 2 && state_keys(&all, "org.example.x").len() == 2, "{all}");
            let some = ask(&[["org.example.x", "*"], ["m.room.topic", ""], ["no.such.type", ""]]).await;
            assert_eq!(state_keys(&some, "org.example.x"), ["one", "two"]);
            assert_eq!(some["required_state"].as_array().unwrap().len(), 3, "{some}");
            let one = ask(&[["*", "two"]]).await;
            assert_eq!(one["required_state"].as_array().unwrap().len(), 1, "{one}");
            // Nobody speaks in an empty timeline.
            let lazy = ask(&[["*", "*"], ["m.room.member", "$LAZY"]]).await;
            assert!(state_keys(&lazy, "m.room.member").is_empty() && state_keys(&lazy, "m.room.topic") == [""], "{lazy}");
            let lazy = ask(&[["*", "*"], ["m.room.member", "$LAZY"], ["m.room.member", bob.id()]]).await;
            assert_eq!(state_keys(&lazy, "m.room.member"), [bob.id()]);
        }
        let mut body = json!({ "room_subscriptions": { &room: Form::Unstable.config(0, &[["m.room.member", "$ME"]]) } });
        let answer = Form::Unstable.sync(&bob, None, 0, &body).await;
        assert_eq!(state_keys(&answer["rooms"][&room], "m.room.member"), [bob.id()]);
        body = json!({ "room_subscriptions": { &room: { "timeline_limit": 0, "required_state":
            { "include": [{}], "exclude": [{ "type": "m.room.member" }, { "state_key": "one" }] } } } });
        let answer = Form::V4.sync(&bob, None, 0, &body).await;
        let shown = &answer["rooms"][&room];
        assert_eq!((state_keys(shown, "m.room.member").len(), state_keys(shown, "org.example.x")), (0, vec!["two".to_owned()]));
    }

    async fn what_was_not_asked_for_before_comes_when_it_is(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room_with(&json!({ "name": "a", "topic": "b" })).await;
        for form in FORMS {
            let body = |limit: u64, state: &[[&str; 2]]| json!({ "lists": { "all": form.list([0, 9], limit, state) } });
            let first = form.sync(&alice, None, 0, &body(1, &[["m.room.name", ""]])).await;
            assert_eq!(state_keys(&first["rooms"][&room], "m.room.topic"), [] as [&str; 0]);
            let next = form.sync(&alice, Some(pos(&first)), 0, &body(1, &[["m.room.name", ""], ["m.room.topic", ""]])).await;
            let shown = &next["rooms"][&room];
            assert_eq!(state_keys(shown, "m.room.topic"), [""], "{next}");
            assert_eq!((state_keys(shown, "m.room.name").len(), &shown["timeline"], &shown["initial"]), (0, &Value::Null, &Value::Null));
            // More of the timeline: told at once, and again when it was lost.
            let flag = if form == Form::V4 { "expanded_timeline" } else { "unstable_expanded_timeline" };
            let more = body(3, &[["m.room.name", ""], ["m.room.topic", ""]]);
            for _ in 0..2 {
                let grown = form.sync(&alice, Some(pos(&next)), 30_000, &more).await;
                let shown = &grown["rooms"][&room];
                assert_eq!(shown["timeline"].as_array().unwrap().len(), 3, "{grown}");
                assert_eq!((&shown[flag], &shown["num_live"], &shown["limited"]), (&json!(true), &json!(0), &json!(true)));
            }
            let grown = form.sync(&alice, Some(pos(&next)), 0, &more).await;
            assert_eq!(form.sync(&alice, Some(pos(&grown)), 0, &more).await["rooms"], json!({}));
        }
    }

    async fn a_gap_is_told_with_the_state_that_lies_in_it(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        for form in FORMS {
            let name = format!("a name in {form:?}");
            let body = json!({ "lists": { "all": form.list([0, 9], 2, &[["m.room.name", ""], ["m.room.member", "$LAZY"]]) } });
            let first = form.sync(&bob, None, 0, &body).await;
            alice.set_state(&room, "m.room.name", "", &json!({ "name": name })).await;
            for number in 0..5 {
                alice.send_text(&room, &number.to_string()).await;
            }
            let answer = form.sync(&bob, Some(pos(&first)), 0, &body).await;
            let shown = &answer["rooms"][&room];
            assert_eq!((texts(shown), &shown["limited"]), (vec!["3".to_owned(), "4".to_owned()], &json!(true)));
            assert_eq!(shown["name"], name.as_str(), "{answer}");
            assert_eq!(state_keys(shown, "m.room.name"), [""]);
            // The client has forgotten its members.
            assert_eq!(state_keys(shown, "m.room.member"), [alice.id()]);
        }
    }

    async fn ignored_users_are_not_heard(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let ignored = json!({ "ignored_users": { alice.id(): {} } });
        bob.put(&format!("/user/{}/account_data/m.ignored_user_list", encode(bob.id())), &ignored).await.ok();
        let invitation = alice.create_room().await;
        alice.invite(&invitation, &bob).await;
        alice.send_text(&room, "before").await;
        for form in FORMS {
            let mut body = json!({ "lists": { "all": form.list([0, 9], 5, &[]) } });
            body["room_subscriptions"][&invitation] = form.config(5, &[]);
            let first = form.sync(&bob, None, 0, &body).await;
            assert_eq!(rooms(&first), [&room]);
            assert!(texts(&first["rooms"][&room]).iter().all(|text| text == "own"), "{first}");
            alice.send_text(&room, "after").await;
            let own = bob.send_text(&room, "own").await;
            let second = form.sync(&bob, Some(pos(&first)), 0, &body).await;
            let events = second["rooms"][&room]["timeline"].as_array().unwrap();
            assert_eq!(events.iter().map(|event| event["event_id"].as_str().unwrap()).collect::<Vec<_>>(), [own], "{second}");
        }
    }

    /// What ignored users wrote takes up places of the timeline, but hides no hole in it.
    async fn messages_of_an_ignored_user_hide_no_gap(server: TestServer) {
        let (alice, bob, carol) = (server.user("alice").await, server.user("bob").await, server.user("carol").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        carol.join(&room).await;
        let ignored = json!({ "ignored_users": { alice.id(): {} } });
        bob.put(&format!("/user/{}/account_data/m.ignored_user_list", encode(bob.id())), &ignored).await.ok();
        for form in FORMS {
            let state = [["m.room.topic", ""]];
            let body = json!({ "lists": { "all": form.list([0, 9], 2, &state) } });
            let out = json!({ "lists": { "all": form.list([9, 9], 2, &state) } });
            let first = form.sync(&bob, None, 0, &body).await;
            let away = form.sync(&bob, Some(pos(&first)), 0, &out).await;
            let topic = alice.set_state(&room, "m.room.topic", "", &json!({ "topic": format!("{form:?}") })).await;
            carol.send_text(&room, "one").await;
            alice.send_text(&room, "not heard").await;
            carol.send_text(&room, "two").await;
            let away = form.sync(&bob, Some(pos(&away)), 0, &out).await;
            let back = form.sync(&bob, Some(pos(&away)), 0, &body).await;
            let shown = &back["rooms"][&room];
            assert_eq!(texts(shown), ["two"], "{back}");
            assert_eq!(shown["limited"], true, "{back}");
            assert!(shown["required_state"].to_string().contains(&topic), "{back}");
            // A room in which the newest are all of ignored users is shown, and says that there is more.
            alice.send_text(&room, "not heard").await;
            alice.send_text(&room, "not heard").await;
            alice.send_text(&room, "not heard").await;
            let anew = form.sync(&bob, None, 0, &body).await;
            assert_eq!(anew["rooms"][&room]["limited"], true, "{anew}");
            assert!(anew["rooms"][&room]["prev_batch"].is_string(), "{anew}");
        }
    }
}
