//! Application services, which the configuration lets in.

use serde_json::{Value, json};
use test_kit::{Answer, ServerOptions, TestDatabase, TestServer, TestUser};

const REGISTRATION: &str = "
id: irc
url: null
as_token: the token of the bridge
hs_token: the token of the server
sender_localpart: _irc_bot
namespaces:
  users:
    - exclusive: true
      regex: '@_irc_.*'
    - exclusive: false
      regex: '@shared_.*'
  rooms: []
  aliases: []
";
const TOKEN: Option<&str> = Some("the token of the bridge");

async fn register(server: &TestServer, name: &str, token: Option<&str>) -> Answer {
    let body = match token {
        Some(_) => json!({ "type": "m.login.application_service", "username": name, "inhibit_login": true }),
        None => json!({ "username": name, "password": "a long password", "auth": { "type": "m.login.dummy" } }),
    };
    server.http().request("POST", "/_matrix/client/v3/register", token, &body).await
}

async fn log_in(server: &TestServer, name: &str, token: Option<&str>) -> Answer {
    let body = json!({
        "type": "m.login.application_service", "identifier": { "type": "m.id.user", "user": name },
    });
    server.http().request("POST", "/_matrix/client/v3/login", token, &body).await
}

/// Application Service API, "Registration", and Client-Server API, "Appservice Login".
// shows: register, login, getLoginFlows, getTokenOwner
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_makes_and_is_its_own_users_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("irc.yaml");
    std::fs::write(&file, REGISTRATION).unwrap();
    for database in TestDatabase::each().await {
        let mut options = ServerOptions::default();
        options.config.application_services.registrations = vec![file.clone()];
        let server = TestServer::on(database, options).await;
        let http = server.http();
        let flows = http.request("GET", "/_matrix/client/v3/login", None, &Value::Null).await.ok();
        assert!(flows.to_string().contains("m.login.application_service"), "{flows}");

        // 1. Its users, as whom it logs in and speaks.
        for name in ["_irc_bob", "shared_bob"] {
            assert_eq!(register(&server, name, TOKEN).await.ok()["user_id"], format!("@{name}:localhost"));
        }
        register(&server, "_irc_bob", TOKEN).await.is_error(400, "M_USER_IN_USE");
        let bob = TestUser::of(http, &log_in(&server, "_irc_bob", TOKEN).await.ok());
        assert_eq!(bob.get("/account/whoami").await.ok()["user_id"], "@_irc_bob:localhost");
        let whoami = "/_matrix/client/v3/account/whoami";
        let as_bob = format!("{whoami}?user_id=%40_irc_bob%3Alocalhost");
        assert_eq!(http.request("GET", &as_bob, TOKEN, &Value::Null).await.ok()["user_id"], "@_irc_bob:localhost");

        // 2. Nobody outside of its namespaces, be there such a user or not.
        server.user("alice").await;
        register(&server, "carol", TOKEN).await.is_error(400, "M_EXCLUSIVE");
        log_in(&server, "alice", TOKEN).await.is_error(400, "M_EXCLUSIVE");
        log_in(&server, "_irc_bob", Some("another token")).await.is_error(401, "M_UNKNOWN_TOKEN");
        let as_alice = format!("{whoami}?user_id=%40alice%3Alocalhost");
        http.request("GET", &as_alice, TOKEN, &Value::Null).await.is_error(403, "M_FORBIDDEN");

        // 3. What is its alone nobody else may have; what is not, anyone.
        for name in ["_irc_eve", "_irc_bot"] {
            register(&server, name, None).await.is_error(400, "M_EXCLUSIVE");
            let available = format!("/_matrix/client/v3/register/available?username={name}");
            http.request("GET", &available, None, &Value::Null).await.is_error(400, "M_EXCLUSIVE");
        }
        register(&server, "shared_eve", None).await.ok();
        server.shutdown().await;
    }
}
