//! Events as no honest server makes them: each gets a defined answer, and the room stays usable.

use ruma::RoomVersionId;
use serde_json::{Value, json};
use storage::testing::TestDatabase;

use super::guest::Guest;

const UNKNOWN: &str = "$kFyyBvwbGM-TYsEqPvXHVGH_WDRJQWQMNjMsRWKhkhY";

impl Guest {
    /// The room goes on both ways.
    async fn goes_on(&mut self) {
        let before = self.texts().await.len();
        let made = self.message("theirs").await;
        self.send_one(&made).await;
        self.alice.send_text(&self.room, "ours").await;
        let texts = self.texts().await;
        assert_eq!(texts[before..], ["theirs", "ours"]);
    }
}

/// By its time an event is no part of any rule; clients may sort by it, which is their affair. Beyond the end of its key it is not signed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_from_the_future_is_taken_unless_its_key_ends_before() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let now_ms = model::Clock::system().now_ms();
    let soon = json!({"content": {"msgtype": "m.text", "body": "soon"}, "origin_server_ts": now_ms + 3_600_000});
    let soon = guest.make(soon).await;
    guest.send_one(&soon).await;
    guest.follow(&soon);
    let never = json!({"content": {"msgtype": "m.text", "body": "never"}, "origin_server_ts": 9_000_000_000_000_i64});
    let never = guest.make(never).await;
    let answer = guest.send(std::slice::from_ref(&never)).await.ok();
    assert!(answer["pdus"][never.id.as_str()]["error"].is_string(), "{answer}");
    assert_eq!(guest.texts().await, ["soon"]);
    guest.goes_on().await;
}

/// The deepest event that can be: ours that come after it have the same depth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn depth_does_not_overflow() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let deepest = (1_i64 << 53) - 1;
    let deep = guest.make(json!({"depth": deepest, "content": {"msgtype": "m.text", "body": "deep"}})).await;
    guest.send_one(&deep).await;
    guest.alice.send_text(&guest.room, "after").await;
    guest.follow(&deep);
    guest.depth = deepest - 1;
    let again = guest.message("again").await;
    guest.send_one(&again).await;
    assert_eq!(guest.texts().await, ["deep", "after", "again"]);
    for depth in [json!(-1), json!("1"), Value::Null] {
        let made = guest.make(json!({"depth": depth})).await;
        let answer = guest.transaction(&format!("{depth}"), vec![made.pdu], Vec::new()).await.ok();
        assert!(answer["pdus"].as_object().unwrap().values().all(|result| result["error"].is_string()), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_with_too_many_or_no_events_before_it_is_dropped() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let auth = guest.auth("m.room.message").await;
    for fields in [
        json!({"prev_events": []}),
        json!({"prev_events": vec![guest.tip.to_string(); 21]}),
        json!({"auth_events": vec![auth[0].to_string(); 11]}),
        json!({"prev_events": "x"}),
        json!({"prev_events": [1]}),
        json!({"type": "t".repeat(256)}),
    ] {
        let made = guest.make(fields).await;
        let answer = guest.send(std::slice::from_ref(&made)).await.ok();
        assert!(answer["pdus"].as_object().unwrap().values().all(|result| result["error"].is_string()), "{answer}");
    }
    assert_eq!(guest.texts().await, Vec::<String>::new());
    guest.goes_on().await;
}

/// Events whose ids are no hashes can lie before each other in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circle_of_events_is_never_entered() {
    let mut guest = Guest::in_version(RoomVersionId::V1, TestDatabase::sqlite()).await;
    let one = json!({"event_id": "$one:peer.test", "prev_events": [["$two:peer.test", {}]]});
    let two = json!({"event_id": "$two:peer.test", "prev_events": [["$one:peer.test", {}]]});
    let (one, two) = (guest.make(one).await, guest.make(two).await);
    let itself = guest.make(json!({"event_id": "$me:peer.test", "prev_events": [["$me:peer.test", {}]]})).await;
    let answer = guest.send(&[one, two, itself]).await.ok();
    assert_eq!(answer["pdus"].as_object().unwrap().len(), 3);
    assert!(answer["pdus"].as_object().unwrap().values().all(|result| result["error"].is_string()), "{answer}");
    guest.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_events_in_two_transactions_at_once_are_taken_in_once() {
    for database in TestDatabase::each().await {
        let mut guest = Guest::new(database).await;
        let mut pdus = Vec::new();
        for number in 0..20 {
            pdus.push(guest.message(&number.to_string()).await.pdu);
        }
        let (one, other) = tokio::join!(
            guest.transaction("one", pdus.clone(), Vec::new()),
            guest.transaction("other", pdus.clone(), Vec::new())
        );
        for answer in [one.ok(), other.ok()] {
            assert!(answer["pdus"].as_object().unwrap().values().all(|result| *result == json!({})), "{answer}");
        }
        let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
        assert_eq!(guest.texts().await, expected);
        guest.goes_on().await;
    }
}

/// Server-Server API, "Rejection": what comes after a rejected event is allowed by itself; what it allows is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_a_rejected_event_counts_and_what_it_allows_does_not() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let levels = json!({"users": {"@rem:peer.test": 100}});
    let taken = guest.make(json!({"type": "m.room.power_levels", "state_key": "", "content": levels})).await;
    let answer = guest.send(std::slice::from_ref(&taken)).await.ok();
    assert!(answer["pdus"][taken.id.as_str()]["error"].is_string(), "{answer}");
    guest.follow(&taken);
    let after = guest.message("after").await;
    guest.send_one(&after).await;
    assert_eq!(guest.texts().await, ["after"]);
    let mut auth = guest.auth("m.room.message").await;
    auth[1] = taken.id.clone();
    let by_it = guest.make(json!({"content": {"msgtype": "m.text", "body": "by it"}, "auth_events": auth})).await;
    let answer = guest.send(std::slice::from_ref(&by_it)).await.ok();
    assert!(answer["pdus"][by_it.id.as_str()]["error"].is_string(), "{answer}");
    assert_eq!(guest.texts().await, ["after"]);
    guest.goes_on().await;
}

/// What refers to events that nobody has is not taken, whoever is asked for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_comes_after_nothing_known_is_dropped() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let made = guest.make(json!({"prev_events": [UNKNOWN]})).await;
    let answer = guest.send(std::slice::from_ref(&made)).await.ok();
    assert!(answer["pdus"][made.id.as_str()]["error"].as_str().unwrap().contains(UNKNOWN), "{answer}");
    guest.goes_on().await;
}
