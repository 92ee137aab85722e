//! Server-Server API, "Backfilling and retrieving missing events": what lies before an event that was sent, and is not here.

use serde_json::{Value, json};
use storage::testing::TestDatabase;
use test_kit::encode;

use super::guest::{Guest, Made, REM};

impl Guest {
    /// From now on the peer tells these events as those before what it sent.
    pub(super) fn tell_missing(&self, events: &[&Made]) {
        let events: Vec<&Value> = events.iter().map(|made| &made.pdu).collect();
        let path = format!("POST /_matrix/federation/v1/get_missing_events/{}", self.room);
        self.peer.answer(&path, 200, &json!({"events": events}));
    }

    /// From now on the peer gives this event to who asks for it.
    pub(super) fn tell_event(&self, made: &Made) {
        let answer = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": [made.pdu]});
        self.peer.answer(&format!("GET /_matrix/federation/v1/event/{}", made.id), 200, &answer);
    }

    /// From now on the peer says that this was the state before an event.
    pub(super) fn tell_state_ids(&self, before: &Made, state: &[String]) {
        let path =
            format!("GET /_matrix/federation/v1/state_ids/{}?event_id={}", self.room, encode(before.id.as_str()));
        self.peer.answer(&path, 200, &json!({"pdu_ids": state, "auth_chain_ids": []}));
    }

    /// The ids of the current state.
    pub(super) async fn state_ids(&self) -> Vec<String> {
        let state = self.alice.get(&format!("/rooms/{}/state", encode(&self.room))).await.ok();
        let ids = state.as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap().to_owned());
        ids.collect()
    }

    pub(super) fn asked(&self, what: &str) -> usize {
        self.peer.asked().iter().filter(|asked| asked.what.contains(what)).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_before_an_event_is_asked_for_and_comes_in_order() {
    for database in TestDatabase::each().await {
        let mut guest = Guest::new(database).await;
        let (one, two, three) = (guest.message("one").await, guest.message("two").await, guest.message("three").await);
        guest.tell_missing(&[&two, &one]);
        guest.send_one(&three).await;
        assert_eq!(guest.texts().await, ["one", "two", "three"]);
        let asked = guest.peer.asked();
        let asked = asked.iter().find(|asked| asked.what.contains("get_missing_events")).unwrap();
        assert_eq!(asked.body["latest_events"], json!([three.id]));
        // Nothing is asked for again.
        let four = guest.message("four").await;
        guest.send_one(&four).await;
        assert_eq!(guest.asked("get_missing_events"), 1);
    }
}

/// What comes with it is not taken: events that do not lead to what was sent, and what is not signed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_was_asked_for_is_taken() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let beside = guest.make(json!({"content": {"msgtype": "m.text", "body": "beside"}})).await;
    let one = guest.message("one").await;
    let mut forged = guest.message("forged").await;
    forged.pdu["sender"] = json!("@alice:hs1");
    guest.follow(&one);
    let two = guest.message("two").await;
    guest.tell_missing(&[&beside, &forged, &one]);
    guest.send_one(&two).await;
    assert_eq!(guest.texts().await, ["one", "two"]);
}

/// In one transaction, an event may come before the one that it comes after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_in_the_wrong_order_are_put_in_order() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let (one, two, three) = (guest.message("one").await, guest.message("two").await, guest.message("three").await);
    let answer = guest.send(&[three, one, two]).await.ok();
    assert!(answer["pdus"].as_object().unwrap().values().all(|result| *result == json!({})), "{answer}");
    assert_eq!(guest.texts().await, ["one", "two", "three"]);
    assert_eq!(guest.asked("get_missing_events"), 0);
}

/// Where what lies before an event is not to be had, it is received with the state that its server tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_gap_the_state_is_asked_for() {
    for database in TestDatabase::each().await {
        let mut guest = Guest::new(database).await;
        let state = guest.state_ids().await;
        let lost = guest.message("lost").await;
        let topic = guest.make_state("m.room.topic", "", json!({"topic": "of the other side"})).await;
        let last = guest.message("last").await;
        // Of three events only the last is sent; the one before it can be had alone.
        guest.tell_missing(&[]);
        guest.tell_event(&topic);
        guest.tell_state_ids(&topic, &state);
        guest.send_one(&last).await;
        assert_eq!(guest.texts().await, ["last"]);
        assert_eq!(guest.state("m.room.topic", "").await, Some(topic.id.clone()), "the state after it has the topic");
        // The room goes on, also when the rest comes late.
        let next = guest.message("next").await;
        guest.send_one(&next).await;
        guest.alice.send_text(&guest.room, "ours").await;
        assert_eq!(guest.texts().await, ["last", "next", "ours"]);
        assert_eq!(guest.asked(&format!("/event/{}", lost.id)), 0);
    }
}

/// Where much of that is missing, all of it is asked for at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_gap_in_which_much_has_changed_the_whole_state_is_asked_for() {
    for database in TestDatabase::each().await {
        let mut guest = Guest::new(database).await;
        let mut state = guest.state_ids().await;
        let mut things = Vec::new();
        for number in 0..31 {
            things.push(guest.make_state("org.example.thing", &number.to_string(), json!({"number": number})).await);
        }
        let before = guest.message("before").await;
        let last = guest.message("last").await;
        state.extend(things.iter().map(|thing| thing.id.to_string()));
        guest.tell_missing(&[]);
        guest.tell_event(&before);
        guest.tell_state_ids(&before, &state);
        let told: Vec<&Value> = things.iter().map(|thing| &thing.pdu).collect();
        let path = format!("GET /_matrix/federation/v1/state/{}?event_id={}", guest.room, encode(before.id.as_str()));
        guest.peer.answer(&path, 200, &json!({"pdus": told, "auth_chain": []}));
        guest.send_one(&last).await;
        assert_eq!(guest.texts().await, ["last"]);
        assert_eq!((guest.asked("/state/"), guest.asked("/event/")), (1, 1));
        let mut now = guest.state_ids().await;
        now.sort();
        state.sort();
        assert_eq!(now, state);
        let next = guest.message("next").await;
        guest.send_one(&next).await;
        assert_eq!(guest.texts().await, ["last", "next"]);
    }
}

/// A state that its server tells brings nobody back in: the current state of the room decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_was_made_up_does_not_undo_a_ban() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let state = guest.state_ids().await;
    let before = guest.message("before").await;
    let after = guest.message("after").await;
    guest.alice.in_room(&guest.room, "ban", &json!({"user_id": REM})).await.ok();
    guest.tell_missing(&[]);
    guest.tell_event(&before);
    guest.tell_state_ids(&before, &state);
    let answer = guest.send(std::slice::from_ref(&after)).await.ok();
    assert_eq!(answer["pdus"][after.id.as_str()], json!({}), "it is kept, and not shown");
    assert_eq!(guest.texts().await, Vec::<String>::new());
    let member = guest.alice.get(&format!("/rooms/{}/state/m.room.member/{}", encode(&guest.room), encode(REM))).await;
    assert_eq!(member.ok()["membership"], "ban");
    guest.alice.send_text(&guest.room, "the room goes on").await;
    assert_eq!(guest.texts().await, ["the room goes on"]);
}

/// Garbage instead of a state, or of events, stops nothing but the event that needs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_answers_nonsense_is_not_believed() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let good = guest.tip.clone();
    let state = guest.state_ids().await;
    let path = format!("POST /_matrix/federation/v1/get_missing_events/{}", guest.room);
    for (answer, state) in [
        (json!({"events": [{}, 1, "x", {"room_id": guest.room}]}), json!({"pdu_ids": [], "auth_chain_ids": []})),
        (json!([]), json!({"pdu_ids": 1})),
        (json!({"events": {}}), json!({"pdu_ids": ["$a", "$b"], "auth_chain_ids": ["$c"]})),
        (json!({"events": []}), json!({"pdu_ids": [state[0], state[0]], "auth_chain_ids": []})),
    ] {
        let lost = guest.message("lost").await;
        let last = guest.message("last").await;
        guest.peer.answer(&path, 200, &answer);
        guest.tell_event(&lost);
        let ids = format!("GET /_matrix/federation/v1/state_ids/{}?event_id={}", guest.room, encode(lost.id.as_str()));
        guest.peer.answer(&ids, 200, &state);
        let answer = guest.send(std::slice::from_ref(&last)).await.ok();
        assert!(answer["pdus"][last.id.as_str()]["error"].is_string(), "{state}: {answer}");
    }
    guest.tip = good;
    let fine = guest.message("fine").await;
    guest.send_one(&fine).await;
    assert_eq!(guest.texts().await, ["fine"]);
}

/// What allows an event and is not here is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_auth_events_are_asked_for() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let auth = guest.auth("m.room.message").await;
    let renamed = guest.make_state("m.room.member", REM, json!({"membership": "join", "displayname": "Rem"})).await;
    let mut with_renamed: Vec<String> = auth.iter().map(ToString::to_string).collect();
    with_renamed[2] = renamed.id.to_string();
    let said = json!({"content": {"msgtype": "m.text", "body": "said"}, "auth_events": with_renamed});
    let said = guest.make(said).await;
    let path = format!("GET /_matrix/federation/v1/event_auth/{}/{}", guest.room, said.id);
    guest.peer.answer(&path, 200, &json!({"auth_chain": [renamed.pdu]}));
    guest.tell_missing(&[&renamed]);
    guest.send_one(&said).await;
    assert_eq!(guest.texts().await, ["said"]);
    // One that cannot be had stops the event.
    with_renamed[2] = "$kFyyBvwbGM-TYsEqPvXHVGH_WDRJQWQMNjMsRWKhkhY".to_owned();
    let unsaid = guest.make(json!({"content": {"body": "unsaid"}, "auth_events": with_renamed})).await;
    let answer = guest.send(std::slice::from_ref(&unsaid)).await.ok();
    assert!(answer["pdus"][unsaid.id.as_str()]["error"].is_string(), "{answer}");
    assert_eq!(guest.texts().await, ["said"]);
}
