//! Each parameter of a sync and each part of its answer that no other file is about, and what is wrong with one, in all forms.
//! Client-Server API, "Syncing"; MSC4186, "API".

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

use crate::sliding_sync::{FORMS, Form, pos};

async fn sync_with(user: &TestUser, query: &str) -> Value {
    user.get(&format!("/sync?set_presence=offline&{query}")).await.ok()
}

fn token(sync: &Value) -> String {
    encode(sync["next_batch"].as_str().unwrap())
}

fn types(part: &Value) -> Vec<String> {
    let events = part["events"].as_array().cloned().unwrap_or_default();
    events.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

/// A filter of some depth, as a parameter.
fn deep(levels: usize) -> String {
    let json = format!("{{\"room\":{{\"x\":{}1{}}}}}", "[".repeat(levels), "]".repeat(levels));
    format!("filter={}", encode(&json))
}

on_each_database! {
    // shows: sync
    async fn a_full_state_comes_at_once_with_what_is_new(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room_with(&json!({ "name": "a name" })).await;
        let since = token(&alice.sync(None).await);
        // Nothing is new: whoever waited would come back with nothing, and much later.
        for (query, part) in [("", "state"), ("&use_state_after=true", "state_after")] {
            let whole = sync_with(&alice, &format!("since={since}&full_state=true&timeout=3600000{query}")).await;
            let shown = &whole["rooms"]["join"][&room];
            for wanted in ["m.room.create", "m.room.member", "m.room.name"] {
                assert!(types(&shown[part]).contains(&wanted.to_owned()), "{wanted}: {whole}");
            }
            assert!(types(&shown["timeline"]).is_empty(), "{whole}");
            assert_eq!(shown["summary"]["m.joined_member_count"], 1, "{whole}");
        }
        alice.send_text(&room, "new").await;
        let whole = sync_with(&alice, &format!("since={since}&full_state=true")).await;
        let shown = &whole["rooms"]["join"][&room];
        assert_eq!(types(&shown["timeline"]), ["m.room.message"], "{whole}");
        assert!(types(&shown["state"]).contains(&"m.room.name".to_owned()), "{whole}");
        let changes = sync_with(&alice, &format!("since={since}&full_state=false")).await;
        assert!(types(&changes["rooms"]["join"][&room]["state"]).is_empty(), "{changes}");
    }

    /// "Required if `use_state_after` was set to `true` in the request, even if it is empty."
    // shows: sync
    async fn the_state_is_that_at_one_end_of_the_timeline_or_at_the_other(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room_with(&json!({ "topic": "old" })).await;
        let since = token(&alice.sync(None).await);
        alice.send_text(&room, "hello").await;
        let after = sync_with(&alice, &format!("since={since}&use_state_after=true")).await;
        let shown = &after["rooms"]["join"][&room];
        assert!(shown["state_after"].is_object() && types(&shown["state_after"]).is_empty(), "{after}");
        assert!(shown["state"].is_null(), "{after}");
        alice.set_state(&room, "m.room.topic", "", &json!({ "topic": "new" })).await;
        let after = sync_with(&alice, &format!("since={since}&use_state_after=true")).await;
        let shown = &after["rooms"]["join"][&room];
        assert_eq!(types(&shown["state_after"]), ["m.room.topic"], "{after}");
        assert_eq!(types(&shown["timeline"]), ["m.room.message", "m.room.topic"], "{after}");
        let before = sync_with(&alice, &format!("since={since}&use_state_after=false")).await;
        let shown = &before["rooms"]["join"][&room];
        assert!(types(&shown["state"]).is_empty() && shown["state_after"].is_null(), "{before}");
        // From the beginning, with a timeline that has the change only.
        let filter = encode(&json!({ "room": { "timeline": { "limit": 1 } } }).to_string());
        for (query, part, expected) in [("", "state", "old"), ("&use_state_after=true", "state_after", "new")] {
            let whole = sync_with(&alice, &format!("filter={filter}{query}")).await;
            let state = whole["rooms"]["join"][&room][part]["events"].as_array().unwrap().clone();
            let topics: Vec<&Value> = state.iter().filter(|event| event["type"] == "m.room.topic").collect();
            assert_eq!(topics.len(), 1, "{whole}");
            assert_eq!(topics[0]["content"]["topic"], expected, "{whole}");
        }
    }

    // shows: sync
    async fn a_summary_counts_invitations_and_names_those_who_were_there(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().await;
        let mut since = token(&alice.sync(None).await);
        let mut summary = async || {
            let sync = sync_with(&alice, &format!("since={since}")).await;
            since = token(&sync);
            sync["rooms"]["join"][&room]["summary"].clone()
        };
        alice.invite(&room, &bob).await;
        let (both, one, none) = (json!([bob.id()]), json!(1), json!(0));
        let told = summary().await;
        assert_eq!((&told["m.heroes"], &told["m.invited_member_count"], &told["m.joined_member_count"]), (&both, &one, &one));
        // Whom a room is called after that nobody else is in any more.
        alice.remove(&room, "ban", &bob).await;
        let told = summary().await;
        assert_eq!((&told["m.heroes"], &told["m.invited_member_count"]), (&both, &none), "{told}");
        for form in FORMS {
            let answer = form.sync(&alice, None, 0, &json!({ "lists": { "all": form.list([0, 9], 1, &[]) } })).await;
            let shown = &answer["rooms"][&room];
            assert_eq!(shown["heroes"], json!([{ "user_id": bob.id() }]), "{answer}");
            assert_eq!((&shown["joined_count"], &shown["invited_count"]), (&one, &none), "{answer}");
        }
    }

    /// Client-Server API, "Transaction identifiers", `UnsignedData`, "ClientEventWithoutRoomID".
    // shows: sync
    async fn an_event_says_what_belongs_to_its_reader(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let since = [&alice, &bob].map(|user| async move { token(&user.sync(None).await) });
        let [of_alice, of_bob] = since;
        let (of_alice, of_bob) = (of_alice.await, of_bob.await);
        alice.put(&format!("/rooms/{}/send/m.room.message/its-name", encode(&room)), &json!({ "msgtype": "m.text", "body": "x" })).await.ok();
        alice.set_state(&room, "m.room.topic", "", &json!({ "topic": "one" })).await;
        alice.set_state(&room, "m.room.topic", "", &json!({ "topic": "two" })).await;
        for (user, since, transaction) in [(&alice, of_alice, json!("its-name")), (&bob, of_bob, Value::Null)] {
            let sync = sync_with(user, &format!("since={since}")).await;
            let events = sync["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap().clone();
            assert_eq!(events.len(), 3, "{sync}");
            assert_eq!(events[0]["unsigned"]["transaction_id"], transaction, "{sync}");
            assert_eq!(events[2]["unsigned"]["prev_content"], json!({ "topic": "one" }), "{sync}");
            for event in &events {
                assert!(event["room_id"].is_null() && event["unsigned"]["age"].is_u64(), "{event}");
                assert_eq!(event["unsigned"]["membership"], "join", "{event}");
            }
        }
    }

    // shows: sync, defineFilter, getFilter
    async fn a_filter_is_its_users_and_one_that_is_none_is_refused(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let path = format!("/user/{}/filter", encode(alice.id()));
        let stored = alice.post(&path, &json!({ "room": { "timeline": { "limit": 1 } } })).await.ok();
        let id = stored["filter_id"].as_str().unwrap();
        sync_with(&alice, &format!("filter={id}")).await;
        bob.get(&format!("/sync?filter={id}")).await.is_error(400, "M_INVALID_PARAM");
        bob.get(&format!("{path}/{id}")).await.is_error(403, "M_FORBIDDEN");
        for filter in ["77", "-1", "x", "99999999999999999999999", &encode("{"), &encode("{}x"), &encode("[]"), "%00"] {
            let answer = alice.get(&format!("/sync?filter={filter}")).await;
            assert_eq!(answer.status.as_u16(), 400, "{filter}: {answer}");
            assert!(matches!(answer.errcode().as_str(), "M_INVALID_PARAM" | "M_BAD_JSON" | "M_NOT_JSON"), "{filter}: {answer}");
        }
    }

    // shows: sync, defineFilter
    async fn a_filter_has_its_bounds(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let users: Vec<String> = (0..1_001).map(|nr| format!("@u{nr}:x")).collect();
        let refused = [
            json!({ "room": { "timeline": { "types": ["x".repeat(1_001)] } } }),
            json!({ "room": { "timeline": { "limit": -1 } } }),
            json!({ "room": { "timeline": { "limit": 1.5 } } }),
            json!({ "room": { "timeline": { "limit": "many" } } }),
            json!({ "room": { "timeline": { "senders": ["nobody"] } } }),
            json!({ "room": { "rooms": "all" } }),
            json!({ "event_format": 7 }),
            json!({ "event_fields": "content" }),
            json!(["a filter"]),
            json!({ "presence": { "not_senders": users } }),
        ];
        let path = format!("/user/{}/filter", encode(alice.id()));
        for filter in refused {
            let answer = alice.post(&path, &filter).await;
            assert_eq!(answer.status.as_u16(), 400, "{filter}: {answer}");
            if filter.to_string().len() < 4_000 {
                let answer = alice.get(&format!("/sync?filter={}", encode(&filter.to_string()))).await;
                assert_eq!(answer.status.as_u16(), 400, "{filter}: {answer}");
            }
        }
        // However deep: it is read, or refused, and the server is there still.
        sync_with(&alice, &deep(20)).await;
        let answer = alice.get(&format!("/sync?{}", deep(300))).await;
        assert!(matches!(answer.status.as_u16(), 200 | 400), "{answer}");
        let nested = format!("{{\"room\":{}1{}}}", "[".repeat(5_000), "]".repeat(5_000));
        let kind = Some("application/json");
        let path = format!("/_matrix/client/v3{path}");
        let answer = server.http().send("POST", path.as_bytes(), Some(alice.token()), kind, nested).await.unwrap();
        answer.is_error(400, "M_BAD_JSON");
        // What is only too large is cut, and none is as good as few.
        for number in 0..3 {
            alice.send_text(&room, &number.to_string()).await;
        }
        for (limit, shown, limited) in [(0, vec![], true), (1, vec!["2"], true), (9_007_199_254_740_991_u64, vec!["0", "1", "2"], false)] {
            let filter = json!({ "room": { "timeline": { "types": ["m.room.message"], "limit": limit } } });
            let sync = sync_with(&alice, &format!("filter={}", encode(&filter.to_string()))).await;
            let timeline = &sync["rooms"]["join"][&room]["timeline"];
            let events = timeline["events"].as_array().cloned().unwrap_or_default();
            assert_eq!(events.iter().map(|event| event["content"]["body"].as_str().unwrap()).collect::<Vec<_>>(), shown, "{limit}");
            assert_eq!(timeline["limited"].as_bool().unwrap_or_default(), limited, "{limit}");
        }
    }

    /// A token says where, not who: with that of another one is shown what one may see, and no more.
    // shows: sync
    async fn a_token_of_another_user_shows_nothing_of_theirs(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let secret = alice.create_room_with(&json!({ "name": "a secret" })).await;
        let since = token(&alice.sync(None).await);
        alice.send_text(&secret, "a secret").await;
        let of_alice = format!("/user/{}/account_data/org.example.x", encode(alice.id()));
        alice.put(&of_alice, &json!({ "a": "a secret" })).await.ok();
        let room = bob.create_room().await;
        let sync = sync_with(&bob, &format!("since={since}&filter={}", encode(r#"{"room":{"include_leave":true}}"#))).await;
        assert!(!sync.to_string().contains("a secret"), "{sync}");
        assert_eq!(sync["rooms"]["join"].as_object().unwrap().keys().collect::<Vec<_>>(), [&room], "{sync}");
    }

    // shows: sync
    async fn a_token_of_another_server_or_of_the_future_is_refused(server: TestServer) {
        let alice = server.user("alice").await;
        alice.create_room().await;
        let own = alice.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let mut strange: Vec<String> = ["s72594_4483_1934", "p1_1_s1_1", "t1_1_0", "0", "-1", "s1_", "\u{0}"].map(str::to_owned).into();
        // Times that are still to come: an hour's worth, and all that there is.
        let at = own.split('_').nth(1).unwrap();
        let far = format!("{:x}", i64::from_str_radix(at, 16).unwrap() + 1_000_000);
        let at_another = |at_far: &str| own.replacen(&format!("s1_{at}"), &format!("s1_{at_far}"), 1);
        strange.extend([&*far, "7fffffffffffffff"].map(at_another));
        strange.push("x".repeat(5_000));
        for since in &strange {
            alice.get(&format!("/sync?since={}", encode(since))).await.is_error(400, "M_INVALID_PARAM");
            for form in FORMS {
                let body = json!({ "extensions": { "to_device": { "enabled": true, "since": since } } });
                form.try_sync(&alice, None, 0, &body).await.is_error(400, "M_INVALID_PARAM");
            }
        }
        for form in FORMS {
            let body = json!({ "lists": { "all": form.list([0, 9], 1, &[]) } });
            let own = form.sync(&alice, None, 0, &body).await;
            let own = pos(&own);
            let at = own.rsplit_once("s1_").unwrap().1.split('_').next().unwrap();
            let far = own.replace(&format!("s1_{at}"), &format!("s1_{far}"));
            // Whoever is told so begins a new connection; any other error would keep the client where it is.
            for strange in strange.iter().chain([&far]) {
                form.try_sync(&alice, Some(strange), 0, &body).await.is_error(400, "M_UNKNOWN_POS");
            }
            form.sync(&alice, Some(own), 0, &body).await;
        }
    }

    // shows: sync
    async fn what_no_parameter_may_be_is_refused(server: TestServer) {
        let alice = server.user("alice").await;
        for query in ["timeout=-1", "timeout=soon", "full_state=maybe", "use_state_after=2", "set_presence=dancing"] {
            let answer = alice.get(&format!("/sync?{query}")).await;
            assert_eq!(answer.status.as_u16(), 400, "{query}: {answer}");
            assert!(matches!(answer.errcode().as_str(), "M_INVALID_PARAM" | "M_BAD_JSON"), "{query}: {answer}");
        }
        let unstable = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
        alice.post(&format!("{unstable}?timeout=-1"), &json!({})).await.is_error(400, "M_INVALID_PARAM");
        Form::V4.try_sync(&alice, None, 0, &json!({ "lists": [] })).await.is_error(400, "M_BAD_JSON");
        let list = |range: Value| json!({ "lists": { "a": { "timeline_limit": 1, "required_state": {}, "range": range } } });
        for (range, errcode) in [
            (json!([5, 1]), "M_INVALID_PARAM"),
            (json!([-1, 1]), "M_BAD_JSON"),
            (json!([0]), "M_BAD_JSON"),
            (json!([0, 1, 2]), "M_BAD_JSON"),
            (json!([0, 1.5]), "M_BAD_JSON"),
            (json!("all"), "M_BAD_JSON"),
        ] {
            Form::V4.try_sync(&alice, None, 0, &list(range)).await.is_error(400, errcode);
        }
        // Far behind the end there is nothing, and it is no mistake.
        let answer = Form::V4.sync(&alice, None, 0, &list(json!([u64::MAX - 1, u64::MAX]))).await;
        assert_eq!(answer["lists"]["a"]["count"], 0, "{answer}");
    }
}
