//! The load and benchmark command.
//!
//! Speaks the Matrix client-server API only (and, when told the secret, the shared-secret registration that existing tooling
//! uses), so that any server can be measured. Every subcommand is bounded in count and in time and stops by itself.

mod client;
mod fanout;
mod federation;
mod idle;
mod keys;
mod matrix;
mod members;
mod percentiles;
mod presence;
mod probe;
mod process;
mod rename;
mod report;
mod send;
mod setup;
mod sliding;
mod start;
mod sync;
mod to_device;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures a Matrix homeserver.
///
/// Every subcommand registers users of its own, makes rooms of its own, measures, and prints what it measured. Plain HTTP only.
/// The processor time of the server is printed beside wall time when its process id is given, because machines are noisy.
#[derive(Debug, Parser)]
#[command(name = "bench", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  bench --pid $(pgrep -x swiftchat) send --connections 64 --rooms 10 --members 10
  bench --pid $(pgrep -x swiftchat) send --connections 64 --rate 1000 --seconds 20
  bench --pid $(pgrep -x swiftchat) send --connections 64 --rooms 1 --members 100
  bench --pid $(pgrep -x swiftchat) fanout --listeners 100 --rate 10
  bench --url http://127.0.0.1:8008 federation --other http://127.0.0.1:8009 --rooms 20 --rate 3000
  bench --pid $(pgrep -x swiftchat) sync --rooms 100
  bench --pid $(pgrep -x swiftchat) sliding --rooms 3000
  bench --pid $(pgrep -x swiftchat) to-device --devices 2000
  bench --pid $(pgrep -x swiftchat) keys --users 1000 --devices 5
  bench --pid $(pgrep -x swiftchat) members --members 20000
  bench --pid $(pgrep -x swiftchat) presence
  bench --pid $(pgrep -x swiftchat) rename --rooms 2000
  bench --pid $(pgrep -x swiftchat) idle --polls 1000
  bench start -- target/release/swiftchat --config /tmp/trial/config.toml";

/// What is measured, and how the result is printed.
#[derive(Clone, Debug, clap::Args)]
struct Target {
    /// Address of the server; several, separated by commas, are used in turn (processes of one cluster).
    #[arg(long, global = true, default_value = "http://127.0.0.1:8008", value_delimiter = ',')]
    url: Vec<client::Address>,
    /// Process ids of the server; the processor time of their descendants counts too.
    #[arg(long, global = true, value_delimiter = ',')]
    pid: Vec<u32>,
    /// Process ids of the database server, counted apart (for PostgreSQL: the postmaster).
    #[arg(long, global = true, value_delimiter = ',')]
    database_pid: Vec<u32>,
    /// Secret of the shared-secret registration; without it users register through the dummy authentication stage.
    #[arg(long, global = true, env = "BENCH_REGISTRATION_SHARED_SECRET", hide_env_values = true)]
    registration_shared_secret: Option<String>,
    /// Prints one JSON object a line in place of text; units are part of the names.
    #[arg(long, global = true)]
    json: bool,
    /// Threads of the load generator.
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    client_threads: u16,
    /// Requests in flight while users and rooms are made.
    #[arg(long, global = true, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    setup_connections: u16,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Messages acknowledged per second and their latency, in a closed loop or at a fixed rate.
    Send(send::Options),
    /// Latency from the send to the long polls of many listeners in one room.
    Fanout(fanout::Options),
    /// Latency from the send on one server to a long poll on another one that shares rooms with it.
    Federation(federation::Options),
    /// Time and size of an initial sync, of an incremental one with one new event, and of one with nothing new.
    Sync(sync::Options),
    /// Time and size of the answers of sliding sync for a user in many rooms.
    Sliding(sliding::Options),
    /// One message to many devices, and the latency of sends into a room beside it.
    ToDevice(to_device::Options),
    /// The keys of many devices, asked for in one request, and one-time keys, claimed by many.
    Keys(keys::Options),
    /// The list of the members of a large room.
    Members(members::Options),
    /// Users in rooms of different sizes who come, go and move.
    Presence(presence::Options),
    /// A change of name of somebody who is in many rooms, and sends of others meanwhile.
    Rename(rename::Options),
    /// Memory of an idle long poll.
    Idle(idle::Options),
    /// Time from the start of a command until it answers, and its memory at rest.
    Start(start::Options),
}

fn main() -> ExitCode {
    match measure(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::progress(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn measure(Arguments { target, command }: Arguments) -> Result<()> {
    let runtime = match target.client_threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        threads => tokio::runtime::Builder::new_multi_thread().worker_threads(threads.into()).enable_all().build()?,
    };
    runtime.block_on(async {
        match command {
            Command::Send(options) => send::run(&target, &options).await,
            Command::Fanout(options) => fanout::run(&target, &options).await,
            Command::Federation(options) => federation::run(&target, &options).await,
            Command::Sync(options) => sync::run(&target, &options).await,
            Command::Sliding(options) => sliding::run(&target, &options).await,
            Command::ToDevice(options) => to_device::run(&target, &options).await,
            Command::Keys(options) => keys::run(&target, &options).await,
            Command::Members(options) => members::run(&target, &options).await,
            Command::Presence(options) => presence::run(&target, &options).await,
            Command::Rename(options) => rename::run(&target, &options).await,
            Command::Idle(options) => idle::run(&target, &options).await,
            Command::Start(options) => start::run(&target, &options).await,
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Arguments;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
