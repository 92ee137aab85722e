//! `bench fanout`: how long a message takes from the send to the long polls of many listeners.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{
    task::JoinSet,
    time::{sleep_until, timeout_at},
};

use crate::{
    Target,
    client::Connection,
    matrix::{self, User},
    percentiles::Samples,
    process::{self, Meter},
    report::{Report, progress},
    setup::{self, Plan},
};

/// How long the last message may take to everybody.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// How long a long poll waits, in milliseconds.
pub(crate) const POLL_MS: u64 = 30_000;

/// Options of `bench fanout`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Members of the room that long-poll, each on a connection of its own.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    listeners: u32,
    /// Messages a second.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Seconds of the same load before the measurement.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    warm_up: u64,
    /// Connections that send in turn.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    senders: u32,
    /// Bytes of the text of a message.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=50_000))]
    text_bytes: u32,
}

/// What senders and listeners share.
pub(crate) struct Broadcast {
    pub(crate) began: Instant,
    pub(crate) interval: Duration,
    /// When each message was sent, in nanoseconds since the beginning; zero: not yet.
    pub(crate) sent_at: Vec<AtomicU64>,
    /// Messages before this one warm up.
    pub(crate) measured_from: u64,
    /// When listeners stop waiting.
    pub(crate) ends: Instant,
}

/// What one listener saw.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) latencies: Samples,
    pub(crate) missed: u64,
    pub(crate) doubled: u64,
    pub(crate) polls: u64,
    pub(crate) error: Option<String>,
}

/// Runs the benchmark.
pub(crate) async fn run(target: &Target, options: &Options) -> Result<()> {
    let listeners = options.listeners as usize;
    let plan = Plan { users: listeners + 1, rooms: 1, members: listeners + 1, messages: 1, text_bytes: 50 };
    let world = setup::build(target, plan).await?;
    let room = &world.rooms[0];
    let sender = world.users[room.members[0]].clone();

    progress("opening the long polls");
    let query = query();
    let mut ready = Vec::new();
    for (index, member) in room.members.iter().skip(1).enumerate() {
        let mut connection = setup::connection(target, index);
        let user = world.users[*member].clone();
        let synced = matrix::sync(&mut connection, &user, &query, 0, None).await?;
        ready.push((connection, user, synced.next_batch));
    }

    let measured = u64::from(options.rate) * options.seconds;
    let warm_up = u64::from(options.rate) * options.warm_up;
    let interval = Duration::from_secs(1) / options.rate;
    // The first message comes when the polls of all listeners have had time to arrive.
    let began = Instant::now() + Duration::from_secs(1);
    let broadcast = Arc::new(Broadcast {
        began,
        interval,
        sent_at: (0..warm_up + measured).map(|_| AtomicU64::new(0)).collect(),
        measured_from: warm_up,
        ends: began + Duration::from_secs(options.warm_up + options.seconds) + GRACE,
    });
    let mut hearing = JoinSet::new();
    for (connection, user, since) in ready {
        hearing.spawn(listen(broadcast.clone(), connection, user, query.clone(), since));
    }
    let mut sending = JoinSet::new();
    let (path, run) = (matrix::send_path(&room.id), setup::run_name());
    for index in 0..options.senders {
        let mut connection = setup::connection(target, index as usize);
        connection.open().await?;
        let turn = Turn { index: index.into(), of: options.senders.into() };
        let message = Message { path: path.clone(), run: run.clone(), text_bytes: options.text_bytes as usize };
        sending.spawn(speak(broadcast.clone(), connection, sender.clone(), turn, message));
    }

    progress(&format!("{} messages to {} listeners", warm_up + measured, listeners));
    let processes = setup::processes(target);
    sleep_until((began + Duration::from_secs(options.warm_up)).into()).await;
    let meter = Meter::start(&processes)?;
    let mut acknowledgements = Samples::default();
    while let Some(done) = sending.join_next().await {
        acknowledgements.merge(done.context("a sender failed")??);
    }
    let mut all = Heard::default();
    while let Some(heard) = hearing.join_next().await {
        let heard = heard.context("a listener failed")?;
        all.latencies.merge(heard.latencies);
        all.missed += heard.missed;
        all.doubled += heard.doubled;
        all.polls += heard.polls;
        all.error = all.error.or(heard.error);
    }
    let cost = meter.stop()?;

    let deliveries = all.latencies.len() as u64;
    let mut report = Report::new("fanout");
    report.count("listeners", options.listeners.into()).count("rate_asked_per_s", options.rate.into());
    report.count("messages", measured).count("deliveries", deliveries).count("polls", all.polls);
    report.number("deliveries_per_s", deliveries as f64 / cost.wall.as_secs_f64());
    report.count("missed", all.missed).count("doubled", all.doubled);
    report.latencies("send_to_sync", all.latencies).latencies("send", acknowledgements);
    report.cost(cost, "delivery", deliveries);
    report.memory("server_memory", process::resident_bytes(&processes.server)?);
    report.print(target.json);
    if all.missed + all.doubled > 0 || all.error.is_some() {
        let error = all.error.unwrap_or_else(|| "no error".to_owned());
        bail!("{} deliveries missing, {} doubled ({error})", all.missed, all.doubled);
    }
    Ok(())
}

/// A filter that asks for all that a busy second may bring, and for no presence.
pub(crate) fn query() -> String {
    let filter =
        r#"{"presence":{"not_types":["*"]},"room":{"timeline":{"limit":1000},"state":{"lazy_load_members":true}}}"#;
    format!("filter={}&", matrix::encode(filter))
}

/// Which messages a sender sends: number `index`, `index + of` …
pub(crate) struct Turn {
    pub(crate) index: u64,
    pub(crate) of: u64,
}

pub(crate) struct Message {
    pub(crate) path: String,
    pub(crate) run: String,
    pub(crate) text_bytes: usize,
}

pub(crate) async fn speak(
    broadcast: Arc<Broadcast>,
    mut connection: Connection,
    user: User,
    turn: Turn,
    message: Message,
) -> Result<Samples> {
    let mut acknowledgements = Samples::default();
    let mut number = turn.index;
    while let Some(sent_at) = broadcast.sent_at.get(number as usize) {
        let due = broadcast.began + broadcast.interval.mul_f64(number as f64);
        sleep_until(due.into()).await;
        let transaction_id = format!("{}m{number}", message.run);
        let body = matrix::numbered_message(number, message.text_bytes);
        let started = Instant::now();
        let since_the_beginning = (started - broadcast.began).as_nanos();
        sent_at.store(u64::try_from(since_the_beginning)?.max(1), Ordering::Release);
        matrix::send(&mut connection, &user, &message.path, &transaction_id, body).await?;
        if number >= broadcast.measured_from {
            acknowledgements.add(started.elapsed());
        }
        number += turn.of;
    }
    Ok(acknowledgements)
}

/// Long-polls until every message was heard or the time is up.
pub(crate) async fn listen(
    broadcast: Arc<Broadcast>,
    mut connection: Connection,
    user: User,
    query: String,
    mut since: String,
) -> Heard {
    let mut heard = Heard::default();
    let mut seen = Seen::new(broadcast.sent_at.len());
    while seen.missing > 0 {
        let poll = matrix::sync(&mut connection, &user, &query, POLL_MS, Some(&since));
        let synced = match timeout_at(broadcast.ends.into(), poll).await {
            Ok(Ok(synced)) => synced,
            Ok(Err(error)) => {
                heard.error = Some(format!("{error:#}"));
                break;
            }
            Err(_) => break,
        };
        let now = broadcast.began.elapsed();
        heard.polls += 1;
        since = synced.next_batch;
        for number in matrix::numbers_in(&synced.body) {
            match seen.mark(number) {
                Some(true) if number >= broadcast.measured_from => {
                    let sent_at = broadcast.sent_at[number as usize].load(Ordering::Acquire);
                    heard.latencies.add(now.saturating_sub(Duration::from_nanos(sent_at)));
                }
                Some(false) => heard.doubled += 1,
                _ => {}
            }
        }
    }
    heard.missed = seen.missing;
    heard
}

/// Which messages a listener has heard.
struct Seen {
    heard: Vec<bool>,
    missing: u64,
}

impl Seen {
    fn new(messages: usize) -> Self {
        Self { heard: vec![false; messages], missing: messages as u64 }
    }

    /// `true` when heard for the first time, `None` when there is no such message.
    fn mark(&mut self, number: u64) -> Option<bool> {
        let heard = self.heard.get_mut(usize::try_from(number).ok()?)?;
        let first = !std::mem::replace(heard, true);
        self.missing -= u64::from(first);
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_counts_once() {
        let mut seen = Seen::new(2);
        assert_eq!(seen.mark(1), Some(true));
        assert_eq!(seen.mark(1), Some(false));
        assert_eq!(seen.mark(2), None);
        assert_eq!(seen.missing, 1);
    }
}
