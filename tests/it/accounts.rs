//! Accounts, devices and what belongs to a user.

use serde_json::{Value, json};
use test_kit::{Http, TestUser, encode, on_each_database};

fn password_stage(user: &TestUser, session: &Value) -> Value {
    json!({
        "type": "m.login.password", "session": session,
        "identifier": { "type": "m.id.user", "user": user.id() },
        "password": format!("{}'s password", user.localpart()),
    })
}

async fn log_in(http: &Http, name: &str, password: &str) -> test_kit::Answer {
    let body = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": name }, "password": password,
    });
    http.request("POST", "/_matrix/client/v3/login", None, &body).await
}

on_each_database! {
    // shows: register, getTokenOwner
    async fn a_new_user_is_told_who_they_are(server: TestServer) {
        let alice = server.user("alice").await;
        let whoami = alice.get("/account/whoami").await.ok();
        assert_eq!(whoami["user_id"], "@alice:localhost");
        assert_eq!(whoami["device_id"], alice.device_id());
    }

    // shows: register, checkUsernameAvailability
    async fn a_name_is_taken_once_and_names_outside_of_the_grammar_are_refused(server: TestServer) {
        let free = "/_matrix/client/v3/register/available?username=";
        let http = server.http();
        assert_eq!(http.request("GET", &format!("{free}alice"), None, &Value::Null).await.ok()["available"], true);
        server.user("alice").await;
        http.request("GET", &format!("{free}alice"), None, &Value::Null).await.is_error(400, "M_USER_IN_USE");
        for (name, code) in [("alice", "M_USER_IN_USE"), ("a b", "M_INVALID_USERNAME"), ("ü", "M_INVALID_USERNAME")] {
            let body = json!({ "username": name, "password": "a password", "auth": { "type": "m.login.dummy" } });
            http.request("POST", "/_matrix/client/v3/register", None, &body).await.is_error(400, code);
        }
    }

    // shows: getLoginFlows, login, logout
    async fn a_token_is_good_until_its_device_logs_out(server: TestServer) {
        let alice = server.user("alice").await;
        let flows = server.http().request("GET", "/_matrix/client/v3/login", None, &Value::Null).await.ok();
        assert!(flows["flows"].as_array().unwrap().contains(&json!({ "type": "m.login.password" })), "{flows}");
        let phone = alice.log_in_again().await;
        assert_ne!(phone.device_id(), alice.device_id());
        phone.post("/logout", &json!({})).await.ok();
        phone.get("/account/whoami").await.is_error(401, "M_UNKNOWN_TOKEN");
        alice.get("/account/whoami").await.ok();
    }

    // shows: redirectToSSO, redirectToIdP
    async fn single_sign_on_is_neither_offered_nor_answered_without_an_identity_provider(server: TestServer) {
        let http = server.http();
        let flows = http.request("GET", "/_matrix/client/v3/login", None, &Value::Null).await.ok();
        assert!(!flows.to_string().contains("m.login.sso"), "{flows}");
        for provider in ["", "/oidc"] {
            let path = format!("/_matrix/client/v3/login/sso/redirect{provider}?redirectUrl=https%3A%2F%2Fexample.org");
            http.request("GET", &path, None, &Value::Null).await.is_error(404, "M_UNRECOGNIZED");
        }
    }

    // shows: logout_all, login
    async fn logging_out_everywhere_leaves_no_token_but_the_password(server: TestServer) {
        let alice = server.user("alice").await;
        let phone = alice.log_in_again().await;
        phone.post("/logout/all", &json!({})).await.ok();
        alice.get("/account/whoami").await.is_error(401, "M_UNKNOWN_TOKEN");
        phone.get("/account/whoami").await.is_error(401, "M_UNKNOWN_TOKEN");
        alice.log_in_again().await.get("/account/whoami").await.ok();
    }

    // shows: login
    async fn a_wrong_password_and_an_unknown_user_are_the_same_error(server: TestServer) {
        server.user("alice").await;
        let wrong = log_in(server.http(), "alice", "wrong").await;
        let unknown = log_in(server.http(), "nobody", "wrong").await;
        wrong.is_error(403, "M_FORBIDDEN");
        unknown.is_error(403, "M_FORBIDDEN");
        assert_eq!(wrong.bytes, unknown.bytes);
    }

    // shows: changePassword, login
    async fn a_changed_password_ends_the_other_devices(server: TestServer) {
        let alice = server.user("alice").await;
        let phone = alice.log_in_again().await;
        let asked = alice.post("/account/password", &json!({ "new_password": "another one" })).await;
        assert_eq!(asked.status.as_u16(), 401, "{asked}");
        let auth = password_stage(&alice, &asked.json()["session"]);
        alice.post("/account/password", &json!({ "new_password": "another one", "auth": auth })).await.ok();
        alice.get("/account/whoami").await.ok();
        phone.get("/account/whoami").await.is_error(401, "M_UNKNOWN_TOKEN");
        log_in(server.http(), "alice", "alice's password").await.is_error(403, "M_FORBIDDEN");
        log_in(server.http(), "alice", "another one").await.ok();
    }

    // shows: deactivateAccount
    async fn a_deactivated_account_lets_nobody_in(server: TestServer) {
        let alice = server.user("alice").await;
        let asked = alice.post("/account/deactivate", &json!({ "erase": true })).await;
        assert_eq!(asked.status.as_u16(), 401, "{asked}");
        let auth = password_stage(&alice, &asked.json()["session"]);
        alice.post("/account/deactivate", &json!({ "auth": auth, "erase": true })).await.ok();
        alice.get("/account/whoami").await.is_error(401, "M_UNKNOWN_TOKEN");
        assert_eq!(log_in(server.http(), "alice", "alice's password").await.status.as_u16(), 403);
    }

    // shows: refresh
    async fn a_refresh_token_gives_new_tokens_and_ends_the_old(server: TestServer) {
        let alice = server.user("alice").await;
        let body = json!({
            "type": "m.login.password", "identifier": { "type": "m.id.user", "user": alice.id() },
            "password": "alice's password", "refresh_token": true,
        });
        let http = server.http();
        let first = http.request("POST", "/_matrix/client/v3/login", None, &body).await.ok();
        assert!(first["expires_in_ms"].as_u64().unwrap() > 0);
        let body = json!({ "refresh_token": first["refresh_token"] });
        let second = http.request("POST", "/_matrix/client/v3/refresh", None, &body).await.ok();
        assert_ne!(second["access_token"], first["access_token"]);
        let token = second["access_token"].as_str();
        http.request("GET", "/_matrix/client/v3/account/whoami", token, &Value::Null).await.ok();
        let old = first["access_token"].as_str();
        http.request("GET", "/_matrix/client/v3/account/whoami", old, &Value::Null).await.is_error(401, "M_UNKNOWN_TOKEN");
    }

    // shows: generateLoginToken, login
    async fn a_login_token_logs_in_once(server: TestServer) {
        let alice = server.user("alice").await;
        let path = "/_matrix/client/v1/login/get_token";
        let asked = alice.post(path, &json!({})).await;
        let auth = password_stage(&alice, &asked.json()["session"]);
        let given = alice.post(path, &json!({ "auth": auth })).await.ok();
        let body = json!({ "type": "m.login.token", "token": given["login_token"] });
        let again = server.http().request("POST", "/_matrix/client/v3/login", None, &body).await.ok();
        assert_eq!(again["user_id"], alice.id());
        server.http().request("POST", "/_matrix/client/v3/login", None, &body).await.is_error(403, "M_FORBIDDEN");
    }

    // shows: getDevices, getDevice, updateDevice, deleteDevice
    async fn a_device_is_named_and_deleted_with_its_token(server: TestServer) {
        let alice = server.user("alice").await;
        let phone = alice.log_in_again().await;
        let path = format!("/devices/{}", phone.device_id());
        alice.put(&path, &json!({ "display_name": "phone" })).await.ok();
        assert_eq!(alice.get(&path).await.ok()["display_name"], "phone");
        assert_eq!(alice.get("/devices").await.ok()["devices"].as_array().unwrap().len(), 2);
        let asked = alice.request("DELETE", &path, &json!({})).await;
        assert_eq!(asked.status.as_u16(), 401, "{asked}");
        let auth = password_stage(&alice, &asked.json()["session"]);
        alice.request("DELETE", &path, &json!({ "auth": auth })).await.ok();
        alice.get(&path).await.is_error(404, "M_NOT_FOUND");
        phone.get("/account/whoami").await.is_error(401, "M_UNKNOWN_TOKEN");
    }

    // shows: deleteDevices
    async fn several_devices_are_deleted_at_once(server: TestServer) {
        let alice = server.user("alice").await;
        let (phone, tablet) = (alice.log_in_again().await, alice.log_in_again().await);
        let devices = [phone.device_id(), tablet.device_id()];
        let asked = alice.post("/delete_devices", &json!({ "devices": devices })).await;
        let auth = password_stage(&alice, &asked.json()["session"]);
        alice.post("/delete_devices", &json!({ "devices": devices, "auth": auth })).await.ok();
        let left = alice.get("/devices").await.ok();
        assert_eq!(left["devices"].as_array().unwrap().len(), 1, "{left}");
    }

    // shows: setAccountData, getAccountData, setAccountDataPerRoom, getAccountDataPerRoom
    async fn account_data_is_its_users_alone_and_reaches_the_sync(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().await;
        let path = format!("/user/{}/account_data/org.example.x", encode(alice.id()));
        let room_path = format!("/user/{}/rooms/{}/account_data/org.example.y", encode(alice.id()), encode(&room));
        alice.get(&path).await.is_error(404, "M_NOT_FOUND");
        alice.put(&path, &json!({ "a": 1 })).await.ok();
        alice.put(&room_path, &json!({ "b": 2 })).await.ok();
        assert_eq!(alice.get(&path).await.ok(), json!({ "a": 1 }));
        assert_eq!(alice.get(&room_path).await.ok(), json!({ "b": 2 }));
        bob.get(&path).await.is_error(403, "M_FORBIDDEN");
        bob.put(&path, &json!({})).await.is_error(403, "M_FORBIDDEN");
        let sync = alice.sync(None).await;
        let events = sync["account_data"]["events"].as_array().unwrap();
        assert!(events.contains(&json!({ "type": "org.example.x", "content": { "a": 1 } })), "{sync}");
        let events = sync["rooms"]["join"][&room]["account_data"]["events"].as_array().unwrap();
        assert!(events.contains(&json!({ "type": "org.example.y", "content": { "b": 2 } })), "{sync}");
    }

    // shows: setRoomTag, getRoomTags, deleteRoomTag
    async fn tags_are_set_and_taken_off(server: TestServer) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let path = format!("/user/{}/rooms/{}/tags", encode(alice.id()), encode(&room));
        alice.put(&format!("{path}/m.favourite"), &json!({ "order": 0.5 })).await.ok();
        assert_eq!(alice.get(&path).await.ok(), json!({ "tags": { "m.favourite": { "order": 0.5 } } }));
        alice.request("DELETE", &format!("{path}/m.favourite"), &Value::Null).await.ok();
        assert_eq!(alice.get(&path).await.ok(), json!({ "tags": {} }));
    }

    // shows: setProfileField, getProfileField, getUserProfile, deleteProfileField
    async fn a_profile_has_a_name_and_fields_of_any_kind(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let path = format!("/profile/{}", encode(alice.id()));
        alice.put(&format!("{path}/displayname"), &json!({ "displayname": "Alice" })).await.ok();
        alice.put(&format!("{path}/org.example.color"), &json!({ "org.example.color": "red" })).await.ok();
        assert_eq!(bob.get(&format!("{path}/displayname")).await.ok(), json!({ "displayname": "Alice" }));
        assert_eq!(bob.get(&path).await.ok(), json!({ "displayname": "Alice", "org.example.color": "red" }));
        bob.put(&format!("{path}/displayname"), &json!({ "displayname": "Bob" })).await.is_error(403, "M_FORBIDDEN");
        alice.request("DELETE", &format!("{path}/org.example.color"), &Value::Null).await.ok();
        bob.get(&format!("{path}/org.example.color")).await.is_error(404, "M_NOT_FOUND");
        bob.get("/profile/%40nobody%3Alocalhost").await.is_error(404, "M_NOT_FOUND");
    }

    // shows: defineFilter, getFilter
    async fn a_filter_is_kept_for_its_user(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let path = format!("/user/{}/filter", encode(alice.id()));
        let filter = json!({ "room": { "timeline": { "limit": 5 } } });
        let id = alice.post(&path, &filter).await.ok()["filter_id"].as_str().unwrap().to_owned();
        assert_eq!(alice.get(&format!("{path}/{}", encode(&id))).await.ok(), filter);
        bob.get(&format!("{path}/{}", encode(&id))).await.is_error(403, "M_FORBIDDEN");
        alice.get(&format!("{path}/none")).await.is_error(404, "M_NOT_FOUND");
    }

    // shows: getVersions, getCapabilities, getWellknown
    async fn the_server_says_what_it_is(server: TestServer) {
        let alice = server.user("alice").await;
        let get = async |path: &str| server.http().request("GET", path, None, &Value::Null).await.ok();
        assert!(!get("/_matrix/client/versions").await["versions"].as_array().unwrap().is_empty());
        let known = get("/.well-known/matrix/client").await;
        assert_eq!(known["m.homeserver"]["base_url"], "https://matrix.example.org");
        let capabilities = alice.get("/capabilities").await.ok();
        let versions = &capabilities["capabilities"]["m.room_versions"];
        assert_eq!(versions["default"], "12");
        assert_eq!(versions["available"].as_object().unwrap().len(), 12);
    }

    // shows: getAccount3PIDs
    async fn a_server_without_mail_has_no_addresses(server: TestServer) {
        assert_eq!(server.user("alice").await.get("/account/3pid").await.ok(), json!({ "threepids": [] }));
    }

    // shows: registrationTokenValidity
    async fn a_registration_token_that_nobody_made_is_not_valid(server: TestServer) {
        let path = "/_matrix/client/v1/register/m.login.registration_token/validity?token=none";
        assert_eq!(server.http().request("GET", path, None, &Value::Null).await.ok(), json!({ "valid": false }));
    }
}
