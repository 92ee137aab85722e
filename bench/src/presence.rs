//! `bench presence`: what it costs that users who share rooms come, go and move.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    Target,
    matrix::{self, User},
    percentiles::Samples,
    process::{self, Meter, Processes},
    report::{Report, progress},
    setup::{self, Plan},
};

/// How long a long poll waits, in milliseconds, as clients do.
const POLL_MS: u64 = 30_000;

/// Options of `bench presence`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Users, each with a long poll that waits.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(2..=20_000))]
    users: u32,
    /// Sizes of rooms; there are as many rooms of each size as it takes to have every user in one of them.
    #[arg(long, default_value = "10,100,1000", value_delimiter = ',')]
    sizes: Vec<u32>,
    /// How often each user changes their state, a minute.
    #[arg(long, default_value_t = 1.0)]
    changes_per_minute: f64,
    /// Seconds that are measured, once without changes and once with.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=600))]
    seconds: u64,
}

/// Runs the benchmark.
pub(crate) async fn run(target: &Target, options: &Options) -> Result<()> {
    let users = options.users as usize;
    let plan = Plan { users, rooms: 0, members: 1, messages: 0, text_bytes: 0 };
    let world = setup::build(target, plan).await?;
    for size in &options.sizes {
        let members = (*size as usize).clamp(2, users);
        let rooms = users.div_ceil(members);
        setup::add_rooms(target, &world.users, Plan { rooms, members, ..plan }).await?;
    }

    progress("opening long polls");
    let told = Arc::new(AtomicU64::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let mut polls = JoinSet::new();
    for (index, user) in world.users.iter().cloned().enumerate() {
        let mut connection = setup::connection(target, index);
        let token = matrix::sync(&mut connection, &user, "", 0, None).await?.next_batch;
        let (told, is_over) = (told.clone(), is_over.clone());
        polls.spawn(async move {
            let mut token = token;
            while !is_over.load(Ordering::Relaxed) {
                let synced = matrix::sync(&mut connection, &user, "", POLL_MS, Some(&token)).await?;
                told.fetch_add(events_in(&synced.body), Ordering::Relaxed);
                token = synced.next_batch;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    // Everybody is told that everybody is there, and, after a minute, that nobody is active any more.
    sleep(Duration::from_secs(80)).await;
    let processes = setup::processes(target);
    for changes_per_minute in [0.0, options.changes_per_minute] {
        measure(target, options, &processes, &world.users, changes_per_minute, &told).await?;
    }
    is_over.store(true, Ordering::Relaxed);
    polls.shutdown().await;
    Ok(())
}

async fn measure(
    target: &Target,
    options: &Options,
    processes: &Processes,
    users: &[User],
    changes_per_minute: f64,
    told: &AtomicU64,
) -> Result<()> {
    progress(&format!("{changes_per_minute} changes a minute of each user, for {} seconds", options.seconds));
    let mut connection = setup::connection(target, 0);
    let before = told.load(Ordering::Relaxed);
    let meter = Meter::start(processes)?;
    let (started, duration) = (Instant::now(), Duration::from_secs(options.seconds));
    let mut latencies = Samples::default();
    let mut changes = 0_u64;
    if changes_per_minute > 0.0 {
        let every = Duration::from_secs_f64(60.0 / changes_per_minute / users.len() as f64);
        while started.elapsed() < duration {
            let user = &users[changes as usize % users.len()];
            let round = changes as usize / users.len();
            let presence = if round.is_multiple_of(2) { "unavailable" } else { "online" };
            let sent = Instant::now();
            matrix::set_presence(&mut connection, user, presence).await?;
            latencies.add(sent.elapsed());
            changes += 1;
            sleep((every * changes as u32).saturating_sub(started.elapsed())).await;
        }
    } else {
        sleep(duration).await;
    }
    let cost = meter.stop()?;
    let mut report = Report::new("presence");
    report.count("users", users.len() as u64).number("changes_per_minute", changes_per_minute);
    report.count("changes", changes).count("events_told", told.load(Ordering::Relaxed) - before);
    report.latencies("change_latency", latencies).cost(cost, "change", changes);
    report.memory("server_memory", process::resident_bytes(&processes.server)?);
    report.print(target.json);
    Ok(())
}

/// How many events about presence an answer has.
fn events_in(answer: &[u8]) -> u64 {
    const MARK: &[u8] = b"\"m.presence\"";
    answer.windows(MARK.len()).filter(|window| *window == MARK).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_of_an_answer_are_counted() {
        assert_eq!(events_in(br#"{"presence":{"events":[{"type":"m.presence"},{"type":"m.presence"}]}}"#), 2);
        assert_eq!(events_in(b"{}"), 0);
    }
}
