//! The judge of what clients are told: people who write, and clients who sync now with one process and now with another, while a bus
//! loses, doubles and reorders, processes die, connections break and a committer hangs. Afterwards what each client was told is
//! compared with what is there.
//!
//! `rooms/tests/stream.rs` judges the rows below it.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use accounts::Requester;
use event_bus::{
    Bus, Typing,
    testing::{UnreliableBuses, redis_url},
};
use model::{Clock, KeyPair, LocalServer, LocalServers, Random, StreamToken};
use rooms::{NewRoomRequest, Options, PageRequest, Preset, Rooms};
use ruma::{
    OwnedRoomId, RoomVersionId, UserId, api::client::filter::FilterDefinition, events::TimelineEventType, server_name,
};
use serde_json::{Value, json, value::to_raw_value};
use storage::{
    Storage, TimelineDirection,
    testing::{Saboteur, TestDatabase},
};
use sync::{Sync, v3::Request};
use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;

/// How many rooms there are.
const ROOMS: usize = 3;
/// Most messages of a writer, however long the trouble takes.
const MESSAGES_MAX: usize = 5_000;
/// How often a writer asks again before it is a failure.
const TRIES_MAX: usize = 200;
/// How often a connection is looked for that runs a statement of a kind, to be broken.
const BREAKS_TRIED: usize = 300;
/// How long a client waits in one poll.
const POLL: Duration = Duration::from_millis(200);

/// What happens meanwhile.
#[derive(Clone, Copy)]
struct Trouble {
    /// How many processes there are.
    processes: usize,
    writers: usize,
    /// Messages of each writer, at least.
    messages: usize,
    readers: usize,
    /// How often a process is killed, and another takes its place.
    kills: usize,
    /// How often a connection is ended in the midst of each kind of statement.
    broken: usize,
    /// How often everybody has to wait for one who holds the order lock.
    frozen: usize,
}

/// A process, with threads of its own that die with it.
struct Process {
    runtime: Mutex<Option<Runtime>>,
    handle: Handle,
    storage: Storage,
    rooms: Rooms,
    sync: Sync,
}

impl Process {
    async fn start(database: &TestDatabase, bus: Option<(&UnreliableBuses, usize)>) -> Arc<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let bus = {
            let _inside = handle.enter();
            bus.map_or_else(Bus::memory, |(buses, nr)| buses.bus(nr).unwrap())
        };
        let options = database.options.clone();
        let started = handle.spawn(async move {
            let storage = Storage::open(options, Clock::system(), Random::system()).await.unwrap();
            let key = KeyPair::generate(&Random::seeded(1));
            let servers = LocalServers::new(vec![LocalServer::new(server_name!("hs").to_owned(), key)]);
            let rooms = Rooms::new(
                storage.clone(),
                servers,
                Options { default_version: RoomVersionId::V12, ..Options::default() },
            );
            let typing = Typing::new(Clock::system(), &Random::system());
            let sync = Sync::start(storage.clone(), rooms.clone(), typing, bus, CancellationToken::new());
            (storage, rooms, sync)
        });
        let (storage, rooms, sync) = started.await.unwrap();
        Arc::new(Self { runtime: Mutex::new(Some(runtime)), handle, storage, rooms, sync })
    }

    /// Does something in the process; nothing when it dies meanwhile.
    async fn run<T, F>(self: &Arc<Self>, work: impl FnOnce(Arc<Self>) -> F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.handle.spawn(work(self.clone())).await.ok()
    }

    /// As `kill -9`: whatever runs does not go on.
    fn kill(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Everything that the people of a history share.
struct World {
    database: TestDatabase,
    /// Guards who is there. Held for moments only.
    processes: Mutex<Vec<Arc<Process>>>,
    buses: Option<UnreliableBuses>,
    alice: Requester,
    rooms: Vec<OwnedRoomId>,
    random: Random,
    /// Whether there was trouble enough: people write until then.
    made: AtomicBool,
    done: AtomicBool,
    answered: AtomicU64,
}

/// What a client was told of each room, in order, between two tokens.
#[derive(Default)]
struct Told {
    began: String,
    ended: String,
    timelines: HashMap<OwnedRoomId, Vec<String>>,
}

/// What is wrong with what a client was told.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    Missed(String),
    Doubled(String),
    OutOfOrder(String),
    Unknown(String),
}

/// Compares a timeline that was told bit by bit with the whole.
fn check(told: &[String], whole: &[String]) -> Result<(), Fault> {
    let places: HashMap<&String, usize> = whole.iter().zip(0..).collect();
    let mut seen = HashSet::new();
    let mut last = 0;
    for event in told {
        let Some(place) = places.get(event) else { return Err(Fault::Unknown(event.clone())) };
        if !seen.insert(event) {
            return Err(Fault::Doubled(event.clone()));
        }
        if *place < last {
            return Err(Fault::OutOfOrder(event.clone()));
        }
        last = *place;
    }
    match whole.iter().find(|event| !seen.contains(event)) {
        Some(missed) => Err(Fault::Missed(missed.clone())),
        None => Ok(()),
    }
}

#[test]
fn the_checker_finds_a_loss_a_duplicate_and_a_reordering() {
    let list = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let whole = list("a b c d");
    assert_eq!(check(&whole, &whole), Ok(()));
    assert_eq!(check(&list("a b d"), &whole), Err(Fault::Missed("c".to_owned())));
    assert_eq!(check(&list("a b c"), &whole), Err(Fault::Missed("d".to_owned())));
    assert_eq!(check(&list("a b b c d"), &whole), Err(Fault::Doubled("b".to_owned())));
    assert_eq!(check(&list("a c b d"), &whole), Err(Fault::OutOfOrder("b".to_owned())));
    assert_eq!(check(&list("a b x c d"), &whole), Err(Fault::Unknown("x".to_owned())));
}

impl World {
    async fn start(database: TestDatabase, trouble: Trouble, seed: u64) -> Arc<Self> {
        let random = Random::seeded(seed);
        let buses = match redis_url() {
            Some(url) => Some(UnreliableBuses::start(&url, trouble.processes, random.clone()).await),
            None => None,
        };
        let mut processes = Vec::new();
        for nr in 0..trouble.processes {
            processes.push(Process::start(&database, buses.as_ref().map(|buses| (buses, nr))).await);
        }
        let first = processes[0].clone();
        let user_id = UserId::parse("@alice:hs").unwrap();
        let alice = Requester {
            user_nr: first.storage.user_nr(&user_id).await.unwrap(),
            user_id,
            device_id: Some("D".into()),
            is_guest: false,
            is_admin: false,
            app_service: None,
        };
        let mut rooms = Vec::new();
        for _ in 0..ROOMS {
            rooms.push(first.rooms.create_room(&alice, room()).await.unwrap());
        }
        let (made, done, answered) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { database, processes: Mutex::new(processes), buses, alice, rooms, random, made, done, answered })
    }

    /// Any process: requests come to whichever the load balancer likes.
    fn process(&self) -> Arc<Process> {
        let processes = self.processes.lock().unwrap();
        processes[self.random.number() as usize % processes.len()].clone()
    }

    /// Kills a process, and another takes its place.
    async fn kill(&self) {
        let nr = self.random.number() as usize % self.processes.lock().unwrap().len();
        let next = Process::start(&self.database, self.buses.as_ref().map(|buses| (buses, nr))).await;
        std::mem::replace(&mut self.processes.lock().unwrap()[nr], next).kill();
    }

    /// Sends messages and now and then a topic; asks again elsewhere when there is no answer. Gives the events that were answered.
    async fn write(self: Arc<Self>, writer: usize, messages: usize) -> Vec<(OwnedRoomId, String)> {
        let mut written = Vec::new();
        for n in 0..MESSAGES_MAX {
            if n >= messages && self.made.load(Ordering::SeqCst) {
                break;
            }
            let room = self.rooms[(writer + n) % ROOMS].clone();
            let text = format!("{writer}-{n}");
            let mut tries = 0;
            let event_id = loop {
                let process = self.process();
                let (alice, room, text) = (self.alice.clone(), room.clone(), text.clone());
                let answer = process.run(|process| async move {
                    if n % 6 == 5 {
                        let topic = to_raw_value(&json!({ "topic": text })).unwrap();
                        process.rooms.send_state(&alice, &room, TimelineEventType::RoomTopic, "", &topic, None).await
                    } else {
                        let content = to_raw_value(&json!({"msgtype": "m.text", "body": text})).unwrap();
                        let kind = TimelineEventType::RoomMessage;
                        process.rooms.send_message(&alice, &room, kind, text.as_str().into(), &content, None).await
                    }
                });
                match answer.await {
                    Some(Ok(event_id)) => break event_id,
                    other => {
                        tries += 1;
                        assert!(tries < TRIES_MAX, "no answer in {tries} tries: {other:?}");
                    }
                }
            };
            // Whatever any process publishes next is at or beyond it.
            let other = self.process();
            let id = event_id.clone();
            let seen = other.run(|other| async move {
                let newest = other.storage.newest_durable().await?;
                Ok::<_, storage::Error>((newest, other.storage.published(), other.storage.find_event(&id).await?))
            });
            if let Some(Ok((newest, published, event))) = seen.await {
                let position = event.expect("an answered event is there").position.expect("a live event");
                assert!(
                    position <= newest && position <= published,
                    "an answered event is beyond what is published next"
                );
            }
            written.push((room, event_id.to_string()));
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
        written
    }

    /// Syncs, each time with any process, until everything is told.
    async fn read(self: Arc<Self>) -> Told {
        let mut told = Told::default();
        let mut since: Option<StreamToken> = None;
        loop {
            let is_last = self.done.load(Ordering::SeqCst);
            let process = self.process();
            let (alice, request) = (self.alice.clone(), request(since, if is_last { Duration::ZERO } else { POLL }));
            let answer = process.run(|process| async move {
                let response = process.sync.sync_events(&alice, &request).await?;
                Ok::<_, sync::Error>((response, process.storage.newest_durable().await?))
            });
            let Some(Ok((response, newest))) = answer.await else { continue };
            let mut next = Vec::new();
            if let Some(since) = since {
                for (room, joined) in &response.rooms.join {
                    let mut events = Vec::new();
                    if joined.timeline.limited {
                        let from = joined.timeline.prev_batch.clone().expect("a way to what is missing");
                        events = self.page(room, TimelineDirection::Backward, &from, Some(since.to_string()), 3).await;
                        events.reverse();
                    }
                    let shown = joined.timeline.events.iter();
                    events.extend(shown.map(|event| event.get_field("event_id").unwrap().expect("an event id")));
                    next.push((room.clone(), events));
                }
            } else {
                told.began = response.next_batch.clone();
            }
            for (room, events) in next {
                told.timelines.entry(room).or_default().extend(events);
            }
            let token: StreamToken = response.next_batch.parse().unwrap();
            assert!(since.is_none_or(|since| since.position <= token.position), "a token goes back");
            since = Some(token);
            if is_last && token.position >= newest {
                told.ended = response.next_batch;
                return told;
            }
        }
    }

    /// All events of a room between two tokens, `limit` at a time, each page from any process.
    async fn page(
        &self,
        room: &OwnedRoomId,
        direction: TimelineDirection,
        from: &str,
        to: Option<String>,
        limit: u32,
    ) -> Vec<String> {
        let (mut events, mut from) = (Vec::new(), from.to_owned());
        loop {
            let (alice, room, to, at) = (self.alice.clone(), room.clone(), to.clone(), from.clone());
            let process = self.process();
            let page = process.run(|process| async move {
                let asked = PageRequest { direction, from: Some(&at), to: to.as_deref(), limit };
                process.rooms.messages(&alice, &room, asked, |_| true).await
            });
            let Some(Ok(page)) = page.await else { continue };
            events.extend(page.events.iter().map(|event| event.pdu.event_id.to_string()));
            match page.end {
                Some(end) => from = end.to_string(),
                None => return events,
            }
        }
    }

    /// Makes trouble, again and again while people write.
    async fn make(&self, trouble: Trouble) {
        let mut saboteur = Saboteur::of(&self.database).await.expect("a PostgreSQL database");
        // In the midst of a group, between its writing and its publication, and while it is made to count.
        let statements = ["%pg_advisory_xact_lock%", "INSERT%", "%pg_logical_emit_message%", "COMMIT%"];
        let mut kinds_broken = 0;
        for round in 0..trouble.kills.max(trouble.broken).max(trouble.frozen) {
            if round < trouble.broken {
                for statement in statements {
                    let mut has_broken = false;
                    for _ in 0..BREAKS_TRIED {
                        has_broken = has_broken || saboteur.end_connection(statement).await;
                        if has_broken {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                    kinds_broken += usize::from(has_broken);
                }
            }
            if round < trouble.frozen {
                saboteur.hold_order().await;
                // Until some hang on it; nothing is written meanwhile.
                while saboteur.order().await.1 == 0 {
                    tokio::task::yield_now().await;
                }
                let before = self.answered.load(Ordering::SeqCst);
                for _ in 0..20 {
                    assert_eq!(saboteur.order().await.0, 1);
                }
                assert!(self.answered.load(Ordering::SeqCst) <= before + trouble.writers as u64, "who ordered these?");
                saboteur.release_order().await;
            }
            if round < trouble.kills {
                self.kill().await;
            }
        }
        assert!(trouble.broken == 0 || kinds_broken > 0, "no connection was broken in time");
        self.made.store(true, Ordering::SeqCst);
    }
}

/// Lives through a history with trouble, and judges it.
async fn live_through(trouble: Trouble, seed: u64) {
    let Some(database) = TestDatabase::postgres().await else { return };
    eprintln!("seed {seed}");
    let world = World::start(database, trouble, seed).await;
    let readers: Vec<_> = (0..trouble.readers).map(|_| tokio::spawn(world.clone().read())).collect();
    let writers: Vec<_> =
        (0..trouble.writers).map(|nr| tokio::spawn(world.clone().write(nr, trouble.messages))).collect();
    let making = tokio::spawn({
        let world = world.clone();
        async move { world.make(trouble).await }
    });
    let mut written: HashMap<OwnedRoomId, Vec<String>> = HashMap::new();
    for writer in writers {
        for (room, event) in writer.await.unwrap() {
            written.entry(room).or_default().push(event);
        }
    }
    making.await.unwrap();
    world.done.store(true, Ordering::SeqCst);
    let is_unreliable = world.buses.as_ref().is_none_or(UnreliableBuses::were_unreliable);
    assert!(is_unreliable || world.answered.load(Ordering::SeqCst) < 50, "the bus did its work too well");
    for reader in readers {
        let told = reader.await.unwrap();
        assert!(!told.timelines.is_empty(), "everything was written before the reader began");
        for room in &world.rooms {
            let whole = world.page(room, TimelineDirection::Forward, &told.began, Some(told.ended.clone()), 7).await;
            let mut back =
                world.page(room, TimelineDirection::Backward, &told.ended, Some(told.began.clone()), 5).await;
            back.reverse();
            assert_eq!(back, whole, "read backward and forward");
            assert_eq!(check(told.timelines.get(room).map_or(&[], Vec::as_slice), &whole), Ok(()), "in {room}");
        }
    }
    for room in &world.rooms {
        let all = world.page(room, TimelineDirection::Forward, "t1_0_0", None, 50).await;
        let written = &written[room];
        let unique: HashSet<&String> = written.iter().collect();
        assert_eq!(unique.len(), written.len(), "an event answers one request");
        assert!(written.iter().all(|event| all.contains(event)), "an answered event is lost");
        let bodies = bodies(&world, room).await;
        let unique: HashSet<&String> = bodies.iter().collect();
        assert_eq!(unique.len(), bodies.len(), "a message is there twice");
    }
}

/// What the messages of a room say.
async fn bodies(world: &World, room: &OwnedRoomId) -> Vec<String> {
    let process = world.process();
    let asked = PageRequest { direction: TimelineDirection::Forward, from: None, to: None, limit: 10_000 };
    let page = process.rooms.messages(&world.alice, room, asked, |_| true).await.unwrap();
    let messages = page.events.iter().filter(|event| event.pdu.event_type == TimelineEventType::RoomMessage);
    let contents = messages.map(|event| serde_json::from_str::<Value>(event.pdu.content.get()).unwrap());
    contents.map(|content| content["body"].as_str().unwrap().to_owned()).collect()
}

const QUIET: Trouble = Trouble { processes: 3, writers: 4, messages: 24, readers: 3, kills: 0, broken: 0, frozen: 0 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_everything_once_by_processes_whose_bus_is_unreliable() {
    live_through(QUIET, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_everything_once_though_processes_die_and_hang() {
    live_through(Trouble { kills: 3, broken: 2, frozen: 2, messages: 40, ..QUIET }, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_clients_are_told_everything_once_in_many_histories() {
    for seed in 100..130 {
        let few = |n: u64| (seed / n % 5) as usize;
        let trouble = Trouble {
            processes: 2 + few(1).min(3),
            kills: few(2),
            broken: few(3),
            frozen: few(4),
            messages: 80,
            writers: 6,
            ..QUIET
        };
        live_through(trouble, seed).await;
    }
}

fn request(since: Option<StreamToken>, timeout: Duration) -> Request {
    let mut filter = FilterDefinition::default();
    // Few, so that there are often more, and the client has to ask for them.
    filter.room.timeline.limit = Some(3_u8.into());
    Request { since, filter: filter.into(), full_state: false, timeout, use_state_after: false }
}

fn room() -> NewRoomRequest {
    NewRoomRequest {
        version: None,
        preset: Preset::PrivateChat,
        listed: false,
        alias: None,
        name: None,
        topic: None,
        invite: Vec::new(),
        is_direct: false,
        creation_content: None,
        initial_state: Vec::new(),
        power_level_content_override: None,
    }
}
