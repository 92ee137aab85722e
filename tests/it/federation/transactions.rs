//! Server-Server API, "Transactions", and what becomes of the PDUs in them.

use ruma::RoomVersionId;
use serde_json::{Value, json};
use storage::testing::TestDatabase;

use super::guest::{Guest, REM};

// shows: server-server:sendTransaction
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_another_server_are_seen() {
    for database in TestDatabase::each().await {
        let mut guest = Guest::new(database).await;
        let (one, two) = (guest.message("one").await, guest.message("two").await);
        let answer = guest.send(&[one.clone(), two.clone()]).await.ok();
        assert_eq!(answer, json!({"pdus": {one.id.as_str(): {}, two.id.as_str(): {}}}));
        assert_eq!(guest.texts().await, ["one", "two"]);
        guest.alice.send_text(&guest.room, "three").await;
        assert_eq!(guest.texts().await, ["one", "two", "three"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_worked_off_once_and_answered_the_same_after_a_restart() {
    for database in TestDatabase::each().await {
        let mut guest = Guest::new(database).await;
        let one = guest.message("one").await;
        let first = guest.transaction("same", vec![one.pdu.clone()], Vec::new()).await.ok();
        assert_eq!(first, json!({"pdus": {one.id.as_str(): {}}}));
        // Under the same id, other events are not looked at.
        let two = guest.message("two").await;
        assert_eq!(guest.transaction("same", vec![two.pdu.clone()], Vec::new()).await.ok(), first);
        guest.restart().await;
        assert_eq!(guest.transaction("same", vec![two.pdu.clone()], Vec::new()).await.ok(), first);
        assert_eq!(guest.texts().await, ["one"]);
        // Under another id they are, and what is here already is fine.
        let answer = guest.transaction("other", vec![one.pdu, two.pdu], Vec::new()).await.ok();
        assert_eq!(answer, json!({"pdus": {one.id.as_str(): {}, two.id.as_str(): {}}}));
        assert_eq!(guest.texts().await, ["one", "two"]);
    }
}

/// A server that believes an answer to be lost asks again; both get the same answer. One that asks without end is told to wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_comes_again_while_it_is_worked_off_waits_for_the_answer() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let mut pdus = Vec::new();
    for number in 0..10 {
        pdus.push(guest.message(&number.to_string()).await);
    }
    let all: Vec<Value> = pdus.iter().map(|made| made.pdu.clone()).collect();
    let answers = futures_util::future::join_all((0..3).map(|_| guest.transaction("t", all.clone(), Vec::new()))).await;
    let expected: serde_json::Map<String, Value> = pdus.iter().map(|made| (made.id.to_string(), json!({}))).collect();
    for answer in answers {
        assert_eq!(answer.ok(), json!({"pdus": expected}));
    }
    assert_eq!(guest.texts().await.len(), 10);
    let ids: Vec<String> = (0..30).map(|number| format!("m{number}")).collect();
    let many = ids.iter().map(|id| guest.transaction(id, all.clone(), Vec::new()));
    let many = futures_util::future::join_all(many).await;
    for answer in &many {
        if answer.status != 200 {
            answer.is_error(429, "M_LIMIT_EXCEEDED");
        }
    }
    assert!(many.iter().any(|answer| answer.status == 200));
}

/// A server that believes an answer to be lost may come to another process of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_comes_to_two_processes_is_taken_in_once() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let mut guest = Guest::new(database).await;
    let server = guest.federation.server("hs1");
    let mut options = server.options().clone();
    options.more_listeners.clear();
    let second = server.beside(options).await;
    for round in 0..10 {
        let mut made = Vec::new();
        for number in 0..5 {
            made.push(guest.message(&format!("{round}.{number}")).await);
        }
        made.push(guest.make_state("org.example.round", "", json!({"round": round})).await);
        let pdus: Vec<Value> = made.iter().map(|made| made.pdu.clone()).collect();
        let edu = json!({"edu_type": "m.direct_to_device", "content": {
            "sender": REM, "type": "org.example.note", "message_id": format!("note{round}"),
            "messages": {guest.alice.id(): {"*": {"round": round}}},
        }});
        let body = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": pdus, "edus": [edu]});
        let path = format!("/_matrix/federation/v1/send/round{round}");
        let [one, other] = [guest.federation.server("hs1").http(), second.http()]
            .map(|http| guest.peer.ask(http, "hs1", "PUT", &path, &body));
        let (one, other) = tokio::join!(one, other);
        let expected: serde_json::Map<String, Value> =
            made.iter().map(|made| (made.id.to_string(), json!({}))).collect();
        assert_eq!(one.ok(), json!({"pdus": expected}));
        assert_eq!(other.ok(), json!({"pdus": expected}));
        // From now on both give the same answer, whatever comes under this id.
        let body = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": []});
        let again = guest.peer.ask(second.http(), "hs1", "PUT", &path, &body).await.ok();
        assert_eq!(again, json!({"pdus": expected}));
    }
    let expected: Vec<String> =
        (0..10).flat_map(|round| (0..5).map(move |number| format!("{round}.{number}"))).collect();
    assert_eq!(guest.texts().await, expected);
    let sync = guest.alice.sync(None).await;
    assert_eq!(sync["to_device"]["events"].as_array().unwrap().len(), 10);
    // The room goes on at both, from all that was said.
    let elsewhere = guest.alice.at(second.http());
    elsewhere.send_text(&guest.room, "there").await;
    guest.alice.send_text(&guest.room, "here").await;
    assert_eq!(guest.texts().await[50..], ["there", "here"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_has_its_bounds() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let made = guest.message("one").await;
    let edu = json!({"edu_type": "m.none", "content": {}});
    guest.transaction("a", vec![made.pdu.clone(); 51], Vec::new()).await.is_error(400, "M_INVALID_PARAM");
    guest.transaction("b", Vec::new(), vec![edu.clone(); 101]).await.is_error(400, "M_INVALID_PARAM");
    guest.transaction(&"c".repeat(256), Vec::new(), Vec::new()).await.is_error(400, "M_INVALID_PARAM");
    assert_eq!(guest.texts().await, Vec::<String>::new());
    let answer = guest.transaction("d", vec![made.pdu.clone(); 50], vec![edu; 100]).await.ok();
    assert_eq!(answer, json!({"pdus": {made.id.as_str(): {}}}));
    assert_eq!(guest.texts().await, ["one"]);
}

/// One bad event does not stop the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_has_its_own_result() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let elsewhere = guest.make(json!({"room_id": "!elsewhere:peer.test"})).await;
    let good = guest.message("good").await;
    let mut forged = guest.make(json!({})).await;
    forged.pdu["sender"] = json!("@sam:peer.test");
    let mut unsigned = guest.make(json!({"content": {"body": "unsigned"}})).await;
    unsigned.pdu["signatures"] = json!({});
    let foreign = guest.make(json!({"sender": "@alice:hs1"})).await;
    let pdus = [&elsewhere, &good, &forged, &unsigned, &foreign].map(|made| made.pdu.clone());
    let mut pdus = pdus.to_vec();
    pdus.extend([json!({}), json!({"room_id": guest.room, "type": 1}), json!({"room_id": 5}), json!("none")]);
    let answer = guest.transaction("t", pdus, Vec::new()).await.ok();
    assert_eq!(answer["pdus"][good.id.as_str()], json!({}));
    let errors = |id: &str| answer["pdus"][id]["error"].as_str().map(str::to_owned);
    for made in [&elsewhere, &unsigned, &foreign] {
        assert!(errors(made.id.as_str()).is_some(), "{answer}");
    }
    let fine = answer["pdus"].as_object().unwrap().values().filter(|result| **result == json!({})).count();
    assert_eq!(fine, 1, "{answer}");
    assert_eq!(guest.texts().await, ["good"]);
}

/// Room Version 6, "Canonical JSON": before, servers have let floats in. Such an event counts in its redacted form: the others of its
/// transaction, and what comes after it, are heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_without_a_canonical_form_stops_nothing_but_itself() {
    for version in [RoomVersionId::V1, RoomVersionId::V5, RoomVersionId::V6, RoomVersionId::V11] {
        let is_old = matches!(version, RoomVersionId::V1 | RoomVersionId::V5);
        for number in [json!(0.5), json!(9_007_199_254_740_993_u64)] {
            let mut guest = Guest::in_version(version.clone(), TestDatabase::sqlite()).await;
            let one = guest.message("one").await;
            let odd = guest.make(json!({"content": {"msgtype": "m.text"}})).await;
            let mut odd_json = odd.pdu.clone();
            odd_json["content"]["body"] = number.clone();
            if is_old {
                guest.follow(&odd);
            }
            let two = guest.message("two").await;
            let pdus = vec![one.pdu.clone(), odd_json, two.pdu.clone()];
            let answer = guest.transaction("t", pdus, Vec::new()).await.ok();
            assert_eq!(answer["pdus"][one.id.as_str()], json!({}), "{version} {number} {answer}");
            assert_eq!(answer["pdus"][two.id.as_str()], json!({}), "{version} {number} {answer}");
            assert_eq!(
                answer["pdus"].get(odd.id.as_str()),
                is_old.then_some(&json!({})),
                "{version} {number} {answer}"
            );
            assert_eq!(guest.texts().await, ["one", "two"]);
        }
    }
}

/// Nobody could read on in a room whose next event nobody can read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_goes_on_after_an_event_that_is_nested_too_deep() {
    for version in [RoomVersionId::V1, RoomVersionId::V11] {
        let mut guest = Guest::in_version(version.clone(), TestDatabase::sqlite()).await;
        for levels in [99, 100, 120, 1_000] {
            let deep = (1..levels).fold(json!([]), |inner, _| json!([inner]));
            let odd =
                guest.make(json!({"content": {"msgtype": "m.text", "body": levels.to_string(), "deep": deep}})).await;
            guest.follow(&odd);
            let after = guest.message(&format!("after {levels}")).await;
            let (odd_id, after_id) = (odd.id.clone(), after.id.clone());
            let answer = guest.send(&[odd, after]).await.ok();
            assert_eq!(answer["pdus"], json!({odd_id.as_str(): {}, after_id.as_str(): {}}), "{version} {levels}");
        }
        assert_eq!(guest.texts().await, ["99", "after 99", "after 100", "after 120", "after 1000"], "{version}");
    }
}

/// Whoever is not in the room has nothing to say in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_not_heard() {
    let mut guest = Guest::outside(RoomVersionId::V11, TestDatabase::sqlite()).await;
    let made = guest.message("hello").await;
    let answer = guest.send(std::slice::from_ref(&made)).await.ok();
    assert!(answer["pdus"][made.id.as_str()]["error"].is_string(), "{answer}");
    assert_eq!(guest.texts().await, Vec::<String>::new());
}
