//! Servers that nobody knows: what they can make us do, keep and wait for.

use std::{num::NonZeroU32, time::Duration};

use serde_json::{Value, json};
use test_kit::{
    Peer, RawAnswer, RawPeer, ServerOptions, TestDatabase, TestFederation, encode, eventually,
    tokio::{
        self,
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    },
};

const PROFILE: &str = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Ahs1";
const KEYS: &str = "GET /_matrix/key/v2/server";

async fn ask(federation: &TestFederation, peer: &Peer) -> test_kit::Answer {
    peer.ask(federation.server("hs1").http(), "hs1", "GET", PROFILE, &Value::Null).await
}

/// A federation of one with rate limits.
async fn limited(change: impl FnOnce(&mut ServerOptions)) -> TestFederation {
    let mut options = ServerOptions::default();
    options.config.unsafe_options.rate_limits_off = false;
    // The clock stands still, so that nothing is allowed anew.
    options.clock = model::Clock::manual(model::Clock::system().now_ms());
    change(&mut options);
    let mut federation = TestFederation::empty();
    federation.add("hs1", TestDatabase::sqlite(), options).await;
    federation.user("hs1", "alice").await;
    federation
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_answer_is_cut_off() {
    let federation = TestFederation::of(1).await;
    let peer = Peer::start("endless.test", federation.authority()).await;
    let raw = RawPeer::start("endless.test", federation.authority(), RawAnswer::Endless).await;
    federation.dns("hs1").add_address("endless.test", raw.address());
    ask(&federation, &peer).await.is_error(401, "M_UNAUTHORIZED");
    assert_eq!(raw.requests(), 1);
    // What sockets hold on the way is taken, too.
    assert!(raw.bytes() < 32 << 20, "{} bytes were taken", raw.bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_keys_than_anybody_needs_are_refused() {
    let federation = TestFederation::of(1).await;
    federation.user("hs1", "alice").await;
    let peer = federation.peer("peer.test").await;
    let mut said = peer.keys(&[], &[]);
    for number in 0..200 {
        said["old_verify_keys"][format!("ed25519:{number}")] = json!({"key": "A".repeat(43), "expired_ts": 1});
    }
    said["verify_keys"] = json!({peer.key().id().as_str(): {"key": peer.key().public_key()}});
    said.as_object_mut().unwrap().remove("signatures");
    peer.answer(KEYS, 200, &peer.sign(said, peer.key()));
    ask(&federation, &peer).await.is_error(401, "M_UNAUTHORIZED");
}

/// The first servers to be slow would hold everything otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_answer_holds_up_nobody_but_itself() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let slow = RawPeer::start("slow.test", federation.authority(), RawAnswer::Held(json!({}))).await;
    federation.dns("hs1").add_address("slow.test", slow.address());
    let quick = federation.peer("quick.test").await;
    let path = format!("GET /_matrix/federation/v1/query/directory?room_alias={}", encode("#room:quick.test"));
    quick.answer(&path, 200, &json!({"room_id": "!room:far", "servers": []}));
    let look_up = |alias: &str| {
        let (alice, path) = (alice.clone(), format!("/_matrix/client/v3/directory/room/{}", encode(alias)));
        async move { alice.get(&path).await }
    };
    let waiting: Vec<_> = (0..60).map(|number| tokio::spawn(look_up(&format!("#{number}:slow.test")))).collect();
    eventually!(slow.requests() == 20);
    look_up("#room:quick.test").await.ok();
    assert_eq!(slow.requests(), 20, "no more than so many at once");
    // They go on, in turn, when it answers.
    slow.release();
    for answer in waiting {
        answer.await.unwrap().is_error(502, "M_UNKNOWN");
    }
    assert_eq!(slow.requests(), 60);
}

/// Who hangs up and comes again would have us ask for the same keys each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_learnt_though_who_asked_has_gone() {
    let federation = TestFederation::of(1).await;
    federation.user("hs1", "alice").await;
    let peer = Peer::start("peer.test", federation.authority()).await;
    let keys = peer.keys(&[peer.key()], &[]);
    let raw = RawPeer::start("peer.test", federation.authority(), RawAnswer::Held(keys)).await;
    federation.dns("hs1").add_address("peer.test", raw.address());
    for _ in 0..3 {
        let header = peer.header("hs1", "GET", PROFILE, &Value::Null);
        let mut stream = connect(&federation).await;
        let request = format!("GET {PROFILE} HTTP/1.1\r\nHost: hs1\r\nAuthorization: {header}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        eventually!(raw.requests() == 1);
        drop(stream);
    }
    raw.release();
    ask(&federation, &peer).await.ok();
    assert_eq!(raw.requests(), 1);
}

/// A body is memory: it is read from servers whose key is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_of_who_has_no_key() {
    let federation = TestFederation::of(1).await;
    let peer = Peer::start("nowhere.test", federation.authority()).await;
    let path = "/_matrix/federation/v1/query/profile";
    for header in [peer.header("hs1", "GET", path, &json!({})), "X-Matrix nonsense".to_owned()] {
        let mut stream = connect(&federation).await;
        // The body never comes.
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: hs1\r\nConnection: close\r\nAuthorization: {header}\r\nContent-Length: 1000000\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 12];
        tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, b"HTTP/1.1 401");
    }
}

async fn connect(federation: &TestFederation) -> TcpStream {
    let base = federation.server("hs1").http().base();
    TcpStream::connect(base.trim_start_matches("http://")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_limited_before_anybody_is_asked_and_friends_go_on() {
    let federation =
        limited(|options| options.config.federation.stranger_requests_burst = NonZeroU32::new(5).unwrap()).await;
    let friend = federation.peer("friend.test").await;
    ask(&federation, &friend).await.ok();
    let mut limited = 0;
    for number in 0..10 {
        let name = format!("s{number}.test");
        let peer = Peer::start(&name, federation.authority()).await;
        let answer = ask(&federation, &peer).await;
        limited += usize::from(answer.errcode() == "M_LIMIT_EXCEEDED");
    }
    assert_eq!(limited, 6, "the friend was a stranger once, too");
    // To ask us as a notary has them asked, too.
    let http = federation.server("hs1").http();
    let query = http.request("GET", "/_matrix/key/v2/query/friend.test", None, &Value::Null).await;
    query.is_error(429, "M_LIMIT_EXCEEDED");
    // A wrong signature counts like no key.
    let header = friend.header("hs1", "GET", "/elsewhere", &Value::Null);
    let wrong = federation.server("hs1").http().request("GET", PROFILE, Some(&header), &Value::Null).await;
    wrong.is_error(429, "M_LIMIT_EXCEEDED");
    for _ in 0..10 {
        ask(&federation, &friend).await.ok();
    }
}

/// Ports and subdomains cost nothing: they are no other servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_limited_under_all_its_names() {
    let federation =
        limited(|options| options.config.federation.server_requests_burst = NonZeroU32::new(6).unwrap()).await;
    let peers = [federation.peer("a.site.test").await, federation.peer("b.site.test").await];
    let other = federation.peer("other.test").await;
    for _ in 0..3 {
        for peer in &peers {
            ask(&federation, peer).await.ok();
        }
    }
    for peer in &peers {
        ask(&federation, peer).await.is_error(429, "M_LIMIT_EXCEEDED");
    }
    ask(&federation, &other).await.ok();
}

/// As a notary we would be a way to have anybody asked by us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notary_asks_a_bounded_number_of_servers_and_no_other_notary() {
    let mut federation = TestFederation::empty();
    let mut options = ServerOptions::default();
    options.config.federation.notaries = vec!["notary.test".try_into().unwrap()];
    federation.add("hs1", TestDatabase::sqlite(), options).await;
    let notary = federation.peer("notary.test").await;
    let mut peers = Vec::new();
    let mut names = serde_json::Map::new();
    for number in 0..25 {
        let peer = federation.peer(&format!("s{number}.test")).await;
        names.insert(peer.name().to_string(), json!({}));
        peers.push(peer);
    }
    let http = federation.server("hs1").http();
    let query = async |names| {
        let answer = http.request("POST", "/_matrix/key/v2/query", None, &json!({"server_keys": names})).await.ok();
        answer["server_keys"].as_array().unwrap().len()
    };
    assert_eq!(query(names.clone()).await, 20);
    assert_eq!(peers.iter().filter(|peer| !peer.asked().is_empty()).count(), 20);
    // What is known then is told, and the rest is asked for.
    assert_eq!(query(names).await, 25);
    assert!(peers.iter().all(|peer| peer.asked().len() == 1));
    assert_eq!(query(serde_json::Map::from_iter([("gone.test".to_owned(), json!({}))])).await, 0);
    assert!(notary.asked().is_empty());
}
