//! Messages from device to device, in all forms of sync. Client-Server API, "Send-to-Device messaging".

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use test_kit::{TestUser, encode, eventually, on_each_database};

use crate::{
    cluster::two_servers,
    sliding_sync::{FORMS, Form, pos},
};

/// How long a poll waits that is to be woken, in milliseconds.
const LONG_MS: u64 = 30_000;
/// How many messages are sent while they are read.
const MESSAGES: u64 = 40;

static TRANSACTIONS: AtomicU64 = AtomicU64::new(0);

/// Nothing stands for `/sync`.
fn forms() -> impl Iterator<Item = Option<Form>> {
    std::iter::once(None).chain(FORMS.map(Some))
}

/// Up to where a device has its messages.
#[derive(Clone, Debug, Default)]
struct Place {
    pos: Option<String>,
    since: Option<String>,
}

/// The messages of the next answer, by what they say, and the place behind them.
async fn read(form: Option<Form>, user: &TestUser, place: &Place, timeout_ms: u64) -> (Vec<String>, Place) {
    let text = |value: &Value| value.as_str().expect("a token").to_owned();
    let (shown, next) = match form {
        None => {
            let sync = user.sync_waiting(place.since.as_deref(), timeout_ms).await;
            (sync["to_device"].clone(), Place { pos: None, since: Some(text(&sync["next_batch"])) })
        }
        Some(form) => {
            let mut asked = json!({ "enabled": true });
            if let Some(since) = &place.since {
                asked["since"] = json!(since);
            }
            let body = json!({ "extensions": { "to_device": asked } });
            let answer = form.sync(user, place.pos.as_deref(), timeout_ms, &body).await;
            let shown = answer["extensions"]["to_device"].clone();
            let since = Some(text(&shown["next_batch"]));
            (shown, Place { pos: Some(pos(&answer).to_owned()), since })
        }
    };
    let events = shown["events"].as_array().cloned().unwrap_or_default();
    (events.iter().map(|event| text(&event["content"]["text"])).collect(), next)
}

async fn send(from: &TestUser, to: &TestUser, event_type: &str, text: &str) {
    let body = json!({ "messages": { to.id(): { to.device_id(): { "text": text } } } });
    let transaction = TRANSACTIONS.fetch_add(1, Ordering::Relaxed);
    from.put(&format!("/sendToDevice/{event_type}/d{transaction}"), &body).await.ok();
}

/// As behind a load balancer: each request, and each repetition, goes to another process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_to_a_device_come_once_and_in_order_whichever_process_is_asked() {
    let Some(([here, there], _)) = two_servers(None).await else { return };
    let (alice, bob) = (here.user("alice").await, here.user("bob").await);
    let alice = [alice.clone(), alice.at(there.http())];
    let bob = [bob.clone(), bob.at(there.http())];
    for form in forms() {
        let start = read(form, &bob[0], &Place::default(), 0).await.1;
        let sent: Vec<String> = (0..MESSAGES).map(|n| format!("{form:?} {n}")).collect();
        let sending = async {
            for (n, text) in sent.iter().enumerate() {
                send(&alice[n % 2], &bob[0], "org.example.x", text).await;
            }
        };
        let reading = async {
            let (mut got, mut place) = (Vec::new(), start.clone());
            for round in 0..1_000 {
                let (messages, next) = read(form, &bob[round % 2], &place, LONG_MS).await;
                // The answer was lost, and the device asks again, elsewhere: there may be more by now.
                let (again, next_again) = read(form, &bob[(round + 1) % 2], &place, LONG_MS).await;
                let both = messages.len().min(again.len());
                assert_eq!(messages[..both], again[..both], "{form:?}: the same token, the same messages");
                let (messages, next) = if round % 3 == 0 { (again, next_again) } else { (messages, next) };
                got.extend(messages);
                place = next;
                if got.len() >= sent.len() {
                    break;
                }
            }
            (got, place)
        };
        let ((), (got, place)) = tokio::join!(sending, reading);
        assert_eq!(got, sent, "{form:?}");
        // Once it has come back with the last token, there is nothing any more, whatever token it shows.
        assert_eq!(read(form, &bob[1], &place, 0).await.0, [""; 0], "{form:?}");
        for place in [&start, &Place { pos: None, ..start.clone() }, &Place::default()] {
            for bob in &bob {
                assert_eq!(read(form, bob, place, 0).await.0, [""; 0], "{form:?}");
            }
        }
        // What was sent at one process and nobody has asked for is the same at both, as often as they are asked.
        let place = Place { pos: None, ..place };
        send(&alice[0], &bob[0], "org.example.x", "first").await;
        send(&alice[1], &bob[0], "org.example.x", "second").await;
        for n in 0..4 {
            eventually!(read(form, &bob[n % 2], &place, 0).await.0 == ["first", "second"]);
        }
        let end = read(form, &bob[0], &place, 0).await.1;
        assert_eq!(read(form, &bob[1], &end, 0).await.0, [""; 0], "{form:?}");
    }
}

on_each_database! {
    /// Client-Server API, "Size limits": a message has the size of an event at most; a request has room for many.
    // shows: sendToDevice
    async fn messages_that_are_too_large_are_refused_and_nothing_is_sent(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let large = |bytes: usize| json!({ "messages": { bob.id(): { "*": { "text": "x".repeat(bytes) } } } });
        for bytes in [10_000_000, 70_000] {
            alice.put(&format!("/sendToDevice/m.room.encrypted/{bytes}"), &large(bytes)).await.is_error(413, "M_TOO_LARGE");
        }
        // As large together as they are for 2,000 devices, most of whom do not exist; who does gets theirs.
        let strangers = (0..40).map(|n| (format!("@nobody{n}:localhost"), json!({ "*": { "text": "x".repeat(60_000) } })));
        let mut messages: serde_json::Map<String, Value> = strangers.collect();
        messages.insert(bob.id().to_owned(), json!({ "NOT_THERE": { "text": "lost" }, bob.device_id(): { "text": "found" } }));
        alice.put("/sendToDevice/m.room.encrypted/many", &json!({ "messages": messages })).await.ok();
        assert_eq!(read(None, &bob, &Place::default(), 0).await.0, ["found"]);
    }

    /// More than an answer has, so that what comes behind them would be lost if they counted.
    // shows: sync, sendToDevice
    async fn of_an_ignored_user_a_device_gets_nothing_but_keys(server: TestServer) {
        let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let ignored = json!({ "ignored_users": { eve.id(): {} } });
        bob.put(&format!("/user/{}/account_data/m.ignored_user_list", encode(bob.id())), &ignored).await.ok();
        for form in forms() {
            let start = read(form, &bob, &Place::default(), 0).await.1;
            for _ in 0..101 {
                send(&eve, &bob, "m.key.verification.request", "please").await;
            }
            send(&eve, &bob, "m.room.encrypted", "a key").await;
            send(&alice, &bob, "m.key.verification.request", "hello").await;
            let (messages, next) = read(form, &bob, &start, LONG_MS).await;
            assert_eq!(messages, ["a key", "hello"], "{form:?}");
            assert_eq!(read(form, &bob, &next, 0).await.0, [""; 0], "{form:?}");
        }
        // What was not shown is not kept for later.
        bob.put(&format!("/user/{}/account_data/m.ignored_user_list", encode(bob.id())), &json!({})).await.ok();
        assert_eq!(read(None, &bob, &Place::default(), 0).await.0, [""; 0]);
        send(&eve, &bob, "m.key.verification.request", "again").await;
        assert_eq!(read(None, &bob, &Place::default(), LONG_MS).await.0, ["again"]);
    }
}
