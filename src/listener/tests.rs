//! Connections that want to stay for ever.

use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// So long that running into it means that nothing happens.
const HANG: Duration = Duration::from_secs(60);
/// Short enough that nobody waits for it, with an hour for what a test is not about.
const MOMENT: Duration = Duration::from_millis(50);
const HOUR: Duration = Duration::from_secs(3_600);
const PATIENT: Patience = Patience { handshake: HOUR, head: HOUR, write: HOUR };
/// More than the kernel keeps for a client that reads nothing.
const LARGE_BYTES: usize = 64 * 1024 * 1024;

struct Opened {
    address: SocketAddr,
    shared: Shared,
}

/// A listener that answers with a little or, at `/large`, with much.
fn open(config: ListenerConfig, patience: Patience) -> Opened {
    let shared = Shared {
        stop: CancellationToken::new(),
        abort: CancellationToken::new(),
        tasks: TaskTracker::new(),
        connections: Arc::new(Semaphore::new(1_000)),
        addresses: AddressLimit::new(1),
    };
    let config = ListenerConfig { address: SocketAddr::from(([127, 0, 0, 1], 0)), ..config };
    let (mut listener, address) = Bound::bind(&config).unwrap().listen(false).unwrap();
    listener.connections.patience = patience;
    listener.connections.http1 = Arc::new(http1_builder(patience));
    let large: axum::body::Bytes = vec![0; LARGE_BYTES].into();
    let router = Router::new().route("/", get(async || "here")).route("/large", get(async move || large.clone()));
    shared.tasks.spawn(listener.run(router, shared.clone()));
    Opened { address: address.address, shared }
}

async fn connect(opened: &Opened) -> TcpStream {
    TcpStream::connect(opened.address).await.unwrap()
}

/// Waits until the server has closed the connection; gives what it said.
async fn closed(mut stream: TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    // It may as well be reset.
    let _ = timeout(HANG, stream.read_to_end(&mut said)).await.expect("the server closes the connection");
    said
}

#[tokio::test]
async fn a_connection_that_says_nothing_or_not_enough_is_closed() {
    let opened = open(ListenerConfig::default(), Patience { head: MOMENT, ..PATIENT });
    for said in
        [&b""[..], b"PRI * HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"]
    {
        let mut stream = connect(&opened).await;
        stream.write_all(said).await.unwrap();
        closed(stream).await;
    }
    opened.shared.tasks.close();
    opened.shared.stop.cancel();
    timeout(HANG, opened.shared.tasks.wait()).await.expect("nothing is left of them");
}

#[tokio::test]
async fn a_client_that_does_not_agree_on_tls_is_closed() {
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testdata");
    let tls = crate::config::TlsConfig { certificate: data.join("localhost.pem"), key: data.join("localhost.key") };
    let config = ListenerConfig { tls: vec![tls], ..ListenerConfig::default() };
    let opened = open(config, Patience { handshake: MOMENT, ..PATIENT });
    for said in [&b""[..], b"\x16\x03\x01"] {
        let mut stream = connect(&opened).await;
        stream.write_all(said).await.unwrap();
        closed(stream).await;
    }
}

/// Its answer would be in memory as long as it likes.
#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_closed() {
    let opened = open(ListenerConfig::default(), Patience { write: MOMENT, ..PATIENT });
    let mut stream = connect(&opened).await;
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    timeout(HANG, stream.readable()).await.unwrap().unwrap();
    // Nothing else would end this connection: not the end of the server, which waits for the answer.
    opened.shared.tasks.close();
    opened.shared.stop.cancel();
    timeout(HANG, opened.shared.tasks.wait()).await.expect("the server gives up");
    assert!(closed(stream).await.len() < LARGE_BYTES);
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_without_tls() {
    let opened = open(ListenerConfig::default(), PATIENT);
    let mut stream = connect(&opened).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let answer = closed(stream).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"here"), "{answer:?}");

    let io = TokioIo::new(connect(&opened).await);
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://a/").body(String::new()).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 200);
}

/// The count itself is tried beside it: a test comes from loopback, which is not counted.
#[tokio::test]
async fn only_proxies_and_loopback_may_have_any_number_of_connections() {
    let proxies = vec!["10.0.0.0/8".parse().unwrap()];
    let config = ListenerConfig {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        trusted_proxies: proxies,
        ..ListenerConfig::default()
    };
    let (listener, _) = Bound::bind(&config).unwrap().listen(false).unwrap();
    let is_free = |address: &str| listener.connections.is_free_of_limits(address.parse().unwrap());
    for address in ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "10.1.2.3", "::ffff:10.1.2.3"] {
        assert!(is_free(address), "{address}");
    }
    for address in ["192.0.2.1", "2001:db8::1", "11.0.0.1"] {
        assert!(!is_free(address), "{address}");
    }
}
