//! What was said before a gap, as a reader gets it. Server-Server API, "Backfilling and retrieving missing events".

use serde_json::{Value, json};
use storage::testing::TestDatabase;
use test_kit::encode;

use super::guest::{Guest, Made};

impl Guest {
    /// From now on the peer gives these events to who asks what lies before an event.
    pub(super) fn tell_before(&self, event: &Made, events: &[&Made]) {
        let pdus: Vec<&Value> = events.iter().map(|made| &made.pdu).collect();
        let path =
            format!("GET /_matrix/federation/v1/backfill/{}?v={}&limit=100", self.room, encode(event.id.as_str()));
        self.peer.answer(&path, 200, &json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": pdus}));
    }
}

/// A room with a gap before `last`, of which the server has told the state before `lost`.
async fn with_gap(database: TestDatabase) -> (Guest, Vec<Made>, Made) {
    let mut guest = Guest::new(database).await;
    let state = guest.state_ids().await;
    let mut lost = Vec::new();
    for body in ["one", "two", "three"] {
        lost.push(guest.message(body).await);
    }
    let last = guest.message("last").await;
    guest.tell_missing(&[]);
    guest.tell_event(&lost[2]);
    guest.tell_state_ids(&lost[2], &state);
    guest.send_one(&last).await;
    (guest, lost, last)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_gets_what_was_said_before_a_gap_in_its_place() {
    for database in TestDatabase::each().await {
        let (guest, lost, last) = with_gap(database).await;
        guest.tell_before(&last, &[&last, &lost[2], &lost[1], &lost[0]]);
        assert_eq!(guest.texts().await, ["one", "two", "three", "last"]);
        // Once is enough, and nobody is told of it as of something new.
        assert_eq!(guest.texts().await, ["one", "two", "three", "last"]);
        assert_eq!(guest.asked("/backfill/"), 1);
        guest.alice.send_text(&guest.room, "ours").await;
        assert_eq!(guest.texts().await, ["one", "two", "three", "last", "ours"]);
    }
}

/// Who does not answer, or answers nonsense, takes nothing away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_nobody_answers_a_reader_gets_what_is_here() {
    let (mut guest, lost, last) = with_gap(TestDatabase::sqlite()).await;
    assert_eq!(guest.texts().await, ["last"], "nobody answers");
    let foreign = guest.make(json!({"room_id": "!elsewhere:peer.test"})).await;
    let mut forged = lost[2].clone();
    forged.pdu["sender"] = json!("@alice:hs1");
    guest.tell_before(&last, &[&foreign, &forged]);
    assert_eq!(guest.texts().await, ["last"], "nonsense");
    guest.tell_before(&last, &[&lost[2], &lost[1], &lost[0]]);
    assert_eq!(guest.texts().await, ["one", "two", "three", "last"]);
    let next = guest.message("next").await;
    guest.send_one(&next).await;
    assert_eq!(guest.texts().await, ["one", "two", "three", "last", "next"]);
}

/// What was missing may come on its own: nobody is asked for it then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_that_was_filled_by_what_came_late_is_one_no_more() {
    for database in TestDatabase::each().await {
        let (mut guest, lost, _) = with_gap(database).await;
        guest.send(&lost).await.ok();
        for _ in 0..2 {
            let mut texts = guest.texts().await;
            texts.sort();
            assert_eq!(texts, ["last", "one", "three", "two"]);
        }
        assert_eq!(guest.asked("/backfill/"), 0);
    }
}
