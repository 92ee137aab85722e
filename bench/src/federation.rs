//! `bench federation`: how long a message takes from the send on one server to a long poll on another one.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{task::JoinSet, time::sleep_until};

use crate::{
    Target,
    client::{Address, Connection},
    fanout::{Broadcast, GRACE, Heard, Message, Turn, listen, query, speak},
    matrix,
    percentiles::Samples,
    process::{self, Meter},
    report::{Report, progress},
    setup,
};

/// Options of `bench federation`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Address of the other server, where somebody listens.
    #[arg(long)]
    other: Address,
    /// Rooms that the two servers share.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rooms: u32,
    /// Messages a second, in all rooms together.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Seconds of the same load before the measurement.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=600))]
    warm_up: u64,
    /// Connections that send in turn, each into one of the rooms.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    senders: u32,
    /// Bytes of the text of a message.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=50_000))]
    text_bytes: u32,
}

/// Runs the benchmark.
pub(crate) async fn run(target: &Target, options: &Options) -> Result<()> {
    let run = setup::run_name();
    let secret = target.registration_shared_secret.as_deref();
    let mut here = setup::connection(target, 0);
    let mut there = Connection::new(options.other.clone());
    let sender = matrix::register(&mut here, &format!("{run}sender"), secret).await?;
    let listener = matrix::register(&mut there, &format!("{run}listener"), secret).await?;
    let server = sender.id.split_once(':').map(|(_, server)| server).context("a user id has a server")?;
    let mut rooms = Vec::new();
    for number in 0..options.rooms {
        let room = matrix::create_public_room(&mut here, &sender, &format!("{run} {number}")).await?;
        matrix::join_via(&mut there, &listener, &room, server).await?;
        rooms.push(room);
    }
    progress("the other server is in all rooms");

    let synced = matrix::sync(&mut there, &listener, &query(), 0, None).await?;
    let measured = u64::from(options.rate) * options.seconds;
    let warm_up = u64::from(options.rate) * options.warm_up;
    let began = Instant::now() + Duration::from_secs(1);
    let broadcast = Arc::new(Broadcast {
        began,
        interval: Duration::from_secs(1) / options.rate,
        sent_at: (0..warm_up + measured).map(|_| AtomicU64::new(0)).collect(),
        measured_from: warm_up,
        ends: began + Duration::from_secs(options.warm_up + options.seconds) + GRACE,
    });
    let hearing = tokio::spawn(listen(broadcast.clone(), there, listener, query(), synced.next_batch));
    let mut sending = JoinSet::new();
    for index in 0..options.senders {
        let mut connection = setup::connection(target, index as usize);
        connection.open().await?;
        let turn = Turn { index: index.into(), of: options.senders.into() };
        let path = matrix::send_path(&rooms[index as usize % rooms.len()]);
        let message = Message { path, run: run.clone(), text_bytes: options.text_bytes as usize };
        sending.spawn(speak(broadcast.clone(), connection, sender.clone(), turn, message));
    }
    progress(&format!("{} messages through {} rooms", warm_up + measured, rooms.len()));
    let processes = setup::processes(target);
    sleep_until((began + Duration::from_secs(options.warm_up)).into()).await;
    let meter = Meter::start(&processes)?;
    let measured_from = Instant::now();
    let mut acknowledgements = Samples::default();
    while let Some(done) = sending.join_next().await {
        acknowledgements.merge(done.context("a sender failed")??);
    }
    let heard: Heard = hearing.await.context("the listener failed")?;
    let took = measured_from.elapsed();
    let cost = meter.stop()?;

    let deliveries = heard.latencies.len() as u64;
    let mut report = Report::new("federation");
    report.count("rooms", options.rooms.into()).count("rate_asked_per_s", options.rate.into());
    report.count("messages", measured).count("heard", deliveries).count("polls", heard.polls);
    report.number("heard_per_s", deliveries as f64 / took.as_secs_f64());
    report.count("missed", heard.missed).count("doubled", heard.doubled);
    report.latencies("send_to_sync_there", heard.latencies).latencies("send", acknowledgements);
    report.cost(cost, "message", deliveries);
    report.memory("server_memory", process::resident_bytes(&processes.server)?);
    report.print(target.json);
    if heard.missed + heard.doubled > 0 || heard.error.is_some() {
        let error = heard.error.unwrap_or_else(|| "no error".to_owned());
        bail!("{} messages missing, {} doubled ({error})", heard.missed, heard.doubled);
    }
    Ok(())
}
