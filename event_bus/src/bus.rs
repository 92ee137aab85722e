//! Wake-ups between the processes of a cluster: *that* the stream advanced, never *what* is in it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use model::Position;
use redis::Client;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast, mpsc},
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Most notices that wait for Redis; more are lost, which costs their readers a second.
const WAITING_MAX: usize = 1_024;
/// How many notices a slow subscriber may be behind.
const KEPT: usize = 1_024;
/// Largest notice that is read.
const NOTICE_BYTES_MAX: usize = 1_024;
/// Longest wait for an answer of Redis.
const REDIS_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before Redis is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Carries notices to the other processes: a position up to which the stream is durable. Never blocks; may lose, double and reorder.
/// Cheap to clone.
#[derive(Clone)]
pub enum Bus {
    /// There are no others: a notice reaches the subscribers in this process.
    Memory(broadcast::Sender<Position>),
    /// Redis publish and subscribe: a notice reaches the subscribers in the other processes.
    Redis(RedisBus),
}

/// The connection to Redis. Its tasks end with its last clone.
#[derive(Clone)]
pub struct RedisBus {
    waiting: mpsc::Sender<Position>,
    notices: broadcast::Sender<Position>,
    _running: Arc<DropGuard>,
}

/// The URL of Redis cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the URL of Redis cannot be used")]
pub struct BusError(#[from] redis::RedisError);

/// A notice as it travels.
#[derive(Serialize, Deserialize)]
struct Wire {
    from: String,
    position: i64,
}

impl Bus {
    /// A bus inside of this process.
    #[must_use]
    pub fn memory() -> Self {
        Self::Memory(broadcast::channel(KEPT).0)
    }

    /// A bus over Redis at `url` on `channel`; `process` tells the processes apart. Connects in the background, again and again.
    ///
    /// # Errors
    ///
    /// [`BusError`] when `url` is none of Redis; not when nobody answers there.
    pub fn redis(url: &str, channel: &str, process: &str) -> Result<Self, BusError> {
        let client = Client::open(url)?;
        let (waiting, queue) = mpsc::channel(WAITING_MAX);
        let (notices, _) = broadcast::channel(KEPT);
        let stopping = CancellationToken::new();
        let running = Arc::new(stopping.clone().drop_guard());
        let end =
            Endpoint { client, channel: channel.to_owned(), process: process.to_owned(), down: Mutex::new(false) };
        let end = Arc::new(end);
        tokio::spawn({
            let (end, stopping) = (end.clone(), stopping.clone());
            async move { stopping.run_until_cancelled(end.send(queue)).await }
        });
        tokio::spawn({
            let notices = notices.clone();
            async move { stopping.run_until_cancelled(end.listen(notices)).await }
        });
        Ok(Self::Redis(RedisBus { waiting, notices, _running: running }))
    }

    /// Tells the others that the stream is durable up to a position. Returns at once; when too much waits the notice is lost.
    pub fn publish(&self, position: Position) {
        match self {
            Self::Memory(notices) => drop(notices.send(position)),
            Self::Redis(bus) => drop(bus.waiting.try_send(position)),
        }
    }

    /// The notices from now on. Who falls behind is told so, and reads the database.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Position> {
        match self {
            Self::Memory(notices) => notices.subscribe(),
            Self::Redis(bus) => bus.notices.subscribe(),
        }
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Memory(_)) { "Bus::Memory" } else { "Bus::Redis" })
    }
}

/// What both tasks need.
struct Endpoint {
    client: Client,
    channel: String,
    process: String,
    /// Whether it was said that Redis is away: it is said once.
    down: Mutex<bool>,
}

impl Endpoint {
    async fn send(&self, mut queue: mpsc::Receiver<Position>) {
        loop {
            let connected = timeout(REDIS_TIMEOUT, self.client.get_multiplexed_async_connection()).await;
            let Ok(Ok(mut connection)) = connected else {
                self.note(false);
                sleep(RETRY_AFTER).await;
                continue;
            };
            self.note(true);
            loop {
                let Some(mut position) = queue.recv().await else { return };
                // The newest says it all.
                while let Ok(newer) = queue.try_recv() {
                    position = position.max(newer);
                }
                let wire = Wire { from: self.process.clone(), position: position.0 };
                let Ok(text) = serde_json::to_string(&wire) else { continue };
                let mut command = redis::cmd("PUBLISH");
                command.arg(&self.channel).arg(text);
                if !matches!(timeout(REDIS_TIMEOUT, command.query_async::<()>(&mut connection)).await, Ok(Ok(()))) {
                    break;
                }
            }
        }
    }

    async fn listen(&self, notices: broadcast::Sender<Position>) {
        loop {
            if let Ok(Ok(mut subscription)) = timeout(REDIS_TIMEOUT, self.client.get_async_pubsub()).await
                && matches!(timeout(REDIS_TIMEOUT, subscription.subscribe(&self.channel)).await, Ok(Ok(())))
            {
                self.note(true);
                let mut messages = subscription.on_message();
                while let Some(message) = messages.next().await {
                    if let Some(notice) = self.parse(message.get_payload_bytes()) {
                        let _ = notices.send(notice);
                    }
                }
            }
            self.note(false);
            sleep(RETRY_AFTER).await;
        }
    }

    /// The notice of another process; nothing for our own, and for what is none.
    fn parse(&self, bytes: &[u8]) -> Option<Position> {
        if bytes.len() > NOTICE_BYTES_MAX {
            return None;
        }
        let wire: Wire = serde_json::from_slice(bytes).ok()?;
        (wire.from != self.process).then_some(Position(wire.position))
    }

    fn note(&self, is_up: bool) {
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        if *down == is_up {
            *down = !is_up;
            if is_up {
                tracing::info!("Redis is there again");
            } else {
                tracing::warn!("Redis cannot be reached: what other processes write shows up to a second later");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_notice_reaches_the_subscribers_in_memory() {
        let bus = Bus::memory();
        let mut notices = bus.subscribe();
        bus.publish(Position(1));
        assert_eq!(notices.recv().await.unwrap(), Position(1));
    }

    /// The committer's side must never feel that Redis is away, however much it has to tell.
    #[tokio::test]
    async fn publishing_without_redis_neither_waits_nor_grows() {
        // Port 1 of loopback: nobody listens there.
        let bus = Bus::redis("redis://127.0.0.1:1/", "nobody", "one").unwrap();
        for position in 0..10_000 {
            bus.publish(Position(position));
        }
        let Bus::Redis(bus) = bus else { unreachable!("a bus over Redis") };
        assert_eq!(bus.waiting.capacity(), 0, "the queue is full and no longer than that");
    }

    #[tokio::test]
    async fn a_notice_reaches_other_processes_and_not_its_own_over_redis() {
        let Ok(url) = std::env::var("SWIFTCHAT_TEST_REDIS") else {
            eprintln!("SKIPPED: SWIFTCHAT_TEST_REDIS is not set");
            return;
        };
        let channel = format!("test:{}", model::Random::system().alphanumeric(12));
        let one = Bus::redis(&url, &channel, "one").unwrap();
        let two = Bus::redis(&url, &channel, "two").unwrap();
        let (mut at_one, mut at_two) = (one.subscribe(), two.subscribe());
        // Until the others listen, what is told is lost: it is told again. Nothing but nonsense and notices is on the channel.
        let mut raw = Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
        let first = loop {
            redis::cmd("PUBLISH").arg(&channel).arg("nonsense").query_async::<()>(&mut raw).await.unwrap();
            one.publish(Position(1));
            if let Ok(first) = timeout(Duration::from_millis(50), at_two.recv()).await {
                break first.unwrap();
            }
        };
        assert_eq!(first, Position(1));
        // The same the other way round. What came back to the sender would have come first.
        let back = loop {
            two.publish(Position(2));
            if let Ok(back) = timeout(Duration::from_millis(50), at_one.recv()).await {
                break back.unwrap();
            }
        };
        assert_eq!(back, Position(2));
    }
}
