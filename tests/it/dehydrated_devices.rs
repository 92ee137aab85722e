//! Dehydrated devices. MSC3814.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

use crate::keys::Device;

const PATH: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";
/// As the proposal has it, a Curve25519 key: it has to be encoded in paths.
const ID: &str = "dt/x+QPvUv4aUlLhVNHcxbmAL0lgMvPmzBDmI5Z1OQ4";

static TRANSACTIONS: AtomicU64 = AtomicU64::new(0);

fn device(user: &TestUser, id: &str) -> Value {
    let device = Device::named(user, id);
    json!({
        "device_id": id,
        "device_data": { "algorithm": "org.matrix.msc3814.v2", "device_pickle": "secret", "nonce": "once" },
        "initial_device_display_name": "Dehydrated device",
        "device_keys": device.keys(),
        "one_time_keys": { "signed_curve25519:1": device.sign(json!({ "key": "A".repeat(43) })) },
        "fallback_keys": { "signed_curve25519:f": device.sign(json!({ "key": "E".repeat(43), "fallback": true })) },
    })
}

fn events_path(id: &str) -> String {
    format!("{PATH}/{}/events", encode(id))
}

/// Sends to all devices of a user, one after the other.
async fn send(from: &TestUser, to: &TestUser, texts: impl Iterator<Item = usize>) {
    for text in texts {
        let body = json!({ "messages": { to.id(): { "*": { "text": text } } } });
        let transaction = TRANSACTIONS.fetch_add(1, Ordering::Relaxed);
        from.put(&format!("/sendToDevice/m.room.encrypted/h{transaction}"), &body).await.ok();
    }
}

fn texts(answer: &Value) -> Vec<u64> {
    let events = answer["events"].as_array().expect("events");
    events.iter().map(|event| event["content"]["text"].as_u64().expect("a text")).collect()
}

async fn device_ids(user: &TestUser) -> Vec<String> {
    let answer = user.get("/devices").await.ok();
    answer["devices"].as_array().unwrap().iter().map(|one| one["device_id"].as_str().unwrap().to_owned()).collect()
}

on_each_database! {
    async fn a_dehydrated_device_takes_messages_for_who_logs_in_later(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        assert_eq!(alice.get("/_matrix/client/versions").await.ok()["unstable_features"]["org.matrix.msc3814"], true);
        alice.get(PATH).await.is_error(404, "M_NOT_FOUND");
        alice.request("DELETE", PATH, &json!({})).await.is_error(404, "M_NOT_FOUND");
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let new = device(&alice, ID);
        assert_eq!(alice.put(PATH, &new).await.ok(), json!({ "device_id": ID }));

        // 1. Others see it, and write to it.
        assert_eq!(bob.sync(Some(&since)).await["device_lists"]["changed"], json!([alice.id()]));
        let query = bob.post("/keys/query", &json!({ "device_keys": { alice.id(): [] } })).await.ok();
        assert_eq!(query["device_keys"][alice.id()][ID]["keys"], new["device_keys"]["keys"], "{query}");
        for name in ["1", "f", "f"] {
            let claim = json!({ "one_time_keys": { alice.id(): { ID: "signed_curve25519" } } });
            let claimed = bob.post("/keys/claim", &claim).await.ok();
            let key = &claimed["one_time_keys"][alice.id()][ID][format!("signed_curve25519:{name}")];
            assert!(key.is_object(), "{claimed}");
        }
        send(&bob, &alice, 0..250).await;

        // 2. It is brought back to life, a page after the other, as often as that is tried.
        let found = alice.get(PATH).await.ok();
        assert_eq!(found, json!({ "device_id": ID, "device_data": new["device_data"] }));
        let path = events_path(ID);
        for _ in 0..2 {
            let (mut all, mut body) = (Vec::new(), json!({}));
            loop {
                let answer = alice.post(&path, &body).await.ok();
                body = json!({ "next_batch": answer["next_batch"] });
                match texts(&answer) {
                    page if page.is_empty() => break,
                    page => all.extend(page),
                }
            }
            assert_eq!(all, (0..250).collect::<Vec<_>>());
            let (mut all, mut query) = (Vec::new(), String::new());
            loop {
                let answer = alice.get(&format!("{path}{query}")).await.ok();
                all.extend(texts(&answer));
                let Some(next) = answer["next_batch"].as_str() else { break };
                query = format!("?from={}", encode(next));
            }
            assert_eq!(all, (0..250).collect::<Vec<_>>());
        }
        alice.get(&format!("{path}?from=nonsense")).await.is_error(400, "M_INVALID_PARAM");

        // 3. Nobody else has it, and it has no messages of another device.
        bob.get(&path).await.is_error(403, "M_FORBIDDEN");
        alice.post(&events_path(alice.device_id()), &json!({})).await.is_error(403, "M_FORBIDDEN");
    }

    async fn a_user_has_one_dehydrated_device(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        alice.put(PATH, &device(&alice, ID)).await.ok();
        send(&bob, &alice, 0..1).await;
        // 1. With another one it is gone, and its messages with it, also when that one has the same name.
        for id in ["second", "second", ID] {
            alice.put(PATH, &device(&alice, id)).await.ok();
            assert_eq!(alice.get(PATH).await.ok()["device_id"], id);
            assert_eq!(device_ids(&alice).await.len(), 2, "{id}");
            assert_eq!(texts(&alice.get(&events_path(id)).await.ok()), [0; 0]);
            send(&bob, &alice, 1..2).await;
        }
        alice.post(&events_path("second"), &json!({})).await.is_error(403, "M_FORBIDDEN");
        // 2. It is deleted by itself, as any device, or with all.
        assert_eq!(alice.request("DELETE", PATH, &json!({})).await.ok(), json!({ "device_id": ID }));
        assert_eq!(device_ids(&alice).await, [alice.device_id()]);
        alice.get(PATH).await.is_error(404, "M_NOT_FOUND");
        alice.put(PATH, &device(&alice, ID)).await.ok();
        let again = alice.log_in_again().await;
        again.post("/logout/all", &json!({})).await.ok();
        alice.log_in_again().await.get(PATH).await.is_error(404, "M_NOT_FOUND");
    }

    async fn a_dehydrated_device_is_checked_as_any_other(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut device = device(&alice, ID);
            change(&mut device);
            device
        };
        for (wrong, code) in [
            (device(&bob, ID), "M_INVALID_PARAM"),
            (changed(&|device| device["device_id"] = json!("OTHER")), "M_INVALID_PARAM"),
            (changed(&|device| device["device_keys"]["dehydrated"] = json!(true)), "M_INVALID_SIGNATURE"),
            (changed(&|device| device["one_time_keys"] = json!({ "rot13:1": "x" })), "M_INVALID_PARAM"),
            (changed(&|device| device["device_data"] = json!({ "device_pickle": "x" })), "M_INVALID_PARAM"),
            (changed(&|device| device["device_data"] = json!([])), "M_BAD_JSON"),
            (changed(&|device| drop(device.as_object_mut().unwrap().remove("device_keys"))), "M_BAD_JSON"),
            // A device that somebody is logged in with is not replaced.
            (device(&alice, alice.device_id()), "M_INVALID_PARAM"),
        ] {
            alice.put(PATH, &wrong).await.is_error(400, code);
        }
        let large = changed(&|device| device["device_data"]["device_pickle"] = json!("x".repeat(200_000)));
        alice.put(PATH, &large).await.is_error(413, "M_TOO_LARGE");
        assert_eq!(device_ids(&alice).await, [alice.device_id()]);
        alice.get(PATH).await.is_error(404, "M_NOT_FOUND");
        // One that is replaced by what is wrong stays.
        alice.put(PATH, &device(&alice, ID)).await.ok();
        alice.put(PATH, &device(&alice, alice.device_id())).await.is_error(400, "M_INVALID_PARAM");
        assert_eq!(alice.get(PATH).await.ok()["device_id"], ID);
    }
}
