use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::{ListenerConfig, TlsConfig};

fn config(folder: &TempDir, address: &str) -> Config {
    let mut config = Config::default();
    config.server.data_folder = folder.path().to_owned();
    config.listeners = vec![ListenerConfig { address: address.parse().unwrap(), ..ListenerConfig::default() }];
    config
}

async fn start(config: Config) -> Result<Server, Error> {
    Server::start(config, Overrides { random: Random::seeded(1), ..Overrides::default() }).await
}

/// Sends a request and reads until the server closes.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, header: &str) -> String {
    let request = format!("GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

#[tokio::test]
async fn a_server_answers_until_it_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(config(&folder, "127.0.0.1:0")).await.unwrap();
    let address = server.addresses()[0].address;
    assert_ne!(address.port(), 0);
    let answer = ask(connect(address).await, "").await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("M_UNRECOGNIZED"), "{answer}");
    server.shutdown().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_server_starts_again_on_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let keys = |server: &Server| server.local_servers().iter().map(|one| one.key.public_key()).collect::<Vec<_>>();
    let server = start(config(&folder, "127.0.0.1:0")).await.unwrap();
    let before = keys(&server);
    server.shutdown().await;
    let server = start(config(&folder, "127.0.0.1:0")).await.unwrap();
    assert_eq!(keys(&server), before);
    server.shutdown().await;
}

#[tokio::test]
async fn two_servers_live_in_one_process_but_not_in_one_folder() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start(config(&folder, "127.0.0.1:0")).await.unwrap();
    assert!(matches!(start(config(&folder, "127.0.0.1:0")).await, Err(Error::DataFolderInUse(_))));
    let second = start(config(&other, "127.0.0.1:0")).await.unwrap();
    for server in [first, second] {
        assert!(ask(connect(server.addresses()[0].address).await, "").await.starts_with("HTTP/1.1 404 "));
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_port_that_is_taken_stops_the_start() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = start(config(&folder, "127.0.0.1:0")).await.unwrap();
    let taken = server.addresses()[0].address;
    let refused = start(config(&other, &taken.to_string())).await;
    assert!(matches!(refused, Err(Error::Listen { address, .. }) if address == taken), "{refused:?}");
    assert!(!other.path().join("swiftchat.db").exists(), "nothing was made");
    server.shutdown().await;
}

/// Whoever is on the machine may register, but not whoever reaches the machine's proxy.
#[tokio::test]
async fn a_server_for_itself_refuses_what_a_proxy_forwards() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(config(&folder, "127.0.0.1:0")).await.unwrap();
    let address = server.addresses()[0].address;
    for header in ["Via: 1.1 proxy\r\n", "X-Forwarded-For: 192.0.2.1\r\n", "Forwarded: for=192.0.2.1\r\n"] {
        let answer = ask(connect(address).await, header).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("server.names"), "{answer}");
    }
    server.shutdown().await;
    let mut named = config(&folder, "127.0.0.1:0");
    named.server.names = vec!["example.org".try_into().unwrap()];
    let server = start(named).await.unwrap();
    let answer = ask(connect(server.addresses()[0].address).await, "Via: 1.1 proxy\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    server.shutdown().await;
}

#[tokio::test]
async fn a_listener_with_a_certificate_speaks_tls() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testdata");
    let (certificate, key) = (data.join("localhost.pem"), data.join("localhost.key"));
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder, "127.0.0.1:0");
    config.listeners[0].tls = vec![TlsConfig { certificate: certificate.clone(), key: "missing".into() }];
    assert!(matches!(start(config.clone()).await, Err(Error::Certificate { .. })));
    config.listeners[0].tls = vec![TlsConfig { certificate: certificate.clone(), key }];
    let server = start(config).await.unwrap();
    assert_eq!(server.addresses()[0].to_string(), format!("https://{}", server.addresses()[0].address));

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
    let mut client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    for protocol in ["http/1.1", "h2"] {
        client.alpn_protocols = vec![protocol.into()];
        let connector = TlsConnector::from(Arc::new(client.clone()));
        let stream = connect(server.addresses()[0].address).await;
        let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
        if protocol == "http/1.1" {
            assert!(ask(stream, "").await.starts_with("HTTP/1.1 404 "));
        }
    }
    server.shutdown().await;
}

/// A client that never finishes its request must not keep the server alive.
#[tokio::test]
async fn a_half_sent_request_does_not_hold_up_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder, "127.0.0.1:0");
    config.server.shutdown_timeout_seconds = 0;
    let server = start(config).await.unwrap();
    let mut idle = connect(server.addresses()[0].address).await;
    idle.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), server.shutdown()).await.expect("it ended");
}
