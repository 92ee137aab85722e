//! Servers that answer slowly, or never: whoever waits for them, nobody else does.

use std::time::{Duration, Instant};

use ruma::RoomVersionId;
use serde_json::{Value, json};
use storage::testing::TestDatabase;
use test_kit::{
    Peer, PeerBody, PeerRoom, RawAnswer, RawPeer, TestFederation, TestUser, encode, eventually,
    tokio::{
        self,
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::{sleep, timeout},
    },
};

use super::guest::Guest;

/// Far less than what a slow server is waited for, far more than what anybody else takes.
const SOON: Duration = Duration::from_secs(8);

const SEND: &str = "/_matrix/federation/v1/send/";

fn transaction(pdus: &[&Value]) -> Value {
    json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": pdus, "edus": []})
}

impl Guest {
    /// A user of another server in the room.
    async fn with_friend(&self) -> (Peer, PeerRoom) {
        let friend = self.federation.peer("friend.test").await;
        let levels = json!({"users": {self.alice.id(): 100, "@friend:friend.test": 50}});
        self.alice.set_state(&self.room, "m.room.power_levels", "", &levels).await;
        let http = self.federation.server("hs1").http();
        let room = friend.join(http, "hs1", &self.room, "@friend:friend.test").await;
        (friend, room)
    }

    async fn friend_says(&self, friend: &Peer, room: &mut PeerRoom, text: &str) {
        let said = room.text(friend, text);
        room.follow(&said);
        let path = format!("{SEND}{text}");
        let http = self.federation.server("hs1").http();
        let answer = friend.ask(http, "hs1", "PUT", &path, &transaction(&[&said.json])).await.ok();
        assert_eq!(answer["pdus"][&said.id], json!({}), "{answer}");
    }
}

/// A room's turn is nobody's while another server is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_goes_on_while_a_server_does_not_tell_what_came_before() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    let (friend, mut room) = guest.with_friend().await;
    guest.peer.answer_with("*", 200, PeerBody::Withheld);
    let _lost = guest.message("lost").await;
    let last = guest.message("last").await;
    let path = format!("{SEND}slow");
    let body = transaction(&[&last.pdu]);
    let http = guest.federation.server("hs1").http().clone();
    let sending = guest.peer.ask(&http, "hs1", "PUT", &path, &body);
    let others = async {
        eventually!(guest.peer.asked().iter().any(|asked| asked.what.contains("/get_missing_events/")));
        timeout(SOON, async {
            for number in 0..3 {
                guest.alice.send_text(&guest.room, &format!("ours {number}")).await;
                guest.friend_says(&friend, &mut room, &format!("theirs{number}")).await;
                guest.alice.set_state(&guest.room, "m.room.topic", "", &json!({"topic": number})).await;
            }
        })
        .await
        .expect("the room goes on");
    };
    // The transaction has not been answered by then.
    tokio::select! {
        biased;
        answer = sending => panic!("answered too soon: {answer}"),
        () = others => {}
    }
    assert_eq!(guest.texts().await, ["ours 0", "theirs0", "ours 1", "theirs1", "ours 2", "theirs2"]);
}

/// One byte a second, to every question: its own event is refused in the end, and that is all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_answers_a_byte_a_second_gets_an_answer_within_a_minute() {
    let mut guest = Guest::new(TestDatabase::sqlite()).await;
    guest.peer.answer_with("*", 200, PeerBody::Dripping);
    let tip = guest.tip.clone();
    let _lost = guest.message("lost").await;
    let last = guest.message("last").await;
    let answer = guest.send(std::slice::from_ref(&last)).await.ok();
    assert!(answer["pdus"][last.id.as_str()]["error"].is_string(), "{answer}");
    guest.tip = tip;
    guest.still_works().await;
}

/// Large states are memory: few are asked for at once. They are not the same server's, whatever it calls itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_does_not_come_keeps_nobody_from_getting_another_one() {
    let guest = Guest::new(TestDatabase::sqlite()).await;
    let (friend, room) = guest.with_friend().await;
    let http = guest.federation.server("hs1").http().clone();
    // The room has a state of which our server lacks 40 events, and the last one is all that the friend sends.
    let mut elsewhere = room.clone();
    let mut state = room.state_events();
    for number in 0..40 {
        let event = elsewhere.event(&friend, "org.example.state", Some(&number.to_string()), json!({"n": number}));
        elsewhere.follow(&event);
        state.push(event);
    }
    let before = elsewhere.text(&friend, "before");
    elsewhere.follow(&before);
    let last = elsewhere.text(&friend, "last");
    let ids: Vec<&str> = elsewhere.state.values().map(|event| &*event.id).collect();
    let chain: Vec<&str> = state.iter().map(|event| &*event.id).collect();
    let whole: Vec<&Value> = elsewhere.state.values().map(|event| &event.json).collect();
    let chain_events: Vec<&Value> = state.iter().map(|event| &event.json).collect();
    friend.answer("GET /_matrix/federation/v1/state_ids/*", 200, &json!({"pdu_ids": ids, "auth_chain_ids": chain}));
    friend.answer("GET /_matrix/federation/v1/state/*", 200, &json!({"pdus": whole, "auth_chain": chain_events}));
    let told = json!({"origin": "friend.test", "origin_server_ts": 1, "pdus": [before.json]});
    friend.answer("GET /_matrix/federation/v1/event/*", 200, &told);

    // The guest's server has users in several rooms, and tells in none of them what the state was.
    let unknown: Vec<String> = (0..40).map(|number| format!("${number:0>43}")).collect();
    guest.peer.answer("POST /_matrix/federation/v1/get_missing_events/*", 200, &json!({"events": []}));
    guest.peer.answer(
        "GET /_matrix/federation/v1/state_ids/*",
        200,
        &json!({"pdu_ids": unknown, "auth_chain_ids": []}),
    );
    guest.peer.answer_with("GET /_matrix/federation/v1/state/*", 200, PeerBody::Withheld);
    let mut pdus = Vec::new();
    for _ in 0..6 {
        let other = guest.alice.create_public_room().await;
        let mut there = guest.peer.join(&http, "hs1", &other, "@rem:peer.test").await;
        let lost = there.text(&guest.peer, "lost");
        there.follow(&lost);
        pdus.push(there.text(&guest.peer, "last").json);
    }
    let body = transaction(&pdus.iter().collect::<Vec<_>>());
    let path = format!("{SEND}slow");
    let sending = guest.peer.ask(&http, "hs1", "PUT", &path, &body);
    let others = async {
        eventually!(guest.peer.asked().iter().any(|asked| asked.what.contains("/state/")));
        let (path, body) = (format!("{SEND}quick"), transaction(&[&last.json]));
        let answer = friend.ask(&http, "hs1", "PUT", &path, &body);
        let answer = timeout(SOON, answer).await.expect("the friend does not wait for others").ok();
        assert_eq!(answer["pdus"][&last.id], json!({}), "{answer}");
    };
    tokio::select! {
        biased;
        answer = sending => panic!("answered too soon: {answer}"),
        () = others => {}
    }
    assert_eq!(guest.texts().await, ["last"]);
    let path = format!("/rooms/{}/state/org.example.state/39", encode(&guest.room));
    assert_eq!(guest.alice.get(&path).await.ok()["n"], 39);
}

/// A name under which there are others costs nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_names_under_one_domain_are_asked_few_things_at_once() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let slow = RawPeer::start("*.evil.test", federation.authority(), RawAnswer::Held(json!({}))).await;
    for number in 0..260 {
        federation.dns("hs1").add_address(&format!("s{number}.evil.test"), slow.address());
    }
    let look_up = |number: usize| {
        let path = format!("/_matrix/client/v3/directory/room/{}", encode(&format!("#a:s{number}.evil.test")));
        let alice = alice.clone();
        async move { alice.get(&path).await }
    };
    let waiting: Vec<_> = (0..260).map(|number| tokio::spawn(look_up(number))).collect();
    eventually!(slow.requests() >= 200);
    // Nothing of which to wait says that no more come.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(slow.requests(), 200);
    slow.release();
    for answer in waiting {
        answer.await.unwrap().is_error(502, "M_UNKNOWN");
    }
}

/// Servers with users in a room, all of one domain, that take what we send and never say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_servers_of_one_domain_do_not_hold_up_what_is_sent_to_others() {
    let federation = TestFederation::of(1).await;
    let alice: TestUser = federation.user("hs1", "alice").await;
    let room = alice.create_room_with(&json!({"preset": "public_chat", "room_version": "11"})).await;
    let http = federation.server("hs1").http();
    let mut slow = Vec::new();
    for number in 0..90 {
        let peer = federation.peer(&format!("s{number}.evil.test")).await;
        peer.answer_with("PUT /_matrix/federation/v1/send/*", 200, PeerBody::Withheld);
        peer.join(http, "hs1", &room, &format!("@u:s{number}.evil.test")).await;
        slow.push(peer);
    }
    let sent = |peer: &Peer| peer.asked().iter().any(|asked| asked.what.contains(SEND));
    let under_way = || slow.iter().filter(|peer| sent(peer)).count();
    eventually!(under_way() >= 64);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(under_way(), 64, "no more at once to one domain");
    let friend = federation.peer("friend.test").await;
    friend.answer("PUT /_matrix/federation/v1/send/*", 200, &json!({"pdus": {}}));
    let started = Instant::now();
    friend.join(http, "hs1", &room, "@friend:friend.test").await;
    alice.send_text(&room, "hello").await;
    eventually!(sent(&friend));
    assert!(started.elapsed() < SOON);
}

/// Bodies that come a byte a second, from one address: others are read all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_requests_keep_nobody_elses_from_being_read() {
    let mut guest = Guest::in_version(RoomVersionId::V11, TestDatabase::sqlite()).await;
    let first = guest.message("first").await;
    guest.send_one(&first).await;
    let base = guest.federation.server("hs1").http().base().to_owned();
    let mut held = Vec::new();
    for number in 0..20 {
        let path = format!("{SEND}slow{number}");
        let header = guest.peer.header("hs1", "PUT", &path, &json!({}));
        let mut stream = TcpStream::connect(base.trim_start_matches("http://")).await.unwrap();
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: hs1\r\nAuthorization: {header}\r\nContent-Type: application/json\r\nContent-Length: 12000000\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        held.push(stream);
    }
    let second = guest.message("second").await;
    timeout(SOON, guest.send_one(&second)).await.expect("small requests need no memory of others");
    assert_eq!(guest.texts().await, ["first", "second"]);
    // Those that found no memory are told so; the others are given up after a minute.
    let answers = held.into_iter().map(async |mut stream| {
        let mut answer = [0; 12];
        let read = timeout(Duration::from_secs(15), stream.read_exact(&mut answer)).await;
        read.is_ok_and(|read| read.is_ok()).then_some(answer)
    });
    let answers = futures_util::future::join_all(answers).await;
    assert!(answers.iter().flatten().all(|answer| answer == b"HTTP/1.1 503"));
    assert_eq!(answers.iter().flatten().count(), 15, "five of that size is what an address may have");
}
