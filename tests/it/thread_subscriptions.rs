//! Subscriptions to threads.

use serde_json::{Value, json};
use storage::testing::TestDatabase;
use test_kit::{ServerOptions, TestServer, TestUser, encode, on_each_database};

use crate::sliding_sync::{FORMS, pos};

const EXTENSION: &str = "io.element.msc4308.thread_subscriptions";

pub(crate) fn path(room: &str, root: &str) -> String {
    format!("/_matrix/client/unstable/io.element.msc4306/rooms/{}/thread/{}/subscription", encode(room), encode(root))
}

/// A request of sliding sync for changes of subscriptions.
pub(crate) fn body() -> Value {
    json!({ "extensions": { EXTENSION: { "enabled": true } } })
}

/// What an answer of sliding sync tells of subscriptions.
pub(crate) fn shown(answer: &Value) -> &Value {
    &answer["extensions"][EXTENSION]
}

async fn subscribe(user: &TestUser, room: &str, root: &str, cause: Option<&str>) -> test_kit::Answer {
    user.put(&path(room, root), &cause.map_or(json!({}), |cause| json!({ "automatic": cause }))).await
}

async fn reply(user: &TestUser, room: &str, root: &str) -> String {
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    user.send(room, "m.room.message", &json!({ "msgtype": "m.text", "body": "x", "m.relates_to": relation })).await
}

/// How many events a user has not read of a room, and how many are highlighted.
async fn counts(user: &TestUser, room: &str) -> [u64; 2] {
    counts_in(&user.sync(None).await, room)
}

#[track_caller]
fn counts_in(sync: &Value, room: &str) -> [u64; 2] {
    let counts = &sync["rooms"]["join"][room]["unread_notifications"];
    ["notification_count", "highlight_count"].map(|kind| counts[kind].as_u64().unwrap_or_else(|| panic!("{sync}")))
}

/// Where the deployment says so, threads notify those who subscribed to them. MSC4306, "New Push Rules".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_notify_who_subscribed_to_them() {
    for database in TestDatabase::each().await {
        let mut options = ServerOptions::default();
        options.config.rooms.thread_subscriptions = true;
        let server = TestServer::on(database, options).await;
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let versions = alice.get("/_matrix/client/versions").await.ok();
        assert_eq!(versions["unstable_features"]["org.matrix.msc4306"], true);
        let rules = bob.get("/pushrules/").await.ok()["global"].clone();
        let of_threads: Vec<&Value> =
            rules["postcontent"].as_array().unwrap().iter().map(|rule| &rule["rule_id"]).collect();
        let [unsubscribed, subscribed] =
            ["unsubscribed", "subscribed"].map(|kind| format!(".io.element.msc4306.rule.{kind}_thread"));
        assert_eq!(of_threads, [&unsubscribed, &subscribed]);
        let told = bob.sync(None).await["account_data"]["events"].clone();
        let told = told.as_array().unwrap().iter().find(|event| event["type"] == "m.push_rules").unwrap().clone();
        assert_eq!(told["content"]["global"], rules);

        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let root = alice.send_text(&room, "root").await;
        reply(&alice, &room, &root).await;
        assert_eq!(counts(&bob, &room).await, [1, 0], "only the root, which is in the main timeline");
        let relation = json!({ "rel_type": "m.thread", "event_id": root });
        let mention = json!({ "body": "bob", "m.relates_to": relation, "m.mentions": { "user_ids": [bob.id()] } });
        alice.send(&room, "m.room.message", &mention).await;
        assert_eq!(counts(&bob, &room).await, [2, 1], "who is mentioned is notified");
        // What changes is told, with all of the thread that is unread.
        let since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        subscribe(&bob, &room, &root, None).await.ok();
        let sync = bob.sync_waiting(Some(&since), 30_000).await;
        assert_eq!(counts_in(&sync, &room), [3, 1]);
        // The room's own settings do not matter, but for what is in no thread.
        bob.put(&format!("/pushrules/global/room/{}", encode(&room)), &json!({ "actions": [] })).await.ok();
        reply(&alice, &room, &root).await;
        assert_eq!(counts(&bob, &room).await, [3, 1]);
        // A reaction in the thread is quiet.
        let annotation =
            json!({ "rel_type": "m.annotation", "event_id": reply(&alice, &room, &root).await, "key": "x" });
        alice.send(&room, "m.reaction", &json!({ "m.relates_to": annotation })).await;
        assert_eq!(counts(&bob, &room).await, [4, 1]);
        bob.request("DELETE", &path(&room, &root), &Value::Null).await.ok();
        assert_eq!(counts(&bob, &room).await, [1, 1]);
        for kind in ["postcontent", "io.element.msc4306.postcontent"] {
            let rule = format!("/pushrules/global/{kind}/{subscribed}");
            assert_eq!(bob.get(&rule).await.ok()["rule_id"], subscribed);
            bob.put(&format!("{rule}/enabled"), &json!({ "enabled": false })).await.ok();
        }
        subscribe(&bob, &room, &root, None).await.ok();
        assert_eq!(counts(&bob, &room).await, [1, 1], "switched off");
        bob.request("DELETE", &format!("/pushrules/global/postcontent/{subscribed}"), &Value::Null)
            .await
            .is_error(400, "M_INVALID_PARAM");
    }
}

on_each_database! {
    async fn threads_notify_everybody_where_subscriptions_are_off(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let versions = alice.get("/_matrix/client/versions").await.ok();
        assert_eq!(versions["unstable_features"]["org.matrix.msc4306"], Value::Null);
        assert_eq!(bob.get("/pushrules/").await.ok()["global"]["postcontent"], Value::Null);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let root = alice.send_text(&room, "root").await;
        reply(&alice, &room, &root).await;
        assert_eq!(counts(&bob, &room).await, [2, 0]);
    }

    async fn a_subscription_is_automatic_until_the_user_makes_it(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().await;
        let root = alice.send_text(&room, "root").await;
        let (cause, other) = (reply(&alice, &room, &root).await, alice.send_text(&room, "elsewhere").await);
        alice.get(&path(&room, &root)).await.is_error(404, "M_NOT_FOUND");
        subscribe(&alice, &room, &root, Some(&other)).await.is_error(400, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD");
        subscribe(&alice, &room, &root, Some("$nothing")).await.is_error(400, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD");
        subscribe(&alice, &room, &root, Some(&cause)).await.ok();
        assert_eq!(alice.get(&path(&room, &root)).await.ok(), json!({ "automatic": true }));
        subscribe(&alice, &room, &root, None).await.ok();
        subscribe(&alice, &room, &root, Some(&cause)).await.ok();
        assert_eq!(alice.get(&path(&room, &root)).await.ok(), json!({ "automatic": false }));
        // A stranger learns nothing.
        subscribe(&bob, &room, &root, None).await.is_error(404, "M_NOT_FOUND");
        bob.get(&path(&room, &root)).await.is_error(404, "M_NOT_FOUND");
        bob.request("DELETE", &path(&room, &root), &Value::Null).await.is_error(404, "M_NOT_FOUND");
        subscribe(&alice, &room, "$nothing", None).await.is_error(404, "M_NOT_FOUND");
    }

    async fn who_unsubscribed_is_not_subscribed_again_by_what_was_before(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let root = alice.send_text(&room, "root").await;
        let before = reply(&alice, &room, &root).await;
        alice.request("DELETE", &path(&room, &root), &Value::Null).await.ok();
        subscribe(&alice, &room, &root, Some(&before)).await.ok();
        alice.request("DELETE", &path(&room, &root), &Value::Null).await.ok();
        alice.get(&path(&room, &root)).await.is_error(404, "M_NOT_FOUND");
        let conflict = subscribe(&alice, &room, &root, Some(&before)).await;
        conflict.is_error(409, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION");
        let after = reply(&alice, &room, &root).await;
        subscribe(&alice, &room, &root, Some(&after)).await.ok();
        assert_eq!(alice.get(&path(&room, &root)).await.ok(), json!({ "automatic": true }));
    }

    async fn changes_come_by_sliding_sync_and_by_pages(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        for form in FORMS {
            let mut roots = Vec::new();
            for _ in 0..5 {
                roots.push(alice.send_text(&room, "root").await);
            }
            let body = json!({ "extensions": { EXTENSION: { "enabled": true, "limit": 2 } } });
            let first = form.sync(&alice, None, 0, &body).await;
            let start = pos(&first).to_owned();
            let (news, _) = tokio::join!(form.sync(&alice, Some(&start), 30_000, &body), subscribe(&alice, &room, &roots[0], None));
            assert_eq!(news["extensions"][EXTENSION]["subscribed"][&room][&roots[0]]["automatic"], false, "{news}");
            for root in &roots[1..] {
                subscribe(&alice, &room, root, None).await.ok();
            }
            alice.request("DELETE", &path(&room, &roots[4]), &Value::Null).await.ok();
            // Two, and where the others are.
            let answer = form.sync(&alice, Some(&start), 0, &body).await;
            let shown = &answer["extensions"][EXTENSION];
            assert_eq!(shown["unsubscribed"][&room].as_object().unwrap().keys().collect::<Vec<_>>(), [&roots[4]], "{answer}");
            assert_eq!(shown["subscribed"][&room].as_object().unwrap().keys().collect::<Vec<_>>(), [&roots[3]], "{answer}");
            let mut from = shown["prev_batch"].as_str().unwrap().to_owned();
            let mut found = Vec::new();
            loop {
                let changes = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions";
                let page = alice.get(&format!("{changes}?dir=b&limit=2&from={}&to={}", encode(&from), encode(&start))).await.ok();
                found.extend(page["subscribed"][&room].as_object().into_iter().flatten().map(|(root, _)| root.clone()));
                match page["end"].as_str() {
                    Some(end) => end.clone_into(&mut from),
                    None => break,
                }
            }
            found.sort_unstable();
            let mut expected = roots[..3].to_vec();
            expected.sort_unstable();
            assert_eq!(found, expected);
            let nothing = form.sync(&alice, Some(pos(&answer)), 0, &body).await;
            assert_eq!(nothing["extensions"], json!({}), "{nothing}");
        }
    }
}
