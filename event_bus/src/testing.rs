//! Redis for tests: the real one, a line to it that can be cut, and one that loses, doubles and reorders.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::StreamExt as _;
use model::Random;
use redis::Client;
use serde::Deserialize;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{Bus, BusError};

/// The variable with the URL of a Redis; tests that need it are skipped without, and say so.
pub const REDIS_VARIABLE: &str = "SWIFTCHAT_TEST_REDIS";

/// The Redis for tests, if there is one.
#[must_use]
pub fn redis_url() -> Option<String> {
    let url = std::env::var(REDIS_VARIABLE).ok();
    if url.is_none() {
        eprintln!("SKIPPED: {REDIS_VARIABLE} is not set");
    }
    url
}

/// A line to Redis that can be cut and mended.
#[derive(Debug)]
pub struct RedisProxy {
    url: String,
    is_whole: Arc<watch::Sender<bool>>,
}

impl RedisProxy {
    /// A line to the Redis at `url`, which says `redis://host:port/`.
    ///
    /// # Panics
    ///
    /// When `url` is another one.
    pub async fn start(url: &str) -> Self {
        let target =
            url.strip_prefix("redis://").and_then(|rest| rest.split('/').next()).expect("a plain URL").to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let url = format!("redis://{}/", listener.local_addr().expect("an address"));
        let is_whole = Arc::new(watch::channel(true).0);
        let proxy = Self { url, is_whole: is_whole.clone() };
        // Both end with the runtime of the test.
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target.clone(), is_whole.subscribe()));
            }
        });
        proxy
    }

    /// Where clients connect to.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends all connections, and refuses new ones.
    pub fn cut(&self) {
        self.is_whole.send_replace(false);
    }

    /// Lets connections through again.
    pub fn heal(&self) {
        self.is_whole.send_replace(true);
    }
}

async fn carry(mut client: TcpStream, target: String, mut is_whole: watch::Receiver<bool>) {
    if !*is_whole.borrow() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = is_whole.wait_for(|is_whole| !is_whole) => {}
    }
}

/// Buses between processes that lose, double and reorder what they carry: each has a channel of its own, and what is said on it is
/// carried to the others by somebody unreliable.
#[derive(Debug)]
pub struct UnreliableBuses {
    url: String,
    name: String,
    /// What was lost, doubled and overtaken.
    counts: Arc<[AtomicU64; 3]>,
}

/// Who a notice is from; the rest is carried as it is.
#[derive(Deserialize)]
struct Sender {
    from: String,
}

impl UnreliableBuses {
    /// Buses for this many processes, over the Redis at `url`.
    ///
    /// # Panics
    ///
    /// When Redis does not answer.
    pub async fn start(url: &str, count: usize, random: Random) -> Self {
        let name = format!("test:{}", Random::system().alphanumeric(12));
        let counts: Arc<[AtomicU64; 3]> = Arc::default();
        let client = Client::open(url).expect("a URL of Redis");
        let mut connection = client.get_multiplexed_async_connection().await.expect("Redis");
        let mut subscription = client.get_async_pubsub().await.expect("Redis");
        for nr in 0..count {
            subscription.subscribe(format!("{name}:{nr}")).await.expect("Redis");
        }
        let buses = Self { url: url.to_owned(), name: name.clone(), counts: counts.clone() };
        tokio::spawn(async move {
            let mut messages = subscription.on_message();
            // What waits to be overtaken, for each channel.
            let mut held: HashMap<String, Vec<u8>> = HashMap::new();
            while let Some(message) = messages.next().await {
                let (channel, bytes) = (message.get_channel_name().to_owned(), message.get_payload_bytes().to_vec());
                let Ok(Sender { from }) = serde_json::from_slice(&bytes) else { continue };
                if channel != format!("{name}:{from}") {
                    // What we carried here ourselves.
                    continue;
                }
                for other in (0..count).map(|nr| format!("{name}:{nr}")).filter(|other| *other != channel) {
                    let mut carried = vec![bytes.clone()];
                    match random.number() % 4 {
                        0 => carried.clear(),
                        1 => carried.push(bytes.clone()),
                        2 => carried = held.insert(other.clone(), bytes.clone()).into_iter().collect(),
                        _ => {
                            let late = held.remove(&other);
                            counts[2].fetch_add(late.iter().len() as u64, Ordering::Relaxed);
                            carried.extend(late);
                        }
                    }
                    counts[0].fetch_add(u64::from(carried.is_empty()), Ordering::Relaxed);
                    counts[1].fetch_add(u64::from(carried.len() > 1 && carried[0] == carried[1]), Ordering::Relaxed);
                    for bytes in carried {
                        let mut command = redis::cmd("PUBLISH");
                        let _ = command.arg(&other).arg(bytes).query_async::<()>(&mut connection).await;
                    }
                }
            }
        });
        buses
    }

    /// The bus of a process; a later process may have it after an earlier one.
    ///
    /// # Errors
    ///
    /// [`BusError`] as from [`Bus::redis`].
    pub fn bus(&self, nr: usize) -> Result<Bus, BusError> {
        Bus::redis(&self.url, &format!("{}:{nr}", self.name), &nr.to_string())
    }

    /// Whether something was lost, doubled and overtaken by now.
    #[must_use]
    pub fn were_unreliable(&self) -> bool {
        self.counts.iter().all(|count| count.load(Ordering::Relaxed) > 0)
    }
}
