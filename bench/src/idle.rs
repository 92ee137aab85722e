//! `bench idle`: the memory of an idle long poll.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use crate::{
    Target, matrix,
    process::{self, Meter},
    report::{Report, progress},
    setup::{self, Plan},
};

/// How long a long poll waits, in milliseconds: longer than the measurement takes.
const POLL_MS: u64 = 110_000;
/// Open files that the load generator needs beside its connections.
const OTHER_FILES: usize = 64;

/// Options of `bench idle`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Long polls, each of another user on a connection of its own.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    polls: u32,
    /// Rooms, in which the users are in turn; 0: the users are in no room.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    rooms: u32,
    /// Seconds that the memory is watched while the polls are open.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

/// Runs the benchmark.
pub(crate) async fn run(target: &Target, options: &Options) -> Result<()> {
    if target.pid.is_empty() {
        bail!("the memory of which process? say --pid");
    }
    let polls = options.polls as usize;
    check_open_files(polls)?;
    let rooms = options.rooms as usize;
    let members = polls.checked_div(rooms).unwrap_or(0);
    let plan = Plan { users: polls, rooms, members: members.max(1), messages: 0, text_bytes: 0 };
    let world = setup::build(target, plan).await?;

    progress("first syncs");
    let mut connection = setup::connection(target, 0);
    let mut users = Vec::new();
    for user in world.users {
        let token = matrix::sync(&mut connection, &user, "", 0, None).await?.next_batch;
        // What the server keeps of a user after the first incremental sync is not the poll's.
        let token = matrix::sync(&mut connection, &user, "", 0, Some(&token)).await?.next_batch;
        users.push((user, token));
    }
    sleep(Duration::from_secs(1)).await;
    let processes = setup::processes(target);
    let before = process::resident_bytes(&processes.server)?.context("no process")?;

    progress(&format!("opening {polls} long polls"));
    let mut tasks = JoinSet::new();
    let opening = Arc::new(Semaphore::new(32));
    for (index, (user, token)) in users.into_iter().enumerate() {
        let mut connection = setup::connection(target, index);
        let opening = opening.clone();
        tasks.spawn(async move {
            let permit = opening.acquire_owned().await?;
            connection.open().await?;
            drop(permit);
            matrix::sync(&mut connection, &user, "", POLL_MS, Some(&token)).await
        });
    }
    sleep(Duration::from_secs(2)).await;
    let meter = Meter::start(&processes)?;
    let mut during = 0;
    for _ in 0..options.seconds {
        sleep(Duration::from_secs(1)).await;
        during = process::resident_bytes(&processes.server)?.context("no process")?;
    }
    let cost = meter.stop()?;
    let answered = std::iter::from_fn(|| tasks.try_join_next()).count() as u64;
    tasks.shutdown().await;
    sleep(Duration::from_secs(1)).await;
    let after = process::resident_bytes(&processes.server)?;

    let mut report = Report::new("idle");
    report.count("polls", polls as u64).count("answered_too_early", answered);
    report.memory("server_memory_before", Some(before)).memory("server_memory_during", Some(during));
    report.memory("server_memory_after", after);
    report.number("memory_per_poll_kib", during.saturating_sub(before) as f64 / 1024.0 / polls as f64);
    report.cost(cost, "poll", 0);
    report.print(target.json);
    if answered > 0 {
        bail!("{answered} long polls were answered in place of waiting");
    }
    Ok(())
}

/// Refuses early what would fail in the middle.
fn check_open_files(needed: usize) -> Result<()> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let limit = open_files_limit(&limits).context("/proc/self/limits is not understood")?;
    if limit < needed + OTHER_FILES {
        bail!("{needed} connections need more than {limit} open files: ulimit -n {}", needed + OTHER_FILES);
    }
    Ok(())
}

/// The soft limit of open files in `/proc/self/limits`.
fn open_files_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(usize::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_open_files_is_found() {
        let text = "Limit    Soft Limit  Hard Limit  Units\nMax open files            1024        524288     files \n";
        assert_eq!(open_files_limit(text), Some(1024));
        assert_eq!(open_files_limit(&text.replace("1024  ", "unlimited  ")), Some(usize::MAX));
        assert_eq!(open_files_limit(""), None);
    }
}
