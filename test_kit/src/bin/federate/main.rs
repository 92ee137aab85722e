//! Servers that federate on loopback, to try things out and to measure.
//!
//! ```text
//! federate 2                        two of ours in this process, `hs1` and `hs2`; prints their addresses
//! federate 1 --synapse PYTHON       one of ours in this process and a Synapse; prints their addresses and the number of Synapse's process
//! federate --join 10000 50000       the program joins a room of a scripted server with so many members and events of state; prints what
//!                                   it took. The program is the `swiftchat` beside this one: build both
//! ```

mod join;
mod joiner;

use std::path::PathBuf;

use clap::Parser;
use ruma::RoomVersionId;
use test_kit::{ServerOptions, Synapse, TestDatabase, TestFederation};

use self::join::{Shape, Size};

/// Runs servers that federate on loopback, or measures how they join a large room.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many of ours are run.
    #[arg(default_value_t = 2)]
    servers: usize,
    /// Measures a join of a room with so many members and events of state.
    #[arg(long, num_args = 2, value_names = ["MEMBERS", "EVENTS"])]
    join: Option<Vec<usize>>,
    /// The events of state beside the members are members who left (the default).
    #[arg(long, conflicts_with = "other")]
    left: bool,
    /// They are of a type of their own.
    #[arg(long)]
    other: bool,
    /// The version of the room that is joined.
    #[arg(long, default_value = "11")]
    room_version: RoomVersionId,
    /// Ours are on the PostgreSQL server for tests.
    #[arg(long)]
    postgres: bool,
    /// The Python of an installed Synapse (`tests/parts/install synapse`), which is run as well.
    #[arg(long, value_name = "PYTHON")]
    synapse: Option<PathBuf>,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    if let Some(size) = &arguments.join {
        let shape = if arguments.other { Shape::Other } else { Shape::Left };
        let size = Size { members: size[0], events: size[1], shape, version: arguments.room_version.clone() };
        join::measure(&size, arguments.postgres, arguments.synapse).await;
    } else {
        run(arguments).await;
    }
}

/// Runs servers until Ctrl-C.
async fn run(arguments: Arguments) {
    let mut federation = TestFederation::empty();
    let mut names = Vec::new();
    for number in 1..=arguments.servers {
        let database = database(arguments.postgres).await;
        // Synapse asks no DNS server of the tests.
        if arguments.synapse.is_some() {
            names.push(federation.add_by_address(database, ServerOptions::default()).await);
        } else {
            names.push(format!("hs{number}"));
            federation.add(&names[number - 1], database, ServerOptions::default()).await;
        }
    }
    for name in &names {
        println!("{name} {}", federation.server(name).http().base());
    }
    let synapse = match arguments.synapse {
        Some(python) => Some(Synapse::start_by(python, federation.authority()).await),
        None => None,
    };
    if let Some(synapse) = &synapse {
        println!("{} {}, Synapse, process {}", synapse.name(), synapse.http().base(), synapse.pid());
    }
    println!("stops with Ctrl-C");
    let _ = tokio::signal::ctrl_c().await;
}

/// A database for one of ours.
async fn database(postgres: bool) -> TestDatabase {
    match postgres {
        true => TestDatabase::postgres().await.expect("a PostgreSQL server for tests"),
        false => TestDatabase::sqlite(),
    }
}
