//! Rooms by lists and by name, in both wire formats.

use serde_json::{Value, json};
use test_kit::{TestServer, TestUser, encode, on_each_database};

/// A wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Unstable,
    V4,
}

pub(crate) const FORMS: [Form; 2] = [Form::Unstable, Form::V4];

impl Form {
    /// A list over places, with state by type and key.
    pub(crate) fn list(self, range: [u64; 2], timeline_limit: u64, state: &[[&str; 2]]) -> Value {
        let mut list = self.config(timeline_limit, state);
        match self {
            Self::Unstable => list["ranges"] = json!([range]),
            Self::V4 => list["range"] = json!(range),
        }
        list
    }

    /// What is wanted of a room.
    pub(crate) fn config(self, timeline_limit: u64, state: &[[&str; 2]]) -> Value {
        let required_state = match self {
            Self::Unstable => json!(state),
            Self::V4 => {
                let elements = state.iter().filter(|[_, key]| *key != "$LAZY").map(|[event_type, key]| {
                    let mut element = json!({});
                    if *event_type != "*" {
                        element["type"] = json!(event_type);
                    }
                    if *key != "*" {
                        element["state_key"] = json!(key);
                    }
                    element
                });
                let lazy = state.iter().any(|[_, key]| *key == "$LAZY");
                json!({ "include": elements.collect::<Vec<_>>(), "lazy_members": lazy })
            }
        };
        json!({ "timeline_limit": timeline_limit, "required_state": required_state })
    }

    /// A request that must succeed.
    pub(crate) async fn sync(self, user: &TestUser, pos: Option<&str>, timeout_ms: u64, body: &Value) -> Value {
        self.try_sync(user, pos, timeout_ms, body).await.ok()
    }

    pub(crate) async fn try_sync(
        self,
        user: &TestUser,
        pos: Option<&str>,
        timeout_ms: u64,
        body: &Value,
    ) -> test_kit::Answer {
        match self {
            Self::Unstable => {
                let pos = pos.map(|pos| format!("&pos={}", encode(pos))).unwrap_or_default();
                let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
                user.post(&format!("{path}?timeout={timeout_ms}{pos}"), body).await
            }
            Self::V4 => {
                let mut body = body.clone();
                body["timeout"] = json!(timeout_ms);
                if let Some(pos) = pos {
                    body["pos"] = json!(pos);
                }
                user.post("/_matrix/client/v4/sync", &body).await
            }
        }
    }
}

pub(crate) fn pos(answer: &Value) -> &str {
    answer["pos"].as_str().expect("a pos")
}

fn texts(room: &Value) -> Vec<String> {
    let events = room["timeline"].as_array().cloned().unwrap_or_default();
    events.iter().filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
}

fn rooms(answer: &Value) -> Vec<&String> {
    answer["rooms"].as_object().expect("rooms").keys().collect()
}

/// The keys of the state of a type that a room was told with.
fn state_keys(room: &Value, event_type: &str) -> Vec<String> {
    let state = room["required_state"].as_array().cloned().unwrap_or_default();
    let of_type = state.iter().filter(|event| event["type"] == event_type);
    let mut keys: Vec<String> = of_type.map(|event| event["state_key"].as_str().unwrap().to_owned()).collect();
    keys.sort_unstable();
    keys
}

on_each_database! {
    async fn clients_find_sliding_sync_among_the_features(server: TestServer) {
        let versions = server.http().request("GET", "/_matrix/client/versions", None, &Value::Null).await.ok();
        assert_eq!(versions["unstable_features"]["org.matrix.simplified_msc3575"], true, "{versions}");
    }

    /// A look that would find nothing is left out: not that of a client that asks for something else, or has something new.
    async fn a_client_that_has_all_is_told_what_is_new_or_asked_for_anew(server: TestServer) {
        let alice = server.user("alice").await;
        let quiet = alice.create_room_with(&json!({ "name": "quiet" })).await;
        let loud = alice.create_room_with(&json!({ "name": "loud" })).await;
        for form in FORMS {
            alice.send_text(&loud, "loud").await;
            let list = |last| json!({ "lists": { "all": form.list([0, last], 1, &[["m.room.name", ""]]) } });
            let mut answer = form.sync(&alice, None, 0, &list(0)).await;
            assert_eq!(rooms(&answer), [&loud], "{answer}");
            for _ in 0..3 {
                answer = form.sync(&alice, Some(pos(&answer)), 0, &list(0)).await;
                assert!(rooms(&answer).is_empty(), "{answer}");
                assert_eq!(answer["lists"]["all"]["count"], 2, "{answer}");
            }
            answer = form.sync(&alice, Some(pos(&answer)), 0, &list(1)).await;
            assert_eq!(rooms(&answer), [&quiet], "{answer}");
            answer = form.sync(&alice, Some(pos(&answer)), 0, &list(1)).await;
            assert!(rooms(&answer).is_empty(), "{answer}");
            alice.send_text(&quiet, "new").await;
            answer = form.sync(&alice, Some(pos(&answer)), 0, &list(1)).await;
            assert_eq!(texts(&answer["rooms"][&quiet]), ["new"], "{answer}");
        }
    }

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

    /// The answer may have been lost on its way.
    async fn a_request_that_is_repeated_gets_the_same(server: TestServer) {
        let mut server = server;
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        for form in FORMS {
            let alice = alice.at(server.http());
            let body = json!({ "conn_id": "main", "lists": { "all": form.list([0, 9], 3, &[["m.room.member", "$LAZY"]]) } });
            let first = form.sync(&alice, None, 0, &body).await;
            alice.send_text(&room, "one").await;
            let second = form.sync(&alice, Some(pos(&first)), 0, &body).await;
            let again = form.sync(&alice, Some(pos(&first)), 0, &body).await;
            assert_eq!(texts(&second["rooms"][&room]), ["one"]);
            assert_eq!(texts(&again["rooms"][&room]), ["one"]);
            server.restart().await;
            let alice = alice.at(server.http());
            let again = form.sync(&alice, Some(pos(&first)), 0, &body).await;
            assert_eq!(texts(&again["rooms"][&room]), ["one"]);
            let third = form.sync(&alice, Some(pos(&again)), 0, &body).await;
            assert_eq!(third["rooms"], json!({}));
        }
    }

    async fn a_position_of_another_connection_is_unknown(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let other_device = alice.log_in_again().await;
        for form in FORMS {
            let body = |conn_id: &str| json!({ "conn_id": conn_id, "lists": { "all": form.list([0, 9], 1, &[]) } });
            let first = form.sync(&alice, None, 0, &body("a")).await;
            assert!(form.try_sync(&alice, Some(pos(&first)), 0, &body("a")).await.status.is_success());
            form.try_sync(&alice, Some(pos(&first)), 0, &body("b")).await.is_error(400, "M_UNKNOWN_POS");
            form.try_sync(&other_device, Some(pos(&first)), 0, &body("a")).await.is_error(400, "M_UNKNOWN_POS");
            form.try_sync(&bob, Some(pos(&first)), 0, &body("a")).await.is_error(400, "M_UNKNOWN_POS");
            form.try_sync(&alice, Some("nonsense"), 0, &body("a")).await.is_error(400, "M_UNKNOWN_POS");
            // One that starts anew takes the place of the one that had its name.
            let anew = form.sync(&alice, None, 0, &body("a")).await;
            form.try_sync(&alice, Some(pos(&first)), 0, &body("a")).await.is_error(400, "M_UNKNOWN_POS");
            assert!(form.try_sync(&alice, Some(pos(&anew)), 0, &body("a")).await.status.is_success());
        }
    }

    async fn a_device_has_so_many_connections_and_no_more(server: TestServer) {
        let alice = server.user("alice").await;
        alice.create_room().await;
        let form = Form::Unstable;
        let body = |number: u32| json!({ "conn_id": number.to_string(), "lists": { "all": form.list([0, 9], 1, &[]) } });
        let first = form.sync(&alice, None, 0, &body(0)).await;
        for number in 1..=10 {
            form.sync(&alice, None, 0, &body(number)).await;
        }
        let mut server = server;
        server.restart().await;
        let alice = alice.at(server.http());
        form.try_sync(&alice, Some(pos(&first)), 0, &body(0)).await.is_error(400, "M_UNKNOWN_POS");
    }

    async fn nonsense_is_refused(server: TestServer) {
        let alice = server.user("alice").await;
        let list = |changes: Value| {
            let mut list = json!({ "timeline_limit": 1, "required_state": [], "ranges": [[0, 1]] });
            list.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            json!({ "lists": { "a": list } })
        };
        let form = Form::Unstable;
        for (body, errcode) in [
            (list(json!({ "ranges": [[5, 1]] })), "M_INVALID_PARAM"),
            (list(json!({ "ranges": vec![[0, 1]; 101] })), "M_INVALID_PARAM"),
            (list(json!({ "required_state": (0..251).map(|n| json!(["a", n.to_string()])).collect::<Vec<_>>() })), "M_INVALID_PARAM"),
            (list(json!({ "required_state": [["a".repeat(256), "b"]] })), "M_INVALID_PARAM"),
            (list(json!({ "filters": { "room_name_like": "a".repeat(256) } })), "M_INVALID_PARAM"),
            (list(json!({ "ranges": [[-1, 1]] })), "M_BAD_JSON"),
            (list(json!({ "timeline_limit": "many" })), "M_BAD_JSON"),
            (json!({ "conn_id": "a".repeat(256) }), "M_INVALID_PARAM"),
            (json!({ "lists": { "a".repeat(65): { "timeline_limit": 1 } } }), "M_INVALID_PARAM"),
            (json!({ "room_subscriptions": { "no room": { "timeline_limit": 1 } } }), "M_BAD_JSON"),
            (json!({ "extensions": { "to_device": { "enabled": true, "since": "nonsense" } } }), "M_INVALID_PARAM"),
            (json!(7), "M_BAD_JSON"),
        ] {
            form.try_sync(&alice, None, 0, &body).await.is_error(400, errcode);
        }
        Form::V4.try_sync(&alice, None, 0, &json!({ "set_presence": "busy" })).await.is_error(400, "M_INVALID_PARAM");
        let lists: serde_json::Map<String, Value> =
            (0..101).map(|nr| (nr.to_string(), json!({ "timeline_limit": 1 }))).collect();
        form.try_sync(&alice, None, 0, &json!({ "lists": lists })).await.is_error(400, "M_INVALID_PARAM");
        let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?set_presence=dancing";
        alice.post(path, &json!({})).await.is_error(400, "M_INVALID_PARAM");
        // All lists together may not name more than one could use; what several name counts once.
        let pieces = |list: usize| (0..250).map(|nr| json!(["a", format!("{list} {nr}")])).collect::<Vec<_>>();
        let lists = |of: &dyn Fn(usize) -> usize| -> Value {
            (0..5).map(|nr| (nr.to_string(), json!({ "timeline_limit": 1, "required_state": pieces(of(nr)) }))).collect()
        };
        let different = json!({ "lists": lists(&|nr| nr) });
        form.try_sync(&alice, None, 0, &different).await.is_error(400, "M_INVALID_PARAM");
        form.sync(&alice, None, 0, &json!({ "lists": lists(&|_| 7) })).await;
        // What is null is not there.
        let nothing = json!({ "lists": null, "room_subscriptions": null, "extensions": null });
        for form in FORMS {
            form.sync(&alice, None, 0, &nothing).await;
            form.sync(&alice, None, 0, &json!({ "extensions": { "e2ee": null, "typing": null, "to_device": null } })).await;
        }
        // What is only too large is cut.
        let answer = form.sync(&alice, None, 0, &list(json!({ "ranges": [[0, u64::MAX]], "timeline_limit": u64::MAX }))).await;
        assert_eq!(answer["lists"]["a"]["count"], 0);
    }

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

    async fn messages_to_a_device_come_until_their_token_comes_back(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for (number, form) in FORMS.into_iter().enumerate() {
            let ask = |since: Option<&str>| {
                let mut to_device = json!({ "enabled": true, "limit": 2 });
                if let Some(since) = since {
                    to_device["since"] = json!(since);
                }
                json!({ "extensions": { "to_device": to_device, "e2ee": { "enabled": true } } })
            };
            let first = form.sync(&bob, None, 0, &ask(None)).await;
            let token = |answer: &Value| answer["extensions"]["to_device"]["next_batch"].as_str().unwrap().to_owned();
            let numbers = |answer: &Value| -> Vec<u64> {
                let events = answer["extensions"]["to_device"]["events"].as_array().unwrap();
                events.iter().map(|event| event["content"]["n"].as_u64().unwrap()).collect()
            };
            assert_eq!(numbers(&first), [0; 0]);
            assert_eq!(first["extensions"]["e2ee"]["device_one_time_keys_count"], json!({ "signed_curve25519": 0 }));
            assert_eq!(first["extensions"]["e2ee"]["device_unused_fallback_key_types"], json!([]));
            let send = async {
                for n in 0..3 {
                    let body = json!({ "messages": { bob.id(): { bob.device_id(): { "n": n } } } });
                    alice.put(&format!("/sendToDevice/org.example.x/{number}-{n}"), &body).await.ok();
                }
            };
            let (start, since) = (pos(&first).to_owned(), token(&first));
            let body = ask(Some(&since));
            let (waited, ()) = tokio::join!(form.sync(&bob, Some(&start), 30_000, &body), send);
            assert_eq!(numbers(&waited)[0], 0);
            // Again from the same place, on the same connection or another: all are there still.
            let again = form.sync(&bob, None, 0, &ask(Some(&since))).await;
            assert_eq!(numbers(&again), [0, 1]);
            let rest = form.sync(&bob, Some(pos(&again)), 0, &ask(Some(&token(&again)))).await;
            assert_eq!(numbers(&rest), [2]);
            let none = form.sync(&bob, Some(pos(&rest)), 0, &ask(Some(&token(&rest)))).await;
            assert_eq!(numbers(&none), [0; 0]);
            // They were acknowledged.
            let none = form.sync(&bob, None, 0, &ask(Some(&since))).await;
            assert_eq!(numbers(&none), [0; 0]);
        }
    }

    async fn extensions_tell_of_the_rooms_that_they_are_about(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for form in FORMS {
            let (seen, other) = (alice.create_public_room().await, alice.create_public_room().await);
            bob.join(&seen).await;
            bob.join(&other).await;
            let event = alice.send_text(&seen, "read me").await;
            let receipt = |room: &str, event: &str| format!("/rooms/{}/receipt/m.read/{}", encode(room), encode(event));
            let tag = |room: &str| format!("/user/{}/rooms/{}/tags/u.x", encode(bob.id()), encode(room));
            alice.post(&receipt(&seen, &event), &json!({})).await.ok();
            bob.put(&tag(&seen), &json!({})).await.ok();
            let extensions = |lists: Value| {
                let scope = json!({ "enabled": true, "lists": lists });
                json!({ "receipts": scope, "account_data": scope, "typing": scope })
            };
            let body = |lists: Value| {
                let subscription = json!({ &seen: form.config(5, &[]), &other: form.config(5, &[]) });
                let list = form.list([0, 0], 5, &[]);
                json!({ "room_subscriptions": subscription, "lists": { "top": list }, "extensions": extensions(lists) })
            };
            let first = form.sync(&bob, None, 0, &body(json!([]))).await;
            let shown = &first["extensions"];
            assert!(shown["receipts"]["rooms"][&seen]["content"][&event]["m.read"][alice.id()]["ts"].is_u64(), "{first}");
            assert_eq!(shown["account_data"]["rooms"][&seen][0]["type"], "m.tag", "{first}");
            assert!(shown["account_data"]["global"].to_string().contains("m.push_rules"), "{first}");
            // News of each kind, one after the other, wake who waits.
            let mut at = pos(&first).to_owned();
            let event = alice.send_text(&other, "x").await;
            at = pos(&form.sync(&bob, Some(&at), 0, &body(json!([]))).await).to_owned();
            let path = receipt(&other, &event);
            let empty = json!({});
            let wait = body(json!([]));
            let (news, _) = tokio::join!(form.sync(&bob, Some(&at), 30_000, &wait), alice.post(&path, &empty));
            assert!(news["extensions"]["receipts"]["rooms"][&other]["content"][&event].is_object(), "{news}");
            let typing = json!({ "typing": true, "timeout": 30_000 });
            let path = format!("/rooms/{}/typing/{}", encode(&other), encode(alice.id()));
            at = pos(&news).to_owned();
            let (news, _) = tokio::join!(form.sync(&bob, Some(&at), 30_000, &wait), alice.put(&path, &typing));
            assert_eq!(news["extensions"]["typing"]["rooms"][&other]["content"]["user_ids"], json!([alice.id()]), "{news}");
            at = pos(&news).to_owned();
            let path = tag(&other);
            let (news, _) = tokio::join!(form.sync(&bob, Some(&at), 30_000, &wait), bob.put(&path, &empty));
            assert_eq!(news["extensions"]["account_data"]["rooms"][&other][0]["content"]["tags"], json!({ "u.x": {} }), "{news}");
            assert_eq!(form.sync(&bob, Some(pos(&news)), 0, &wait).await["extensions"], json!({}));
        }
    }

    /// An extension that was off, or about other rooms, has not lost what happened meanwhile.
    async fn what_an_extension_did_not_tell_it_tells_later(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        for form in FORMS {
            let event = alice.send_text(&room, "x").await;
            let body = |is_on: bool| {
                let on = json!({ "enabled": is_on });
                json!({ "lists": { "all": form.list([0, 9], 5, &[]) }, "extensions": { "receipts": on, "account_data": on } })
            };
            let first = form.sync(&bob, None, 0, &body(true)).await;
            let receipt = format!("/rooms/{}/receipt/m.read/{}", encode(&room), encode(&event));
            alice.post(&receipt, &json!({})).await.ok();
            let data = |name: &str| format!("/user/{}/{name}/org.example.{form:?}", encode(bob.id()));
            bob.put(&data("account_data"), &json!({ "a": 1 })).await.ok();
            bob.put(&data(&format!("rooms/{}/account_data", encode(&room))), &json!({ "a": 2 })).await.ok();
            let off = form.sync(&bob, Some(pos(&first)), 0, &body(false)).await;
            assert_eq!(off["extensions"], json!({}), "{off}");
            alice.send_text(&room, "y").await;
            let off = form.sync(&bob, Some(pos(&off)), 0, &body(false)).await;
            let on = form.sync(&bob, Some(pos(&off)), 0, &body(true)).await;
            assert!(on["extensions"]["receipts"]["rooms"][&room]["content"][&event].is_object(), "{on}");
            assert_eq!(on["extensions"]["account_data"]["rooms"][&room][0]["content"], json!({ "a": 2 }), "{on}");
            assert_eq!(on["extensions"]["account_data"]["global"][0]["content"], json!({ "a": 1 }), "{on}");
            assert_eq!(form.sync(&bob, Some(pos(&on)), 0, &body(true)).await["extensions"], json!({}));
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

    async fn who_uses_sliding_sync_is_online_as_they_say(server: TestServer) {
        for form in FORMS {
            let alice = server.user(&format!("alice_{form:?}").to_lowercase()).await;
            let presence = async || {
                alice.get(&format!("/presence/{}/status", encode(alice.id()))).await.ok()["presence"].clone()
            };
            assert_eq!(presence().await, "offline");
            match form {
                Form::Unstable => {
                    let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?set_presence=unavailable";
                    alice.post(path, &json!({})).await.ok()
                }
                Form::V4 => alice.post("/_matrix/client/v4/sync", &json!({ "set_presence": "unavailable" })).await.ok(),
            };
            assert_eq!(presence().await, "unavailable");
            form.sync(&alice, None, 0, &json!({})).await;
            assert_eq!(presence().await, "online");
        }
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

    async fn receipts_come_with_a_timeline_that_grows(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for form in FORMS {
            let room = alice.create_public_room().await;
            bob.join(&room).await;
            let event = alice.send_text(&room, "read").await;
            alice.post(&format!("/rooms/{}/receipt/m.read/{}", encode(&room), encode(&event)), &json!({})).await.ok();
            bob.send_text(&room, "not read").await;
            let on = json!({ "receipts": { "enabled": true } });
            let few = json!({ "lists": { "all": form.list([0, 0], 1, &[]) }, "extensions": on });
            let first = form.sync(&bob, None, 0, &few).await;
            let of_event = |answer: &Value| answer["extensions"]["receipts"]["rooms"][&room]["content"][&event].clone();
            assert_eq!(of_event(&first), Value::Null, "{first}");
            let more = json!({ "room_subscriptions": { &room: form.config(5, &[]) }, "extensions": on });
            let second = form.sync(&bob, Some(pos(&first)), 0, &more).await;
            assert!(of_event(&second)["m.read"][alice.id()].is_object(), "{second}");
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

    async fn a_guest_and_a_position_in_messages(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        alice.send_text(&room, "before").await;
        let body = json!({ "lists": { "all": Form::V4.list([0, 9], 1, &[]) } });
        let answer = Form::V4.sync(&alice, None, 0, &body).await;
        alice.send_text(&room, "after").await;
        let path = format!("/rooms/{}/messages?dir=b&limit=1&from={}", encode(&room), encode(pos(&answer)));
        assert_eq!(alice.get(&path).await.ok()["chunk"][0]["content"]["body"], "before");
        let guest = test_kit::register_guest(server.http()).await;
        assert_eq!(Form::V4.sync(&guest, None, 0, &body).await["rooms"], json!({}));
        let nobody = server.http().request("POST", "/_matrix/client/v4/sync", None, &body).await;
        nobody.is_error(401, "M_MISSING_TOKEN");
    }
}

/// A connection may be used at any process of a cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_goes_on_at_another_process() {
    let Some(here) = TestServer::on_postgres().await else { return };
    let there = here.beside(test_kit::ServerOptions::default()).await;
    let alice = here.user("alice").await;
    let room = alice.create_room().await;
    let form = Form::Unstable;
    let body = json!({ "lists": { "all": form.list([0, 9], 5, &[["m.room.member", "$LAZY"]]) } });
    let mut answer = form.sync(&alice, None, 0, &body).await;
    for number in 0..6 {
        alice.send_text(&room, &number.to_string()).await;
        let at = if number % 2 == 0 { there.http() } else { here.http() };
        answer = form.sync(&alice.at(at), Some(pos(&answer)), 30_000, &body).await;
        assert_eq!(texts(&answer["rooms"][&room]), [number.to_string()], "{answer}");
    }
}
