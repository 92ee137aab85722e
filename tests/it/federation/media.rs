//! Files between servers: asked for once, whatever the other server answers. Server-Server API, "Content Repository".

use serde_json::{Value, json};
use storage::testing::TestDatabase;
use test_kit::{Answer, Peer, RawAnswer, RawPeer, ServerOptions, TestFederation, TestUser, download_path, eventually};

use super::kills::Mortal;
use crate::media::bytes;

const URI: &str = "mxc://media.test/abc";

/// What a server makes of a request.
type Say = fn(&str) -> Vec<u8>;

/// One of ours that finds a server that answers so under the name `media.test`, and one of its users.
async fn world(answer: RawAnswer) -> (TestFederation, RawPeer, TestUser) {
    world_with(answer, ServerOptions::default()).await
}

async fn world_with(answer: RawAnswer, options: ServerOptions) -> (TestFederation, RawPeer, TestUser) {
    let mut federation = TestFederation::empty();
    federation.add("hs1", TestDatabase::sqlite(), options).await;
    let peer = RawPeer::start("media.test", federation.authority(), answer).await;
    federation.dns("hs1").add_address("media.test", peer.address());
    let alice = federation.user("hs1", "alice").await;
    (federation, peer, alice)
}

/// An answer of two parts, of which the second has these headers and this content.
fn two_parts(headers: &str, content: &[u8]) -> Vec<u8> {
    let start = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary=abc\r\nConnection: close\r\n\r\n\
         --abc\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--abc\r\n{headers}\r\n"
    );
    [start.as_bytes(), content, b"\r\n--abc--\r\n"].concat()
}

fn json_answer(status: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

async fn ask(federation: &TestFederation, peer: &Peer, id: &str) -> Answer {
    let path = format!("/_matrix/federation/v1/media/download/{id}");
    peer.ask(federation.server("hs1").http(), "hs1", "GET", &path, &Value::Null).await
}

// shows: server-server:getContent
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_fetched_once_and_kept() {
    for database in TestDatabase::each().await {
        let mut federation = TestFederation::of(1).await;
        federation.add("hs2", database, ServerOptions::default()).await;
        for (from, to) in [("hs1", "hs2"), ("hs2", "hs1")] {
            let (alice, bob) = (federation.user(from, "alice").await, federation.user(to, "bob").await);
            for length in [0, 1, 3_000_000] {
                let uri = alice.upload("image/png", "ä b.png", bytes(length)).await;
                let got = bob.download(&uri).await;
                assert!(got.bytes == bytes(length), "{length}: {}", got.status);
                assert_eq!(got.header("content-type"), "image/png");
                assert_eq!(got.header("content-disposition"), "inline; filename*=utf-8''%C3%A4%20b.png");
                // It is here now.
                federation.cut(from, to);
                assert!(bob.download(&uri).await.bytes == bytes(length));
                federation.heal(from, to);
            }
            bob.download(&format!("mxc://{from}/unknown")).await.is_error(404, "M_NOT_FOUND");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_file_on_another_server_gets_it_when_it_is_uploaded() {
    let federation = TestFederation::of(2).await;
    let (alice, bob) = (federation.user("hs1", "alice").await, federation.user("hs2", "bob").await);
    let created = alice.post("/_matrix/media/v1/create", &json!({})).await.ok();
    let uri = created["content_uri"].as_str().unwrap().to_owned();
    let path = download_path(&uri);
    bob.get(&format!("{path}?timeout_ms=0")).await.is_error(504, "M_NOT_YET_UPLOADED");
    let waiting = tokio::spawn(async move { bob.get(&format!("{path}?timeout_ms=30000")).await });
    let path = uri.replace("mxc://", "/_matrix/media/v3/upload/");
    alice.http().send("PUT", path.as_bytes(), Some(alice.token()), Some("text/plain"), "later").await.unwrap().ok();
    assert_eq!(&waiting.await.unwrap().bytes[..], b"later");
}

/// Only who signs as a server that we federate with, and only files of the name that is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_get_our_files_and_strangers_do_not() {
    let mut options = ServerOptions::default();
    options.config.server.names = vec!["hs1".try_into().unwrap(), "other.test".try_into().unwrap()];
    options.config.federation.deny_servers = vec!["denied.test".to_owned()];
    let mut federation = TestFederation::empty();
    federation.add("hs1", TestDatabase::sqlite(), options).await;
    let alice = federation.user("hs1", "alice").await;
    let uri = alice.upload("text/html", "a.html", "<script>").await;
    let id = uri.rsplit('/').next().unwrap();
    let (peer, denied) = (federation.peer("peer.test").await, federation.peer("denied.test").await);
    let got = ask(&federation, &peer, id).await;
    let boundary = got.content_type.strip_prefix("multipart/mixed; boundary=").unwrap();
    let expected = format!(
        "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\nContent-Type: text/html\r\n\
         Content-Disposition: attachment; filename=a.html\r\n\r\n<script>\r\n--{boundary}--\r\n"
    );
    assert_eq!(String::from_utf8_lossy(&got.bytes), expected);
    ask(&federation, &denied, id).await.is_error(403, "M_FORBIDDEN");
    let http = federation.server("hs1").http();
    let path = format!("/_matrix/federation/v1/media/download/{id}");
    http.request("GET", &path, None, &Value::Null).await.is_error(401, "M_UNAUTHORIZED");
    http.request("GET", &path, Some(alice.token()), &Value::Null).await.is_error(401, "M_UNAUTHORIZED");
    // Of another of our names, though it is in the same store.
    let header = peer.header("other.test", "GET", &path, &Value::Null);
    http.request("GET", &path, Some(&header), &Value::Null).await.is_error(404, "M_NOT_FOUND");
    for id in ["unknown", "..%2Fabc", "a.b"] {
        ask(&federation, &peer, id).await.is_error(404, "M_NOT_FOUND");
    }
    // What is of others is not passed on.
    alice.download("mxc://denied.test/abc").await.is_error(502, "M_UNKNOWN");
    assert!(!denied.asked().iter().any(|asked| asked.what.contains("media")));
}

/// A picture that everybody in a room sees at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_of_one_file_ask_for_it_once() {
    fn half(_: &str) -> Vec<u8> {
        let whole = two_parts("Content-Type: image/png\r\n", &bytes(100_000));
        whole[..whole.len() - 10].to_vec()
    }
    let (_federation, peer, alice) = world(RawAnswer::Stalled(half)).await;
    let mut readers: Vec<_> = (0..20)
        .map(|_| {
            let alice = alice.clone();
            tokio::spawn(async move { alice.download(URI).await })
        })
        .collect();
    eventually!(peer.requests() == 1);
    // The one who came first goes away: the others still get their answer, of one request.
    readers.remove(0).abort();
    peer.release();
    for reader in readers {
        reader.await.unwrap().is_error(502, "M_UNKNOWN");
    }
    assert_eq!(peer.requests(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_comes_though_its_first_reader_goes_away() {
    fn file(_: &str) -> Vec<u8> {
        two_parts("Content-Type: image/png\r\n", &bytes(2_000_000))
    }
    let (_federation, peer, alice) = world(RawAnswer::Said(file)).await;
    let first = tokio::spawn({
        let alice = alice.clone();
        async move { alice.download(URI).await }
    });
    eventually!(peer.requests() == 1);
    first.abort();
    assert!(alice.download(URI).await.bytes == bytes(2_000_000));
    assert_eq!(peer.requests(), 1);
}

/// Names below one that somebody has cost nothing: they share its places, and leave the others theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_sends_nothing_takes_no_more_than_its_places() {
    fn file(_: &str) -> Vec<u8> {
        two_parts("Content-Type: image/png\r\n", b"file")
    }
    fn nothing(_: &str) -> Vec<u8> {
        Vec::new()
    }
    let (federation, _peer, alice) = world(RawAnswer::Said(file)).await;
    let mut peers = Vec::new();
    for name in ["a.site.test", "b.site.test"] {
        let peer = RawPeer::start(name, federation.authority(), RawAnswer::Stalled(nothing)).await;
        federation.dns("hs1").add_address(name, peer.address());
        peers.push(peer);
    }
    let ask = |uri: String| {
        let alice = alice.clone();
        tokio::spawn(async move { alice.download(&uri).await })
    };
    let mut readers: Vec<_> = (0..10).map(|id| ask(format!("mxc://a.site.test/{id}"))).collect();
    eventually!(peers[0].requests() == 10);
    readers.push(ask("mxc://b.site.test/0".to_owned()));
    assert_eq!(&alice.download(URI).await.bytes[..], b"file");
    assert_eq!(peers[1].requests(), 0);
    peers[0].release();
    eventually!(peers[1].requests() == 1);
    peers[1].release();
    for reader in readers {
        reader.await.unwrap().is_error(502, "M_UNKNOWN");
    }
}

/// A server that did not give a file is left in peace for a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_to_be_had_is_not_asked_for_again_at_once() {
    fn nothing(_: &str) -> Vec<u8> {
        json_answer("404 Not Found", &json!({"errcode": "M_NOT_FOUND", "error": "no"}))
    }
    let clock = model::Clock::manual(model::Clock::system().now_ms());
    let options = ServerOptions { clock: clock.clone(), ..ServerOptions::default() };
    let (_federation, peer, alice) = world_with(RawAnswer::Said(nothing), options).await;
    for _ in 0..3 {
        alice.download(URI).await.is_error(404, "M_NOT_FOUND");
    }
    assert_eq!(peer.requests(), 1);
    clock.advance_ms(60_001);
    alice.download(URI).await.is_error(404, "M_NOT_FOUND");
    assert_eq!(peer.requests(), 2);
}

/// Servers of before Matrix 1.11 know the old path only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_server_is_asked_in_the_old_way() {
    fn old(request: &str) -> Vec<u8> {
        let lower = request.to_ascii_lowercase();
        if request.starts_with("GET /_matrix/media/v3/download/media.test/abc?allow_remote=false")
            && !lower.contains("authorization")
        {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: image/gif\r\nContent-Disposition: inline; filename=\"old.gif\"\r\n\
                        Content-Length: 3\r\nConnection: close\r\n\r\nold";
            return head.as_bytes().to_vec();
        }
        assert!(lower.contains("authorization: x-matrix "), "{request}");
        json_answer("404 Not Found", &json!({"errcode": "M_UNRECOGNIZED", "error": "what?"}))
    }
    let (_federation, peer, alice) = world(RawAnswer::Said(old)).await;
    let got = alice.download(URI).await;
    assert_eq!((&got.bytes[..], got.header("content-type")), (&b"old"[..], "image/gif"));
    assert_eq!(got.header("content-disposition"), "inline; filename=old.gif");
    assert_eq!(peer.requests(), 2);
}

/// The file may be somewhere else, at a place that must learn nothing of who asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_followed_without_our_signature() {
    fn elsewhere(_: &str) -> Vec<u8> {
        two_parts("Location: https://cdn.test:8448/the/file?key=1\r\n", b"")
    }
    fn cdn(request: &str) -> Vec<u8> {
        let lower = request.to_ascii_lowercase();
        let is_good = request.starts_with("GET /the/file?key=1 ") && !lower.contains("authorization");
        let status = if is_good { "200 OK" } else { "403 Forbidden" };
        format!("HTTP/1.1 {status}\r\nContent-Type: image/webp\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfile")
            .into_bytes()
    }
    let (federation, peer, alice) = world(RawAnswer::Said(elsewhere)).await;
    let cdn = RawPeer::start("cdn.test", federation.authority(), RawAnswer::Said(cdn)).await;
    federation.dns("hs1").add_address("cdn.test", cdn.address());
    let got = alice.download(URI).await;
    assert_eq!((&got.bytes[..], got.header("content-type")), (&b"file"[..], "image/webp"));
    assert_eq!((peer.requests(), cdn.requests()), (1, 1));
}

/// Whatever a server answers, the client gets an error that is defined, and nothing is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_an_error_and_not_kept() {
    let answers: [(&str, Say, u16, &str); 16] = [
        ("a file at an http URL", |_| two_parts("Location: http://cdn.test:8448/x\r\n", b""), 502, "M_UNKNOWN"),
        ("a file in a private network", |_| two_parts("Location: https://10.0.0.1/x\r\n", b""), 502, "M_UNKNOWN"),
        ("a file on IPv6 loopback", |_| two_parts("Location: https://[::1]/x\r\n", b""), 502, "M_UNKNOWN"),
        ("a file of the disk", |_| two_parts("Location: file:///etc/passwd\r\n", b""), 502, "M_UNKNOWN"),
        ("a file at no URL", |_| two_parts("Location: \r\n", b""), 502, "M_UNKNOWN"),
        ("a file cut off", |_| two_parts("\r\n", &bytes(1_000))[..600].to_vec(), 502, "M_UNKNOWN"),
        (
            "no multipart",
            |_| b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 3\r\n\r\npng".to_vec(),
            502,
            "M_UNKNOWN",
        ),
        (
            "a boundary that never comes",
            |_| {
                let head =
                    "HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary=abc\r\nConnection: close\r\n\r\n";
                [head.as_bytes(), &bytes(300_000)].concat()
            },
            502,
            "M_UNKNOWN",
        ),
        (
            "a redirect in the head",
            |_| b"HTTP/1.1 302 Found\r\nLocation: https://cdn.test/\r\nContent-Length: 0\r\n\r\n".to_vec(),
            502,
            "M_UNKNOWN",
        ),
        (
            "an error of its own",
            |_| json_answer("500 Oh", &json!({"errcode": "M_UNKNOWN", "error": "no"})),
            502,
            "M_UNKNOWN",
        ),
        (
            "that we may not",
            |_| json_answer("403 No", &json!({"errcode": "M_FORBIDDEN", "error": "no"})),
            502,
            "M_UNKNOWN",
        ),
        (
            "that there is none",
            |_| json_answer("404 No", &json!({"errcode": "M_NOT_FOUND", "error": "no"})),
            404,
            "M_NOT_FOUND",
        ),
        (
            "that it knows no way",
            |_| json_answer("404 No", &json!({"errcode": "M_UNRECOGNIZED", "error": "no"})),
            404,
            "M_NOT_FOUND",
        ),
        (
            "that it waits",
            |_| json_answer("504 No", &json!({"errcode": "M_NOT_YET_UPLOADED", "error": "no"})),
            504,
            "M_NOT_YET_UPLOADED",
        ),
        (
            "that it is too large",
            |_| json_answer("502 No", &json!({"errcode": "M_TOO_LARGE", "error": "no"})),
            502,
            "M_TOO_LARGE",
        ),
        ("no HTTP", |_| b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), 502, "M_UNKNOWN"),
    ];
    for (what, answer, status, errcode) in answers {
        let media = tempfile::tempdir().unwrap();
        let mut options = ServerOptions::default();
        options.config.media.folder = media.path().to_owned();
        let (_federation, _peer, alice) = world_with(RawAnswer::Said(answer), options).await;
        let got = alice.download(URI).await;
        assert_eq!((got.status.as_u16(), &*got.errcode()), (status, errcode), "{what}: {got}");
        let kept = std::fs::read_dir(media.path().join("contents")).unwrap();
        let kept = kept.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap()).count();
        let left = std::fs::read_dir(media.path().join("incoming")).unwrap().count();
        assert_eq!((kept, left), (0, 0), "{what}");
    }
}

/// Names and types of others are believed no more than those of our users.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_server_is_saved_and_not_shown() {
    fn page(request: &str) -> Vec<u8> {
        let headers = if request.contains("/tricky") {
            "Content-Type: image/png\x01\r\nContent-Disposition: inline; filename=\"../\x01a\\\".png\"\r\n"
        } else {
            "Content-Type: text/html\r\nContent-Disposition: inline; filename=\"<script>.html\"\r\n"
        };
        two_parts(headers, b"<script>alert(1)</script>")
    }
    let (_federation, _peer, alice) = world(RawAnswer::Said(page)).await;
    let got = alice.download(URI).await;
    assert_eq!(got.header("content-disposition"), "attachment; filename=\"<script>.html\"");
    assert_eq!((got.header("content-type"), got.header("x-content-type-options")), ("text/html", "nosniff"));
    assert!(got.header("content-security-policy").contains("script-src 'none'"));
    let got = alice.download("mxc://media.test/tricky").await;
    assert_eq!(got.header("content-disposition"), r#"attachment; filename="../a\".png""#);
    assert_eq!(got.header("content-type"), "application/octet-stream");
}

/// A body without an end is taken up to the bound, and no further.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_without_an_end_is_given_up() {
    fn endless(request: &str) -> Vec<u8> {
        let content = if request.contains("/just") { 1_000_000 } else { 1_000_001 };
        two_parts("Content-Type: image/png\r\n", &bytes(content))
    }
    let limited = || {
        let mut options = ServerOptions::default();
        options.config.media.remote_bytes_max = 1_000_000.try_into().unwrap();
        options
    };
    let (_federation, _peer, alice) = world_with(RawAnswer::Said(endless), limited()).await;
    alice.download(URI).await.is_error(502, "M_TOO_LARGE");
    assert_eq!(alice.download("mxc://media.test/just").await.bytes.len(), 1_000_000);
    // It says that it is JSON, which no file is: nothing of it is read but what comes with the head.
    let (_federation, peer, alice) = world_with(RawAnswer::Endless, limited()).await;
    alice.download(URI).await.is_error(502, "M_UNKNOWN");
    assert!(peer.bytes() < 20_000_000, "{}", peer.bytes());
}

/// Up, down, to another server and from one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_is_nowhere_in_memory_as_a_whole() {
    const LARGE: usize = 50 << 20;
    fn file(request: &str) -> Vec<u8> {
        two_parts("Content-Type: image/png\r\n", &bytes(if request.contains("/large") { LARGE } else { 1 << 20 }))
    }
    let server = Mortal::start(&TestDatabase::sqlite()).await;
    let elsewhere = RawPeer::start("media.test", &server.authority, RawAnswer::Said(file)).await;
    server.dns.add_address("media.test", elsewhere.address());
    let alice = test_kit::register(&server.http, "alice").await;
    let mut memory_kib = Vec::new();
    for (name, length) in [("small", 1 << 20), ("large", LARGE)] {
        let content = bytes(length);
        let uri = alice.upload("image/png", name, content.clone()).await;
        assert!(alice.download(&uri).await.bytes == content);
        let path = uri.replace("mxc://hs1/", "/_matrix/federation/v1/media/download/");
        let got = server.peer.ask(&server.http, "hs1", "GET", &path, &Value::Null).await;
        assert!(got.status == 200 && got.bytes.len() > length, "{}", got.status);
        assert!(alice.download(&format!("mxc://media.test/{name}")).await.bytes == content);
        memory_kib.push(server.program.memory_kib_max());
    }
    let more_kib = memory_kib[1] - memory_kib[0];
    println!("a file of 50 MiB took {more_kib} KiB more than one of 1 MiB, beside {} KiB", memory_kib[0]);
    assert!(more_kib < 16 << 10, "{more_kib} KiB");
}
