//! States in Redis of which each process has a copy: who is typing, who is there.
//!
//! A state is rows with a number each, and changes in Redis, in one script, which tells *that* it changed on a channel. Each process reads
//! *what* changed after the position of its copy. A message that is lost costs a second: every second each process asks in any case, and
//! sees by the answer whether its copy is behind. A state that is gone or went back begins a new life.
//!
//! A script is `begin.lua`, what the state itself needs, and `end.lua`.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use model::{EphemeralPosition, Random};
use redis::{Client, Msg, RedisError, Script, Value, aio::MultiplexedConnection};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::BusError;

/// Most changes that wait for Redis; more are lost.
const WAITING_MAX: usize = 1_024;
/// Most changes that are made together.
const CHANGES_AT_ONCE: usize = 64;
/// Most rows that are read, or have their time ended, with one question.
pub(crate) const ROWS_AT_ONCE: usize = 500;
/// Longest message that is read: two numbers.
const MESSAGE_BYTES_MAX: usize = 64;
/// How often each process ends what has had its time, and sees whether it is behind.
const TICK: Duration = Duration::from_secs(1);
/// Longest wait for an answer of Redis.
const REDIS_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause before Redis is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// After so many tries in vain what is known is too old.
const TRIES_MAX: u32 = 4;

/// A row: its number, the position of its last change, and what it says.
pub(crate) type Row = (i64, u64, String);

/// What the script answers: incarnation, position, and what is special to the question.
type ScriptAnswer = (String, String, Vec<Value>);

/// Redis is away, or answers nonsense.
pub(crate) enum Fault {
    Away,
    Nonsense,
}

impl From<RedisError> for Fault {
    fn from(error: RedisError) -> Self {
        tracing::debug!(%error, "Redis failed");
        Self::Away
    }
}

impl From<tokio::time::error::Elapsed> for Fault {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Away
    }
}

/// What a copy has not.
pub(crate) struct News {
    /// Whether the rows are all that there are: the copy belongs to another life, or is too old.
    pub(crate) is_whole: bool,
    /// Where the copy stands with the rows.
    pub(crate) at: EphemeralPosition,
    /// Rows last changed at or before it may have been forgotten.
    pub(crate) floor: u64,
    pub(crate) rows: Vec<Row>,
}

/// A process's copy of a state, and how the state changes.
pub(crate) trait Followed: Send + Sync + 'static {
    /// What it is called in keys and channels.
    const NAME: &'static str;
    const SCRIPT: &'static str;
    /// What the process has to say.
    type Change: Send + 'static;

    /// Where the copy stands.
    fn position(&self) -> EphemeralPosition;
    /// Takes over what the copy has not.
    fn take(&self, news: News);
    /// Redis is there: anything that was said before may have been lost.
    fn connected(&self) {}
    /// Redis has been away for so long that the copy is too old.
    fn lose(&self);
    /// Brings changes into Redis.
    fn bring(&self, redis: &mut Redis, changes: Vec<Self::Change>) -> impl Future<Output = Result<(), Fault>> + Send;
    /// Does what is to be done every second: the script's `tick`, at least.
    fn tick(&self, redis: &mut Redis) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// The way to Redis. The task that follows the state ends with the last clone.
pub(crate) struct Remote<Change> {
    waiting: mpsc::Sender<Change>,
    running: Arc<DropGuard>,
}

impl<Change> Clone for Remote<Change> {
    fn clone(&self) -> Self {
        Self { waiting: self.waiting.clone(), running: self.running.clone() }
    }
}

impl<Change> fmt::Debug for Remote<Change> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

/// Where a state is.
pub(crate) struct Place<'a> {
    pub(crate) url: &'a str,
    /// Names the deployment.
    pub(crate) name: &'a str,
    /// Names the channel of messages: as the deployment, but in tests.
    pub(crate) channel: &'a str,
    /// Most parts of a row, and most rows.
    pub(crate) bounds: [usize; 2],
}

impl<Change: Send + 'static> Remote<Change> {
    /// Follows a state.
    pub(crate) fn start<F: Followed<Change = Change>>(
        place: &Place<'_>,
        followed: Arc<F>,
        random: Random,
    ) -> Result<Self, BusError> {
        let client = Client::open(place.url)?;
        let (waiting, queue) = mpsc::channel(WAITING_MAX);
        let stopping = CancellationToken::new();
        let running = Arc::new(stopping.clone().drop_guard());
        // The braces keep the keys in one slot of a Redis cluster.
        let keys = [":life", ":ends", ":rows", ":values"].map(|part| format!("{{{}}}:{}{part}", place.name, F::NAME));
        let asked = Asked {
            keys,
            channel: format!("{}:{}", place.channel, F::NAME),
            script: Script::new(F::SCRIPT),
            bounds: place.bounds,
            random,
            newest: EphemeralPosition::default(),
        };
        let follower = Follower { client, followed, asked };
        tokio::spawn(async move { stopping.run_until_cancelled(follower.run(queue)).await });
        Ok(Self { waiting, running })
    }

    /// Says something. Returns at once, with whether there was place; when Redis is away it is lost, and nobody waits for it.
    pub(crate) fn say(&self, change: Change) -> bool {
        self.waiting.try_send(change).is_ok()
    }

    /// Says something once there is place; the wait is as long as Redis takes for what is before it, or to be seen as away.
    pub(crate) async fn say_in_turn(&self, change: Change) {
        let _ = self.waiting.send(change).await;
    }
}

/// How the script is asked.
#[derive(Clone)]
struct Asked {
    keys: [String; 4],
    channel: String,
    script: Script,
    bounds: [usize; 2],
    random: Random,
    /// The newest incarnation and position that Redis has told of: it must not go back behind it.
    newest: EphemeralPosition,
}

/// A connection, to ask the script on.
pub(crate) struct Redis {
    asked: Asked,
    connection: MultiplexedConnection,
}

impl Redis {
    /// Runs the script, and notes how far the state is.
    pub(crate) async fn call(&mut self, what: &str, arguments: &[String]) -> Result<Vec<Value>, Fault> {
        let Asked { keys, channel, script, bounds, random, newest } = &self.asked;
        let mut call = script.prepare_invoke();
        for key in keys {
            call.key(key);
        }
        call.arg(what).arg(new_incarnation(random)).arg(newest.incarnation).arg(newest.position);
        call.arg(channel).arg(bounds[0]).arg(bounds[1]).arg(ROWS_AT_ONCE);
        for argument in arguments {
            call.arg(argument);
        }
        let answer: ScriptAnswer = timeout(REDIS_TIMEOUT, call.invoke_async(&mut self.connection)).await??;
        let (Ok(incarnation), Ok(position)) = (answer.0.parse(), answer.1.parse()) else { return Err(Fault::Nonsense) };
        self.asked.newest = EphemeralPosition { incarnation, position };
        Ok(answer.2)
    }
}

struct Follower<F> {
    client: Client,
    followed: Arc<F>,
    asked: Asked,
}

impl<F: Followed> Follower<F> {
    async fn run(mut self, mut queue: mpsc::Receiver<F::Change>) {
        let mut tries = 0;
        loop {
            match self.connect_and_follow(&mut queue, &mut tries).await {
                Ok(()) => return,
                Err(Fault::Away) => {}
                Err(Fault::Nonsense) => tracing::warn!("Redis answers nonsense about {}", F::NAME),
            }
            tries += 1;
            if tries == TRIES_MAX {
                tracing::warn!("Redis cannot be reached: there is no news of {}", F::NAME);
                self.followed.lose();
            }
            sleep(RETRY_AFTER).await;
            // What was said meanwhile is old.
            while queue.try_recv().is_ok() {}
        }
    }

    /// Follows until Redis fails, or until nobody is there to say anything.
    async fn connect_and_follow(
        &mut self,
        queue: &mut mpsc::Receiver<F::Change>,
        tries: &mut u32,
    ) -> Result<(), Fault> {
        let connection = timeout(REDIS_TIMEOUT, self.client.get_multiplexed_async_connection()).await??;
        let mut redis = Redis { asked: self.asked.clone(), connection };
        let followed = self.follow(&mut redis, queue, tries).await;
        self.asked.newest = redis.asked.newest;
        followed
    }

    async fn follow(
        &mut self,
        redis: &mut Redis,
        queue: &mut mpsc::Receiver<F::Change>,
        tries: &mut u32,
    ) -> Result<(), Fault> {
        let mut subscription = timeout(REDIS_TIMEOUT, self.client.get_async_pubsub()).await??;
        timeout(REDIS_TIMEOUT, subscription.subscribe(&self.asked.channel)).await??;
        let mut messages = subscription.on_message();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = Vec::new();
        self.followed.connected();
        loop {
            let is_behind = tokio::select! {
                count = queue.recv_many(&mut changes, CHANGES_AT_ONCE) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.followed.bring(redis, std::mem::take(&mut changes)).await?;
                    self.is_behind(redis)
                }
                message = messages.next() => {
                    let message = message.ok_or(Fault::Away)?;
                    self.tells_news(&message, &mut messages)
                }
                _ = tick.tick() => {
                    self.followed.tick(redis).await?;
                    self.is_behind(redis)
                }
            };
            *tries = 0;
            if is_behind {
                self.read(redis).await?;
            }
        }
    }

    /// Whether the messages that are there tell of anything that the copy has not.
    fn tells_news(&self, first: &Msg, messages: &mut (impl Stream<Item = Msg> + Unpin)) -> bool {
        let copy = self.followed.position();
        let is_news = |message: &Msg| {
            let bytes = message.get_payload_bytes();
            let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= MESSAGE_BYTES_MAX);
            let numbers = text.and_then(|text| text.split_once(' '));
            let Some((Ok(incarnation), Ok(position))) = numbers.map(|(a, b)| (a.parse::<u32>(), b.parse::<u64>()))
            else {
                return false;
            };
            incarnation != copy.incarnation || position > copy.position
        };
        let mut has_news = is_news(first);
        for _ in 0..WAITING_MAX {
            match messages.next().now_or_never() {
                Some(Some(message)) => has_news |= is_news(&message),
                // The end of the messages is seen by whoever asks next.
                Some(None) | None => break,
            }
        }
        has_news
    }

    /// Brings the copy up to date.
    async fn read(&mut self, redis: &mut Redis) -> Result<(), Fault> {
        // All rows, and some that changed meanwhile.
        let reads_max = 4 * self.asked.bounds[1].div_ceil(ROWS_AT_ONCE);
        for _ in 0..reads_max {
            let copy = self.followed.position();
            let arguments = [copy.incarnation.to_string(), copy.position.to_string()];
            let found = redis.call("read", &arguments).await?;
            let (floor, is_whole, rows) = parse_rows(found).ok_or(Fault::Nonsense)?;
            let newest = redis.asked.newest;
            let is_last = rows.len() < ROWS_AT_ONCE;
            let position = rows.last().filter(|_| !is_last).map_or(newest.position, |(_, changed, _)| *changed);
            self.followed.take(News { is_whole, at: EphemeralPosition { position, ..newest }, floor, rows });
            if is_last {
                break;
            }
        }
        Ok(())
    }

    fn is_behind(&self, redis: &Redis) -> bool {
        self.followed.position() != redis.asked.newest
    }
}

fn parse_rows(found: Vec<Value>) -> Option<(u64, bool, Vec<Row>)> {
    let found: [Value; 3] = found.try_into().ok()?;
    let [floor, is_whole, rows] = found;
    let floor: String = redis::from_redis_value(floor).ok()?;
    let is_whole: i64 = redis::from_redis_value(is_whole).ok()?;
    Some((floor.parse().ok()?, is_whole == 1, redis::from_redis_value(rows).ok()?))
}

/// Zero is none: it says that a reader knows nothing.
pub(crate) fn new_incarnation(random: &Random) -> u32 {
    u32::from_le_bytes(random.bytes()).max(1)
}
