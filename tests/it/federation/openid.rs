//! Who a user is, for services that the user showed a token. Client-Server API and Server-Server API, "OpenID".

use model::Clock;
use serde_json::{Value, json};
use storage::testing::TestDatabase;
use test_kit::{Answer, ServerOptions, TestFederation, TestUser, encode};

fn request_token(user_id: &str) -> String {
    format!("/_matrix/client/v3/user/{}/openid/request_token", encode(user_id))
}

async fn token(user: &TestUser) -> String {
    user.post(&request_token(user.id()), &json!({})).await.ok()["access_token"].as_str().unwrap().to_owned()
}

async fn userinfo(federation: &TestFederation, query: &str) -> Answer {
    let path = format!("/_matrix/federation/v1/openid/userinfo{query}");
    federation.server("hs1").http().request("GET", &path, None, &Value::Null).await
}

// shows: requestOpenIdToken
// shows: server-server:exchangeOpenIdToken
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_says_who_its_user_is_and_nothing_else() {
    for database in TestDatabase::each().await {
        let mut federation = TestFederation::empty();
        let options = ServerOptions { clock: Clock::manual(1_000_000), ..ServerOptions::default() };
        federation.add("hs1", database, options).await;
        let (alice, bob) = (federation.user("hs1", "alice").await, federation.user("hs1", "bob").await);
        let answer = alice.post(&request_token(alice.id()), &json!({})).await.ok();
        assert_eq!((&answer["token_type"], &answer["matrix_server_name"]), (&json!("Bearer"), &json!("hs1")));
        assert_eq!(answer["expires_in"], 3_600);
        let secret = answer["access_token"].as_str().unwrap();
        let query = format!("?access_token={secret}");
        assert_eq!(userinfo(&federation, &query).await.ok(), json!({"sub": "@alice:hs1"}));
        // It is no access token, and an access token is none.
        let http = federation.server("hs1").http();
        let whoami = http.request("GET", "/_matrix/client/v3/account/whoami", Some(secret), &Value::Null).await;
        whoami.is_error(401, "M_UNKNOWN_TOKEN");
        userinfo(&federation, &format!("?access_token={}", alice.token())).await.is_error(401, "M_UNKNOWN_TOKEN");
        userinfo(&federation, "?access_token=").await.is_error(401, "M_UNKNOWN_TOKEN");
        userinfo(&federation, "").await.is_error(400, "M_MISSING_PARAM");
        alice.post(&request_token(bob.id()), &json!({})).await.is_error(403, "M_FORBIDDEN");

        federation.server_mut("hs1").restart().await;
        userinfo(&federation, &query).await.ok();
        federation.server("hs1").clock().advance_ms(3_601_000);
        userinfo(&federation, &query).await.is_error(401, "M_UNKNOWN_TOKEN");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_ends_with_the_sessions_of_its_user() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let query = format!("?access_token={}", token(&alice).await);
    userinfo(&federation, &query).await.ok();
    alice.post("/_matrix/client/v3/logout/all", &json!({})).await.ok();
    userinfo(&federation, &query).await.is_error(401, "M_UNKNOWN_TOKEN");
}
