//! Server-Server API, "Resolving server names", step 3: what a name says on its own web server, at port 443.

use std::net::SocketAddr;

use model::Clock;
use serde_json::json;
use test_kit::tokio::{
    self,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use test_kit::{Peer, ServerOptions, TestDatabase, TestFederation, TestUser, encode, may_listen};

const WELL_KNOWN: &str = "GET /.well-known/matrix/server";
const HOUR_MS: i64 = 3_600_000;

/// A name whose web server says where its server is.
struct World {
    clock: Clock,
    _federation: TestFederation,
    alice: TestUser,
    /// `big.test`, at port 443.
    web: Peer,
    /// `matrix.big.test`, at port 8448.
    server: Peer,
}

impl World {
    /// Nothing when this user may not open port 443.
    async fn new() -> Option<Self> {
        if !may_listen(443).await {
            return None;
        }
        let clock = Clock::manual(Clock::system().now_ms());
        let options = ServerOptions { clock: clock.clone(), ..ServerOptions::default() };
        let mut federation = TestFederation::empty();
        federation.add("hs1", TestDatabase::sqlite(), options).await;
        let alice = federation.user("hs1", "alice").await;
        let web = Peer::at_port(443, "big.test", federation.authority()).await;
        federation.dns("hs1").add_address("big.test", web.address());
        let server = federation.peer("matrix.big.test").await;
        let path = format!("GET /_matrix/federation/v1/query/directory?room_alias={}", encode("#room:big.test"));
        server.answer(&path, 200, &json!({"room_id": "!room:big.test", "servers": ["big.test"]}));
        Some(Self { clock, _federation: federation, alice, web, server })
    }

    fn says(&self, server: &str) {
        self.web.answer(WELL_KNOWN, 200, &json!({"m.server": server}));
    }

    /// Whether its server is found.
    async fn is_found(&self) -> bool {
        let path = format!("/_matrix/client/v3/directory/room/{}", encode("#room:big.test"));
        let answer = self.alice.get(&path).await;
        if answer.status.is_success() {
            return true;
        }
        answer.is_error(502, "M_UNKNOWN");
        false
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_where_its_web_server_says_until_that_takes_it_back() {
    let Some(world) = World::new().await else { return };
    world.says("matrix.big.test");
    assert!(world.is_found().await);
    assert_eq!(world.server.asked()[0].host, "matrix.big.test");
    world.says("matrix.big.test:8448");
    world.clock.advance_ms(25 * HOUR_MS);
    assert!(world.is_found().await);
    let hosts: Vec<_> = world.server.asked().into_iter().map(|asked| asked.host).collect();
    assert_eq!(hosts, ["matrix.big.test", "matrix.big.test:8448"]);
    // It is asked again when its answer is old only, and what it said stands while it is in trouble.
    assert!(world.is_found().await);
    assert_eq!(world.web.asked().len(), 2);
    world.web.answer(WELL_KNOWN, 503, &json!({}));
    world.clock.advance_ms(25 * HOUR_MS);
    assert!(world.is_found().await);
    assert_eq!(world.web.asked().len(), 3);
    // What it takes back ends with the next look-up.
    world.web.answer(WELL_KNOWN, 404, &json!({}));
    world.clock.advance_ms(HOUR_MS);
    assert!(!world.is_found().await);
    // And what it says anew counts.
    world.says("matrix.big.test");
    world.clock.advance_ms(2 * HOUR_MS);
    assert!(world.is_found().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_followed_over_tls_only() {
    let Some(world) = World::new().await else { return };
    world.web.answer("GET /elsewhere", 200, &json!({"m.server": "matrix.big.test"}));
    let plain = plain_web_server().await;
    for (location, is_found) in [
        ("/.well-known/matrix/server".to_owned(), false),
        (format!("http://{plain}/elsewhere"), false),
        ("https://hs1:8448/_matrix/client/versions".to_owned(), false),
        ("https://big.test/elsewhere".to_owned(), true),
    ] {
        world.web.redirect(WELL_KNOWN, &location);
        world.clock.advance_ms(2 * HOUR_MS);
        assert_eq!(world.is_found().await, is_found, "{location}");
    }
}

/// A web server without TLS that says the same to everybody: where the server of `big.test` is.
async fn plain_web_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let body = json!({"m.server": "matrix.big.test"}).to_string();
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.read(&mut [0; 4_096]).await;
            let _ = stream.write_all((head + &body).as_bytes()).await;
        }
    });
    address
}
