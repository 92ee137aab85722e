//! `bench sliding`: what the answers of sliding sync cost for a user in many rooms.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::json;

use crate::{
    Target,
    client::Connection,
    matrix::{self, User},
    percentiles::Samples,
    process::{self, Meter, Processes},
    report::Report,
    setup::{self, Plan, World},
};

/// Options of `bench sliding`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Rooms of every user.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rooms: u32,
    /// Users, all of them members of every room.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    members: u32,
    /// Messages in each room before the measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    messages: u32,
    /// Bytes of the text of a message.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=50_000))]
    text_bytes: u32,
    /// Rooms that the first answer of a connection has.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    window: u32,
    /// Connections that are started, after the first one of the user.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    first: u32,
    /// Messages that are sent for the answers with one new event.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    incremental: u32,
    /// Answers with nothing new.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    nothing_new: u32,
}

/// What matrix-sdk wants of the rooms in its list.
const REQUIRED_STATE: [[&str; 2]; 17] = [
    ["m.room.name", ""],
    ["m.room.encryption", ""],
    ["m.room.member", "$LAZY"],
    ["m.room.member", "$ME"],
    ["m.room.topic", ""],
    ["m.room.avatar", ""],
    ["m.room.canonical_alias", ""],
    ["m.room.power_levels", ""],
    ["org.matrix.msc3401.call.member", "*"],
    ["m.room.join_rules", ""],
    ["m.room.tombstone", ""],
    ["m.room.create", ""],
    ["m.room.history_visibility", ""],
    ["io.element.functional_members", ""],
    ["m.space.parent", "*"],
    ["m.space.child", "*"],
    ["org.matrix.msc3672.beacon_info", "*"],
];

const PATH: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";

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
    let (connection, processes) = (setup::connection(target, 0), setup::processes(target));
    let mut bench = Bench { target, options, world, connection, processes };
    bench.first("sliding, first of a user", 1, 1).await?;
    bench.first("sliding, first of a connection", options.first, 1).await?;
    bench.first("sliding, first with 20 events a room", options.first, 20).await?;
    let pos = bench.grow().await?;
    let pos = bench.incremental(pos).await?;
    bench.nothing_new(pos).await
}

struct Bench<'a> {
    target: &'a Target,
    options: &'a Options,
    world: World,
    connection: Connection,
    processes: Processes,
}

struct Answer {
    body: Bytes,
    pos: String,
    rooms: usize,
}

impl Bench<'_> {
    /// One request; the list ends at `last`.
    async fn ask(&mut self, conn_id: &str, last: u64, timeline_limit: u32, pos: Option<&str>) -> Result<Answer> {
        #[derive(Deserialize)]
        struct Body {
            pos: String,
            rooms: serde_json::Map<String, serde_json::Value>,
        }
        let on = json!({ "enabled": true });
        let body = json!({
            "conn_id": conn_id,
            "lists": { "all_rooms": {
                "ranges": [[0, last]], "timeline_limit": timeline_limit, "required_state": REQUIRED_STATE,
            } },
            "extensions": { "account_data": on, "receipts": on, "typing": on },
        });
        let mut path = PATH.to_owned();
        if let Some(pos) = pos {
            path.push_str("&pos=");
            path.push_str(&matrix::encode(pos));
        }
        let user: &User = &self.world.users[0];
        let body = Bytes::from(body.to_string());
        let answer = self.connection.request(Method::POST, &path, Some(&user.authorization), Some(body)).await?;
        let body = answer.ok().context("cannot sync")?;
        let Body { pos, rooms } = serde_json::from_slice(&body)?;
        Ok(Answer { body, pos, rooms: rooms.len() })
    }

    /// The first answers of connections.
    async fn first(&mut self, what: &'static str, count: u32, timeline_limit: u32) -> Result<()> {
        let meter = Meter::start(&self.processes)?;
        let (mut samples, mut bytes) = (Samples::default(), 0);
        let last = u64::from(self.options.window) - 1;
        for _ in 0..count {
            let started = Instant::now();
            let answer = self.ask("first", last, timeline_limit, None).await?;
            samples.add(started.elapsed());
            let expected = self.options.window.min(self.options.rooms) as usize;
            if answer.rooms != expected {
                bail!("a first answer has {} rooms in place of {expected}", answer.rooms);
            }
            bytes = answer.body.len();
        }
        let mut report = self.report(what);
        report.count("window", self.options.window.into()).count("bytes", bytes as u64);
        self.print(report, samples, meter)
    }

    /// The list grows by a hundred rooms an answer until all are told, as matrix-sdk does it.
    async fn grow(&mut self) -> Result<String> {
        let meter = Meter::start(&self.processes)?;
        let mut samples = Samples::default();
        let mut last = u64::from(self.options.window) - 1;
        let mut answer = self.ask("grow", last, 1, None).await?;
        let mut told = answer.rooms;
        while told < self.options.rooms as usize {
            last += 100;
            let started = Instant::now();
            answer = self.ask("grow", last, 1, Some(&answer.pos)).await?;
            samples.add(started.elapsed());
            if answer.rooms == 0 {
                bail!("only {told} rooms were told");
            }
            told += answer.rooms;
        }
        let report = self.report("sliding, a hundred rooms more");
        self.print(report, samples, meter)?;
        Ok(answer.pos)
    }

    /// One message, then the answer that must bring it, to a client that has all rooms.
    async fn incremental(&mut self, mut pos: String) -> Result<String> {
        let run = setup::run_name();
        let meter = Meter::start(&self.processes)?;
        let (mut samples, mut bytes) = (Samples::default(), 0);
        let last = u64::from(self.options.rooms) + 100;
        // What the last request and the setup left.
        pos = self.ask("grow", last, 1, Some(&pos)).await?.pos;
        for turn in 0..u64::from(self.options.incremental) {
            let number = u64::from(self.options.messages) + turn;
            let room = &self.world.rooms[turn as usize % self.world.rooms.len()];
            let sender: &User = &self.world.users[turn as usize % self.world.users.len()];
            let body = matrix::numbered_message(number, self.options.text_bytes as usize);
            let path = matrix::send_path(&room.id);
            matrix::send(&mut self.connection, sender, &path, &format!("{run}m{number}"), body).await?;
            let started = Instant::now();
            let answer = self.ask("grow", last, 1, Some(&pos)).await?;
            samples.add(started.elapsed());
            let numbers = matrix::numbers_in(&answer.body);
            if numbers != [number] {
                bail!("an answer brought the messages {numbers:?} in place of {number}");
            }
            (bytes, pos) = (answer.body.len(), answer.pos);
        }
        let mut report = self.report("sliding, one new event");
        // The processor time holds the sends too.
        report.count("bytes", bytes as u64).count("sends", self.options.incremental.into());
        self.print(report, samples, meter)?;
        Ok(pos)
    }

    /// Answers that find nothing and do not wait.
    async fn nothing_new(&mut self, mut pos: String) -> Result<()> {
        let meter = Meter::start(&self.processes)?;
        let mut samples = Samples::default();
        let last = u64::from(self.options.rooms) + 100;
        for _ in 0..self.options.nothing_new {
            let started = Instant::now();
            let answer = self.ask("grow", last, 1, Some(&pos)).await?;
            samples.add(started.elapsed());
            pos = answer.pos;
        }
        let report = self.report("sliding, nothing new");
        self.print(report, samples, meter)
    }

    fn report(&self, what: &'static str) -> Report {
        let mut report = Report::new(what);
        report.count("rooms", self.options.rooms.into()).count("members", self.options.members.into());
        report
    }

    fn print(&self, mut report: Report, samples: Samples, meter: Meter) -> Result<()> {
        let answers = samples.len() as u64;
        report.count("answers", answers).latencies("latency", samples).cost(meter.stop()?, "answer", answers);
        report.memory("server_memory", process::resident_bytes(&self.processes.server)?);
        report.print(self.target.json);
        Ok(())
    }
}
