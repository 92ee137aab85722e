//! Plays each case of end-to-end encryption with each pair of client libraries on each topology, and keeps `docs/encryption.md`.
//!
//! ```text
//! encryption                    each case with each pair on one of the topologies, in turn; fails when the page says better
//! encryption --all              on all topologies
//! encryption --write            the same, and writes what came out into the page
//! encryption --case backup --client nio --topology Synapse      those cells alone whose names have these words
//! ```
//!
//! A client library plays in a process of its own, its *actor* (`actor.rs`), whose command the environment names:
//! `SWIFTCHAT_ACTOR_OURS`, `…_MATRIX_SDK`, `…_MATRIX_JS_SDK`, `…_MATRIX_NIO`. The servers are in this process (`world.rs`), but for Synapse,
//! which `SWIFTCHAT_TEST_SYNAPSE` names. Between each device and its server is a *gate* (`gate.rs`), which sees what the server sees.
//! `tests/run encryption` sets all of this.

mod actor;
mod cases;
mod gate;
mod stage;
mod table;
mod world;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use clap::Parser;
use tokio::{runtime::Handle, sync::Semaphore, task::spawn_blocking};

use self::{
    actor::Client,
    cases::Case,
    stage::Stage,
    table::{Cell, Outcome, Page},
    world::{Topology, World},
};

/// What is played, and what becomes of it.
#[derive(Debug, Parser)]
struct Options {
    /// Plays each case with each pair on all topologies, not on one.
    #[arg(long)]
    all: bool,
    /// Writes what came out into the page.
    #[arg(long)]
    write: bool,
    /// Cases whose name has this word, all topologies of them.
    #[arg(long)]
    case: Option<String>,
    /// Pairs of which one name has this word.
    #[arg(long)]
    client: Vec<String>,
    /// Topologies whose name has this word.
    #[arg(long)]
    topology: Option<String>,
    /// How many cells are played at once.
    #[arg(long, default_value_t = 4)]
    at_once: usize,
}

impl Options {
    fn cells(&self) -> Vec<Cell> {
        let chosen = self.all || self.case.is_some() || !self.client.is_empty() || self.topology.is_some();
        let mut cells = Vec::new();
        for (at, &case) in Case::ALL.iter().enumerate() {
            let pairs = Client::ALL.iter().flat_map(|&first| Client::ALL.map(|second| (first, second)));
            for (pair, (first, second)) in pairs.enumerate() {
                for (place, &topology) in Topology::ALL.iter().enumerate() {
                    // Each case and each pair meets each topology, but not each pair in each case.
                    let in_turn = (at + pair + pair / Client::ALL.len()) % Topology::ALL.len() == place;
                    if chosen || in_turn {
                        cells.push(Cell { case, first, second, topology });
                    }
                }
            }
        }
        cells.retain(|cell| self.wants(cell));
        cells
    }

    fn wants(&self, cell: &Cell) -> bool {
        let has = |word: &Option<String>, name: &str| word.as_ref().is_none_or(|word| name.contains(&**word));
        let clients = [cell.first.name(), cell.second.name()];
        has(&self.case, cell.case.name())
            && has(&self.topology, cell.topology.name())
            && self.client.iter().all(|word| clients.iter().any(|name| name.contains(&**word)))
            && [cell.first, cell.second].iter().all(|client| client.command().is_some())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    for client in Client::ALL.iter().filter(|client| client.command().is_none()) {
        println!("{} does not play: {} is not set", client.name(), client.variable());
    }
    let began = Instant::now();
    let played = play(options.cells(), options.at_once).await;
    println!("{} cells in {} s", played.cells.len(), began.elapsed().as_secs());
    let mut page = Page::read();
    let worse = page.worse(&played);
    for (cell, was, is) in &worse {
        println!("WORSE   {cell}: {is}; it was: {was}");
    }
    if options.write {
        page.take(played);
        page.write();
    } else if page.is_better(&played) {
        println!("The page knows less than this run: see `--write`.");
    }
    if worse.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays the cells, some at once.
async fn play(cells: Vec<Cell>, at_once: usize) -> Page {
    let mut worlds = BTreeMap::new();
    for cell in &cells {
        if let Entry::Vacant(place) = worlds.entry(cell.topology) {
            place.insert(Arc::new(Box::pin(World::of(cell.topology)).await));
        }
    }
    let places = Arc::new(Semaphore::new(at_once));
    let mut tasks = Vec::new();
    for cell in cells {
        let (world, places) = (worlds[&cell.topology].clone(), places.clone());
        let task = async move {
            let _place = places.acquire_owned().await.expect("nobody closes it");
            let began = Instant::now();
            // On a thread of its own: a case that panics has failed, and the others go on.
            let played = spawn_blocking(move || Handle::current().block_on(play_in(world, cell))).await;
            let played = played.unwrap_or_else(|error| (Outcome::Failed(error.to_string()), BTreeMap::new()));
            println!("{:5.1} s  {cell}: {}", began.elapsed().as_secs_f32(), played.0);
            (cell, played)
        };
        tasks.push(tokio::spawn(task));
    }
    let mut page = Page::default();
    for task in tasks {
        let (cell, (outcome, versions)) = task.await.expect("a task that catches what fails");
        page.cells.insert(cell, outcome);
        page.versions.extend(versions);
    }
    page
}

/// Plays a cell in this world, or in one of its own if it restarts the servers. Gives the libraries that played too.
async fn play_in(world: Arc<World>, cell: Cell) -> (Outcome, BTreeMap<Client, String>) {
    let world = if cell.case.restarts_servers() { Arc::new(Box::pin(World::of(cell.topology)).await) } else { world };
    let mut stage = Stage::new(world, cell);
    let outcome = stage.play().await;
    (outcome, stage.versions)
}
