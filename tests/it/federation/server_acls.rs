//! Server-Server API, "Server Access Control Lists (ACLs)": every endpoint that the section names, for a server that a room denies.

use serde_json::{Value, json};
use storage::testing::TestDatabase;
use test_kit::{Answer, encode};

use super::guest::{Guest, REM};

/// What a server may ask about a room: method, path, body.
type Question = (&'static str, String, Value);

/// All that the section protects, but for `send`. The asking server is in the room.
async fn questions(guest: &mut Guest) -> Vec<Question> {
    let (room, rem) = (encode(&guest.room), encode(REM));
    let create = guest.state("m.room.create", "").await.expect("a room has one");
    let event = encode(create.as_str());
    let member = async |membership: &str, user: &str| {
        let content = json!({"membership": membership});
        guest.make(json!({"type": "m.room.member", "state_key": user, "content": content})).await
    };
    let mut all = Vec::new();
    for (action, membership) in [("join", "join"), ("leave", "leave"), ("knock", "knock")] {
        let made = member(membership, REM).await;
        let (api, id) = (if action == "knock" { "v1" } else { "v2" }, encode(made.id.as_str()));
        let get = format!("/_matrix/federation/v1/make_{action}/{room}/{rem}?ver=11");
        all.push(("GET", get, Value::Null));
        all.push(("PUT", format!("/_matrix/federation/{api}/send_{action}/{room}/{id}"), made.pdu));
    }
    let invite = member("invite", guest.alice.id()).await;
    let id = encode(invite.id.as_str());
    let body = json!({"room_version": "11", "event": invite.pdu, "invite_room_state": []});
    all.push(("PUT", format!("/_matrix/federation/v2/invite/{room}/{id}"), body));
    all.push(("PUT", format!("/_matrix/federation/v1/invite/{room}/{id}"), invite.pdu));
    for path in [
        format!("state/{room}?event_id={event}"),
        format!("state_ids/{room}?event_id={event}"),
        format!("backfill/{room}?v={event}&limit=1"),
        format!("event_auth/{room}/{event}"),
    ] {
        all.push(("GET", format!("/_matrix/federation/v1/{path}"), Value::Null));
    }
    let gap = json!({"earliest_events": [], "latest_events": [create], "limit": 1});
    all.push(("POST", format!("/_matrix/federation/v1/get_missing_events/{room}"), gap));
    all
}

async fn ask(guest: &Guest, (method, path, body): &Question) -> Answer {
    guest.peer.ask(guest.federation.server("hs1").http(), "hs1", method, path, body).await
}

async fn set_acl(guest: &Guest, content: &Value) {
    guest.alice.put(&format!("/rooms/{}/state/m.room.server_acl/", encode(&guest.room)), content).await.ok();
}

/// Whether it was the list that forbade it.
fn is_denied(answer: &Answer) -> bool {
    answer.errcode() == "M_FORBIDDEN" && answer.json()["error"].as_str().is_some_and(|error| error.contains("denied"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_a_room_denies_is_refused_by_every_endpoint_about_it() {
    for database in TestDatabase::each().await {
        let mut guest = Guest::new(database).await;
        let questions = questions(&mut guest).await;
        let denied = json!({"allow": ["*"], "deny": ["PEER.test"]});
        set_acl(&guest, &denied).await;
        let mut missing = Vec::new();
        for question in &questions {
            let answer = ask(&guest, question).await;
            if answer.is_unrecognized() {
                missing.push(&question.1);
                continue;
            }
            answer.is_error(403, "M_FORBIDDEN");
            assert!(is_denied(&answer), "{question:?}: {answer}");
        }
        assert!(missing.is_empty(), "not there: {missing:?}");
        // With the list lifted it is none of its business any more. Reads first: some of the others end the membership.
        set_acl(&guest, &json!({"allow": ["peer.*", "hs1"]})).await;
        let (reads, writes): (Vec<_>, Vec<_>) = questions.iter().partition(|question| question.0 != "PUT");
        for question in reads.into_iter().chain(writes) {
            let answer = ask(&guest, question).await;
            assert!(!is_denied(&answer), "{question:?}: {answer}");
        }
    }
}

/// Another server that passes its events on is not the one who is denied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_a_denied_server_sends_are_not_taken_in_each_with_an_error() {
    for database in TestDatabase::each().await {
        let mut guest = Guest::new(database).await;
        let before = guest.message("before").await;
        guest.send_one(&before).await;
        let tip = (guest.tip.clone(), guest.depth);
        set_acl(&guest, &json!({"allow": ["*"], "deny": ["*.test"]})).await;
        let (one, two) = (guest.message("one").await, guest.message("two").await);
        let answer = guest.send(&[one.clone(), two.clone()]).await.ok();
        for made in [&one, &two] {
            let error = answer["pdus"][made.id.as_str()]["error"].as_str().unwrap_or_default();
            assert!(error.contains("denied"), "{answer}");
        }
        assert_eq!(guest.texts().await, ["before"]);
        // Once it is let in again, it is heard, and what it sent in vain may come again.
        set_acl(&guest, &json!({"allow": ["*"]})).await;
        guest.send_one(&one).await;
        assert_eq!(guest.texts().await, ["before", "one"]);
        (guest.tip, guest.depth) = tip;
    }
}

/// IP literals are told by their form; a redacted list lets nobody in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_counts_as_it_is_now() {
    let guest = Guest::new(TestDatabase::sqlite()).await;
    let path = format!("/_matrix/federation/v1/make_join/{}/{}?ver=11", encode(&guest.room), encode(REM));
    let question = ("GET", path, Value::Null);
    assert!(!is_denied(&ask(&guest, &question).await));
    set_acl(&guest, &json!({"allow": ["*"], "allow_ip_literals": false})).await;
    assert!(!is_denied(&ask(&guest, &question).await));
    let list = guest.state("m.room.server_acl", "").await.expect("it was set");
    let path = format!("/rooms/{}/redact/{}/t", encode(&guest.room), encode(list.as_str()));
    guest.alice.put(&path, &json!({})).await.ok();
    assert!(is_denied(&ask(&guest, &question).await));
    set_acl(&guest, &json!({"allow": ["peer.test"]})).await;
    assert!(!is_denied(&ask(&guest, &question).await));
}
