//! How long it takes to join a large room of a scripted server, until it can be used and until all of it is there, and what memory.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use ruma::RoomVersionId;
use serde_json::json;
use test_kit::{Authority, Peer, PeerEvent, PeerRoom, TestUser, encode, event_id, register};

use crate::{database, joiner::Joiner};

/// Longest wait for an answer, and for the room to be complete: a server may let wait until it is.
const WAIT_MAX: Duration = Duration::from_secs(900);

/// How large the room is.
#[derive(Clone, Debug)]
pub(crate) struct Size {
    pub(crate) members: usize,
    pub(crate) events: usize,
    pub(crate) shape: Shape,
    pub(crate) version: RoomVersionId,
}

/// What the events of state are beside the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Members who left: so it is in rooms that are large. That they had joined is in the room's past.
    Left,
    /// Events of a type of their own, which nobody may leave out.
    Other,
}

/// What a join took.
struct Took {
    joined: Duration,
    sent: Duration,
    received: Duration,
    complete: Duration,
    before: u64,
    most: u64,
    cpu: Duration,
}

/// Lets our program, and a Synapse if there is one, join such a room one after the other; prints a line of a table for each.
pub(crate) async fn measure(size: &Size, postgres: bool, synapse: Option<PathBuf>) {
    let authority = Authority::new();
    let peer = Peer::by_address(&authority).await;
    let began = Instant::now();
    let (room, before) = large_room(&peer, size);
    peer.serve_room(&room, &before);
    eprintln!(
        "the room has {} events of state and {} before them; made in {:.1?}",
        room.state.len(),
        before.len(),
        began.elapsed()
    );
    let mut joiners = vec![Joiner::ours(&authority, database(postgres).await).await];
    if let Some(python) = synapse {
        joiners.push(Joiner::synapse(&authority, &python).await);
    }
    let what = match size.shape {
        Shape::Left => "who left",
        Shape::Other => "of other state",
    };
    println!("| server | room | joined | sent | received | complete | memory before | at most | CPU |");
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for joiner in &joiners {
        let Took { joined, sent, received, complete, before, most, cpu } = join(&peer, &room, joiner).await;
        println!(
            "| {} | version {}, {} members, {} {what} | {joined:.2?} | {sent:.2?} | {received:.2?} | {complete:.2?} \
             | {before} MiB | {most} MiB | {cpu:.1?} |",
            joiner.label,
            size.version,
            size.members,
            room.state.len().saturating_sub(size.members),
        );
    }
}

/// A room with so many members, and so many events of state in all; and what was before them.
fn large_room(peer: &Peer, size: &Size) -> (PeerRoom, Vec<PeerEvent>) {
    let at = peer.name().clone();
    let host = format!("@host:{at}");
    let mut room = peer.make_room(&size.version, &host, &[("m.room.name", "", json!({"name": "A large room"}))]);
    let mut before = Vec::new();
    let member = |room: &mut PeerRoom, user: &str, membership: &str| {
        user.clone_into(&mut room.user);
        let content = json!({"membership": membership, "displayname": user});
        let event = room.event(peer, "m.room.member", Some(user), content);
        room.follow(&event);
        event
    };
    for number in 1..size.members {
        member(&mut room, &format!("@member{number}:{at}"), "join");
    }
    for number in room.state.len()..size.events {
        match size.shape {
            Shape::Left => {
                let user = format!("@left{number}:{at}");
                before.push(member(&mut room, &user, "join"));
                member(&mut room, &user, "leave");
            }
            Shape::Other => {
                host.clone_into(&mut room.user);
                let content = json!({"value": "x".repeat(100), "number": number});
                let event = room.event(peer, "org.example.state", Some(&format!("key{number}")), content);
                room.follow(&event);
            }
        }
    }
    // The state is that before a message: the newest event changes nothing.
    host.clone_into(&mut room.user);
    let last = room.text(peer, "before");
    room.follow(&last);
    before.push(last);
    (room, before)
}

async fn join(peer: &Peer, room: &PeerRoom, joiner: &Joiner) -> Took {
    let bob = register(&joiner.http.clone().waiting(WAIT_MAX), "bob").await;
    let since = news(&bob, None).await["next_batch"].as_str().expect("a token").to_owned();
    let before = joiner.memory("VmRSS");
    joiner.forget_peak();
    let (cpu, began) = (joiner.cpu(), Instant::now());
    let path = format!("/_matrix/client/v3/join/{}?via={}", encode(&room.id), encode(peer.name().as_str()));
    bob.post(&path, &json!({})).await.ok();
    let joined = began.elapsed();
    bob.send_text(&room.id, "here").await;
    let sent = began.elapsed();
    greet(peer, room, joiner).await;
    hear(&bob, &room.id, since).await;
    let received = began.elapsed();
    let members = room.state.values().filter(|event| event.json["content"]["membership"] == "join").count() + 1;
    wait_until_complete(&bob, &room.id, members).await;
    Took {
        joined,
        sent,
        received,
        complete: began.elapsed(),
        before,
        most: joiner.memory("VmHWM"),
        cpu: joiner.cpu().saturating_sub(cpu),
    }
}

/// The scripted server says something in the room after the join.
async fn greet(peer: &Peer, room: &PeerRoom, joiner: &Joiner) {
    let mut room = room.clone();
    let joined =
        peer.asked().into_iter().filter(|asked| asked.what.starts_with("PUT /_matrix/federation/v2/send_join/"));
    let mut joined = joined.map(|asked| asked.body).filter(|event| event["sender"] == format!("@bob:{}", joiner.name));
    let join = joined.next().expect("the join that the scripted server was sent");
    room.follow(&PeerEvent { id: event_id(&room.version, &join), json: join });
    let event = room.text(peer, "welcome");
    let body = json!({"origin": peer.name(), "origin_server_ts": 1, "pdus": [event.json], "edus": []});
    let path = format!("/_matrix/federation/v1/send/{}", encode(&event.id));
    peer.ask(&joiner.http, &joiner.name, "PUT", &path, &body).await.ok();
}

/// What is new since then, as clients ask for it: with those members only who said something.
async fn news(user: &TestUser, since: Option<&str>) -> serde_json::Value {
    let filter = encode(r#"{"room": {"state": {"lazy_load_members": true}, "timeline": {"limit": 20}}}"#);
    let since = since.map(|since| format!("&since={}", encode(since))).unwrap_or_default();
    user.get(&format!("/sync?timeout=1000&filter={filter}{since}")).await.ok()
}

/// Syncs until the user sees what the scripted server said.
async fn hear(user: &TestUser, room: &str, mut since: String) {
    let began = Instant::now();
    while began.elapsed() < WAIT_MAX {
        let news = news(user, Some(&since)).await;
        let events = news["rooms"]["join"][room]["timeline"]["events"].as_array().cloned().unwrap_or_default();
        if events.iter().any(|event| event["content"]["body"] == "welcome") {
            return;
        }
        news["next_batch"].as_str().expect("a token").clone_into(&mut since);
    }
    panic!("{} does not hear what the other server said", user.id());
}

/// Waits until the user is shown all members.
async fn wait_until_complete(user: &TestUser, room: &str, members: usize) {
    let began = Instant::now();
    let mut shown = 0;
    while began.elapsed() < WAIT_MAX {
        let answer = user.get(&format!("/rooms/{}/joined_members", encode(room))).await.ok();
        shown = answer["joined"].as_object().map_or(0, serde_json::Map::len);
        if shown == members {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{} sees {shown} members in place of {members}", user.id());
}
