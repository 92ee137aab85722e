//! Answers and requests without measure: of what another server says no more is read and kept than its purpose needs, and the room stays
//! usable.

use serde_json::{Value, json};
use test_kit::{PeerBody, TestDatabase, encode, growth_during, tokio};

use super::guest::{Guest, Made};

/// What nobody knows, so many of them.
fn unknown_ids(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("${number:0>43}")).collect()
}

/// JSON of which each byte takes very many bytes of memory when it is taken apart.
const DENSE: &str = r#"{"":0},"#;

const MIB: u64 = 1 << 20;

impl Guest {
    /// From now on the peer answers all that is asked about what lies before an event with these bodies.
    fn tell_of_the_past(&self, missing: &PeerBody, event: &PeerBody, state_ids: &Value, state: &PeerBody) {
        let peer = &self.peer;
        peer.answer_with("POST /_matrix/federation/v1/get_missing_events/*", 200, missing.clone());
        peer.answer_with("GET /_matrix/federation/v1/event/*", 200, event.clone());
        peer.answer("GET /_matrix/federation/v1/state_ids/*", 200, state_ids);
        peer.answer_with("GET /_matrix/federation/v1/state/*", 200, state.clone());
        peer.answer_with("GET /_matrix/federation/v1/event_auth/*", 200, state.clone());
        peer.answer_with("GET /_matrix/federation/v1/backfill/*", 200, missing.clone());
    }

    /// An event after something that is not here is sent, and not taken.
    async fn sends_what_has_a_past(&mut self) {
        let tip = self.tip.clone();
        let lost = self.message("lost").await;
        let mut auth: Vec<String> = self.auth("m.room.message").await.iter().map(ToString::to_string).collect();
        auth.push(lost.id.to_string());
        let last = self.make(json!({"content": {"body": "last"}, "auth_events": auth})).await;
        let answer = self.send(std::slice::from_ref(&last)).await.ok();
        assert!(answer["pdus"][last.id.as_str()]["error"].is_string(), "{answer}");
        self.tip = tip;
    }

    /// What the peer and alice say is heard.
    pub(super) async fn still_works(&mut self) {
        self.peer.end_answers_with();
        let theirs = self.message("theirs").await;
        self.send_one(&theirs).await;
        self.alice.send_text(&self.room, "ours").await;
        let texts = self.texts().await;
        assert_eq!(texts[texts.len() - 2..], ["theirs", "ours"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_an_end_is_cut_off_whatever_was_asked() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let endless = |list: &str| PeerBody::endless(&format!(r#"{{"{list}":[""#), "aaaaaaaaaaaaaaaa");
    let ids = json!({"pdu_ids": unknown_ids(40), "auth_chain_ids": []});
    guest.tell_of_the_past(&endless("events"), &endless("pdus"), &ids, &endless("auth_chain"));
    let ((), growth) = growth_during(guest.sends_what_has_a_past()).await;
    let asked = |what: &str| guest.peer.asked().iter().filter(|asked| asked.what.contains(what)).count();
    assert!(asked("/get_missing_events/") > 0 && asked("/event_auth/") > 0);
    // 8 MiB of events, 128 MiB of a state; what sockets hold on the way is taken, too.
    assert!(guest.peer.given() < 300 << 20, "{} bytes were taken", guest.peer.given());
    assert!(growth < 450 * MIB, "{} MiB were needed", growth / MIB);
    guest.still_works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_of_a_state_without_an_end_are_cut_off() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let nothing = PeerBody::of_bytes(0, r#"{"events":["#, " ", "]}");
    guest.tell_of_the_past(&nothing, &nothing, &Value::Null, &nothing);
    let endless = PeerBody::endless(r#"{"auth_chain_ids":[],"pdu_ids":["$""#, r#","$""#);
    guest.peer.answer_with("GET /_matrix/federation/v1/state_ids/*", 200, endless);
    let tip = guest.tip.clone();
    let _lost = guest.message("lost").await;
    let last = guest.message("last").await;
    let (answer, growth) = growth_during(guest.send(std::slice::from_ref(&last))).await;
    assert!(answer.ok()["pdus"][last.id.as_str()]["error"].is_string());
    assert!(growth < 300 * MIB, "{} MiB were needed", growth / MIB);
    guest.tip = tip;
    guest.still_works().await;
}

/// A small text may be a large thing: 7 bytes of it take 600 when it is taken apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_too_large_is_not_even_taken_apart() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let bomb = |list: &str| {
        let start = format!(r#"{{"{list}":[{{"room_id":"{}","content":{{"a":["#, guest.room);
        PeerBody::of_bytes(7 << 20, &start, DENSE, "0]}}]}")
    };
    let ids = json!({"pdu_ids": unknown_ids(10), "auth_chain_ids": []});
    guest.tell_of_the_past(&bomb("events"), &bomb("pdus"), &ids, &bomb("auth_chain"));
    let ((), growth) = growth_during(guest.sends_what_has_a_past()).await;
    assert!(growth < 200 * MIB, "{} MiB were needed", growth / MIB);
    guest.still_works().await;
}

/// Of a large state, few events are taken apart at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_dense_events_takes_no_more_memory_than_another_one() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let event = format!(r#"{{"room_id":"{}","content":{{"a":[{}0]}}}},"#, guest.room, DENSE.repeat(4_000));
    let state = PeerBody::of_bytes(24 << 20, r#"{"auth_chain":["#, &event, "{}]}");
    let nothing = PeerBody::of_bytes(0, r#"{"events":["#, " ", "]}");
    guest.tell_of_the_past(&nothing, &nothing, &Value::Null, &state);
    let ((), growth) = growth_during(guest.sends_what_has_a_past()).await;
    assert!(guest.peer.given() > 20 << 20, "it was asked for");
    assert!(growth < 400 * MIB, "{} MiB were needed", growth / MIB);
    guest.still_works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_events_than_any_room_has_are_refused_before_they_are_counted() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let state = PeerBody::of_bytes(100 << 20, r#"{"auth_chain":["#, "{},", "{}]}");
    let nothing = PeerBody::of_bytes(0, r#"{"events":["#, " ", "]}");
    guest.tell_of_the_past(&nothing, &nothing, &Value::Null, &state);
    let ((), growth) = growth_during(guest.sends_what_has_a_past()).await;
    assert!(growth < 350 * MIB, "{} MiB were needed", growth / MIB);
    guest.still_works().await;
}

/// What is asked for somebody who waits, and errors, are taken apart whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_answer_that_would_be_large_in_memory_is_none() {
    let guest = Guest::new(TestDatabase::sqlite()).await;
    let bomb = PeerBody::of_bytes(3 << 20, r#"{"errcode":"M_NOT_FOUND","error":"x","a":["#, DENSE, "0]}");
    let path = format!("/_matrix/client/v3/profile/{}", encode("@somebody:peer.test"));
    for status in [200, 500] {
        guest.peer.answer_with("GET /_matrix/federation/v1/query/profile*", status, bomb.clone());
        let (answer, growth) = growth_during(guest.alice.get(&path)).await;
        assert!(answer.status.is_server_error() || answer.status == 404, "{answer}");
        assert!(growth < 100 * MIB, "{status}: {} MiB were needed", growth / MIB);
    }
}

/// Sends a transaction whose body is this text, signed over another one; gives the status.
async fn send_text(guest: &Guest, signed: &str, body: String) -> u16 {
    let path = format!("/_matrix/federation/v1/send/{}", model::Random::system().alphanumeric(12));
    let header = guest.peer.header_of_text("hs1", "PUT", &path, Some(signed));
    let http = guest.federation.server("hs1").http();
    let answer = http.send("PUT", path.as_bytes(), Some(&header), Some("application/json"), body).await;
    answer.expect("an answer").status.as_u16()
}

/// The whole of a request is taken apart to verify its signature, by anybody who has a key, unless what was sent is what was signed: then
/// only what is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_would_be_large_in_memory_is_not_taken_apart() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    guest.still_works().await;
    let dense = format!("[{}0]", DENSE.repeat((12 << 20) / DENSE.len()));
    let edu = format!(
        r#"{{"edus":[{{"content":{dense},"edu_type":"x"}}],"origin":"peer.test","origin_server_ts":1,"pdus":[]}}"#
    );
    let pdu =
        format!(r#"{{"edus":[],"origin":"peer.test","origin_server_ts":1,"pdus":[{{"a":{dense},"room_id":"!r:x"}}]}}"#);
    let odd = format!(r#"{{"a":{dense},"edus":[],"origin":"peer.test","origin_server_ts":1,"pdus":[]}}"#);
    for body in [edu, pdu, odd] {
        for (sent, expected) in [(body.clone(), 200), (format!(" {body}"), 413)] {
            let (status, growth) = growth_during(send_text(&guest, &body, sent)).await;
            assert_eq!(status, expected);
            assert!(growth < 200 * MIB, "{} MiB were needed", growth / MIB);
        }
    }
    guest.still_works().await;
}

/// What honest servers pass on, a user of theirs may have made as dense as can be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_of_the_densest_events_are_taken() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let list: Vec<Value> = vec![json!({"": 0}); 8_900];
    let mut made: Vec<Made> = Vec::new();
    for number in 0..50 {
        let event = guest.make(json!({"content": {"msgtype": "m.text", "body": number.to_string(), "a": list}})).await;
        guest.follow(&event);
        made.push(event);
    }
    let answer = guest.send(&made).await.ok();
    assert!(answer["pdus"].as_object().unwrap().values().all(|result| *result == json!({})), "{answer}");
    assert_eq!(guest.texts().await.len(), 50);
}
