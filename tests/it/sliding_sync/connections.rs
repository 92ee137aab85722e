//! Connections: their positions, how many there may be, and who has them.

use serde_json::{Value, json};
use test_kit::{TestServer, encode, on_each_database};

use super::{FORMS, Form, pos, rooms, texts};

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
