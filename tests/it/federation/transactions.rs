//! Server-Server API, "Transactions", and what becomes of the PDUs in them.

use ruma::RoomVersionId;
use serde_json::{Value, json};
use storage::testing::TestDatabase;

use super::guest::Guest;

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

/// Whoever is not in the room has nothing to say in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_not_heard() {
    let mut guest = Guest::outside(RoomVersionId::V11, TestDatabase::sqlite()).await;
    let made = guest.message("hello").await;
    let answer = guest.send(std::slice::from_ref(&made)).await.ok();
    assert!(answer["pdus"][made.id.as_str()]["error"].is_string(), "{answer}");
    assert_eq!(guest.texts().await, Vec::<String>::new());
}
