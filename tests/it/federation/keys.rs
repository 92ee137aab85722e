//! Server-Server API, "Retrieving server keys": ours, those of others, and those of others by others.

use model::{KeyPair, Random};
use ruma::{
    CanonicalJsonObject,
    serde::Base64,
    signatures::{PublicKeyMap, verify_json},
};
use serde_json::{Value, json};
use test_kit::{Http, Peer, ServerOptions, TestDatabase, TestFederation};

const PROFILE: &str = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Ahs1";
const KEYS: &str = "GET /_matrix/key/v2/server";
const DAY_MS: i64 = 24 * 3_600_000;

async fn get(http: &Http, path: &str) -> Value {
    http.request("GET", path, None, &Value::Null).await.ok()
}

/// Checks the signatures of `said` by these servers, with the keys that `keys` say.
fn assert_signed(said: &Value, keys: &[&Value]) {
    let mut map = PublicKeyMap::new();
    for keys in keys {
        let of_server = keys["verify_keys"].as_object().unwrap().iter();
        let of_server = of_server.map(|(id, key)| (id.clone(), Base64::parse(key["key"].as_str().unwrap()).unwrap()));
        map.insert(keys["server_name"].as_str().unwrap().to_owned(), of_server.collect());
    }
    let object: CanonicalJsonObject = serde_json::from_value(said.clone()).unwrap();
    let signers: Vec<&String> = said["signatures"].as_object().unwrap().keys().collect();
    assert_eq!(signers, map.keys().collect::<Vec<_>>());
    verify_json(&map, &object).unwrap();
}

// shows: server-server:getServerKey
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_keys_are_published_signed_by_themselves() {
    let federation = TestFederation::of(1).await;
    let keys = get(federation.server("hs1").http(), "/_matrix/key/v2/server").await;
    assert_eq!(keys["server_name"], "hs1");
    assert_eq!(keys["old_verify_keys"], json!({}));
    let valid_for = keys["valid_until_ts"].as_i64().unwrap() - model::Clock::system().now_ms();
    assert!((3_600_000..=7 * DAY_MS).contains(&valid_for), "{valid_for}");
    assert_signed(&keys, &[&keys]);
}

// shows: server-server:getWellKnown
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_name_of_a_server_has_its_own_keys_and_is_found_by_host() {
    let mut options = ServerOptions::default();
    options.config.server.names = vec!["one.test".try_into().unwrap(), "two.test".try_into().unwrap()];
    let delegates = [("two.test".try_into().unwrap(), "matrix.two.test:443".try_into().unwrap())];
    options.config.federation.delegates = delegates.into();
    let mut federation = TestFederation::empty();
    federation.add("one.test", TestDatabase::sqlite(), options).await;
    let http = federation.server("one.test").http();
    let mut seen = Vec::new();
    for (host, name) in [
        ("one.test", "one.test"),
        ("one.test:8448", "one.test"),
        ("two.test", "two.test"),
        ("matrix.two.test", "two.test"),
        ("matrix.two.test:443", "two.test"),
        ("127.0.0.1", "one.test"),
        ("other.test", "one.test"),
    ] {
        let keys = http.for_host(host).request("GET", "/_matrix/key/v2/server", None, &Value::Null).await.ok();
        assert_eq!(keys["server_name"], name, "{host}");
        assert_signed(&keys, &[&keys]);
        seen.push(keys["verify_keys"].clone());
    }
    assert_ne!(seen[0], seen[2]);
    let known = async |host| http.for_host(host).request("GET", "/.well-known/matrix/server", None, &Value::Null).await;
    assert_eq!(known("two.test").await.ok(), json!({"m.server": "matrix.two.test:443"}));
    known("one.test").await.is_error(404, "M_NOT_FOUND");
    // A peer that means the second name is answered for it.
    let peer = federation.peer("peer.test").await;
    federation.user("one.test", "alice").await;
    let path = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aone.test";
    peer.ask(http, "one.test", "GET", path, &Value::Null).await.ok();
    peer.ask(http, "two.test", "GET", path, &Value::Null).await.is_error(404, "M_NOT_FOUND");
}

/// A federation of one with a peer that has asked it once.
async fn acquainted() -> (TestFederation, Peer) {
    let federation = TestFederation::of(1).await;
    federation.user("hs1", "alice").await;
    let peer = federation.peer("peer.test").await;
    peer.ask(federation.server("hs1").http(), "hs1", "GET", PROFILE, &Value::Null).await.ok();
    (federation, peer)
}

// shows: server-server:bulkPerspectivesKeyQuery, server-server:perspectivesKeyQuery
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notary_says_what_it_was_told_though_the_server_is_gone() {
    let (mut federation, peer) = acquainted().await;
    let http = federation.server("hs1").http();
    // Whatever is in the place of our signature does not keep us from it.
    let other = federation.peer("odd.test").await;
    let mut said = other.keys(&[other.key()], &[]);
    said["signatures"]["hs1"] = json!({"ed25519:a": "none"});
    other.answer(KEYS, 200, &said);
    assert_eq!(get(http, "/_matrix/key/v2/query/odd.test").await["server_keys"].as_array().unwrap().len(), 1);
    // It says so after a restart, too.
    federation.server_mut("hs1").restart().await;
    peer.answer(KEYS, 500, &json!({}));
    let http = federation.server("hs1").http();
    let own = get(http, "/_matrix/key/v2/server").await;
    let peers = peer.keys(&[peer.key()], &[]);
    let one = get(http, "/_matrix/key/v2/query/peer.test").await;
    let key_id = peer.key().id().as_str();
    let query = json!({"server_keys": {"peer.test": {key_id: {}}, "nobody.test": {}, "hs1": {}}});
    let many = http.request("POST", "/_matrix/key/v2/query", None, &query).await.ok();
    for (answer, count) in [(&one, 1), (&many, 2)] {
        let said = answer["server_keys"].as_array().unwrap();
        assert_eq!(said.len(), count, "{answer}");
        let of_peer = said.iter().find(|said| said["server_name"] == "peer.test").unwrap();
        assert_eq!(of_peer["verify_keys"], peers["verify_keys"]);
        assert_signed(of_peer, &[&peers, &own]);
    }
    let too_many: serde_json::Map<String, Value> = (0..501).map(|n| (format!("s{n}.test"), json!({}))).collect();
    let refused = http.request("POST", "/_matrix/key/v2/query", None, &json!({"server_keys": too_many})).await;
    refused.is_error(400, "M_INVALID_PARAM");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notary_is_asked_about_a_server_that_does_not_answer_and_only_believed_with_both_signatures() {
    let (federation, peer) = acquainted().await;
    let notary = federation.server("hs1").http();
    let said = get(notary, "/_matrix/key/v2/query/peer.test").await;
    for (name, spoil, is_believed) in [("hs2", false, true), ("hs3", true, false)] {
        let mut federation = TestFederation::empty();
        let mut options = ServerOptions::default();
        options.config.federation.notaries = vec!["notary.test".try_into().unwrap()];
        federation.add(name, TestDatabase::sqlite(), options).await;
        federation.user(name, "alice").await;
        let peer_notary = federation.peer("notary.test").await;
        // The peer itself is not found.
        let mut keys = said["server_keys"][0].clone();
        keys["signatures"].as_object_mut().unwrap().remove("hs1");
        if spoil {
            keys["signatures"]["peer.test"][peer.key().id().as_str()] = json!("A".repeat(86));
        }
        let keys = peer_notary.sign(keys, peer_notary.key());
        peer_notary.answer("POST /_matrix/key/v2/query", 200, &json!({"server_keys": [keys]}));
        let path = PROFILE.replace("hs1", name);
        let answer = peer.ask(federation.server(name).http(), name, "GET", &path, &Value::Null).await;
        assert_eq!(answer.status.is_success(), is_believed, "{answer}");
    }
}

/// What the operator does when a key may have leaked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_new_key_is_known_by_it_after_a_minute() {
    let clock = model::Clock::manual(model::Clock::system().now_ms());
    let mut federation = TestFederation::empty();
    let options = ServerOptions { clock: clock.clone(), ..ServerOptions::default() };
    federation.add("hs1", TestDatabase::sqlite(), options).await;
    federation.user("hs1", "alice").await;
    let mut peer = federation.peer("peer.test").await;
    let http = federation.server("hs1").http();
    peer.ask(http, "hs1", "GET", PROFILE, &Value::Null).await.ok();
    let old = peer.set_key(KeyPair::generate(&Random::system()));
    peer.answer(KEYS, 200, &peer.keys(&[peer.key()], &[(&old, clock.now_ms())]));
    peer.ask(http, "hs1", "GET", PROFILE, &Value::Null).await.is_error(401, "M_UNAUTHORIZED");
    clock.advance_ms(60_000);
    peer.ask(http, "hs1", "GET", PROFILE, &Value::Null).await.ok();
    // The old one is over now.
    peer.set_key(old);
    clock.advance_ms(60_000);
    peer.ask(http, "hs1", "GET", PROFILE, &Value::Null).await.is_error(401, "M_UNAUTHORIZED");
}
