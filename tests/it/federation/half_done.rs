//! What was begun with another server when the program was killed: it has happened or it has not, and doing it again brings it about.

use std::time::Duration;

use ruma::RoomVersionId;
use serde_json::{Value, json};
use test_kit::{Asked, Peer, TestDatabase, TestUser, encode, eventually, register, tokio, tokio::time::sleep};

use super::kills::Mortal;

const HOST: &str = "@host:peer.test";
const BOB: &str = "@bob:peer.test";

/// How long after a question the program is killed, in milliseconds: on its way, as the answer comes, while it is taken in, afterwards.
const MOMENTS_MS: [u64; 7] = [0, 10, 30, 60, 100, 200, 400];

impl Mortal {
    /// Does what a user asks for, and kills the program so long after it has asked the peer this; gives the user at the new one.
    async fn killed_during(
        &mut self,
        user: &TestUser,
        work: impl Future<Output = ()> + Send + 'static,
        question: &str,
        moment_ms: u64,
    ) -> TestUser {
        let before = count(&self.peer, question);
        let work = tokio::spawn(work);
        eventually!(count(&self.peer, question) > before);
        // The moment itself is what is wanted.
        sleep(Duration::from_millis(moment_ms)).await;
        let user = self.kill(user);
        work.abort();
        user
    }
}

fn count(peer: &Peer, question: &str) -> usize {
    peer.asked().iter().filter(|Asked { what, .. }| what.contains(question)).count()
}

/// The state of a room as a user sees it; nothing when they are not in it.
async fn state(user: &TestUser, room: &str) -> Option<Vec<Value>> {
    let answer = user.get(&format!("/rooms/{}/state", encode(room))).await;
    if answer.status == 403 || answer.status == 404 {
        return None;
    }
    answer.ok().as_array().cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_is_whole_or_none_in_spite_of_kills() {
    for database in TestDatabase::each().await {
        let mut server = Mortal::start(&database).await;
        let mut alice = register(&server.http, "alice").await;
        let keys: Vec<String> = (0..600).map(|number| number.to_string()).collect();
        let more: Vec<(&str, &str, Value)> =
            keys.iter().map(|key| ("org.example", &**key, json!({"n": key}))).collect();
        let questions = ["/make_join/", "/send_join/", "/send_join/"];
        for (index, moment_ms) in MOMENTS_MS.into_iter().enumerate() {
            let room = server.peer.make_room(&RoomVersionId::V11, HOST, &more);
            let all = room.state_events();
            server.peer.let_in(&room, alice.id(), &all, &all);
            let path = format!("/_matrix/client/v3/join/{}?via=peer.test", encode(&room.id));
            let (joining, asked) = (alice.clone(), path.clone());
            let work = async move {
                // The connection ends with the program.
                let _ = tokio::spawn(async move { joining.post(&asked, &json!({})).await }).await;
            };
            let question = questions[index % questions.len()];
            alice = server.killed_during(&alice, work, question, moment_ms).await;
            let before = state(&alice, &room.id).await;
            let joined = alice.get("/_matrix/client/v3/joined_rooms").await.ok();
            let is_joined = joined["joined_rooms"].as_array().unwrap().contains(&json!(room.id));
            assert_eq!(before.is_some(), is_joined, "{question} after {moment_ms} ms");
            if let Some(before) = before {
                assert_eq!(before.len(), all.len() + 1, "{question} after {moment_ms} ms");
            }
            alice.post(&path, &json!({})).await.ok();
            assert_eq!(state(&alice, &room.id).await.unwrap().len(), all.len() + 1);
            alice.send_text(&room.id, "here").await;
            assert_eq!(alice.texts(&room.id).await, ["here"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_is_whole_or_none_in_spite_of_kills() {
    for database in TestDatabase::each().await {
        let mut server = Mortal::start(&database).await;
        let mut alice = register(&server.http, "alice").await;
        server.peer.take_invitations();
        for moment_ms in MOMENTS_MS {
            let room = alice.create_room_with(&json!({"preset": "private_chat", "room_version": "11"})).await;
            let (inviting, to) = (alice.clone(), room.clone());
            let work = async move {
                let _ =
                    tokio::spawn(async move { inviting.in_room(&to, "invite", &json!({"user_id": BOB})).await }).await;
            };
            alice = server.killed_during(&alice, work, "/v2/invite/", moment_ms).await;
            let members = |state: &[Value]| {
                let of_bob = state.iter().filter(|event| event["state_key"] == BOB);
                of_bob.map(|event| event["content"]["membership"].clone()).collect::<Vec<_>>()
            };
            let before = members(&state(&alice, &room).await.unwrap());
            assert!(before.is_empty() || before == ["invite"], "{before:?}");
            alice.in_room(&room, "invite", &json!({"user_id": BOB})).await.ok();
            assert_eq!(members(&state(&alice, &room).await.unwrap()), ["invite"]);
            alice.send_text(&room, "here").await;
            assert_eq!(alice.texts(&room).await, ["here"]);
        }
    }
}

/// An event whose past is asked for: the same transaction again takes in what is still missing, each event once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_taken_in_once_in_spite_of_kills() {
    for database in TestDatabase::each().await {
        let mut server = Mortal::start(&database).await;
        let mut alice = register(&server.http, "alice").await;
        for moment_ms in MOMENTS_MS {
            let room = alice.create_room_with(&json!({"preset": "public_chat", "room_version": "11"})).await;
            let mut bob = server.peer.join(&server.http, "hs1", &room, BOB).await;
            let mut said = Vec::new();
            for number in 0..30 {
                let event = bob.text(&server.peer, &number.to_string());
                bob.follow(&event);
                said.push(event.json);
            }
            let last = said.pop().unwrap();
            server.peer.answer("POST /_matrix/federation/v1/get_missing_events/*", 200, &json!({"events": said}));
            let path = format!("/_matrix/federation/v1/send/{}", model::Random::system().alphanumeric(8));
            let body = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": [last], "edus": []});
            let header = server.peer.header("hs1", "PUT", &path, &body);
            let (http, asked, sent) = (server.http.clone(), path.clone(), body.clone());
            let work = async move {
                let sending = async move { http.request("PUT", &asked, Some(&header), &sent).await };
                let _ = tokio::spawn(sending).await;
            };
            alice = server.killed_during(&alice, work, "/get_missing_events/", moment_ms).await;
            let expected: Vec<String> = (0..30).map(|number| number.to_string()).collect();
            let before = alice.texts(&room).await;
            assert_eq!(before, expected[..before.len()], "what is there is there in order");
            let answer = server.peer.ask(&server.http, "hs1", "PUT", &path, &body).await.ok();
            assert!(answer["pdus"].as_object().unwrap().values().all(|result| *result == json!({})), "{answer}");
            assert_eq!(alice.texts(&room).await, expected);
        }
    }
}
