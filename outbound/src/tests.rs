use std::sync::atomic::{AtomicUsize, Ordering};

use rustls_pki_types::pem::PemObject as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::testing::TestDns;

const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(5), body_bytes_max: 1_000 };
const AUTHORITY: &[u8] = include_bytes!("../../src/testdata/localhost.pem");
const SERVICE: Service = Service { names: &["_new._tcp", "_old._tcp"], port_default: 1 };

fn outbound(dns: &TestDns, allowed: &[&str]) -> Outbound {
    Outbound::new(Options {
        allowed_ranges: allowed.iter().map(|range| range.parse().unwrap()).collect(),
        denied_ranges: Vec::new(),
        name_servers: vec![dns.address()],
        // Nothing here speaks TLS; but without any authority there is no client, and the machine may have none.
        certificate_authorities: vec![CertificateDer::from_pem_slice(AUTHORITY).unwrap()],
        user_agent: "test".to_owned(),
        random: Random::seeded(1),
    })
    .unwrap()
}

/// A server that gives every request the same answer; how many it has had.
async fn serve(address: &str, answer: String) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, counter) = (answer.clone(), counter.clone());
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                counter.fetch_add(1, Ordering::SeqCst);
                let request = String::from_utf8(request).unwrap();
                let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
                let _ = stream.write_all(answer.replace("{host}", host).as_bytes()).await;
            });
        }
    });
    (address, asked)
}

/// Tells the host that it was asked for.
fn host() -> String {
    "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{host}".to_owned()
}

fn redirect_to(url: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

async fn get(outbound: &Outbound, url: &str) -> Result<String, Error> {
    let answer = outbound.get(&Url::parse(url).unwrap(), BOUNDS).await?;
    Ok(String::from_utf8(answer.body.to_vec()).unwrap())
}

async fn ask(client: &ServiceClient, url: &str) -> Result<String, Error> {
    let request = http::Request::get(url).header(header::HOST, "said.test").body(Bytes::new()).unwrap();
    let by_service = Url::parse(url).unwrap().port().is_none();
    Ok(String::from_utf8(client.send(request, by_service, BOUNDS).await?.body.to_vec()).unwrap())
}

#[tokio::test]
async fn private_addresses_are_refused_as_literals_names_and_redirects() {
    let dns = TestDns::start().await;
    let (inside, asked) = serve("127.0.0.1:0", host()).await;
    let port = inside.port();
    dns.add_address("inside.test", [127, 0, 0, 1].into());
    dns.add_alias("alias.test", "inside.test");
    // The guard is about addresses, so that a second one of loopback can stand for the public internet.
    let outside = outbound(&dns, &["127.0.0.2/32"]);
    let mut urls = vec![
        format!("http://127.0.0.1:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://0x7f.1:{port}/"),
        format!("http://inside.test:{port}/"),
        format!("http://alias.test:{port}/"),
    ];
    for url in urls.clone() {
        let (redirecting, _) = serve("127.0.0.2:0", redirect_to(&url)).await;
        urls.push(format!("http://{redirecting}/"));
    }
    for url in &urls {
        let refused = get(&outside, url).await;
        assert!(matches!(refused, Err(Error::NotPublic { .. })), "{url}: {refused:?}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    let allowed = outbound(&dns, &["127.0.0.1/32"]);
    assert_eq!(get(&allowed, &urls[4]).await.unwrap(), format!("inside.test:{port}"));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

/// The address of a name is judged when the connection is made, not before.
#[tokio::test]
async fn a_name_that_changes_its_address_meanwhile_is_refused() {
    let dns = TestDns::start().await;
    let (outside, _) = serve("127.0.0.2:0", host()).await;
    let port = outside.port();
    let (_, asked) = serve(&format!("127.0.0.1:{port}"), host()).await;
    let client = outbound(&dns, &["127.0.0.2/32"]);
    let url = format!("http://changing.test:{port}/");
    dns.set_address("changing.test", [127, 0, 0, 2].into());
    assert!(get(&client, &url).await.is_ok());
    dns.set_address("changing.test", [127, 0, 0, 1].into());
    assert!(matches!(get(&client, &url).await, Err(Error::NotPublic { .. })));
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn answers_are_bounded_in_size_and_time() {
    let dns = TestDns::start().await;
    let client = outbound(&dns, &["127.0.0.0/8"]);
    let endless = "a".repeat(1_001);
    for head in ["Content-Length: 1001", "Transfer-Encoding: chunked", "Connection: close"] {
        let body = if head.contains("chunked") { format!("3e9\r\n{endless}\r\n0\r\n\r\n") } else { endless.clone() };
        let (address, _) = serve("127.0.0.1:0", format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}")).await;
        let answer = get(&client, &format!("http://{address}/")).await;
        assert!(matches!(answer, Err(Error::TooLarge { .. })), "{head}: {answer:?}");
    }
    let (address, _) = serve("127.0.0.1:0", redirect_to("/")).await;
    assert!(matches!(get(&client, &format!("http://{address}/")).await, Err(Error::Unreachable { .. })));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/", silent.local_addr().unwrap())).unwrap();
    let bounds = Bounds { timeout: Duration::from_millis(50), ..BOUNDS };
    assert!(matches!(client.get(&url, bounds).await, Err(Error::Unreachable { .. })));
    // A byte now and then is no answer in time.
    let dripping = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/", dripping.local_addr().unwrap())).unwrap();
    let drips = tokio::spawn(async move {
        let (mut stream, _) = dripping.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut every = tokio::time::interval(Duration::from_millis(5));
        while stream.write_all(b"a").await.is_ok() {
            every.tick().await;
        }
    });
    let answer = client.get(&url, Bounds { timeout: Duration::from_millis(200), body_bytes_max: 1 << 20 }).await;
    assert!(matches!(answer, Err(Error::Unreachable { .. })), "{answer:?}");
    drips.await.unwrap();
    let file = Url::parse("file:///etc/passwd").unwrap();
    assert!(matches!(client.get(&file, BOUNDS).await, Err(Error::BadRequest(_))));
}

#[tokio::test]
async fn a_service_is_found_by_its_records_in_their_order() {
    let dns = TestDns::start().await;
    let client = outbound(&dns, &["127.0.0.0/8"]).by_service(SERVICE).unwrap();
    let answer = |text: &str| format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{text} {{host}}");
    let (new, _) = serve("127.0.0.1:0", answer("new")).await;
    let (old, _) = serve("127.0.0.1:0", answer("old")).await;
    for (name, last) in [("new.test", 1), ("old.test", 2), ("dead.test", 3)] {
        dns.add_address(name, [127, 0, 0, last].into());
    }
    dns.add_address("old.test", [127, 0, 0, 1].into());
    dns.add_service("_old._tcp.both.test", (0, 0, old.port()), "old.test");
    dns.add_service("_new._tcp.both.test", (5, 0, new.port()), "new.test");
    // Nobody listens there: the next is tried.
    dns.add_service("_new._tcp.both.test", (1, 0, new.port()), "dead.test");
    dns.add_service("_old._tcp.old-only.test", (0, 0, old.port()), "old.test");
    dns.add_service("_new._tcp.lost.test", (0, 0, 1), "nowhere.test");
    assert_eq!(ask(&client, "http://both.test/").await.unwrap(), "new said.test");
    assert_eq!(ask(&client, "http://old-only.test/").await.unwrap(), "old said.test");
    assert!(matches!(ask(&client, "http://lost.test/").await, Err(Error::NoAddress { .. })));
    assert!(matches!(ask(&client, "http://unknown.test/").await, Err(Error::NoAddress { .. })));
    // With a port in the URL no record counts.
    dns.add_address("both.test", [127, 0, 0, 1].into());
    let url = format!("http://both.test:{}/", old.port());
    assert_eq!(ask(&client, &url).await.unwrap(), "old said.test");
    // Without a record it is the name itself, at the port of the service.
    dns.add_address("plain.test", [127, 0, 0, 1].into());
    assert!(matches!(ask(&client, "http://plain.test/").await, Err(Error::Unreachable { .. })));
}

#[tokio::test]
async fn records_that_lead_inside_are_refused() {
    let dns = TestDns::start().await;
    let (inside, asked) = serve("127.0.0.1:0", host()).await;
    dns.add_address("inside.test", [127, 0, 0, 1].into());
    dns.add_service("_new._tcp.outside.test", (0, 0, inside.port()), "inside.test");
    let client = outbound(&dns, &[]).by_service(SERVICE).unwrap();
    for url in ["http://outside.test/".to_owned(), format!("http://127.0.0.1:{}/", inside.port())] {
        assert!(matches!(ask(&client, &url).await, Err(Error::NotPublic { .. })), "{url}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

/// A name such as `0x7f.1` is an address only to whoever connects: what is decided by names, such as which servers a room denies, would let
/// it pass.
#[tokio::test]
async fn an_address_that_does_not_look_like_one_is_not_asked() {
    let dns = TestDns::start().await;
    let client = outbound(&dns, &["127.0.0.0/8"]).by_service(SERVICE).unwrap();
    let (address, asked) = serve("127.0.0.1:0", host()).await;
    for host in ["0x7f.1", "2130706433", "127.1", "0177.0.0.1"] {
        let url = format!("http://{host}:{}/", address.port());
        assert!(matches!(ask(&client, &url).await, Err(Error::BadRequest(_))), "{host}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    ask(&client, &format!("http://{address}/")).await.unwrap();
}
