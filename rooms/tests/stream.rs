//! The judge of the stream, on both databases: readers that page by position beside writers that commit, on PostgreSQL with several
//! processes (as far as this code is concerned: each has its own `Storage`, caches and committer).
//!
//! It stands here and not with `storage` because real events are written, and `rooms` makes them.

use std::{
    collections::HashSet,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use accounts::Requester;
use model::{EventNr, KeyPair, LocalServer, LocalServers, Position, Random};
use rooms::{Error, NewRoomRequest, Options, Preset, Rooms};
use ruma::{OwnedRoomId, RoomVersionId, UserId, events::TimelineEventType, server_name};
use serde_json::{json, value::to_raw_value};
use storage::{
    ChangedProfile, Commit, Item, NewAccountData, NewReceipt, NewToDevice, Storage,
    testing::{Saboteur, TestDatabase},
};

/// How many processes share a PostgreSQL database.
const PROCESSES: usize = 3;
/// How many write in each process, and how many events each.
const WRITERS: usize = 4;
const EVENTS: usize = 12;
/// How each process is read.
const READERS: [How; 3] = [How::Asking, How::Published, How::Following];
/// How many rows a reader takes at once: few, so that pages end in the midst of commits.
const PAGE: u32 = 7;

/// How a reader reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Asks the database for the newest position, then for the events up to there.
    Asking,
    /// Goes by what its process has published.
    Published,
    /// Reads what each group put into the stream.
    Following,
}

/// A row of the stream: its position and the number of its event.
type StreamRow = (i64, i64);

/// What a reader got for asking what follows `after`; next it asks what follows `token`.
#[derive(Clone, Debug)]
struct Page {
    after: i64,
    token: i64,
    rows: Vec<StreamRow>,
}

/// What is wrong with a stream.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// A row was not there when a reader went past its position.
    Missed(StreamRow),
    /// A row came twice, or two rows have one position.
    Doubled(StreamRow),
    /// A row came after one with a later position.
    OutOfOrder(StreamRow),
    /// A reader was shown a row that is not in the stream, or not in what it asked for.
    Unknown(StreamRow),
    /// A reader did not go on where it had stopped.
    Gap(i64),
}

/// Checks that positions are unique and rise, and that no event comes twice.
fn check_rows(rows: &[StreamRow]) -> Result<(), Fault> {
    let (mut positions, mut events, mut newest) = (HashSet::new(), HashSet::new(), 0);
    for row in rows {
        if !positions.insert(row.0) || !events.insert(row.1) {
            return Err(Fault::Doubled(*row));
        }
        if row.0 < newest {
            return Err(Fault::OutOfOrder(*row));
        }
        newest = row.0;
    }
    Ok(())
}

/// Checks what a reader got against a later reading of the whole stream.
fn check_reader(whole: &[StreamRow], pages: &[Page]) -> Result<(), Fault> {
    let all: Vec<StreamRow> = pages.iter().flat_map(|page| page.rows.clone()).collect();
    check_rows(&all)?;
    let mut token = 0;
    for page in pages {
        if page.after != token {
            return Err(Fault::Gap(page.after));
        }
        token = page.token;
        let expected: Vec<StreamRow> =
            whole.iter().filter(|row| row.0 > page.after && row.0 <= page.token).copied().collect();
        if let Some(row) = expected.iter().find(|row| !page.rows.contains(row)) {
            return Err(Fault::Missed(*row));
        }
        if let Some(row) = page.rows.iter().find(|row| !expected.contains(row)) {
            return Err(Fault::Unknown(*row));
        }
    }
    Ok(())
}

#[test]
fn the_checker_finds_a_loss_a_duplicate_and_a_reordering() {
    let whole: Vec<StreamRow> = vec![(1, 10), (2, 11), (4, 9), (5, 13), (8, 12)];
    let pages = vec![
        Page { after: 0, token: 2, rows: whole[..2].to_vec() },
        Page { after: 2, token: 6, rows: whole[2..4].to_vec() },
        Page { after: 6, token: 6, rows: Vec::new() },
        Page { after: 6, token: 8, rows: whole[4..].to_vec() },
    ];
    assert_eq!(check_rows(&whole), Ok(()));
    assert_eq!(check_reader(&whole, &pages), Ok(()));
    let with = |change: fn(&mut Vec<Page>)| {
        let mut pages = pages.clone();
        change(&mut pages);
        check_reader(&whole, &pages).unwrap_err()
    };
    assert_eq!(with(|pages| pages[1].rows.retain(|row| row.0 != 4)), Fault::Missed((4, 9)));
    assert_eq!(with(|pages| pages[3].rows.insert(0, (5, 13))), Fault::Doubled((5, 13)));
    assert_eq!(with(|pages| pages[1].rows.swap(0, 1)), Fault::OutOfOrder((4, 9)));
    assert_eq!(with(|pages| pages[2].rows.push((7, 14))), Fault::Unknown((7, 14)));
    assert_eq!(with(|pages| drop(pages.remove(1))), Fault::Gap(6));
    assert_eq!(check_rows(&[(1, 1), (1, 2)]), Err(Fault::Doubled((1, 2))), "two events at one position");
    assert_eq!(check_rows(&[(1, 1), (2, 1)]), Err(Fault::Doubled((2, 1))), "one event at two positions");
    assert_eq!(check_rows(&[(2, 1), (1, 2)]), Err(Fault::OutOfOrder((1, 2))));
}

/// One process.
#[derive(Clone)]
struct Process {
    storage: Storage,
    rooms: Rooms,
}

impl Process {
    async fn start(database: &TestDatabase) -> Self {
        let storage = database.open().await;
        let key = KeyPair::generate(&Random::seeded(1));
        let servers = LocalServers::new(vec![LocalServer::new(server_name!("hs").to_owned(), key)]);
        let options = Options { default_version: RoomVersionId::V12, ..Options::default() };
        Self { rooms: Rooms::new(storage.clone(), servers, options), storage }
    }

    /// The same as each group's row of `commits` tells it.
    async fn follow(&self, after: i64, upto: Position) -> Page {
        let followed = again(|| self.storage.read_stream(Position(after), upto)).await.expect("all rows are there");
        let rows = followed.items.iter().filter_map(|(position, item)| match item {
            Item::Event(event) => {
                assert_eq!(event.position, Some(*position));
                Some((position.0, event.nr.0))
            }
            _ => None,
        });
        Page { after, token: followed.position.0, rows: rows.collect() }
    }

    /// The events after `after`, at most `limit`, with the position up to which they are all.
    async fn read(&self, after: i64, upto: Position, limit: u32) -> Page {
        let events = again(|| self.storage.list_events_after(Position(after), upto, limit)).await;
        let stored = again(|| self.storage.get_events(&events)).await;
        let rows: Vec<StreamRow> =
            events.iter().map(|nr| (stored[nr].position.expect("a live event").0, nr.0)).collect();
        let is_whole = rows.len() < limit as usize;
        let token = if is_whole { upto.0.max(after) } else { rows.last().map_or(after, |row| row.0) };
        Page { after, token, rows }
    }
}

/// Reads something; again when the connection was broken meanwhile.
async fn again<T, F: Future<Output = Result<T, storage::Error>>>(read: impl Fn() -> F) -> T {
    for _ in 0..100 {
        if let Ok(found) = read().await {
            return found;
        }
    }
    read().await.unwrap()
}

/// Sends messages, and now and then a state event, which makes others build theirs anew; checks each as soon as it is answered.
async fn write(
    number: usize,
    home: usize,
    events: usize,
    processes: Vec<Process>,
    alice: Requester,
    rooms: Vec<OwnedRoomId>,
) -> Vec<i64> {
    let here = &processes[home];
    let mut written = Vec::new();
    for n in 0..events {
        let room = &rooms[(number + n) % rooms.len()];
        let text = format!("{home}-{number}-{n}");
        let mut tries = 0;
        let id = loop {
            let answer = if n % 6 == 5 {
                let topic = to_raw_value(&json!({ "topic": text })).unwrap();
                here.rooms.send_state(&alice, room, TimelineEventType::RoomTopic, "", &topic, None).await
            } else {
                let content = to_raw_value(&json!({"msgtype": "m.text", "body": text})).unwrap();
                let kind = TimelineEventType::RoomMessage;
                here.rooms.send_message(&alice, room, kind, text.as_str().into(), &content, None).await
            };
            match answer {
                Ok(id) => break id,
                // The connection broke: whether it was written is not known, and a client would ask again.
                Err(Error::Storage(_)) if tries < 100 => tries += 1,
                Err(error) => panic!("{error}"),
            }
        };
        let published = here.storage.published();
        let event = again(|| here.storage.find_event(&id)).await.expect("an answered event is there");
        let position = event.position.expect("a live event");
        assert!(position <= published, "answered before it was published here");
        for process in &processes {
            assert!(position <= again(|| process.storage.newest_durable()).await);
            assert!(
                position <= process.storage.published(),
                "an answered event is beyond what another process publishes next"
            );
        }
        written.push(event.nr.0);
    }
    written
}

/// Pages through the stream until nothing more is written and all is read.
async fn read(process: Process, how: How, done: Arc<AtomicBool>) -> Vec<Page> {
    let mut pages: Vec<Page> = Vec::new();
    loop {
        let is_last = done.load(Ordering::SeqCst);
        let after = pages.last().map_or(0, |page| page.token);
        let upto = if how != How::Published || is_last {
            again(|| process.storage.newest_durable()).await
        } else {
            process.storage.published()
        };
        let page = match how {
            How::Following => process.follow(after, upto).await,
            _ => process.read(after, upto, PAGE).await,
        };
        let is_end = page.token >= upto.0;
        if page.token > page.after {
            pages.push(page);
        }
        if is_last && is_end {
            return pages;
        }
        tokio::task::yield_now().await;
    }
}

/// Design of the stream: a published position never gets an older neighbor later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_miss_nothing_while_writers_commit() {
    for database in TestDatabase::each().await {
        judge(&database, EVENTS, false).await;
    }
}

/// Also when a process is cut off between writing and publishing, and when all have to wait for one that hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_miss_nothing_while_connections_break_and_a_committer_hangs_on_postgres() {
    if let Some(database) = TestDatabase::postgres().await {
        judge(&database, EVENTS, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_readers_miss_nothing_in_many_histories() {
    for round in 0..20 {
        for database in TestDatabase::each().await {
            let is_shared = matches!(database.options, storage::Options::Postgres { .. });
            judge(&database, EVENTS * 5, is_shared && round % 2 == 0).await;
        }
    }
}

/// Breaks connections in the midst of commits, and hangs on the order lock, until nothing is written any more.
async fn make_trouble(mut saboteur: Saboteur, done: Arc<AtomicBool>) -> usize {
    let statements = ["%pg_advisory_xact_lock%", "WITH s0 AS%", "%pg_logical_emit_message%", "COMMIT%"];
    let mut broken = 0;
    for statement in statements.iter().cycle() {
        for _ in 0..10 {
            broken += usize::from(saboteur.end_connection(statement).await);
        }
        saboteur.hold_order().await;
        while saboteur.order().await.1 == 0 && !done.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        saboteur.release_order().await;
        if done.load(Ordering::SeqCst) {
            break;
        }
    }
    broken
}

/// Lets people write and readers read, and judges what they read.
async fn judge(database: &TestDatabase, events: usize, with_trouble: bool) {
    let count = if matches!(database.options, storage::Options::Postgres { .. }) { PROCESSES } else { 1 };
    let mut processes = Vec::new();
    for _ in 0..count {
        processes.push(Process::start(database).await);
    }
    let alice = alice(&processes[0].storage).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for process in &processes {
        for how in READERS {
            readers.push(tokio::spawn(read(process.clone(), how, done.clone())));
        }
    }
    let mut rooms = Vec::new();
    for process in &processes {
        rooms.push(process.rooms.create_room(&alice, room()).await.unwrap());
    }
    let saboteur = if with_trouble { Saboteur::of(database).await } else { None };
    let trouble = saboteur.map(|saboteur| tokio::spawn(make_trouble(saboteur, done.clone())));
    let mut writers = Vec::new();
    for home in 0..count {
        for number in 0..WRITERS {
            let write = write(number, home, events, processes.clone(), alice.clone(), rooms.clone());
            writers.push(tokio::spawn(write));
        }
    }
    let mut written = Vec::new();
    for writer in writers {
        written.extend(writer.await.unwrap());
    }
    done.store(true, Ordering::SeqCst);
    if let Some(trouble) = trouble {
        assert!(trouble.await.unwrap() > 0, "no connection was broken");
    }
    let fresh = Process::start(database).await;
    let newest = fresh.storage.newest_durable().await.unwrap();
    let whole = fresh.read(0, newest, 1_000_000).await.rows;
    check_rows(&whole).unwrap();
    assert_eq!(written.len(), count * WRITERS * events);
    let stored: HashSet<i64> = whole.iter().map(|row| row.1).collect();
    assert!(written.iter().all(|nr| stored.contains(nr)), "an answered event is lost");
    for reader in readers {
        let pages = reader.await.unwrap();
        assert_eq!(pages.last().map(|page| page.token), Some(newest.0));
        check_reader(&whole, &pages).unwrap();
    }
    for process in processes {
        process.storage.close().await;
    }
}

/// The worst for those who build upon a state: everybody changes it. Nobody is told to come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_change_the_state_of_one_room_all_have_their_turn_on_postgres() {
    const CHANGES: usize = 60;
    let Some(database) = TestDatabase::postgres().await else { return };
    let mut processes = Vec::new();
    for _ in 0..PROCESSES {
        processes.push(Process::start(&database).await);
    }
    let alice = alice(&processes[0].storage).await;
    let id = processes[0].rooms.create_room(&alice, room()).await.unwrap();
    let mut writers = Vec::new();
    for (nr, process) in processes.iter().enumerate() {
        let (rooms, alice, id) = (process.rooms.clone(), alice.clone(), id.clone());
        writers.push(tokio::spawn(async move {
            let mut events = Vec::new();
            for n in 0..CHANGES {
                let topic = to_raw_value(&json!({ "topic": format!("{nr}-{n}") })).unwrap();
                events
                    .push(rooms.send_state(&alice, &id, TimelineEventType::RoomTopic, "", &topic, None).await.unwrap());
            }
            events
        }));
    }
    let fresh = Process::start(&database).await;
    for writer in writers {
        for event_id in writer.await.unwrap() {
            let event = fresh.storage.find_event(&event_id).await.unwrap().expect("an answered event is there");
            assert!(event.position.is_some());
        }
    }
    let newest = fresh.storage.newest_durable().await.unwrap();
    let page = fresh.read(0, newest, 1_000_000).await;
    let topics =
        fresh.storage.get_events(&page.rows.iter().map(|row| EventNr(row.1)).collect::<Vec<_>>()).await.unwrap();
    let topics = topics.values().filter(|event| event.pdu.event_type == TimelineEventType::RoomTopic).count();
    assert_eq!(topics, PROCESSES * CHANGES);
}

async fn alice(storage: &Storage) -> Requester {
    let user_id = UserId::parse("@alice:hs").unwrap();
    Requester {
        user_nr: storage.user_nr(&user_id).await.unwrap(),
        user_id,
        device_id: Some("D".into()),
        is_guest: false,
        is_admin: false,
        app_service: None,
    }
}

fn room() -> NewRoomRequest {
    NewRoomRequest::new(Preset::PrivateChat)
}

/// What a process follows is what the other had published, whatever it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_reads_what_one_published() {
    for database in TestDatabase::each().await {
        let [one, two] = [Process::start(&database).await, Process::start(&database).await];
        let alice = alice(&one.storage).await;
        let before = one.storage.published();
        let mut stream = one.storage.subscribe();
        let id = one.rooms.create_room(&alice, room()).await.unwrap();
        let content = to_raw_value(&json!({"msgtype": "m.text", "body": "to be redacted"})).unwrap();
        let kind = TimelineEventType::RoomMessage;
        let said = one.rooms.send_message(&alice, &id, kind, "1".into(), &content, None).await.unwrap();
        // In memory as it is before it is redacted.
        let nr = two.storage.find_event(&said).await.unwrap().expect("it is stored").nr;
        one.rooms.redact(&alice, &id, &said, "2".into(), None).await.unwrap();
        let room_nr = one.storage.get_event(nr).await.unwrap().expect("it is stored").room_nr;
        let user_nr = alice.user_nr;
        let commit = Commit {
            receipts: vec![NewReceipt {
                room_nr,
                user_nr,
                receipt_type: "m.read".to_owned(),
                thread: None,
                event_id: said,
                at_ms: 1,
                read_upto: None,
            }],
            account_data: vec![NewAccountData {
                user_nr,
                room_nr,
                event_type: "m.tag".to_owned(),
                content: "{}".to_owned(),
            }],
            to_device: vec![NewToDevice { user_nr, device_id: "DÉVICE".to_owned(), message: "{}".into() }],
            device_lists: vec![user_nr.into()],
            profiles: vec![ChangedProfile { user_nr, is_in_rooms: true }],
            ..Commit::default()
        };
        let last = one.storage.commit(commit).await.unwrap().position;
        let (mut items, mut redacted) = (Vec::new(), Vec::new());
        while items.last().is_none_or(|(position, _)| *position < last) {
            let published = stream.recv().await.unwrap();
            items.extend(published.items.iter().map(shown));
            redacted.extend(published.redacted.clone());
        }
        let followed = two.storage.read_stream(before, last).await.unwrap().expect("all rows are there");
        assert_eq!((followed.previous, followed.position), (before, last));
        assert_eq!(followed.items.iter().map(shown).collect::<Vec<_>>(), items);
        assert_eq!(followed.redacted, redacted);
        assert_eq!(redacted, [nr]);
        let event = two.storage.get_event(nr).await.unwrap().expect("it is stored");
        assert!(event.redacted_by.is_some(), "another process shows what was redacted");
        assert!(two.storage.read_stream(before, Position(before.0 + 1_000_000)).await.unwrap().is_none(), "too far");
    }
}

fn shown((position, item): &(Position, Item)) -> (Position, String) {
    let text = match item {
        Item::Event(event) => format!("event {}", event.nr),
        other => format!("{other:?}"),
    };
    (*position, text)
}
