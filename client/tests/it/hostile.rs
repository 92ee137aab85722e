//! Servers and devices that lie: nothing of it is believed, and nobody gets a key who should not.

use std::sync::{Arc, Mutex};

use client::{Secrecy, Trust, Undecryptable, signatures::add_signature};
use ruma::UserId;
use serde_json::{Value, json};
use test_kit::TestServer;
use vodozemac::{
    megolm::{GroupSession, SessionConfig},
    olm::Account,
};

use crate::{
    people::{Person, encrypted_room},
    relay::{Relay, two_and_a_relay},
};

const OLM: &str = "m.olm.v1.curve25519-aes-sha2";
const MEGOLM: &str = "m.megolm.v1.aes-sha2";

/// Device keys as a device makes them, signed by whom one likes.
fn device_keys(user_id: &UserId, device_id: &str, keys: &Account, signer: &Account) -> Value {
    let keys = json!({
        "user_id": user_id,
        "device_id": device_id,
        "algorithms": [OLM, MEGOLM],
        "keys": {
            format!("curve25519:{device_id}"): keys.curve25519_key().to_base64(),
            format!("ed25519:{device_id}"): keys.ed25519_key().to_base64(),
        },
    });
    let mut keys = keys.as_object().unwrap().clone();
    add_signature(&mut keys, user_id.as_str(), device_id, |bytes| signer.sign(bytes)).unwrap();
    Value::Object(keys)
}

/// The devices that a client sent encrypted messages to, by their Olm keys.
fn recipients(relay: &Relay) -> Vec<String> {
    let mut keys = Vec::new();
    for seen in relay.seen("/sendToDevice/m.room.encrypted/") {
        for content in seen.body["messages"]
            .as_object()
            .unwrap()
            .values()
            .flat_map(|devices| devices.as_object().unwrap().values())
        {
            keys.extend(content["ciphertext"].as_object().unwrap().keys().cloned());
        }
    }
    keys
}

/// A device that the server made up, or whose keys it changed, gets no key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_did_not_sign_its_keys_gets_no_key() {
    let server = TestServer::start().await;
    let relay = Relay::to(&server).await;
    let alice = Person::by_way_of(relay.address(), server.user("alice").await).await;
    let bob = Person::new(&server, "bob").await;
    let (user, forged) = (bob.client.user_id().to_owned(), Account::new());
    let forged_key = forged.curve25519_key().to_base64();
    relay.alter({
        let user = user.clone();
        move |path, body| {
            if path.contains("/keys/query") && body["device_keys"].get(user.as_str()).is_some() {
                body["device_keys"][user.as_str()]["FORGED"] = device_keys(&user, "FORGED", &forged, &Account::new());
            }
        }
    });
    let room = encrypted_room(&alice, &[&bob]).await;
    let sent = alice.client.send_text(&room, "for bob alone").await.unwrap();
    assert_eq!(bob.hears(&sent).await.body(), Some("for bob alone"));
    let devices = alice.client.devices(&user).await.unwrap();
    let ids: Vec<&str> = devices.iter().map(|device| device.device_id.as_str()).collect();
    assert_eq!(ids, [bob.client.device_id().as_str()]);
    assert!(!recipients(&relay).contains(&forged_key));
}

/// A server that puts keys of its own in place of those of a device that we know reads nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_a_device_that_is_known_are_not_replaced() {
    let (_server, relay, alice, bob, room) = two_and_a_relay().await;
    let first = alice.client.send_text(&room, "first").await.unwrap();
    bob.hears(&first).await;
    let known = alice.client.devices(bob.client.user_id()).await.unwrap();

    let (user, device) = (bob.client.user_id().to_owned(), bob.client.device_id().to_owned());
    relay.alter(move |path, body| {
        if path.contains("/keys/query") && body["device_keys"].get(user.as_str()).is_some() {
            let new = Account::new();
            body["device_keys"][user.as_str()][device.as_str()] = device_keys(&user, device.as_str(), &new, &new);
        }
    });
    // Something changed, says the server, so it is asked.
    let laptop = bob.another_device().await;
    let asked = relay.seen("/keys/query").len();
    alice.sync().await;
    assert!(relay.seen("/keys/query").len() > asked, "it was asked");
    let second = alice.client.send_text(&room, "second").await.unwrap();
    assert_eq!(bob.hears(&second).await.body(), Some("second"));
    let devices = alice.client.devices(bob.client.user_id()).await.unwrap();
    assert_eq!(devices.iter().find(|device| device.device_id == known[0].device_id).unwrap().ed25519, known[0].ed25519);
    assert_eq!(laptop.hears(&second).await.body(), Some("second"));
}

/// A one-time key that its device did not sign is not used: whoever made it would read what is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_time_key_that_its_device_did_not_sign_is_not_used() {
    let (_server, relay, alice, bob, room) = two_and_a_relay().await;
    let claims = Arc::new(Mutex::new(0));
    relay.alter({
        let (claims, user) = (claims.clone(), bob.client.user_id().to_owned());
        move |path, body| {
            if path.contains("/keys/claim") {
                *claims.lock().unwrap() += 1;
                for key in body["one_time_keys"][user.as_str()].as_object_mut().unwrap().values_mut() {
                    for key in key.as_object_mut().unwrap().values_mut() {
                        key["key"] = Account::new().curve25519_key().to_base64().into();
                    }
                }
            }
        }
    });
    let sent = alice.client.send_text(&room, "nobody reads this").await.unwrap();
    assert_eq!(*claims.lock().unwrap(), 1);
    assert_eq!(recipients(&relay), Vec::<String>::new());
    let heard = bob.hears(&sent).await;
    assert_eq!(heard.secrecy, Secrecy::Undecryptable(Undecryptable::NoKey));
    // The device is told that there is no session, begins one, and is reached from then on.
    bob.sync().await;
    alice.sync().await;
    let next = alice.client.send_text(&room, "bob reads this").await.unwrap();
    assert_eq!(bob.hears(&next).await.body(), Some("bob reads this"));
}

/// When all one-time keys are gone the fallback key serves, for an hour at least.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_one_time_keys_are_used_up_is_reached_by_the_fallback_key() {
    let server = TestServer::start().await;
    let (alice, bob, mallory) =
        (Person::new(&server, "alice").await, Person::new(&server, "bob").await, server.user("mallory").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let (user, device) = (bob.client.user_id().as_str(), bob.client.device_id().as_str());
    let claim = async || {
        let claim = json!({ "one_time_keys": { user: { device: "signed_curve25519" } } });
        let answer = mallory.post("/keys/claim", &claim).await.ok();
        answer["one_time_keys"][user][device].as_object().unwrap().values().next().unwrap().clone()
    };
    let mut claimed = 0;
    let fallback = loop {
        let key = claim().await;
        if key["fallback"] == true {
            break key;
        }
        claimed += 1;
        assert!(claimed <= 100, "there is an end of one-time keys");
    };
    assert_eq!(claimed, 50);

    let sent = alice.client.send_text(&room, "by the fallback key").await.unwrap();
    assert_eq!(bob.hears(&sent).await.body(), Some("by the fallback key"));
    bob.sync().await;
    let key = claim().await;
    assert_eq!(key.get("fallback"), None, "there are new one-time keys");
    let mut next = claim().await;
    while next["fallback"] != true {
        next = claim().await;
    }
    assert_eq!(next["key"], fallback["key"], "another one so soon would drop the one before it");
}

/// A server that shows one encrypted text twice, in another room or under another name, is found out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_a_server_relabels_is_not_believed() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let other_room = encrypted_room(&alice, &[&bob]).await;
    let sent = alice.client.send_text(&room, "pay 5 to bob").await.unwrap();
    bob.hears(&sent).await;
    let original = alice.raw_event(&room, &sent).await;
    let read = async |room, event: Value| bob.client.read(room, &[event]).await.unwrap().remove(0).secrecy;

    let known = Secrecy::Encrypted(Trust::Unverified { device_id: alice.client.device_id().to_owned() });
    assert_eq!(read(&room, original.clone()).await, known, "the same event may be seen again");
    let mut replayed = original.clone();
    replayed["event_id"] = json!("$another:example.org");
    assert_eq!(read(&room, replayed).await, Secrecy::Undecryptable(Undecryptable::Replayed));
    let mut renamed = original.clone();
    renamed["sender"] = json!(bob.client.user_id());
    assert!(matches!(read(&room, renamed).await, Secrecy::Undecryptable(Undecryptable::Forged(_))));
    assert_eq!(read(&other_room, original.clone()).await, Secrecy::Undecryptable(Undecryptable::NoKey));
    let mut altered = original;
    let ciphertext = altered["content"]["ciphertext"].as_str().unwrap().to_owned();
    let middle = ciphertext.len() / 2;
    let letter = if &ciphertext[middle..=middle] == "A" { "B" } else { "A" };
    altered["content"]["ciphertext"] = json!(format!("{}{letter}{}", &ciphertext[..middle], &ciphertext[middle + 1..]));
    let altered = read(&room, altered).await;
    assert!(
        matches!(altered, Secrecy::Undecryptable(Undecryptable::Forged(_) | Undecryptable::Malformed)),
        "{altered:?}"
    );
}

/// Anybody could send a room key in clear, or pass one on: the server, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_key_that_did_not_come_encrypted_is_not_used() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let mut session = GroupSession::new(SessionConfig::version_1());
    let key = json!({
        "algorithm": MEGOLM,
        "room_id": room,
        "session_id": session.session_id(),
        "session_key": session.session_key().to_base64(),
    });
    for event_type in ["m.room_key", "m.forwarded_room_key"] {
        let messages = json!({ "messages": { alice.client.user_id(): { "*": key } } });
        bob.user.put(&format!("/sendToDevice/{event_type}/clear"), &messages).await.ok();
    }
    let plaintext = json!({ "type": "m.room.message", "content": { "body": "forged" }, "room_id": room }).to_string();
    let content = json!({
        "algorithm": MEGOLM,
        "session_id": session.session_id(),
        "ciphertext": session.encrypt(plaintext).to_base64(),
    });
    let sent = bob.user.send(room.as_str(), "m.room.encrypted", &content).await;
    let heard = alice.hears(sent.as_str().try_into().unwrap()).await;
    assert_eq!(heard.secrecy, Secrecy::Undecryptable(Undecryptable::NoKey));
}

/// Nonsense from others is dropped, and what is good beside it is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_from_other_devices_harms_nothing() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let long = "x".repeat(30_000);
    let contents = [
        ("m.room.encrypted", json!({})),
        ("m.room.encrypted", json!({ "algorithm": OLM, "sender_key": "?", "ciphertext": [] })),
        (
            "m.room.encrypted",
            json!({ "algorithm": OLM, "sender_key": "A".repeat(43), "ciphertext": { "A": { "type": 0, "body": "AwoB" } } }),
        ),
        ("m.room.encrypted", json!({ "algorithm": OLM, "sender_key": "A".repeat(44), "ciphertext": long })),
        (
            "m.room_key_request",
            json!({ "action": "request", "requesting_device_id": "X", "request_id": long, "body": {} }),
        ),
        ("m.room_key_request", json!({ "action": 5 })),
        ("m.room_key.withheld", json!({ "code": "m.no_olm", "sender_key": "?" })),
        ("m.room_key.withheld", json!({ "code": long, "room_id": "nowhere", "session_id": long })),
        ("m.dummy", json!({ "deep": [[[[{}]]]] })),
    ];
    for (index, (event_type, content)) in contents.iter().enumerate() {
        let messages =
            json!({ "messages": { alice.client.user_id(): { alice.client.device_id().as_str(): content } } });
        bob.user.put(&format!("/sendToDevice/{event_type}/{index}"), &messages).await.ok();
        for content in [json!({}), content.clone()] {
            bob.user.send(room.as_str(), "m.room.encrypted", &content).await;
        }
    }
    let sent = bob.client.send_text(&room, "sense").await.unwrap();
    assert_eq!(alice.hears(&sent).await.body(), Some("sense"));
}
