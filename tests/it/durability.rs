//! What was acknowledged is there after the program was killed, and was on the disk before it was acknowledged.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use model::Random;
use serde_json::{Value, json};
use storage::Options;
use test_kit::{Http, TestDatabase, TestUser, encode, eventually};

/// How often a server is killed; and in the test that takes long.
const KILLS: u64 = 4;
const KILLS_LONG: u64 = 30;
/// How many send at once, one message after another each.
const SENDERS: usize = 12;
/// Into how many rooms they send.
const ROOMS: usize = 3;

/// The program, killed when the test ends or wants it.
pub(crate) struct Program(Child);

impl Program {
    /// Ends it as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    /// Sends it a signal: `STOP`, `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.0.id())]).status().unwrap();
        assert!(status.success());
    }
}

impl Program {
    /// The most memory that it ever had, in KiB.
    pub(crate) fn memory_kib_max(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts the program in `folder`, below `wrapper` if there is one, and waits until it is ready.
pub(crate) fn start(folder: &Path, wrapper: &[&str]) -> (Program, Http) {
    let words = [wrapper, &[env!("CARGO_BIN_EXE_swiftchat")]].concat();
    let mut command = Command::new(words[0]);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SWIFTCHAT_")) {
        command.env_remove(name);
    }
    command.args(&words[1..]).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let program = Program(child);
    for line in lines {
        let line = line.unwrap();
        if let Some(address) = line.split_whitespace().find(|word| word.starts_with("http://")) {
            return (program, Http::new(address.trim_end_matches(',')));
        }
    }
    panic!("the program ended before it was ready");
}

/// A folder with a configuration for `database`.
pub(crate) fn folder(database: &TestDatabase) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let database = match &database.options {
        Options::Sqlite { .. } => "sqlite:swiftchat.db".to_owned(),
        Options::Postgres { url, .. } => url.clone(),
    };
    let config = format!(
        "[[listeners]]\naddress = \"127.0.0.1:0\"\n[storage]\ndatabase = \"{database}\"\n\
         [unsafe]\ncheap_password_hashing = true\nrate_limits_off = true\n"
    );
    fs::write(folder.path().join("config.toml"), config).unwrap();
    folder
}

/// A message that somebody tried to send.
#[derive(Clone, Debug)]
struct Sent {
    room: String,
    /// The transaction id, which is also the text.
    transaction: String,
    /// When it was sent and when its answer came, in steps that the whole test counts together.
    sent: u64,
    acknowledged: Option<(u64, String)>,
}

/// Sends a message; gives its event id, or nothing when the connection ended without an answer.
async fn send(http: &Http, user: &TestUser, room: &str, transaction: &str) -> Option<String> {
    let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{transaction}", encode(room));
    let body = json!({"msgtype": "m.text", "body": transaction}).to_string();
    let answer = http.send("PUT", path.as_bytes(), Some(user.token()), Some("application/json"), body).await.ok()?;
    Some(answer.ok()["event_id"].as_str().expect("an event id").to_owned())
}

/// The messages of a room in the order of its timeline: text and event id.
pub(crate) async fn timeline(user: &TestUser, room: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut from = String::new();
    for _ in 0..1_000 {
        let page = user.get(&format!("/rooms/{}/messages?dir=f&limit=500{from}", encode(room))).await.ok();
        for event in page["chunk"].as_array().expect("a chunk") {
            if event["type"] == "m.room.message" {
                let text = |value: &Value| value.as_str().expect("a text").to_owned();
                found.push((text(&event["content"]["body"]), text(&event["event_id"])));
            }
        }
        let Some(end) = page["end"].as_str() else { return found };
        from = format!("&from={}", encode(end));
    }
    panic!("the timeline does not end");
}

/// Checks that what was acknowledged is there once, under the id of its answer, and that what was answered before another was sent
/// stands before it.
fn check(found: &[(String, String)], sent: &[&Sent]) {
    let by_text: HashMap<&str, &Sent> = sent.iter().map(|sent| (sent.transaction.as_str(), *sent)).collect();
    let mut times: HashMap<&str, usize> = HashMap::new();
    let mut last_sent = (0, "");
    for (text, event_id) in found {
        *times.entry(text).or_default() += 1;
        let sent = by_text.get(text.as_str()).unwrap_or_else(|| panic!("{text} was never sent"));
        if let Some((acknowledged, id)) = &sent.acknowledged {
            assert_eq!(id, event_id, "{text} has another event than was answered");
            assert!(
                *acknowledged > last_sent.0,
                "{text} was answered before {} was sent, but comes later",
                last_sent.1
            );
        }
        last_sent = last_sent.max((sent.sent, text));
    }
    for sent in sent {
        assert_eq!(times.get(sent.transaction.as_str()), Some(&1), "{sent:?} is there once");
    }
}

/// Kills the program under load again and again.
async fn kill_again_and_again(database: TestDatabase, kills: u64) {
    let seed = std::env::var("SWIFTCHAT_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    eprintln!("seed {seed}: set SWIFTCHAT_TEST_SEED for another");
    let random = Random::seeded(seed);
    let folder = folder(&database);
    let (mut program, mut http) = start(folder.path(), &[]);
    let alice = test_kit::register(&http, "alice").await;
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        rooms.push(alice.create_room().await);
    }
    let mut all: Vec<Sent> = Vec::new();
    for round in 0..kills {
        let enough = 20 + random.number() % 200;
        let (acknowledged, clock) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(round << 32)));
        let mut senders = Vec::new();
        for sender in 0..SENDERS {
            let (http, alice, rooms) = (http.clone(), alice.clone(), rooms.clone());
            let (acknowledged, clock) = (acknowledged.clone(), clock.clone());
            senders.push(tokio::spawn(async move {
                let mut sends = Vec::new();
                for n in 0_usize.. {
                    let room = rooms[(sender + n) % ROOMS].clone();
                    let transaction = format!("{round}-{sender}-{n}");
                    let sent = clock.fetch_add(1, Ordering::SeqCst) + 1;
                    let answer = send(&http, &alice, &room, &transaction).await;
                    let answer = answer.map(|id| (clock.fetch_add(1, Ordering::SeqCst) + 1, id));
                    let ended = answer.is_none();
                    sends.push(Sent { room, transaction, sent, acknowledged: answer });
                    if ended {
                        break;
                    }
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
                sends
            }));
        }
        eventually!(acknowledged.load(Ordering::SeqCst) >= enough);
        program.kill();
        let first = all.len();
        for sender in senders {
            all.extend(sender.await.unwrap());
        }
        (program, http) = start(folder.path(), &[]);
        let alice = alice.at(&http);
        // What was answered is there before anything is asked again.
        for room in &rooms {
            let found = timeline(&alice, room).await;
            for sent in all.iter().filter(|sent| sent.room == *room) {
                if let Some((_, id)) = &sent.acknowledged {
                    let event = (sent.transaction.clone(), id.clone());
                    assert!(found.contains(&event), "{sent:?} was answered and is gone");
                }
            }
        }
        // Asked again, each request has its one event: the old one, or a new one if there was none.
        for sent in &mut all[first..] {
            let was_answered = sent.acknowledged.is_some();
            if was_answered && !random.number().is_multiple_of(16) {
                continue;
            }
            let again = send(&http, &alice, &sent.room, &sent.transaction).await.expect("an answer");
            let third = send(&http, &alice, &sent.room, &sent.transaction).await.expect("an answer");
            assert_eq!(again, third, "the same transaction, the same event");
            match &sent.acknowledged {
                Some((_, id)) => assert_eq!(*id, again, "the same transaction, the same event"),
                None => sent.acknowledged = Some((u64::MAX, again)),
            }
        }
        for room in &rooms {
            let found = timeline(&alice, room).await;
            let sent: Vec<&Sent> = all.iter().filter(|sent| sent.room == *room).collect();
            check(&found, &sent);
        }
    }
    let open = all.iter().filter(|sent| matches!(sent.acknowledged, Some((u64::MAX, _)))).count();
    eprintln!("{} messages, {open} of them without an answer at first", all.len());
    assert!(open > 0, "no kill met a request in flight: the test shows nothing");
}

/// A power loss takes more than a kill, but a kill shows whether anything is answered that only this process knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kills_on_sqlite() {
    kill_again_and_again(TestDatabase::sqlite(), KILLS).await;
}

/// The same where the database goes on while its client is gone in the midst of a transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kills_on_postgres() {
    if let Some(database) = TestDatabase::postgres().await {
        kill_again_and_again(database, KILLS).await;
    }
}

/// The same with many kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_what_was_acknowledged_survives_kills() {
    for database in TestDatabase::each().await {
        kill_again_and_again(database, KILLS_LONG).await;
    }
}

/// The checker is worth something only if it sees what it looks for.
#[test]
fn the_checker_finds_losses_duplicates_and_wrong_orders() {
    let sent = |n: u64| Sent {
        room: "!r".to_owned(),
        transaction: n.to_string(),
        sent: n * 2 + 1,
        acknowledged: Some((n * 2 + 2, format!("${n}"))),
    };
    let sent: Vec<Sent> = (0..5).map(sent).collect();
    let sent: Vec<&Sent> = sent.iter().collect();
    let found: Vec<(String, String)> = (0..5).map(|n| (n.to_string(), format!("${n}"))).collect();
    check(&found, &sent);
    let is_found = |change: fn(&mut Vec<(String, String)>)| {
        let mut found = found.clone();
        change(&mut found);
        std::panic::catch_unwind(|| check(&found, &sent)).is_err()
    };
    assert!(is_found(|found| drop(found.remove(2))), "a loss");
    assert!(is_found(|found| found.insert(3, found[2].clone())), "a duplicate");
    assert!(is_found(|found| found.swap(1, 2)), "a wrong order");
    assert!(is_found(|found| found[2].1 = "$other".to_owned()), "another event");
}

/// Whether this machine lets a program be traced.
fn can_trace(folder: &Path) -> Result<(), String> {
    let output = Command::new("strace").args(["-f", "-o"]).arg(folder.join("try")).arg("true").output();
    match output {
        Err(error) => Err(format!("strace does not start: {error}")),
        Ok(output) if !output.status.success() => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Ok(_) => Ok(()),
    }
}

/// The line where a system call of `line` ended: itself, or where it was resumed.
fn end_of(lines: &[&str], line: usize) -> Option<usize> {
    if !lines[line].ends_with("<unfinished ...>") {
        return lines[line].contains(" = 0").then_some(line);
    }
    let process = lines[line].split_whitespace().next()?;
    let resumed = (line + 1..lines.len()).find(|at| {
        let mut words = lines[*at].split_whitespace();
        words.next() == Some(process) && words.next() == Some("<...")
    })?;
    lines[resumed].contains(" = 0").then_some(resumed)
}

/// A kill leaves the system's memory as it is, a power loss does not: the log of the database must be on the disk before the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_data_is_synced_before_the_answer_on_sqlite() {
    let database = TestDatabase::sqlite();
    let folder = folder(&database);
    if let Err(reason) = can_trace(folder.path()) {
        eprintln!("SKIPPED: {reason}");
        return;
    }
    let trace = folder.path().join("trace");
    let calls = "trace=fsync,fdatasync,pwrite64,pwritev,write,writev,sendto,sendmsg";
    let trace_argument = trace.to_str().unwrap();
    // With `-D` the program itself is our child, and `kill` ends it.
    let wrapper = ["strace", "-D", "-f", "-y", "-s", "8192", "-e", calls, "-o", trace_argument];
    let (mut program, http) = start(folder.path(), &wrapper);
    let alice = test_kit::register(&http, "alice").await;
    let room = alice.create_room().await;
    let mut sends = Vec::new();
    for n in 0..5 {
        let marker = format!("marker-{n}-of-the-trace");
        let event_id = send(&http, &alice, &room, &marker).await.expect("an answer");
        sends.push((marker, event_id));
    }
    program.kill();
    eventually!(fs::read(&trace).is_ok_and(|text| String::from_utf8_lossy(&text).contains("+++ killed by SIGKILL")));
    let text = fs::read(&trace).unwrap();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let log = "swiftchat.db-wal>";
    for (marker, event_id) in sends {
        let answer = lines
            .iter()
            .position(|line| line.contains("HTTP/1.1 200") && line.contains(&event_id))
            .expect("the answer is in the trace");
        let written = lines[..answer]
            .iter()
            .rposition(|line| line.contains("pwrite") && line.contains(log) && line.contains(&marker))
            .expect("the event was written before the answer");
        let synced = (written + 1..answer).any(|at| {
            let is_sync = lines[at].contains("fsync(") || lines[at].contains("fdatasync(");
            is_sync && lines[at].contains(log) && end_of(&lines, at).is_some_and(|end| end < answer)
        });
        assert!(synced, "{marker}: the log was not synced between\n{}\nand\n{}", lines[written], lines[answer]);
    }
}
