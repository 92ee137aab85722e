//! Who is typing where, shared by processes over Redis.
//!
//! The state is in Redis and changes there, in one script (`typing.lua`), which tells *that* it changed on a channel. Each process
//! reads *what* changed after the position of its copy. A message that is lost costs a second: every second each process ends what
//! has had its time, and sees by the answer whether its copy is behind. A state that is gone or went back begins a new life.

use std::{fmt, sync::Arc, time::Duration};

use ::redis::{Client, Msg, RedisError, Script, aio::MultiplexedConnection};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use model::{RoomNr, UserNr};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{ROOMS_MAX, RoomTyping, Shared, State, TYPING_USERS_MAX, new_incarnation};
use crate::BusError;

/// Most changes that wait for Redis; more are lost.
const WAITING_MAX: usize = 1_024;
/// Most rooms that are read, and most users whose time is ended, with one question.
const ROWS_MAX: usize = 500;
/// Most questions for one look at what is new: all rooms, and some that changed meanwhile.
const READS_MAX: usize = 4 * ROOMS_MAX / ROWS_MAX;
/// Longest message that is read: two numbers.
const MESSAGE_BYTES_MAX: usize = 64;
/// How often each process ends what has had its time, and sees whether it is behind.
const TICK: Duration = Duration::from_secs(1);
/// Longest wait for an answer of Redis.
const REDIS_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause before Redis is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// After so many tries in vain nobody is shown typing: what is known is too old.
const TRIES_MAX: u32 = 4;

const SCRIPT: &str = include_str!("typing.lua");

/// Where the state is. The task that follows it ends with the last clone.
#[derive(Clone)]
pub(super) struct Remote {
    waiting: mpsc::Sender<Change>,
    _running: Arc<DropGuard>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

/// A user is typing, or no longer.
struct Change {
    room_nr: RoomNr,
    user_nr: UserNr,
    for_ms: Option<i64>,
}

/// What the script answers: incarnation, position, and to a reader the floor, whether it gets all, and rows of room, position and users.
type ScriptAnswer = (String, String, Vec<::redis::Value>);
type Row = (i64, u64, String);

/// Redis is away, or answers nonsense.
enum Fault {
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

impl Remote {
    /// Follows the state of that `name`, told of its changes on `channel`.
    pub(super) fn start(
        url: &str,
        name: &str,
        channel: &str,
        rooms_max: usize,
        shared: Arc<Shared>,
    ) -> Result<Self, BusError> {
        let client = Client::open(url)?;
        let (waiting, queue) = mpsc::channel(WAITING_MAX);
        let stopping = CancellationToken::new();
        let running = Arc::new(stopping.clone().drop_guard());
        // The braces keep the keys in one slot of a Redis cluster.
        let keys = ["", ":until", ":rooms", ":users"].map(|part| format!("{{{name}}}:typing{part}"));
        let channel = format!("{channel}:typing");
        let script = Script::new(SCRIPT);
        let follower = Follower { client, keys, channel, script, rooms_max, shared, newest: (0, 0) };
        tokio::spawn(async move { stopping.run_until_cancelled(follower.run(queue)).await });
        Ok(Self { waiting, _running: running })
    }

    pub(super) fn set(&self, room_nr: RoomNr, user_nr: UserNr, for_ms: Option<i64>) {
        // Full: Redis is away or slow, and nobody waits for it.
        let _ = self.waiting.try_send(Change { room_nr, user_nr, for_ms });
    }
}

struct Follower {
    client: Client,
    keys: [String; 4],
    channel: String,
    script: Script,
    rooms_max: usize,
    shared: Arc<Shared>,
    /// The newest incarnation and position that Redis has told of: it must not go back behind it.
    newest: (u32, u64),
}

impl Follower {
    async fn run(mut self, mut queue: mpsc::Receiver<Change>) {
        let mut tries = 0;
        loop {
            match self.connect_and_follow(&mut queue, &mut tries).await {
                Ok(()) => return,
                Err(Fault::Away) => {}
                Err(Fault::Nonsense) => tracing::warn!("Redis answers nonsense about who is typing"),
            }
            tries += 1;
            if tries == TRIES_MAX {
                tracing::warn!("Redis cannot be reached: nobody is shown typing");
                self.shared.change(|state| {
                    *state = State::new(&self.shared.random);
                    true
                });
            }
            sleep(RETRY_AFTER).await;
            // What people typed meanwhile is old.
            while queue.try_recv().is_ok() {}
        }
    }

    /// Follows until Redis fails, or until nobody is there to say who types.
    async fn connect_and_follow(&mut self, queue: &mut mpsc::Receiver<Change>, tries: &mut u32) -> Result<(), Fault> {
        let mut connection = timeout(REDIS_TIMEOUT, self.client.get_multiplexed_async_connection()).await??;
        let mut subscription = timeout(REDIS_TIMEOUT, self.client.get_async_pubsub()).await??;
        timeout(REDIS_TIMEOUT, subscription.subscribe(&self.channel)).await??;
        let mut messages = subscription.on_message();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_behind = tokio::select! {
                change = queue.recv() => {
                    let Some(Change { room_nr, user_nr, for_ms }) = change else { return Ok(()) };
                    let arguments = [room_nr.0, user_nr.0, for_ms.unwrap_or(-1)].map(|number| number.to_string());
                    self.call(&mut connection, "set", &arguments).await?;
                    self.is_behind()
                }
                message = messages.next() => {
                    let message = message.ok_or(Fault::Away)?;
                    self.tells_news(&message, &mut messages)
                }
                _ = tick.tick() => {
                    self.call(&mut connection, "tick", &[]).await?;
                    self.is_behind()
                }
            };
            *tries = 0;
            if is_behind {
                self.read(&mut connection).await?;
            }
        }
    }

    /// Whether the messages that are there tell of anything that the copy has not.
    fn tells_news(&self, first: &Msg, messages: &mut (impl Stream<Item = Msg> + Unpin)) -> bool {
        let copy = self.copy();
        let is_news = |message: &Msg| {
            let bytes = message.get_payload_bytes();
            let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= MESSAGE_BYTES_MAX);
            let numbers = text.and_then(|text| text.split_once(' '));
            let Some((Ok(incarnation), Ok(position))) = numbers.map(|(a, b)| (a.parse::<u32>(), b.parse::<u64>()))
            else {
                return false;
            };
            incarnation != copy.0 || position > copy.1
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
    async fn read(&mut self, connection: &mut MultiplexedConnection) -> Result<(), Fault> {
        for _ in 0..READS_MAX {
            let copy = self.copy();
            let arguments = [copy.0.to_string(), copy.1.to_string()];
            let found = self.call(connection, "read", &arguments).await?;
            let (floor, is_whole, rows) = parse_rows(found).ok_or(Fault::Nonsense)?;
            let is_last = rows.len() < ROWS_MAX;
            let position = rows.last().filter(|_| !is_last).map_or(self.newest.1, |(_, changed, _)| *changed);
            let incarnation = self.newest.0;
            self.shared.change(|state| {
                if is_whole {
                    *state = State { incarnation, position: 0, floor, rooms: Default::default() };
                }
                for (room_nr, changed, users) in rows {
                    // Redis knows until when, and ends it.
                    let users = users.split_whitespace().take(TYPING_USERS_MAX);
                    let users = users.filter_map(|user| Some((UserNr(user.parse().ok()?), i64::MAX))).collect();
                    state.rooms.insert(RoomNr(room_nr), RoomTyping { users, changed });
                }
                state.position = position;
                if floor > state.floor {
                    state.floor = floor;
                    state.rooms.retain(|_, room| room.changed > floor || !room.users.is_empty());
                }
                true
            });
            if is_last {
                break;
            }
        }
        Ok(())
    }

    /// Runs the script, and notes how far Redis is.
    async fn call(
        &mut self,
        connection: &mut MultiplexedConnection,
        what: &str,
        arguments: &[String],
    ) -> Result<Vec<::redis::Value>, Fault> {
        let mut call = self.script.prepare_invoke();
        for key in &self.keys {
            call.key(key);
        }
        call.arg(what).arg(new_incarnation(&self.shared.random)).arg(self.newest.0).arg(self.newest.1);
        call.arg(&self.channel).arg(TYPING_USERS_MAX).arg(self.rooms_max).arg(ROWS_MAX);
        for argument in arguments {
            call.arg(argument);
        }
        let answer: ScriptAnswer = timeout(REDIS_TIMEOUT, call.invoke_async(connection)).await??;
        let (incarnation, position) = (answer.0.parse(), answer.1.parse());
        self.newest = incarnation.ok().zip(position.ok()).ok_or(Fault::Nonsense)?;
        Ok(answer.2)
    }

    fn copy(&self) -> (u32, u64) {
        let state = self.shared.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (state.incarnation, state.position)
    }

    fn is_behind(&self) -> bool {
        self.copy() != self.newest
    }
}

fn parse_rows(found: Vec<::redis::Value>) -> Option<(u64, bool, Vec<Row>)> {
    let found: [::redis::Value; 3] = found.try_into().ok()?;
    let [floor, is_whole, rows] = found;
    let floor: String = ::redis::from_redis_value(floor).ok()?;
    let is_whole: i64 = ::redis::from_redis_value(is_whole).ok()?;
    Some((floor.parse().ok()?, is_whole == 1, ::redis::from_redis_value(rows).ok()?))
}

#[cfg(test)]
mod tests {
    use model::{Clock, EphemeralPosition, Random};

    use super::*;
    use crate::{
        Typing,
        testing::{RedisProxy, redis_url},
        typing::{TypingChange, TypingNews},
    };

    const ROOM: RoomNr = RoomNr(1);
    const ALICE: UserNr = UserNr(7);
    const BOB: UserNr = UserNr(12);
    const NOBODY: EphemeralPosition = EphemeralPosition { incarnation: 0, position: 0 };

    fn some_name() -> String {
        format!("test:{}", Random::system().alphanumeric(12))
    }

    fn process(url: &str, name: &str, channel: &str, rooms_max: usize) -> Typing {
        let shared = Arc::new(Shared::new(Clock::system(), Random::system()));
        let remote = Remote::start(url, name, channel, rooms_max, shared.clone()).unwrap();
        Typing { shared, remote: Some(remote) }
    }

    fn change(room_nr: RoomNr, users: &[UserNr]) -> TypingChange {
        TypingChange { room_nr, users: users.to_vec() }
    }

    /// Waits until a reader of the room at `since` is told just this.
    async fn told(typing: &Typing, since: EphemeralPosition, users: &[UserNr]) -> EphemeralPosition {
        let mut changed = typing.watch();
        let news = timeout(Duration::from_secs(30), async {
            loop {
                let news = typing.news(&[ROOM], since);
                if news.changes == [change(ROOM, users)] {
                    return news;
                }
                changed.changed().await.unwrap();
            }
        });
        news.await
            .unwrap_or_else(|_| panic!("{users:?} is not what is told: {:?}", typing.news(&[ROOM], since)))
            .position
    }

    /// Says it until somebody hears it: who is not connected yet loses it.
    async fn type_until_told(at: &Typing, typing: &Typing) -> EphemeralPosition {
        loop {
            at.set(ROOM, ALICE, Some(60_000));
            if let Ok(position) = timeout(Duration::from_millis(100), told(typing, NOBODY, &[ALICE])).await {
                return position;
            }
        }
    }

    #[tokio::test]
    async fn a_reader_moves_between_processes_and_misses_nothing() {
        let Some(url) = redis_url() else { return };
        let name = some_name();
        let [one, two] = [(); 2].map(|()| Typing::redis(&url, &name, Clock::system(), &Random::system()).unwrap());
        let seen = type_until_told(&one, &two).await;
        assert_eq!(told(&one, NOBODY, &[ALICE]).await, seen, "one life for both");
        assert_eq!(one.news(&[ROOM], seen), TypingNews { changes: vec![], position: seen }, "told once, wherever");
        two.set(ROOM, BOB, Some(60_000));
        let seen = told(&one, seen, &[ALICE, BOB]).await;
        one.set(ROOM, ALICE, None);
        let seen = told(&two, seen, &[BOB]).await;
        told(&one, NOBODY, &[BOB]).await;
        two.set(ROOM, BOB, None);
        assert_eq!(told(&one, seen, &[]).await, NOBODY);
        // Others in the same Redis have nothing to do with it.
        let other = Typing::redis(&url, &some_name(), Clock::system(), &Random::system()).unwrap();
        one.set(ROOM, ALICE, Some(60_000));
        let at_other = type_until_told(&other, &other).await;
        assert_ne!(at_other.incarnation, told(&two, NOBODY, &[ALICE]).await.incarnation);
    }

    #[tokio::test]
    async fn time_ends_typing_at_all_processes() {
        let Some(url) = redis_url() else { return };
        let name = some_name();
        let [one, two] = [(); 2].map(|()| process(&url, &name, &name, 100));
        let seen = type_until_told(&one, &two).await;
        // The process where it was said is gone: the others do not need it for the end.
        one.set(ROOM, BOB, Some(60_000));
        let seen = told(&two, seen, &[ALICE, BOB]).await;
        one.set(ROOM, ALICE, Some(1));
        told(&one, NOBODY, &[BOB]).await;
        one.set(ROOM, BOB, Some(1));
        told(&one, seen, &[]).await;
        drop(one);
        assert_eq!(told(&two, seen, &[]).await, NOBODY);
    }

    /// What is published is lost where nobody listens: a process with another channel hears nothing ever.
    #[tokio::test]
    async fn a_process_that_hears_nothing_learns_all_the_same() {
        let Some(url) = redis_url() else { return };
        let name = some_name();
        let (one, deaf) = (process(&url, &name, &name, 100), process(&url, &name, &some_name(), 100));
        let seen = type_until_told(&one, &deaf).await;
        one.set(ROOM, ALICE, None);
        assert_eq!(told(&deaf, seen, &[]).await, NOBODY);
    }

    #[tokio::test]
    async fn a_redis_that_forgot_or_went_back_begins_a_new_life() {
        let Some(url) = redis_url() else { return };
        let name = some_name();
        let (one, two) = (process(&url, &name, &name, 100), process(&url, &name, &name, 100));
        let seen = type_until_told(&one, &two).await;
        let mut raw = Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
        let keys = ["", ":until", ":rooms", ":users"].map(|part| format!("{{{name}}}:typing{part}"));
        ::redis::cmd("DEL").arg(&keys).query_async::<()>(&mut raw).await.unwrap();
        assert_eq!(told(&one, seen, &[]).await, NOBODY);
        assert_eq!(told(&two, seen, &[]).await, NOBODY);
        let seen = type_until_told(&one, &two).await;
        ::redis::cmd("HSET").arg(&keys[0]).arg(&["position", "0"]).query_async::<()>(&mut raw).await.unwrap();
        assert_eq!(told(&one, seen, &[]).await, NOBODY);
        assert_eq!(told(&two, seen, &[]).await, NOBODY);
    }

    #[tokio::test]
    async fn nobody_types_for_ever_while_redis_is_away() {
        let Some(url) = redis_url() else { return };
        let name = some_name();
        let proxy = RedisProxy::start(&url).await;
        let (one, two) = (process(&url, &name, &name, 100), process(proxy.url(), &name, &name, 100));
        let seen = type_until_told(&one, &two).await;
        proxy.cut();
        one.set(ROOM, ALICE, None);
        assert_eq!(told(&two, seen, &[]).await, NOBODY);
        one.set(ROOM, BOB, Some(60_000));
        told(&one, NOBODY, &[BOB]).await;
        assert_eq!(two.news(&[ROOM], NOBODY), TypingNews::default(), "it cannot know");
        proxy.heal();
        told(&two, NOBODY, &[BOB]).await;
        // Who saw the end of it at the other process hears of the next change here.
        let seen = told(&one, seen, &[BOB]).await;
        one.set(ROOM, BOB, None);
        assert_eq!(told(&two, seen, &[]).await, NOBODY);
    }

    #[tokio::test]
    async fn redis_keeps_few_rooms_and_tells_who_it_forgot() {
        let Some(url) = redis_url() else { return };
        let name = some_name();
        let (one, two) = (process(&url, &name, &name, 4), process(&url, &name, &name, 4));
        let seen = type_until_told(&one, &two).await;
        let early = RoomNr(2);
        one.set(early, BOB, Some(60_000));
        one.set(early, BOB, None);
        for room in 3..40 {
            one.set(RoomNr(room), BOB, Some(60_000));
            one.set(RoomNr(room), BOB, None);
        }
        one.set(ROOM, BOB, Some(60_000));
        told(&two, NOBODY, &[ALICE, BOB]).await;
        let counts = |typing: &Typing| typing.shared.state.lock().unwrap().rooms.len();
        assert!(counts(&two) <= 5, "{} rooms", counts(&two));
        let news = two.news(&[ROOM, early], seen);
        assert_eq!(news.changes, [change(ROOM, &[ALICE, BOB]), change(early, &[])]);
        let all = [2, 3, 4].map(RoomNr);
        for room in all {
            one.set(room, BOB, Some(60_000));
        }
        one.set(RoomNr(50), BOB, Some(60_000));
        one.set(ROOM, BOB, None);
        told(&two, NOBODY, &[ALICE]).await;
        let news = two.news(&[RoomNr(4), RoomNr(50)], NOBODY);
        assert_eq!(news.changes, [change(RoomNr(4), &[BOB])], "more rooms than can be kept show nobody");
    }
}
