//! Profiles of users of other servers. Server-Server API, "GET /query/profile".

use serde_json::{Value, json};
use test_kit::{Answer, TestFederation, TestUser, encode};

async fn profile(user: &TestUser, of: &str) -> Answer {
    user.get(&format!("/_matrix/client/v3/profile/{}", encode(of))).await
}

async fn field(user: &TestUser, of: &str, name: &str) -> Answer {
    user.get(&format!("/_matrix/client/v3/profile/{}/{name}", encode(of))).await
}

async fn set(user: &TestUser, name: &str, value: Value) {
    let path = format!("/_matrix/client/v3/profile/{}/{name}", encode(user.id()));
    user.put(&path, &json!({name: value})).await.ok();
}

// shows: getUserProfile, getProfileField
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_of_another_server_is_shown_with_all_its_fields() {
    let federation = TestFederation::of(2).await;
    let (alice, bob) = (federation.user("hs1", "alice").await, federation.user("hs2", "bob").await);
    set(&bob, "displayname", json!("Bob")).await;
    set(&bob, "m.tz", json!("Europe/Berlin")).await;
    set(&bob, "org.example.pets", json!({"cats": 2})).await;
    let whole = json!({"displayname": "Bob", "m.tz": "Europe/Berlin", "org.example.pets": {"cats": 2}});
    assert_eq!(profile(&alice, bob.id()).await.ok(), whole);
    assert_eq!(field(&alice, bob.id(), "org.example.pets").await.ok(), json!({"org.example.pets": {"cats": 2}}));
    field(&alice, bob.id(), "avatar_url").await.is_error(404, "M_NOT_FOUND");
    profile(&alice, "@nobody:hs2").await.is_error(404, "M_NOT_FOUND");
    field(&alice, "@nobody:hs2", "displayname").await.is_error(404, "M_NOT_FOUND");

    federation.cut("hs1", "hs2");
    assert_eq!(profile(&alice, bob.id()).await.ok(), whole, "it is remembered for a while");
    profile(&alice, "@carol:hs2").await.is_error(502, "M_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_says_of_its_users_is_bounded_and_asked_for_once() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let peer = federation.peer("peer.test").await;
    for (number, (status, answer, expected)) in [
        (200, json!({"displayname": "Eve", "x": [1]}), Ok(json!({"displayname": "Eve", "x": [1]}))),
        (200, json!({"displayname": {"not": "a text"}, "avatar_url": 1}), Ok(json!({}))),
        (200, json!({"displayname": "Eve", "x": "x".repeat(100_000)}), Ok(json!({"displayname": "Eve"}))),
        (200, json!({"x": "x".repeat(5 << 20)}), Err((502, "M_UNKNOWN"))),
        (200, json!([1]), Err((502, "M_UNKNOWN"))),
        (403, json!({"errcode": "M_FORBIDDEN", "error": "not for you"}), Err((403, "M_FORBIDDEN"))),
        (404, json!({"errcode": "M_NOT_FOUND", "error": "?"}), Err((404, "M_NOT_FOUND"))),
        (404, json!({"errcode": "M_UNRECOGNIZED", "error": "?"}), Err((502, "M_UNKNOWN"))),
        (429, json!({"errcode": "M_LIMIT_EXCEEDED", "error": "?"}), Err((502, "M_UNKNOWN"))),
        (500, json!("oh"), Err((502, "M_UNKNOWN"))),
    ]
    .into_iter()
    .enumerate()
    {
        let user = format!("@u{number}:peer.test");
        let what = format!("GET /_matrix/federation/v1/query/profile?user_id={}", encode(&user));
        peer.answer(&what, status, &answer);
        for _ in 0..3 {
            let answer = profile(&alice, &user).await;
            match &expected {
                Ok(expected) => assert_eq!(answer.ok(), *expected),
                Err((status, errcode)) => answer.is_error(*status, errcode),
            }
        }
        assert_eq!(peer.asked().iter().filter(|asked| asked.what == what).count(), 1);
    }
}
