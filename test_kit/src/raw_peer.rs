//! A server that breaks HTTP itself: it never ends, or answers late. What keeps to HTTP is a [`crate::Peer`].

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Semaphore,
    task::JoinHandle,
};

use crate::{Authority, link::listen};

/// How a [`RawPeer`] answers whatever it is asked.
#[derive(Clone, Debug)]
pub enum RawAnswer {
    /// A body of JSON that never ends.
    Endless,
    /// This, once the test lets it: see [`RawPeer::release`].
    Held(Value),
    /// The head and the body that this makes of the request, and then the end of the connection.
    Said(fn(&str) -> Vec<u8>),
    /// The same, but the connection stays open until the test lets it go.
    Stalled(fn(&str) -> Vec<u8>),
}

/// A server with the certificate of a name, on an address of its own, at port 8448.
#[derive(Debug)]
pub struct RawPeer {
    address: IpAddr,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Counts {
    requests: AtomicUsize,
    bytes: AtomicUsize,
    released: Semaphore,
}

impl RawPeer {
    /// A server of a name.
    pub async fn start(name: &str, authority: &Authority, answer: RawAnswer) -> Self {
        let listener = listen(8_448).await;
        let address = listener.local_addr().expect("a bound socket has an address").ip();
        let acceptor = authority.acceptor(&[name, &address.to_string()]);
        let counts =
            Arc::new(Counts { requests: AtomicUsize::new(0), bytes: AtomicUsize::new(0), released: Semaphore::new(0) });
        let to_serve = counts.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counts, answer) = (acceptor.clone(), to_serve.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut request = [0; 4_096];
                    let Ok(length @ 1..) = stream.read(&mut request).await else { return };
                    let request = String::from_utf8_lossy(&request[..length]).into_owned();
                    counts.requests.fetch_add(1, Ordering::SeqCst);
                    // It fails when the other side has had enough.
                    let _ = speak(&mut stream, &request, &answer, &counts).await;
                });
            }
        });
        Self { address, counts, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many requests it got.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::SeqCst)
    }

    /// How many bytes of endless bodies were taken from it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.counts.bytes.load(Ordering::SeqCst)
    }

    /// Answers what is held, and what comes from now on.
    pub fn release(&self) {
        self.counts.released.close();
    }
}

impl Drop for RawPeer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn speak(
    stream: &mut (impl AsyncWrite + Unpin),
    request: &str,
    answer: &RawAnswer,
    counts: &Counts,
) -> std::io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
    match answer {
        RawAnswer::Said(say) => stream.write_all(&say(request)).await?,
        RawAnswer::Stalled(say) => {
            stream.write_all(&say(request)).await?;
            stream.flush().await?;
            let _ = counts.released.acquire().await;
        }
        RawAnswer::Endless => {
            stream.write_all(format!("{head}\r\n[\"").as_bytes()).await?;
            loop {
                stream.write_all(&[b'a'; 16_384]).await?;
                counts.bytes.fetch_add(16_384, Ordering::SeqCst);
            }
        }
        RawAnswer::Held(body) => {
            // Closed is what it waits for.
            let _ = counts.released.acquire().await;
            let body = body.to_string();
            stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
        }
    }
    stream.shutdown().await
}
