//! Server-Server API, "Request Authentication": who asks must have signed what is asked.

use model::{KeyPair, Random};
use serde_json::{Value, json};
use test_kit::{Answer, Peer, TestFederation, encode};

const PROFILE: &str = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Ahs1";
const KEYS: &str = "GET /_matrix/key/v2/server";

async fn with_header(federation: &TestFederation, path: &str, header: &str) -> Answer {
    federation.server("hs1").http().request("GET", path, Some(header), &Value::Null).await
}

async fn ask(federation: &TestFederation, peer: &Peer, path: &str) -> Answer {
    peer.ask(federation.server("hs1").http(), "hs1", "GET", path, &Value::Null).await
}

/// A federation of one, with a user and a peer.
async fn world() -> (TestFederation, Peer) {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    alice.put("/_matrix/client/v3/profile/@alice:hs1/displayname", &json!({"displayname": "Alice"})).await.ok();
    let peer = federation.peer("peer.test").await;
    (federation, peer)
}

// shows: server-server:queryProfile
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_question_is_answered() {
    let (federation, peer) = world().await;
    assert_eq!(ask(&federation, &peer, PROFILE).await.ok(), json!({"displayname": "Alice"}));
    assert_eq!(
        ask(&federation, &peer, &format!("{PROFILE}&field=displayname")).await.ok(),
        json!({"displayname": "Alice"})
    );
    ask(&federation, &peer, &format!("{PROFILE}&field=avatar_url")).await.is_error(404, "M_NOT_FOUND");
    for nobody in ["@bob:hs1", "@alice:peer.test", "@alice:elsewhere.test"] {
        let path = format!("/_matrix/federation/v1/query/profile?user_id={}", encode(nobody));
        ask(&federation, &peer, &path).await.is_error(404, "M_NOT_FOUND");
    }
    ask(&federation, &peer, "/_matrix/federation/v1/query/profile").await.is_error(400, "M_MISSING_PARAM");
    let asked: Vec<_> = peer.asked().into_iter().map(|asked| asked.what).collect();
    assert_eq!(asked, [KEYS], "its keys are asked for once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_signed_as_it_is_asked_is_refused() {
    let (federation, peer) = world().await;
    let good = peer.header("hs1", "GET", PROFILE, &Value::Null);
    with_header(&federation, PROFILE, &good).await.ok();
    let stranger = KeyPair::generate(&Random::system());
    let signature = good.split("sig=").nth(1).unwrap();
    let other_key = good.replace(peer.key().id().as_str(), stranger.id().as_str());
    for (header, why) in [
        (peer.header("hs1", "PUT", PROFILE, &Value::Null), "another method"),
        (peer.header("hs1", "GET", &format!("{PROFILE}&field=a"), &Value::Null), "another path"),
        (peer.header("hs1", "GET", PROFILE, &json!({})), "a body"),
        (peer.header("hs2", "GET", PROFILE, &Value::Null), "another destination"),
        (good.replace("peer.test", "other.test"), "another origin, which cannot be found"),
        (good.replace("origin=peer.test", "origin=hs1"), "us ourselves"),
        (other_key, "a key that it does not have"),
        (good.replace(signature, "AAAA"), "no signature"),
        (good.replace("X-Matrix", "Bearer"), "another scheme"),
        (good.replace("origin=peer.test", "origin=peer.test,origin=peer.test"), "two origins"),
        ("X-Matrix ".to_owned(), "nothing"),
        ("X-Matrix origin=\"".to_owned() + &"a".repeat(60_000), "a long one"),
    ] {
        let answer = with_header(&federation, PROFILE, &header).await;
        let status = answer.status.as_u16();
        assert!(matches!(status, 401 | 431), "{why}: {answer}");
        assert!(status == 431 || answer.errcode() == "M_UNAUTHORIZED", "{why}: {answer}");
    }
    let bare = federation.server("hs1").http().request("GET", PROFILE, None, &Value::Null).await;
    bare.is_error(401, "M_UNAUTHORIZED");
    // Servers of before 1.3 do not say whom they mean.
    let old = good.replace("destination=hs1,", "");
    with_header(&federation, PROFILE, &old).await.ok();
    // What is quoted, spaced and upper case is the same.
    let odd = good.replace("origin=peer.test", "ORIGIN = \"peer.test\"").replace(',', " , ");
    with_header(&federation, PROFILE, &odd).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_has_ended_or_expired_signs_no_requests() {
    let (federation, peer) = world().await;
    let other = KeyPair::generate(&Random::system());
    for keys in [
        peer.keys(&[&other], &[(peer.key(), 1)]),
        peer.keys(&[&other], &[]),
        // Not signed by itself.
        json!({"server_name": "peer.test", "verify_keys": {peer.key().id().as_str(): {"key": peer.key().public_key()}},
               "valid_until_ts": 9_000_000_000_000_i64, "signatures": {}}),
        json!({}),
        json!([]),
    ] {
        let federation = TestFederation::of(1).await;
        federation.dns("hs1").add_address("peer.test", peer.address());
        peer.answer(KEYS, 200, &keys);
        ask(&federation, &peer, PROFILE).await.is_error(401, "M_UNAUTHORIZED");
    }
    let _ = federation;
}

/// Strangers could make us ask third parties as often as they like otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_asked_for_keys_again_and_again() {
    let (federation, peer) = world().await;
    peer.answer(KEYS, 500, &json!({}));
    for _ in 0..5 {
        ask(&federation, &peer, PROFILE).await.is_error(401, "M_UNAUTHORIZED");
    }
    assert_eq!(peer.asked().len(), 1);
}

// shows: server-server:getVersion
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unknown_is_told_in_the_words_of_matrix() {
    let (federation, peer) = world().await;
    let http = federation.server("hs1").http();
    assert!(ask(&federation, &peer, "/_matrix/federation/v1/nothing").await.is_unrecognized());
    let wrong = peer.ask(http, "hs1", "POST", "/_matrix/federation/v1/query/profile", &json!({})).await;
    wrong.is_error(405, "M_UNRECOGNIZED");
    let version = http.request("GET", "/_matrix/federation/v1/version", None, &Value::Null).await.ok();
    assert_eq!(version["server"]["name"], "SwiftChat");
}
