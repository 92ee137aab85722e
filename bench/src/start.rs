//! `bench start`: how long a server takes until it answers, and its memory at rest.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    Target,
    matrix::wait_until_ready,
    percentiles::Samples,
    process,
    report::{Report, progress},
    setup,
};

/// How long a server may take to answer, and to stop.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Time between two questions whether the server answers.
const PAUSE: Duration = Duration::from_millis(2);

/// Options of `bench start`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How many times it is started and stopped; the first may have to make its database.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: u32,
    /// Seconds of rest before its memory is read.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    rest: u64,
    /// The command with its arguments; it must listen on `--url` and stop on SIGTERM.
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

/// Runs the benchmark.
pub(crate) async fn run(target: &Target, options: &Options) -> Result<()> {
    if wait_until_ready(&mut setup::connection(target, 0), 1, Duration::ZERO).await.is_ok() {
        bail!("something answers there already");
    }
    let (mut starts, mut stops, mut memory) = (Samples::default(), Samples::default(), Vec::new());
    let mut first = None;
    for run in 0..options.runs {
        progress(&format!("start {} of {}", run + 1, options.runs));
        let started = Instant::now();
        let mut child = Command::new(&options.command[0])
            .args(&options.command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", options.command[0]))?;
        wait_until_answering(target, &mut child).await?;
        let took = started.elapsed();
        first.get_or_insert(took);
        starts.add(took);

        sleep(Duration::from_secs(options.rest)).await;
        let pid = child.id().context("it ended by itself")?;
        memory.extend(process::resident_bytes(&[pid])?);
        let stopping = Instant::now();
        let asked = Command::new("kill").arg("-TERM").arg(pid.to_string()).status().await?;
        if !asked.success() {
            bail!("cannot send SIGTERM to {pid}");
        }
        timeout(WAIT_MAX, child.wait()).await.context("it does not stop on SIGTERM")??;
        stops.add(stopping.elapsed());
    }
    memory.sort_unstable();
    let mut report = Report::new("start");
    report.count("runs", options.runs.into());
    if let Some(first) = first {
        report.milliseconds("first_start", first);
    }
    report.latencies("start", starts).latencies("stop", stops);
    report.memory("memory_at_rest", memory.get(memory.len() / 2).copied());
    report.print(target.json);
    Ok(())
}

async fn wait_until_answering(target: &Target, child: &mut Child) -> Result<()> {
    let mut connection = setup::connection(target, 0);
    let tries = u32::try_from(WAIT_MAX.as_millis() / PAUSE.as_millis()).unwrap_or(u32::MAX);
    tokio::select! {
        ready = wait_until_ready(&mut connection, tries, PAUSE) => ready,
        ended = child.wait() => bail!("it ended before it answered: {}", ended?),
    }
}
