//! Redirects: only the host of a name may say that its answer is elsewhere. Server-Server API, "Resolving server names".

use serde_json::json;
use test_kit::{Peer, PeerBody, TestDatabase, encode, eventually, tokio};

use super::{
    guest::{Guest, REM},
    sending::Inbox,
};

/// Whatever is asked: a server that could send us elsewhere could have us ask what stands beside us, with our signature.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_to_a_server_follows_a_redirect() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let victim = guest.federation.peer("victim.test").await;
    guest.peer.redirect("*", "https://victim.test:8448/taken");
    let (alice, room) = (guest.alice.clone(), guest.room.clone());
    let client = "/_matrix/client/v3";
    for path in [
        format!("{client}/profile/{}", encode("@somebody:peer.test")),
        format!("{client}/directory/room/{}", encode("#a:peer.test")),
        format!("{client}/publicRooms?server=peer.test"),
    ] {
        let answer = alice.get(&path).await;
        assert!(!answer.status.is_success() && answer.status != 500, "{path}: {answer}");
    }
    let join = format!("{client}/join/{}?via=peer.test", encode("!elsewhere:peer.test"));
    assert!(!alice.post(&join, &json!({})).await.status.is_success());
    let keys = json!({"device_keys": {REM: [], "@other:peer.test": []}, "timeout": 5_000});
    alice.post(&format!("{client}/keys/query"), &keys).await.ok();
    let claims = json!({"one_time_keys": {REM: {"A": "signed_curve25519"}}});
    alice.post(&format!("{client}/keys/claim"), &claims).await.ok();
    alice.in_room(&room, "invite", &json!({"user_id": "@new:peer.test"})).await;
    let _lost = guest.message("lost").await;
    let last = guest.message("last").await;
    guest.send(std::slice::from_ref(&last)).await.ok();
    alice.send_text(&room, "hello").await;
    let asked = |peer: &Peer, what: &str| peer.asked().iter().any(|asked| asked.what.contains(what));
    for what in [
        "/query/profile",
        "/query/directory",
        "/publicRooms",
        "/make_join/",
        "/user/devices/",
        "/user/keys/query",
        "/user/keys/claim",
        "/invite/",
        "/get_missing_events/",
        "/state_ids/",
        "/send/",
    ] {
        eventually!(asked(&guest.peer, what));
    }
    // A server whose keys are elsewhere has none.
    let other = guest.federation.peer("other.test").await;
    other.redirect("*", "https://victim.test:8448/taken");
    let http = guest.federation.server("hs1").http();
    let path = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Ahs1";
    other.ask(http, "hs1", "GET", path, &serde_json::Value::Null).await.is_error(401, "M_UNAUTHORIZED");
    assert!(victim.asked().is_empty(), "{:?}", victim.asked());
}

/// Where a page answers in the place of a server, or a redirect to one, nobody has taken what was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_page_answers_to_is_sent_again() {
    let guest = Guest::new(TestDatabase::sqlite()).await;
    let inbox = Inbox::of(&guest.peer);
    let sent = || guest.peer.asked().iter().filter(|asked| asked.what.contains("/v1/send/")).count();
    let before = sent();
    for (status, tries) in [(302, 1), (200, 2)] {
        let page = PeerBody::of_bytes(10, "<html>", "a", "</html>");
        guest.peer.answer_with("PUT /_matrix/federation/v1/send/*", status, page);
        if tries == 1 {
            guest.alice.send_text(&guest.room, "hello").await;
        }
        eventually!(sent() >= before + tries);
    }
    guest.peer.end_answers_with();
    eventually!(inbox.texts(&guest.room) == ["hello"]);
}
