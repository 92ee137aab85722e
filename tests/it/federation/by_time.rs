//! The event of a time, where it is not here. Client-Server API, "GET /rooms/{roomId}/timestamp_to_event".

use serde_json::json;
use storage::testing::TestDatabase;
use test_kit::{Answer, TestFederation, TestUser, encode};

use super::guest::Guest;

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

    let theirs = peer.join(federation.server("hs1").http(), "hs1", &room, "@eve:peer.test").await;
    let later = theirs.text(&peer, "later");
    let what = |ts: i64, direction: &str| {
        format!("GET /_matrix/federation/v1/timestamp_to_event/{room}?ts={ts}&dir={direction}")
    };
    let asked = |what: &str| peer.asked().iter().filter(|asked| asked.what == what).count();
    // On the wrong side of the time, nothing, nonsense, and what it does not give.
    for (status, answer) in [
        (200, json!({"event_id": "$earlier", "origin_server_ts": far - 5})),
        (200, json!({"event_id": later.id, "origin_server_ts": far + 5})),
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

/// Who asks for the event of a time wants to read on from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_event_of_a_time_in_a_gap_is_read_with_what_lies_around_it() {
    for database in TestDatabase::each().await {
        let mut guest = Guest::new(database).await;
        let state = guest.state_ids().await;
        let mut lost = Vec::new();
        let start = model::Clock::system().now_ms() + 100_000;
        for number in 0_i64..7 {
            let content = json!({"msgtype": "m.text", "body": number.to_string()});
            let made = guest.make(json!({"content": content, "origin_server_ts": start + number * 1_000})).await;
            guest.follow(&made);
            lost.push(made);
        }
        let last = lost.pop().unwrap();
        guest.tell_missing(&[]);
        for made in &lost {
            guest.tell_event(made);
            guest.tell_state_ids(made, &state);
        }
        guest.send_one(&last).await;
        let room = guest.room.clone();
        let query = format!("ts={}&dir=f", start + 1_500);
        let path = format!("GET /_matrix/federation/v1/timestamp_to_event/{room}?{query}");
        let third = json!({"event_id": lost[2].id, "origin_server_ts": start + 2_000});
        guest.peer.answer(&path, 200, &third);
        assert_eq!(by_time(&guest.alice, &room, &query).await.ok(), third);
        let context = guest.alice.get(&format!("/rooms/{}/context/{}", encode(&room), encode(lost[2].id.as_str()))).await;
        let context = context.ok();
        assert_eq!(context["event"]["content"]["body"], "2");
        assert_eq!(context["events_after"][0]["content"]["body"], "6");
        // It is here now.
        assert_eq!(by_time(&guest.alice, &room, &query).await.ok(), third);
        assert_eq!(guest.asked("timestamp_to_event"), 1);
        // What lies before it, and between it and what was here, comes into its place when somebody reads that far.
        guest.tell_before(&last, &[&last, &lost[5], &lost[4], &lost[3], &lost[2]]);
        guest.tell_before(&lost[2], &[&lost[2], &lost[1], &lost[0]]);
        for _ in 0..2 {
            guest.texts().await;
        }
        assert_eq!(guest.texts().await, ["0", "1", "2", "3", "4", "5", "6"]);
    }
}

/// Its server may be ahead of us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_event_of_a_time_that_was_not_sent_yet_is_taken_in_as_if_it_were() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let far = model::Clock::system().now_ms() + 1_000_000;
    let content = json!({"msgtype": "m.text", "body": "later"});
    let later = guest.make(json!({"content": content, "origin_server_ts": far + 5})).await;
    guest.follow(&later);
    let path = format!("GET /_matrix/federation/v1/timestamp_to_event/{}?ts={far}&dir=f", guest.room);
    guest.peer.answer(&path, 200, &json!({"event_id": later.id, "origin_server_ts": far + 5}));
    guest.tell_event(&later);
    let found = by_time(&guest.alice, &guest.room, &format!("ts={far}&dir=f")).await.ok();
    assert_eq!(found, json!({"event_id": later.id, "origin_server_ts": far + 5}));
    assert_eq!(guest.texts().await, ["later"]);
}
