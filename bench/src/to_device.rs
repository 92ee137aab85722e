//! `bench to-device`: one message to many devices, what others feel of it, and when the devices have it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::timeout,
};

use crate::{
    Target,
    client::Connection,
    fanout::{GRACE, POLL_MS},
    matrix::{self, User},
    percentiles::Samples,
    probe::Probe,
    process::Meter,
    report::{Report, progress},
    setup::{self, Plan},
};

/// Options of `bench to-device`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Devices that get each message, each of another user.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    devices: u32,
    /// Messages, one after the other.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    messages: u32,
    /// Size of the text of a message, in bytes; that of an encrypted room key is about 1,300.
    #[arg(long, default_value_t = 1_300, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    text_bytes: u32,
}

/// Runs the benchmark.
pub(crate) async fn run(target: &Target, options: &Options) -> Result<()> {
    let users = options.devices as usize;
    let plan = Plan { users, rooms: 1, members: 1, messages: 0, text_bytes: 0 };
    let world = setup::build(target, plan).await?;
    let body = |number| matrix::message_to_devices(&world.users, number, options.text_bytes as usize);
    let run = setup::run_name();

    progress("sending");
    let probe = Probe::start(target, &world.users[0], &world.rooms[0]);
    let mut connection = setup::connection(target, 0);
    let mut samples = Samples::default();
    let meter = Meter::start(&setup::processes(target))?;
    for number in 0..options.messages {
        let body = body(number.into());
        let start = Instant::now();
        matrix::send_to_devices(&mut connection, &world.users[0], &format!("{run}d{number}"), body).await?;
        samples.add(start.elapsed());
    }
    let cost = meter.stop()?;
    let probed = probe.stop().await?;

    progress("opening the long polls");
    let (heard, mut hearing) = unbounded_channel();
    let mut polls = JoinSet::new();
    for (index, user) in world.users.iter().enumerate() {
        let mut connection = setup::connection(target, index);
        let since = up_to_date(&mut connection, user).await?;
        polls.spawn(listen(connection, user.clone(), since, heard.clone()));
    }
    drop(heard);
    let (mut deliveries, mut to_all) = (Samples::default(), Samples::default());
    for number in options.messages..=2 * options.messages {
        // The first one waits until all polls have arrived, and is not measured.
        let is_first = number == options.messages;
        let body = body(number.into());
        let start = Instant::now();
        matrix::send_to_devices(&mut connection, &world.users[0], &format!("{run}d{number}"), body).await?;
        let patience = if is_first { 6 * GRACE } else { GRACE };
        let heard = hear(&mut hearing, number.into(), users, start, patience).await?;
        if !is_first {
            to_all.add(heard.iter().copied().max().unwrap_or_default());
            heard.into_iter().for_each(|latency| deliveries.add(latency));
        }
    }
    polls.abort_all();

    let mut report = Report::new("to-device");
    report.count("devices", u64::from(options.devices)).count("messages", u64::from(options.messages));
    report.count("sends_beside", probed.len() as u64);
    report.latencies("latency", samples);
    report.latencies("send_beside", probed);
    report.latencies("send_to_sync", deliveries).latencies("send_to_last_sync", to_all);
    report.cost(cost, "message", u64::from(options.messages));
    report.print(target.json);
    Ok(())
}

/// Syncs until nothing waits any more; gives the token behind all.
async fn up_to_date(connection: &mut Connection, user: &User) -> Result<String> {
    let mut since = None;
    loop {
        let synced = matrix::sync(connection, user, "", 0, since.as_deref()).await?;
        if since.is_some() && matrix::numbers_in(&synced.body).is_empty() {
            return Ok(synced.next_batch);
        }
        since = Some(synced.next_batch);
    }
}

/// Long-polls, and tells which messages come when.
async fn listen(
    mut connection: Connection,
    user: User,
    mut since: String,
    heard: UnboundedSender<(u64, Instant)>,
) -> Result<()> {
    loop {
        let synced = matrix::sync(&mut connection, &user, "", POLL_MS, Some(&since)).await?;
        let now = Instant::now();
        since = synced.next_batch;
        for number in matrix::numbers_in(&synced.body) {
            heard.send((number, now))?;
        }
    }
}

/// Waits until all have heard a message, `patience` for each; gives how long it took to each.
async fn hear(
    hearing: &mut UnboundedReceiver<(u64, Instant)>,
    number: u64,
    listeners: usize,
    start: Instant,
    patience: Duration,
) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(listeners);
    for count in 0..listeners {
        let Ok(heard) = timeout(patience, hearing.recv()).await else {
            bail!("{count} of {listeners} heard the message")
        };
        let (heard, at) = heard.context("the listeners have ended")?;
        if heard != number {
            bail!("message {heard} came in place of {number}");
        }
        latencies.push(at - start);
    }
    Ok(latencies)
}
