//! What servers read of rooms, at the door. Server-Server API, "Retrieving events", "Backfilling and retrieving missing events".

use serde_json::{Value, json};
use storage::testing::TestDatabase;
use test_kit::{Answer, Peer, ServerOptions, TestFederation, encode};

/// Asks `hs1` something about a room.
async fn ask(federation: &TestFederation, peer: &Peer, path: &str) -> Answer {
    let path = format!("/_matrix/federation/v1/{path}");
    peer.ask(federation.server("hs1").http(), "hs1", "GET", &path, &Value::Null).await
}

async fn missing(federation: &TestFederation, peer: &Peer, room: &str, body: &Value) -> Answer {
    let path = format!("/_matrix/federation/v1/get_missing_events/{room}");
    peer.ask(federation.server("hs1").http(), "hs1", "POST", &path, body).await
}

fn texts(events: &Value) -> Vec<&str> {
    events.as_array().unwrap().iter().map(|event| event["content"]["body"].as_str().unwrap_or("-")).collect()
}

// shows: server-server:getEvent, server-server:getEventAuth, server-server:backfillRoom, server-server:getMissingPreviousEvents
// shows: server-server:getRoomState, server-server:getRoomStateIds, server-server:getEventByTimestamp
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_in_the_room_reads_it() {
    for database in TestDatabase::each().await {
        let mut federation = TestFederation::empty();
        federation.add("hs1", database, ServerOptions::default()).await;
        let alice = federation.user("hs1", "alice").await;
        let peer = federation.peer("peer.test").await;
        let room = alice.create_public_room().await;
        let first = alice.send_text(&room, "first").await;
        peer.join(federation.server("hs1").http(), "hs1", &room, "@eve:peer.test").await;
        alice.send_text(&room, "second").await;
        let last = alice.send_text(&room, "third").await;
        let (id, event_id) = (encode(&room), encode(&last));

        let event = ask(&federation, &peer, &format!("event/{event_id}")).await.ok();
        assert_eq!((&event["origin"], texts(&event["pdus"])), (&json!("hs1"), vec!["third"]));
        assert!(event["origin_server_ts"].is_u64());
        let filled =
            ask(&federation, &peer, &format!("backfill/{id}?v={event_id}&v={}&limit=3", encode(&first))).await.ok();
        assert_eq!((&filled["origin"], texts(&filled["pdus"])), (&json!("hs1"), vec!["third", "first", "second"]));
        let asked = json!({"earliest_events": [first], "latest_events": [last], "limit": 10});
        assert_eq!(texts(&missing(&federation, &peer, &id, &asked).await.ok()["events"]), ["-", "second"]);

        let state = ask(&federation, &peer, &format!("state/{id}?event_id={event_id}")).await.ok();
        let ids = ask(&federation, &peer, &format!("state_ids/{id}?event_id={event_id}")).await.ok();
        for (events, ids) in [(&state["pdus"], &ids["pdu_ids"]), (&state["auth_chain"], &ids["auth_chain_ids"])] {
            assert_eq!(events.as_array().unwrap().len(), ids.as_array().unwrap().len());
        }
        assert!(state["pdus"].as_array().unwrap().iter().any(|event| event["state_key"] == "@eve:peer.test"));
        let chain = ask(&federation, &peer, &format!("event_auth/{id}/{event_id}")).await.ok();
        assert!(chain["auth_chain"].as_array().unwrap().iter().any(|event| event["state_key"] == alice.id()));
        let found = ask(&federation, &peer, &format!("timestamp_to_event/{id}?ts=0&dir=f")).await.ok();
        assert!(found["event_id"].is_string() && found["origin_server_ts"].is_u64());
        ask(&federation, &peer, &format!("timestamp_to_event/{id}?ts=0&dir=b")).await.is_error(404, "M_NOT_FOUND");
    }
}

/// It is read in pieces, while it is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_many_events_is_one_answer() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let peer = federation.peer("peer.test").await;
    let room = alice.create_public_room().await;
    for number in 0..rooms::BODIES_AT_ONCE {
        alice.set_state(&room, "org.example.state", &number.to_string(), &json!({"number": number})).await;
    }
    peer.join(federation.server("hs1").http(), "hs1", &room, "@eve:peer.test").await;
    let last = alice.send_text(&room, "last").await;
    let path = format!("state/{}?event_id={}", encode(&room), encode(&last));
    let state = ask(&federation, &peer, &path).await.ok();
    let mut numbers: Vec<usize> = state["pdus"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["content"]["number"].as_u64())
        .map(|number| usize::try_from(number).unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..rooms::BODIES_AT_ONCE).collect::<Vec<_>>());
    assert!(state["pdus"].as_array().unwrap().len() > rooms::BODIES_AT_ONCE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_reads_nothing_and_nonsense_is_told_so() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let peer = federation.peer("peer.test").await;
    let room = alice.create_public_room().await;
    let said = alice.send_text(&room, "secret").await;
    for room in [encode(&room), encode("!nowhere:hs1")] {
        let event_id = encode(&said);
        for path in [
            format!("state/{room}?event_id={event_id}"),
            format!("state_ids/{room}?event_id={event_id}"),
            format!("event_auth/{room}/{event_id}"),
            format!("backfill/{room}?v={event_id}&limit=10"),
            format!("timestamp_to_event/{room}?ts=0&dir=f"),
        ] {
            ask(&federation, &peer, &path).await.is_error(403, "M_FORBIDDEN");
        }
        let asked = json!({"earliest_events": [], "latest_events": [said]});
        missing(&federation, &peer, &room, &asked).await.is_error(403, "M_FORBIDDEN");
    }
    for event in [&*said, "$nothing"] {
        ask(&federation, &peer, &format!("event/{}", encode(event))).await.is_error(404, "M_NOT_FOUND");
    }
    let id = encode(&room);
    for (path, errcode) in [
        (format!("state/{id}"), "M_MISSING_PARAM"),
        (format!("backfill/{id}?v={}", encode(&said)), "M_MISSING_PARAM"),
        (format!("backfill/{id}?v={}&limit=-1", encode(&said)), "M_INVALID_PARAM"),
        (format!("timestamp_to_event/{id}?ts=x&dir=f"), "M_INVALID_PARAM"),
        (format!("timestamp_to_event/{id}?ts=0&dir=sideways"), "M_INVALID_PARAM"),
        ("state/room?event_id=x".to_owned(), "M_INVALID_PARAM"),
    ] {
        ask(&federation, &peer, &path).await.is_error(400, errcode);
    }
    missing(&federation, &peer, &id, &json!({"latest_events": []})).await.is_error(400, "M_BAD_JSON");
    missing(&federation, &peer, &id, &json!({"earliest_events": 1, "latest_events": []}))
        .await
        .is_error(400, "M_BAD_JSON");
}
