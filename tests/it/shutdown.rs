//! The end of a server whose surroundings do not play along.

use std::time::Duration;

use storage::Options;
use test_kit::{ServerOptions, TestDatabase, TestServer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// More than the configured times, and less than any timeout of a database.
const HANG: Duration = Duration::from_secs(20);

/// Passes everything on until `frozen` says otherwise; then nothing moves any more, and nothing closes.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, frozen: CancellationToken) {
    let mut buffer = [0; 16_384];
    loop {
        let read = tokio::select! {
            biased;
            () = frozen.cancelled() => return std::future::pending().await,
            read = from.read(&mut buffer) => read,
        };
        let Ok(read @ 1..) = read else { return };
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// A place in front of the database server at `address`, and what freezes the connections through it.
async fn freezable(address: String) -> (String, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().to_string();
    let freeze = CancellationToken::new();
    let frozen = freeze.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&address).await.unwrap();
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::spawn(pass(from_client, to_server, frozen.clone()));
            tokio::spawn(pass(from_server, to_client, frozen.clone()));
        }
    });
    (own, freeze)
}

/// Else nothing but `kill -9` would end it while its database is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_ends_although_its_database_hangs() {
    let Some(mut database) = TestDatabase::postgres().await else { return };
    let Options::Postgres { url, .. } = &mut database.options else { panic!("not PostgreSQL") };
    let start = url.find('@').map_or_else(|| url.find("//").unwrap() + 2, |at| at + 1);
    let end = start + url[start..].find('/').unwrap();
    let (own, freeze) = freezable(url[start..end].to_owned()).await;
    url.replace_range(start..end, &own);

    let mut options = ServerOptions::default();
    options.config.server.shutdown_timeout_seconds = 1;
    let server = TestServer::on(database, options).await;
    let alice = server.user("alice").await;
    alice.get("/account/whoami").await.ok();
    freeze.cancel();
    timeout(HANG, server.shutdown()).await.expect("it ends");
}
