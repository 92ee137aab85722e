//! `bench send`: how many messages a second are acknowledged, and how fast.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{task::JoinSet, time::sleep_until};

use crate::{
    Target,
    client::Connection,
    matrix::{self, User},
    percentiles::Samples,
    process::{self, Meter},
    report::{Report, progress},
    setup::{self, Plan, World},
};

/// Users at most, so that the setup of a large trial ends.
const USERS_MAX: usize = 10_000;

/// Options of `bench send`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Connections, each with one request in flight.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Rooms that the messages go to in turn.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rooms: u32,
    /// Members of each room; they send in turn.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    members: u32,
    /// Users in all; the default is rooms × members, at most 1,000 more than one room needs.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    users: Option<u32>,
    /// Bytes of the text of a message; 200 make an event of about 600 bytes.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=50_000))]
    text_bytes: u32,
    /// Messages a second in all (open loop); without it every connection sends as soon as it has its answer (closed loop).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Seconds that are measured, at most.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Messages that are measured, at most.
    #[arg(long, default_value_t = 10_000_000)]
    count: u64,
    /// Seconds of the same load before the measurement.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    warm_up: u64,
    /// Data folder of the server: prints how many bytes of disk a message took.
    #[arg(long)]
    data_folder: Option<PathBuf>,
}

/// What all connections share.
struct Load {
    /// Who sends where; connection `c` of `n` takes number `c`, `c + n`, `c + 2n` …
    senders: Vec<(User, String)>,
    run: String,
    connections: u64,
    text_bytes: usize,
    began: Instant,
    measured_from: Instant,
    ends: Instant,
    /// Seconds between two messages in all; zero in a closed loop.
    interval: f64,
    /// Messages that may still be measured.
    left: AtomicU64,
}

/// What one connection saw.
#[derive(Default)]
struct Outcome {
    latencies: Samples,
    events: Vec<String>,
    errors: u64,
    first_error: Option<String>,
}

/// Runs the benchmark.
pub(crate) async fn run(target: &Target, options: &Options) -> Result<()> {
    let (rooms, members) = (options.rooms as usize, options.members as usize);
    let users = options.users.map_or((rooms * members).clamp(members, members.max(1_000)), |users| users as usize);
    let plan = Plan { users: users.min(USERS_MAX), rooms, members, messages: 0, text_bytes: 0 };
    let world = setup::build(target, plan).await?;

    let mut connections = Vec::new();
    for index in 0..options.connections as usize {
        let mut connection = setup::connection(target, index);
        connection.open().await?;
        connections.push(connection);
    }
    let processes = setup::processes(target);
    let disk_before = options.data_folder.as_deref().map(process::folder_bytes).transpose()?;
    let memory_before = process::resident_bytes(&processes.server)?;

    progress(&format!("sending for {} + {} seconds at most", options.warm_up, options.seconds));
    let load = Arc::new(load(options, world));
    let mut tasks = JoinSet::new();
    for (index, connection) in connections.into_iter().enumerate() {
        tasks.spawn(send_messages(load.clone(), connection, index as u64));
    }
    sleep_until(load.measured_from.into()).await;
    let meter = Meter::start(&processes)?;
    let mut all = Outcome::default();
    while let Some(outcome) = tasks.join_next().await {
        let outcome = outcome.context("a sender failed")?;
        all.latencies.merge(outcome.latencies);
        all.events.extend(outcome.events);
        all.errors += outcome.errors;
        all.first_error = all.first_error.or(outcome.first_error);
    }
    let cost = meter.stop()?;

    let (acknowledged, sent) = (all.events.len() as u64, all.latencies.len() as u64);
    let distinct = all.events.iter().collect::<HashSet<_>>().len() as u64;
    let mut report = Report::new("send");
    report.text("loop", if options.rate.is_some() { "open" } else { "closed" });
    report.count("connections", options.connections.into());
    report.count("rooms", plan.rooms as u64).count("members", plan.members as u64).count("users", plan.users as u64);
    report.count("text_bytes", options.text_bytes.into());
    if let Some(rate) = options.rate {
        report.count("rate_asked_per_s", rate.into());
    }
    report.count("sends", sent).number("sends_per_s", sent as f64 / cost.wall.as_secs_f64());
    report.count("errors", all.errors).count("doubled_event_ids", acknowledged - distinct);
    report.latencies("latency", all.latencies).cost(cost, "send", sent);
    report.memory("server_memory_before", memory_before);
    report.memory("server_memory_after", process::resident_bytes(&processes.server)?);
    if let (Some(folder), Some(before)) = (&options.data_folder, disk_before) {
        let grown = process::folder_bytes(folder)?.saturating_sub(before);
        report.number("disk_per_send_bytes", grown as f64 / acknowledged.max(1) as f64);
    }
    report.print(target.json);
    if all.errors > 0 {
        bail!("{} sends failed, the first with: {}", all.errors, all.first_error.unwrap_or_default());
    }
    if acknowledged != distinct {
        bail!("{} event ids were given twice", acknowledged - distinct);
    }
    Ok(())
}

fn load(options: &Options, world: World) -> Load {
    // All first members, then all second members …: neighbours in time are in different rooms.
    let mut senders = Vec::new();
    for turn in 0..options.members as usize {
        for room in &world.rooms {
            if let Some(member) = room.members.get(turn) {
                senders.push((world.users[*member].clone(), matrix::send_path(&room.id)));
            }
        }
    }
    let began = Instant::now();
    let measured_from = began + Duration::from_secs(options.warm_up);
    Load {
        senders,
        run: setup::run_name(),
        connections: options.connections.into(),
        text_bytes: options.text_bytes as usize,
        began,
        measured_from,
        ends: measured_from + Duration::from_secs(options.seconds),
        interval: options.rate.map_or(0.0, |rate| 1.0 / f64::from(rate)),
        left: AtomicU64::new(options.count),
    }
}

/// Sends until time or count is up. Errors are counted, not fatal; after many in a row the connection gives up.
async fn send_messages(load: Arc<Load>, mut connection: Connection, index: u64) -> Outcome {
    const ERRORS_IN_A_ROW_MAX: u32 = 100;
    let mut outcome = Outcome::default();
    let mut errors_in_a_row = 0;
    let mut number = index;
    while errors_in_a_row < ERRORS_IN_A_ROW_MAX {
        let Some(started) = next_start(&load, number).await else { break };
        let measured = started >= load.measured_from;
        if measured && load.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
        {
            break;
        }
        let (user, path) = &load.senders[(number % load.senders.len() as u64) as usize];
        let transaction_id = format!("{}m{number}", load.run);
        let body = matrix::numbered_message(number, load.text_bytes);
        match matrix::send(&mut connection, user, path, &transaction_id, body).await {
            Ok(event_id) => {
                errors_in_a_row = 0;
                outcome.events.push(event_id);
                if measured {
                    outcome.latencies.add(started.elapsed());
                }
            }
            Err(error) => {
                errors_in_a_row += 1;
                outcome.errors += 1;
                outcome.first_error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
        number += load.connections;
    }
    outcome
}

/// Waits until message `number` is due, and says from when its latency counts; `None` at the end.
///
/// In an open loop a message that is late because the one before took long counts from when it was due. One that waited for
/// the timer counts from the wake-up: timers tick in milliseconds.
async fn next_start(load: &Load, number: u64) -> Option<Instant> {
    let now = Instant::now();
    if load.interval == 0.0 {
        return (now < load.ends).then_some(now);
    }
    let due = load.began + Duration::from_secs_f64(load.interval * number as f64);
    if due >= load.ends {
        return None;
    }
    // A server that is hopelessly late must not keep the benchmark going.
    if now > load.ends + Duration::from_secs(10) {
        return None;
    }
    if due <= now {
        return Some(due);
    }
    sleep_until(due.into()).await;
    Some(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_of(interval: f64, began: Instant) -> Load {
        Load {
            senders: Vec::new(),
            run: String::new(),
            connections: 1,
            text_bytes: 0,
            began,
            measured_from: began,
            ends: began + Duration::from_secs(1),
            interval,
            left: AtomicU64::new(0),
        }
    }

    #[tokio::test]
    async fn a_late_message_of_an_open_loop_counts_from_when_it_was_due() {
        let now = Instant::now();
        let began = now.checked_sub(Duration::from_millis(500)).unwrap();
        assert_eq!(next_start(&load_of(0.1, began), 2).await, Some(began + Duration::from_millis(200)));
    }

    #[tokio::test]
    async fn both_loops_end() {
        let now = Instant::now();
        assert_eq!(next_start(&load_of(0.1, now), 10).await, None);
        let long_ago = now.checked_sub(Duration::from_secs(60)).unwrap();
        assert_eq!(next_start(&load_of(0.0, long_ago), 0).await, None);
        assert_eq!(next_start(&load_of(0.1, long_ago), 0).await, None);
    }
}
