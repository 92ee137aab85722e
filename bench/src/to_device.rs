//! `bench to-device`: one message to many devices, and what others feel of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    Target, matrix,
    percentiles::Samples,
    process::Meter,
    report::{Report, progress},
    setup::{self, Plan},
};

/// How often somebody else sends into a room meanwhile.
const PROBE_EVERY: Duration = Duration::from_millis(10);

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
    let is_over = Arc::new(AtomicBool::new(false));
    let probe = tokio::spawn({
        let (is_over, mut connection) = (is_over.clone(), setup::connection(target, 1));
        let (user, path) = (world.users[0].clone(), matrix::send_path(&world.rooms[0].id));
        let run = run.clone();
        async move {
            let mut samples = Samples::default();
            let mut ticks = interval(PROBE_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                ticks.tick().await;
                let start = Instant::now();
                let body = matrix::numbered_message(number, 200);
                matrix::send(&mut connection, &user, &path, &format!("{run}p{number}"), body).await?;
                samples.add(start.elapsed());
            }
            anyhow::Ok(samples)
        }
    });
    let mut connection = setup::connection(target, 0);
    let mut samples = Samples::default();
    let meter = Meter::start(&setup::processes(target))?;
    for number in 0..options.messages {
        let start = Instant::now();
        matrix::send_to_devices(&mut connection, &world.users[0], &format!("{run}d{number}"), body.clone()).await?;
        samples.add(start.elapsed());
    }
    is_over.store(true, Ordering::Relaxed);
    let cost = meter.stop()?;
    let probed = probe.await??;

    let mut report = Report::new("to-device");
    report.count("devices", u64::from(options.devices)).count("messages", u64::from(options.messages));
    report.count("sends_beside", probed.len() as u64);
    report.latencies("latency", samples);
    report.latencies("send_beside", probed);
    report.cost(cost, "message", u64::from(options.messages));
    report.print(target.json);
    Ok(())
}
