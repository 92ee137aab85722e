//! The event of a time, where it is not here. Client-Server API, "GET /rooms/{roomId}/timestamp_to_event".

use serde_json::json;
use test_kit::{Answer, TestFederation, TestUser, encode};

async fn by_time(user: &TestUser, room: &str, query: &str) -> Answer {
    user.get(&format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?{query}", encode(room))).await
}

// shows: getEventByTimestamp
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_is_here_the_other_servers_of_the_room_are_asked() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let peer = federation.peer("peer.test").await;
    let room = alice.create_public_room().await;
    let far = model::Clock::system().now_ms() + 1_000_000;
    by_time(&alice, &room, &format!("ts={far}&dir=f")).await.is_error(404, "M_NOT_FOUND");
    assert!(peer.asked().is_empty(), "it is not in the room");

    peer.join(federation.server("hs1").http(), "hs1", &room, "@eve:peer.test").await;
    let what = |ts: i64, direction: &str| {
        format!("GET /_matrix/federation/v1/timestamp_to_event/{room}?ts={ts}&dir={direction}")
    };
    let asked = |what: &str| peer.asked().iter().filter(|asked| asked.what == what).count();
    peer.answer(&what(far, "f"), 200, &json!({"event_id": "$later", "origin_server_ts": far + 5}));
    let found = by_time(&alice, &room, &format!("ts={far}&dir=f")).await.ok();
    assert_eq!(found, json!({"event_id": "$later", "origin_server_ts": far + 5}));
    // On the wrong side of the time, nothing, and nonsense.
    for (status, answer) in [
        (200, json!({"event_id": "$earlier", "origin_server_ts": far - 5})),
        (404, json!({"errcode": "M_NOT_FOUND", "error": "none"})),
        (200, json!({"event_id": 1})),
        (500, json!([])),
    ] {
        peer.answer(&what(far, "f"), status, &answer);
        by_time(&alice, &room, &format!("ts={far}&dir=f")).await.is_error(404, "M_NOT_FOUND");
    }
    // What is here has no gap: nobody is asked.
    by_time(&alice, &room, "ts=0&dir=f").await.ok();
    by_time(&alice, &room, "ts=0&dir=b").await.is_error(404, "M_NOT_FOUND");
    by_time(&alice, &room, &format!("ts={far}&dir=b")).await.ok();
    for (ts, direction) in [(0, "f"), (0, "b"), (far, "b")] {
        assert_eq!(asked(&what(ts, direction)), 0);
    }
}
