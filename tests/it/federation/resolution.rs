//! Server-Server API, "Resolving server names": each step leads to the right host, with the right certificate and `Host`.

use std::net::IpAddr;

use serde_json::json;
use test_kit::{Answer, Peer, ServerOptions, TestDatabase, TestFederation, TestUser, encode};

/// What a user learns of an alias of another server.
async fn alias(user: &TestUser, alias: &str) -> Answer {
    user.get(&format!("/_matrix/client/v3/directory/room/{}", encode(alias))).await
}

/// The peer knows this alias.
fn knows(peer: &Peer, alias: &str) {
    let path = format!("GET /_matrix/federation/v1/query/directory?room_alias={}", encode(alias));
    peer.answer(&path, 200, &json!({"room_id": "!room:far", "servers": ["far"]}));
}

/// The `Host` of the last question for an alias.
fn host_of_last(peer: &Peer) -> String {
    let mut asked = peer.asked().into_iter().filter(|asked| asked.what.contains("/query/directory"));
    asked.next_back().expect("it was asked").host
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_an_address_a_port_a_record_or_port_8448() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let dns = federation.dns("hs1");
    let peer = Peer::start("plain.test", federation.authority()).await;
    let IpAddr::V4(ip) = peer.address() else { unreachable!("loopback of the tests is IPv4") };

    // Steps 1 and 2: a literal with and without a port, a name with a port.
    for name in [ip.to_string(), format!("{ip}:8448"), "plain.test:8448".to_owned()] {
        dns.set_address("plain.test", peer.address());
        let room = format!("#room:{name}");
        knows(&peer, &room);
        alias(&alice, &room).await.ok();
        assert_eq!(host_of_last(&peer), name);
    }
    // Steps 4 to 6: the record of today, the older one, and none. The certificate is that of the name.
    for (name, records) in [
        ("new.test", &["_matrix-fed._tcp"][..]),
        ("old.test", &["_matrix._tcp"]),
        ("both.test", &["_matrix-fed._tcp", "_matrix._tcp"]),
        ("none.test", &[]),
    ] {
        let peer = Peer::start(name, federation.authority()).await;
        match records {
            [] => dns.add_address(name, peer.address()),
            [first, others @ ..] => {
                dns.add_address("far.test", peer.address());
                dns.set_address("far.test", peer.address());
                dns.add_service(&format!("{first}.{name}"), (1, 1, 8_448), "far.test");
                others.iter().for_each(|other| dns.add_service(&format!("{other}.{name}"), (1, 1, 1), "nowhere.test"));
            }
        }
        let room = format!("#room:{name}");
        knows(&peer, &room);
        alias(&alice, &room).await.ok();
        assert_eq!(host_of_last(&peer), name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_the_certificate_of_the_name_is_told_nothing() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let peer = Peer::start("certified.test", federation.authority()).await;
    // Whoever controls the DNS alone cannot pose as the name.
    federation.dns("hs1").add_address("another.test", peer.address());
    knows(&peer, "#room:another.test");
    alias(&alice, "#room:another.test").await.is_error(502, "M_UNKNOWN");
    assert!(peer.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_told_apart_from_who_does_not_answer() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let peer = federation.peer("peer.test").await;
    let path = format!("GET /_matrix/federation/v1/query/directory?room_alias={}", encode("#none:peer.test"));
    peer.answer(&path, 404, &json!({"errcode": "M_NOT_FOUND", "error": "no such alias"}));
    alias(&alice, "#none:peer.test").await.is_error(404, "M_NOT_FOUND");
    for (status, body) in [
        (404, json!({"errcode": "M_UNRECOGNIZED", "error": "?"})),
        (500, json!({"errcode": "M_NOT_FOUND_EITHER"})),
        (200, json!({"room_id": 1})),
        (200, json!([])),
    ] {
        peer.answer(&path, status, &body);
        alias(&alice, "#none:peer.test").await.is_error(502, "M_UNKNOWN");
    }
    alias(&alice, "#room:nowhere.test").await.is_error(502, "M_UNKNOWN");
}

/// The address of a name that a stranger chose may be one of our own network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_addresses_are_not_asked() {
    let mut federation = TestFederation::of(1).await;
    federation.add_careful("hs2", TestDatabase::sqlite(), ServerOptions::default()).await;
    let (alice, bob) = (federation.user("hs1", "alice").await, federation.user("hs2", "bob").await);
    let peer = federation.peer("peer.test").await;
    for name in ["peer.test".to_owned(), "peer.test:8448".to_owned(), peer.address().to_string()] {
        let room = format!("#room:{name}");
        knows(&peer, &room);
        alias(&bob, &room).await.is_error(502, "M_UNKNOWN");
        assert!(peer.asked().is_empty());
    }
    alias(&alice, "#room:peer.test").await.ok();
}

// shows: server-server:queryRoomDirectory
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_name_finds_another_ones_alias_and_back() {
    let federation = TestFederation::of(2).await;
    let (alice, bob) = (federation.user("hs1", "alice").await, federation.user("hs2", "bob").await);
    for (maker, asker, server) in [(&alice, &bob, "hs1"), (&bob, &alice, "hs2")] {
        let room = maker.post("/_matrix/client/v3/createRoom", &json!({"room_alias_name": "hall"})).await.ok();
        let found = alias(asker, &format!("#hall:{server}")).await.ok();
        assert_eq!((&found["room_id"], &found["servers"]), (&room["room_id"], &json!([server])));
        alias(asker, &format!("#none:{server}")).await.is_error(404, "M_NOT_FOUND");
    }
    federation.cut("hs1", "hs2");
    alias(&alice, "#hall:hs2").await.is_error(502, "M_UNKNOWN");
    federation.heal("hs1", "hs2");
    alias(&alice, "#hall:hs2").await.ok();
}

/// Strangers do not make us ask third parties; what is ours they may know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_of_another_server_is_asked_for_with_a_token_only() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    alice.post("/_matrix/client/v3/createRoom", &json!({"room_alias_name": "hall"})).await.ok();
    let peer = federation.peer("peer.test").await;
    knows(&peer, "#room:peer.test");
    let http = federation.server("hs1").http();
    let path = |alias: &str| format!("/_matrix/client/v3/directory/room/{}", encode(alias));
    let nothing = serde_json::Value::Null;
    http.request("GET", &path("#room:peer.test"), None, &nothing).await.is_error(401, "M_MISSING_TOKEN");
    assert!(peer.asked().is_empty());
    http.request("GET", &path("#hall:hs1"), None, &nothing).await.ok();
    alias(&alice, "#room:peer.test").await.ok();
}
