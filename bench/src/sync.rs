//! `bench sync`: what an initial and an incremental sync cost.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{
    Target,
    client::Connection,
    matrix::{self, User},
    percentiles::Samples,
    process::{self, Meter, Processes},
    report::{Report, progress},
    setup::{self, Plan, World},
};

/// Options of `bench sync`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Rooms of every user.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rooms: u32,
    /// Users, all of them members of every room.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    members: u32,
    /// Messages in each room before the measurement.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    messages: u32,
    /// Bytes of the text of a message.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=50_000))]
    text_bytes: u32,
    /// Initial syncs that are measured, after the first one of every user.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    initial: u32,
    /// Messages that are sent for the incremental syncs; after each, every user syncs once.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    incremental: u32,
    /// Syncs with nothing new.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    nothing_new: u32,
    /// Shell command between setup and measurement, for instance one that restarts the server to measure it cold.
    #[arg(long)]
    before_measuring: Option<String>,
}

/// Runs the benchmark.
pub(crate) async fn run(target: &Target, options: &Options) -> Result<()> {
    let plan = Plan {
        users: options.members as usize,
        rooms: options.rooms as usize,
        members: options.members as usize,
        messages: options.messages as usize,
        text_bytes: options.text_bytes as usize,
    };
    let world = setup::build(target, plan).await?;
    let mut connection = setup::connection(target, 0);
    let mut processes = setup::processes(target);
    if let Some(command) = &options.before_measuring {
        progress(command);
        let status = tokio::process::Command::new("sh").arg("-c").arg(command).status().await?;
        if !status.success() {
            bail!("`{command}` failed: {status}");
        }
        matrix::wait_until_ready(&mut connection, 3_000, Duration::from_millis(20)).await?;
        // It may have another process id now.
        processes.server.retain(|pid| process::resident_bytes(&[*pid]).is_ok());
    }
    let mut bench = Bench { target, options, world, connection, processes };
    let tokens = bench.first().await?;
    bench.initial().await?;
    let tokens = bench.incremental(tokens).await?;
    bench.nothing_new(&tokens[0]).await
}

struct Bench<'a> {
    target: &'a Target,
    options: &'a Options,
    world: World,
    connection: Connection,
    processes: Processes,
}

impl Bench<'_> {
    /// The first sync of every user's life; answers with their tokens.
    async fn first(&mut self) -> Result<Vec<String>> {
        let meter = Meter::start(&self.processes)?;
        let (mut samples, mut tokens, mut bytes) = (Samples::default(), Vec::new(), 0);
        for user in &self.world.users {
            let started = Instant::now();
            let synced = matrix::sync(&mut self.connection, user, "", 0, None).await?;
            samples.add(started.elapsed());
            bytes = synced.body.len();
            tokens.push(synced.next_batch);
        }
        let mut report = self.report("sync, first of a user");
        report.count("bytes", bytes as u64);
        self.print(report, samples, meter)?;
        Ok(tokens)
    }

    /// Initial syncs of a user who had some before.
    async fn initial(&mut self) -> Result<()> {
        let meter = Meter::start(&self.processes)?;
        let (mut samples, mut bytes) = (Samples::default(), 0);
        for turn in 0..self.options.initial {
            let started = Instant::now();
            // Another timeout each time, so that no server answers with a remembered response.
            let user = &self.world.users[0];
            let synced = matrix::sync(&mut self.connection, user, "", u64::from(turn) + 1, None).await?;
            samples.add(started.elapsed());
            bytes = synced.body.len();
        }
        let mut report = self.report("sync, initial");
        report.count("bytes", bytes as u64);
        self.print(report, samples, meter)
    }

    /// One message, then a sync of everybody that must bring it.
    async fn incremental(&mut self, mut tokens: Vec<String>) -> Result<Vec<String>> {
        // Those before hold what the setup did last; bring everybody to the present.
        for (user, token) in self.world.users.iter().zip(&mut tokens) {
            *token = matrix::sync(&mut self.connection, user, "", 0, Some(token)).await?.next_batch;
        }
        let run = setup::run_name();
        let meter = Meter::start(&self.processes)?;
        let (mut samples, mut bytes) = (Samples::default(), 0);
        let first_number = u64::from(self.options.messages);
        for turn in 0..u64::from(self.options.incremental) {
            let number = first_number + turn;
            let room = &self.world.rooms[turn as usize % self.world.rooms.len()];
            let sender: &User = &self.world.users[turn as usize % self.world.users.len()];
            let body = matrix::numbered_message(number, self.options.text_bytes as usize);
            let path = matrix::send_path(&room.id);
            matrix::send(&mut self.connection, sender, &path, &format!("{run}m{number}"), body).await?;
            for (user, token) in self.world.users.iter().zip(&mut tokens) {
                let started = Instant::now();
                let synced = matrix::sync(&mut self.connection, user, "", 0, Some(token)).await?;
                samples.add(started.elapsed());
                let numbers = matrix::numbers_in(&synced.body);
                if numbers != [number] {
                    bail!("an incremental sync brought the messages {numbers:?} in place of {number}");
                }
                bytes = synced.body.len();
                *token = synced.next_batch;
            }
        }
        let mut report = self.report("sync, incremental with one new event");
        report.count("bytes", bytes as u64);
        // The processor time holds the sends too.
        report.count("sends", self.options.incremental.into());
        self.print(report, samples, meter)?;
        Ok(tokens)
    }

    /// Syncs that find nothing and do not wait.
    async fn nothing_new(&mut self, token: &str) -> Result<()> {
        let user = &self.world.users[0];
        let mut token = matrix::sync(&mut self.connection, user, "", 0, Some(token)).await?.next_batch;
        let meter = Meter::start(&self.processes)?;
        let (mut samples, mut bytes) = (Samples::default(), 0);
        for _ in 0..self.options.nothing_new {
            let started = Instant::now();
            let synced = matrix::sync(&mut self.connection, user, "", 0, Some(&token)).await?;
            samples.add(started.elapsed());
            bytes = synced.body.len();
            token = synced.next_batch;
        }
        let mut report = self.report("sync, nothing new");
        report.count("bytes", bytes as u64);
        self.print(report, samples, meter)
    }

    fn report(&self, what: &'static str) -> Report {
        let mut report = Report::new(what);
        report.count("rooms", self.options.rooms.into()).count("members", self.options.members.into());
        report
    }

    fn print(&self, mut report: Report, samples: Samples, meter: Meter) -> Result<()> {
        let syncs = samples.len() as u64;
        report.count("syncs", syncs).latencies("latency", samples).cost(meter.stop()?, "sync", syncs);
        report.memory("server_memory", process::resident_bytes(&self.processes.server)?);
        report.print(self.target.json);
        Ok(())
    }
}
