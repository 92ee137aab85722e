//! Two servers of one deployment: on one PostgreSQL, with one Redis between them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use swiftchat::config::EventBusUrl;
use test_kit::{Http, RedisProxy, Saboteur, ServerOptions, TestDatabase, TestServer, TestUser, encode, redis_url};

use crate::durability::{folder, start, timeline};

/// Longer than any test: whoever is told of something within it was not told by asking.
const NEVER: Duration = Duration::from_secs(3_600);
/// How long a poll waits that is to be woken, in milliseconds.
const LONG_MS: u64 = 30_000;
/// What is said to try whether the servers hear each other.
const TRIAL: &str = "can you hear me";

/// Two servers, if there is what they need, with lines to Redis that can be cut.
pub(crate) async fn two_servers(ask_every: Option<Duration>) -> Option<([TestServer; 2], [RedisProxy; 2])> {
    let (redis, database) = (redis_url()?, TestDatabase::postgres().await?);
    let proxies = [RedisProxy::start(&redis).await, RedisProxy::start(&redis).await];
    let options = |proxy: &RedisProxy| {
        let mut options = ServerOptions { ask_every, ..ServerOptions::default() };
        options.config.event_bus.url = EventBusUrl::Redis(proxy.url().to_owned());
        options
    };
    let first = TestServer::on(database, options(&proxies[0])).await;
    let second = first.beside(options(&proxies[1])).await;
    Some(([first, second], proxies))
}

fn token(sync: &Value) -> String {
    sync["next_batch"].as_str().expect("a token").to_owned()
}

fn texts(sync: &Value, room: &str) -> Vec<String> {
    let events = sync["rooms"]["join"][room]["timeline"]["events"].as_array().cloned().unwrap_or_default();
    events.iter().filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
}

/// The texts of the next answer that has any but those that tried the connection.
async fn heard(reader: &TestUser, since: &mut String, room: &str) -> Vec<String> {
    for _ in 0..1_000 {
        let sync = reader.sync_waiting(Some(since), LONG_MS).await;
        *since = token(&sync);
        let mut texts = texts(&sync, room);
        let is_empty = texts.is_empty();
        texts.retain(|text| text != TRIAL);
        if is_empty || !texts.is_empty() {
            return texts;
        }
    }
    panic!("nothing but trials was heard");
}

/// Who an answer says is typing in the room, if it says anything.
fn typing(sync: &Value, room: &str) -> Option<Value> {
    let events = sync["rooms"]["join"][room]["ephemeral"]["events"].as_array()?;
    let event = events.iter().find(|event| event["type"] == "m.typing")?;
    Some(event["content"]["user_ids"].clone())
}

async fn set_typing(user: &TestUser, room: &str, body: Value) {
    user.put(&format!("/rooms/{}/typing/{}", encode(room), encode(user.id())), &body).await.ok();
}

/// Sends from one server until a poll at the other shows a message: from then on both hear each other. Gives the poll's token.
async fn until_connected(sender: &TestUser, reader: &TestUser, room: &str) -> String {
    let mut since = token(&reader.sync(None).await);
    for _ in 0..1_000 {
        sender.send_text(room, TRIAL).await;
        let sync = reader.sync_waiting(Some(&since), 100).await;
        since = token(&sync);
        if !texts(&sync, room).is_empty() {
            return since;
        }
    }
    panic!("nothing was heard");
}

/// The database is never asked here: what wakes the poll is the message over Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_at_one_server_is_woken_by_a_message_at_another() {
    let Some(([here, there], _)) = two_servers(Some(NEVER)).await else { return };
    let (alice, bob) = (here.user("alice").await, here.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let bob = bob.at(there.http());
    let mut since = until_connected(&alice, &bob, &room).await;
    for n in 0..5 {
        let text = format!("message {n}");
        let (heard, _) = tokio::join!(heard(&bob, &mut since, &room), alice.send_text(&room, &text));
        assert_eq!(heard, [text]);
    }
    // The other way round, with the token of the other server.
    let (alice, bob) = (alice.at(there.http()), bob.at(here.http()));
    until_connected(&alice, &bob, &room).await;
    let (heard, _) = tokio::join!(heard(&bob, &mut since, &room), alice.send_text(&room, "and back"));
    assert_eq!(heard, ["and back"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_a_message_arrives_all_the_same() {
    let Some(([here, there], proxies)) = two_servers(None).await else { return };
    let (alice, bob) = (here.user("alice").await, here.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let bob = bob.at(there.http());
    let mut since = until_connected(&alice, &bob, &room).await;
    for proxy in &proxies {
        proxy.cut();
    }
    let (by_asking, _) = tokio::join!(heard(&bob, &mut since, &room), alice.send_text(&room, "by asking"));
    assert_eq!(by_asking, ["by asking"]);
    // And when Redis is there again, nothing is doubled.
    for proxy in &proxies {
        proxy.heal();
    }
    let (afterwards, _) = tokio::join!(heard(&bob, &mut since, &room), alice.send_text(&room, "afterwards"));
    assert_eq!(afterwards, ["afterwards"]);
}

/// Long polls that come to one server and to another, as behind a load balancer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_types_at_one_server_is_seen_at_another_and_so_is_the_end() {
    let Some(([here, there], proxies)) = two_servers(None).await else { return };
    let (alice, bob) = (here.user("alice").await, here.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let bob_there = bob.at(there.http());
    let mut since = until_connected(&alice, &bob_there, &room).await;
    // Until both servers have found Redis, what is said is lost: it is said again.
    let mut sync = Value::Null;
    for _ in 0..1_000 {
        set_typing(&alice, &room, json!({ "typing": true, "timeout": 60_000 })).await;
        sync = bob_there.sync_waiting(Some(&since), 100).await;
        since = token(&sync);
        if typing(&sync, &room).is_some() {
            break;
        }
    }
    assert_eq!(typing(&sync, &room), Some(json!([alice.id()])));
    // Told once: the token of the other server is good here.
    let sync = bob.sync_waiting(Some(&since), 0).await;
    assert_eq!(typing(&sync, &room), None, "{sync}");
    since = token(&sync);
    let stop = set_typing(&alice, &room, json!({ "typing": false }));
    let (sync, ()) = tokio::join!(bob_there.sync_waiting(Some(&since), LONG_MS), stop);
    assert_eq!(typing(&sync, &room), Some(json!([])), "{sync}");
    since = token(&sync);
    // The first server's copy may be a moment behind, and show alice typing once more: then it tells of the end, too.
    let mut sync = bob.sync(Some(&since)).await;
    since = token(&sync);
    if typing(&sync, &room) == Some(json!([alice.id()])) {
        sync = bob.sync_waiting(Some(&since), LONG_MS).await;
        assert_eq!(typing(&sync, &room), Some(json!([])), "{sync}");
        since = token(&sync);
    }
    for at in [&bob, &bob_there] {
        let sync = at.sync(Some(&since)).await;
        assert_eq!(typing(&sync, &room), None, "nothing is told twice: {sync}");
        since = token(&sync);
    }
    // Nobody is shown typing for ever by a server that has lost Redis.
    let start = set_typing(&alice, &room, json!({ "typing": true, "timeout": 60_000 }));
    let (sync, ()) = tokio::join!(bob_there.sync_waiting(Some(&since), LONG_MS), start);
    assert_eq!(typing(&sync, &room), Some(json!([alice.id()])), "{sync}");
    proxies[1].cut();
    let sync = bob_there.sync_waiting(Some(&token(&sync)), LONG_MS).await;
    assert_eq!(typing(&sync, &room), Some(json!([])), "{sync}");
    proxies[1].heal();
    let sync = bob_there.sync_waiting(Some(&token(&sync)), LONG_MS).await;
    assert_eq!(typing(&sync, &room), Some(json!([alice.id()])), "{sync}");
}

/// Sends a message; gives its event id, or nothing when that failed.
async fn try_send(http: &Http, user: &TestUser, room: &str, transaction: &str) -> Option<String> {
    let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{transaction}", encode(room));
    let body = json!({"msgtype": "m.text", "body": transaction}).to_string();
    let answer = http.send("PUT", path.as_bytes(), Some(user.token()), Some("application/json"), body).await.ok()?;
    answer.status.is_success().then(|| answer.json()["event_id"].as_str().expect("an event id").to_owned())
}

/// A machine that swaps, a paused container: the process is there, holds what all the others need, and does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_in_the_midst_of_a_commit_stops_nobody() {
    /// How many send at once.
    const SENDERS: usize = 4;
    let Some(database) = TestDatabase::postgres().await else { return };
    let mut saboteur = Saboteur::of(&database).await.expect("a PostgreSQL database");
    let folder = folder(&database);
    let ((frozen, there), (_other, here)) = (start(folder.path(), &[]), start(folder.path(), &[]));
    let alice = test_kit::register(&there, "alice").await;
    let room = alice.create_room().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut senders = Vec::new();
    for sender in 0..SENDERS {
        let (there, alice, room, stop) = (there.clone(), alice.clone(), room.clone(), stop.clone());
        senders.push(tokio::spawn(async move {
            let mut sent = Vec::new();
            for n in 0.. {
                let transaction = format!("{sender}-{n}");
                let answer = try_send(&there, &alice, &room, &transaction).await;
                sent.push((transaction, answer));
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
            sent
        }));
    }
    // Only the frozen server writes: it is stopped until it is in the midst of a commit and stays there.
    let is_held = async |saboteur: &mut Saboteur| {
        for _ in 0..50 {
            if saboteur.order().await.0 == 0 {
                return false;
            }
        }
        true
    };
    loop {
        frozen.signal("STOP");
        if is_held(&mut saboteur).await {
            break;
        }
        frozen.signal("CONT");
        tokio::task::yield_now().await;
    }
    // PostgreSQL ends its transaction after a while, and the other server goes on.
    let sent_here = try_send(&here, &alice, &room, "meanwhile").await.expect("an answer");
    assert_eq!(saboteur.order().await.0, 0, "the lock is free");
    stop.store(true, Ordering::SeqCst);
    frozen.signal("CONT");
    let mut expected = HashMap::from([("meanwhile".to_owned(), sent_here)]);
    for sender in senders {
        for (transaction, answer) in sender.await.unwrap() {
            let event_id = match answer {
                Some(event_id) => event_id,
                None => try_send(&here, &alice, &room, &transaction).await.expect("an answer"),
            };
            expected.insert(transaction, event_id);
        }
    }
    // The one that was frozen is as good as before.
    let afterwards = try_send(&there, &alice, &room, "afterwards").await.expect("an answer");
    expected.insert("afterwards".to_owned(), afterwards);
    let found = timeline(&alice, &room).await;
    assert_eq!(found.len(), expected.len(), "each message is there once");
    assert_eq!(HashMap::from_iter(found), expected);
}
