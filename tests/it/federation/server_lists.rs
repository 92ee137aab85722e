//! Servers with which the configuration lets this one federate, and others.

use serde_json::{Value, json};
use test_kit::{ServerOptions, TestDatabase, TestFederation, encode};

const PROFILE: &str = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Ahs1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_the_configuration_denies_are_neither_asked_nor_answered() {
    for (allow, deny) in [(&["*.good.test"][..], &[][..]), (&[], &["*.evil.test"])] {
        let mut options = ServerOptions::default();
        options.config.federation.allow_servers = allow.iter().map(|name| (*name).to_owned()).collect();
        options.config.federation.deny_servers = deny.iter().map(|name| (*name).to_owned()).collect();
        let mut federation = TestFederation::empty();
        federation.add("hs1", TestDatabase::sqlite(), options).await;
        let alice = federation.user("hs1", "alice").await;
        let http = federation.server("hs1").http();
        for (name, is_allowed) in [("a.good.test", true), ("a.evil.test", false)] {
            let peer = federation.peer(name).await;
            let room = format!("#room:{name}");
            let path = format!("GET /_matrix/federation/v1/query/directory?room_alias={}", encode(&room));
            peer.answer(&path, 200, &json!({"room_id": "!room:far", "servers": []}));
            let asked = peer.ask(http, "hs1", "GET", PROFILE, &Value::Null).await;
            let found = alice.get(&format!("/_matrix/client/v3/directory/room/{}", encode(&room))).await;
            if is_allowed {
                asked.ok();
                found.ok();
            } else {
                asked.is_error(403, "M_FORBIDDEN");
                found.is_error(502, "M_UNKNOWN");
                assert!(peer.asked().is_empty(), "not even for its keys");
            }
        }
    }
}
