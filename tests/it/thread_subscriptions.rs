//! Subscriptions to threads.

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

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

on_each_database! {
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
