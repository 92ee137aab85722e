//! `bench to-device`: one message to many devices, and what others feel of it.

use std::time::Instant;

use anyhow::Result;

use crate::{
    Target, matrix,
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
    /// Size of the text of a message, in bytes.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    text_bytes: u32,
}

/// Runs the benchmark.
pub(crate) async fn run(target: &Target, options: &Options) -> Result<()> {
    let users = options.devices as usize;
    let plan = Plan { users, rooms: 1, members: 1, messages: 0, text_bytes: 0 };
    let world = setup::build(target, plan).await?;
    let body = matrix::message_to_devices(&world.users, options.text_bytes as usize);
    let run = setup::run_name();

    progress("sending");
    let probe = Probe::start(target, &world.users[0], &world.rooms[0]);
    let mut connection = setup::connection(target, 0);
    let mut samples = Samples::default();
    let meter = Meter::start(&setup::processes(target))?;
    for number in 0..options.messages {
        let start = Instant::now();
        matrix::send_to_devices(&mut connection, &world.users[0], &format!("{run}d{number}"), body.clone()).await?;
        samples.add(start.elapsed());
    }
    let cost = meter.stop()?;
    let probed = probe.stop().await?;

    let mut report = Report::new("to-device");
    report.count("devices", u64::from(options.devices)).count("messages", u64::from(options.messages));
    report.count("sends_beside", probed.len() as u64);
    report.latencies("latency", samples);
    report.latencies("send_beside", probed);
    report.cost(cost, "message", u64::from(options.messages));
    report.print(target.json);
    Ok(())
}
