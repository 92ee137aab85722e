//! Servers that federate, on loopback in this process, to try things out and to measure.
//!
//! ```text
//! cargo run --release -p test_kit --bin federate -- 2                     two servers, hs1 and hs2; prints their addresses
//! cargo run --release -p test_kit --bin federate -- 1 --join 10000 50000  one, whose user joins a room of a scripted server with so
//!                                                                           many members and events of state; prints what it took
//! ```

use std::{process::ExitCode, time::Instant};

use ruma::RoomVersionId;
use serde_json::json;
use test_kit::{PeerEvent, TestFederation, encode};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (servers, join) = match arguments.as_slice() {
        [servers] => (servers.parse(), None),
        [servers, "--join", members, events] => match (members.parse(), events.parse()) {
            (Ok(members), Ok(events)) => (servers.parse(), Some((members, events))),
            _ => return usage(),
        },
        _ => return usage(),
    };
    let Ok(servers) = servers else { return usage() };
    let federation = TestFederation::of(servers).await;
    if let Some((members, events)) = join {
        measure_join(&federation, members, events).await;
        return ExitCode::SUCCESS;
    }
    for number in 1..=servers {
        let name = format!("hs{number}");
        println!("{name} {}", federation.server(&name).http().base());
    }
    println!("stops with Ctrl-C");
    let _ = tokio::signal::ctrl_c().await;
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: federate SERVERS [--join MEMBERS EVENTS]");
    ExitCode::FAILURE
}

/// A user of `hs1` joins a room of a scripted server.
async fn measure_join(federation: &TestFederation, members: usize, events: usize) {
    let peer = federation.peer("peer.test").await;
    let bob = federation.user("hs1", "bob").await;
    let mut room = peer.make_room(&RoomVersionId::V11, "@host:peer.test", &[]);
    for number in 0..members {
        let user = format!("@member{number}:peer.test");
        room.user.clone_from(&user);
        let member =
            room.event(&peer, "m.room.member", Some(&user), json!({"membership": "join", "displayname": user}));
        room.follow(&member);
    }
    room.user = "@host:peer.test".to_owned();
    for number in room.state.len()..events {
        let key = format!("key{number}");
        let event =
            room.event(&peer, "org.example.state", Some(&key), json!({"value": "x".repeat(100), "number": number}));
        room.follow(&event);
    }
    let state: Vec<PeerEvent> = room.state_events();
    let chain = state.iter().filter(|event| event.json["type"] != "org.example.state").cloned().collect::<Vec<_>>();
    peer.let_in(&room, bob.id(), &state, &chain);
    let before = memory("VmRSS");
    if let Err(error) = std::fs::write("/proc/self/clear_refs", "5") {
        eprintln!("the peak of memory is that since the start: {error}");
    }
    let path = format!("/_matrix/client/v3/join/{}?via=peer.test", encode(&room.id));
    let began = Instant::now();
    bob.post(&path, &json!({})).await.ok();
    let joined = began.elapsed();
    bob.send_text(&room.id, "here").await;
    let sent = began.elapsed();
    let synced = bob.sync(None).await;
    let shown = synced["rooms"]["join"][&room.id]["summary"]["m.joined_member_count"].clone();
    println!(
        "joined in {joined:.2?}, sent in {sent:.2?}, synced in {:.2?}; {shown} members; memory {} MiB before, {} MiB at most",
        began.elapsed(),
        before,
        memory("VmHWM"),
    );
}

/// A line of this process's status, in MiB.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')?.split_whitespace().next());
    found.and_then(|number| number.parse::<u64>().ok()).unwrap_or_default() / 1_024
}
