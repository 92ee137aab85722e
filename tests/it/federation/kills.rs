//! What was answered is there, and gets to the other servers, after the program was killed right behind the answer.

use std::{fs, net::IpAddr};

use serde_json::json;
use test_kit::{Authority, Http, Peer, TestDatabase, TestDns, TestUser, eventually, register};

use super::sending::Inbox;
use crate::durability::{Program, folder, start};

const BOB: &str = "@bob:peer.test";
const KILLS: usize = 4;
const MESSAGES: usize = 25;

/// The program as `hs1`, and a server in the test's hands that it finds.
struct Mortal {
    folder: tempfile::TempDir,
    program: Program,
    http: Http,
    peer: Peer,
    _authority: Authority,
    _dns: TestDns,
}

impl Mortal {
    async fn start(database: &TestDatabase) -> Self {
        let (authority, dns) = (Authority::new(), TestDns::start().await);
        let peer = Peer::start("peer.test", &authority).await;
        let address: IpAddr = peer.address();
        dns.add_address("peer.test", address);
        let folder = folder(database);
        let file = folder.path().join("config.toml");
        let config = fs::read_to_string(&file).unwrap();
        let more = format!(
            "open_registration = true\nfederation_extra_authorities = [{:?}]\nfederation_dns_server = \"{}\"\n\
             outgoing_private_networks = [\"127.0.0.0/8\"]\n[server]\nnames = [\"hs1\"]\n[accounts]\nregistration = \"open\"\n\
             [federation]\nenabled = true\nnotaries = []\n",
            authority.file(),
            dns.address(),
        );
        fs::write(file, config + &more).unwrap();
        let (program, http) = start(folder.path(), &[]);
        Self { folder, program, http, peer, _authority: authority, _dns: dns }
    }

    /// Kills it and starts it again; gives the user at the new one.
    fn kill(&mut self, user: &TestUser) -> TestUser {
        self.program.kill();
        (self.program, self.http) = start(self.folder.path(), &[]);
        user.at(&self.http)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_gets_to_the_other_server_in_spite_of_kills() {
    for database in TestDatabase::each().await {
        let mut server = Mortal::start(&database).await;
        let inbox = Inbox::of(&server.peer);
        let mut alice = register(&server.http, "alice").await;
        let room = alice.create_public_room().await;
        server.peer.join(&server.http, "hs1", &room, BOB).await;
        let mut said = Vec::new();
        for kill in 0..KILLS {
            // Taken, lost on the way, and not even tried: a kill meets all of them.
            inbox.answers(if kill % 2 == 0 { 200 } else { 503 });
            for number in 0..MESSAGES {
                let text = format!("message {number} before kill {kill}");
                alice.send_text(&room, &text).await;
                said.push(text);
            }
            alice = server.kill(&alice);
        }
        inbox.answers(200);
        eventually!({
            let taken = inbox.texts(&room);
            said.iter().all(|text| taken.contains(text))
        });
        let mut taken = inbox.texts(&room);
        // What may have arrived is sent again; the first time each comes in its order.
        let mut seen = std::collections::HashSet::new();
        taken.retain(|text| seen.insert(text.clone()));
        assert_eq!(taken, said);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_server_was_told_is_taken_in_survives_kills() {
    for database in TestDatabase::each().await {
        let mut server = Mortal::start(&database).await;
        let mut alice = register(&server.http, "alice").await;
        let room = alice.create_public_room().await;
        let mut guest = server.peer.join(&server.http, "hs1", &room, BOB).await;
        let mut said = Vec::new();
        for kill in 0..KILLS {
            let text = format!("before kill {kill}");
            let event = guest.text(&server.peer, &text);
            guest.follow(&event);
            said.push(text);
            let body = json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": [event.json], "edus": []});
            let path = format!("/_matrix/federation/v1/send/kill{kill}");
            let answer = server.peer.ask(&server.http, "hs1", "PUT", &path, &body).await.ok();
            alice = server.kill(&alice);
            assert_eq!(answer["pdus"][&event.id], json!({}), "{answer}");
            assert_eq!(alice.texts(&room).await, said);
            // The same once more: it has the same answer, and is not there twice.
            assert_eq!(server.peer.ask(&server.http, "hs1", "PUT", &path, &body).await.ok(), answer);
        }
        assert_eq!(alice.texts(&room).await, said);
    }
}

/// Keys of conversations: lost, nobody can read what follows; twice, it is one more chance to go wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_to_devices_get_to_the_other_server_in_order_in_spite_of_kills() {
    for database in TestDatabase::each().await {
        let mut server = Mortal::start(&database).await;
        let inbox = Inbox::of(&server.peer);
        let mut alice = register(&server.http, "alice").await;
        let mut said = Vec::new();
        for kill in 0..KILLS {
            inbox.answers(if kill % 2 == 0 { 200 } else { 503 });
            for number in 0..MESSAGES {
                let text = format!("{kill}/{number}");
                let path = format!("/sendToDevice/m.room_key/{kill}_{number}");
                alice.put(&path, &json!({"messages": {BOB: {"*": {"text": text}}}})).await.ok();
                said.push(text);
            }
            alice = server.kill(&alice);
        }
        inbox.answers(200);
        // What comes again comes under the same id, by which the other side knows it.
        let mut seen = std::collections::HashMap::new();
        let first_of_each = |seen: &mut std::collections::HashMap<String, String>| -> Vec<String> {
            let edus = inbox.edus("m.direct_to_device");
            let mut texts = Vec::new();
            for edu in edus {
                let id = edu["message_id"].as_str().unwrap().to_owned();
                let text = edu["messages"][BOB]["*"]["text"].as_str().unwrap().to_owned();
                assert_eq!(seen.entry(id).or_insert_with(|| text.clone()), &text);
                if !texts.contains(&text) {
                    texts.push(text);
                }
            }
            texts
        };
        eventually!(first_of_each(&mut seen).len() == said.len());
        assert_eq!(first_of_each(&mut seen), said);
        assert_eq!(seen.len(), said.len(), "each has one id");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_to_devices_that_were_taken_in_are_there_once_in_spite_of_kills() {
    for database in TestDatabase::each().await {
        let mut server = Mortal::start(&database).await;
        let mut alice = register(&server.http, "alice").await;
        for kill in 0..KILLS {
            let edu = |number: usize| {
                json!({"edu_type": "m.direct_to_device", "content": {
                    "sender": BOB, "type": "m.test", "message_id": format!("{kill}/{number}"),
                    "messages": {alice.id(): {"*": {"text": format!("{kill}/{number}")}}},
                }})
            };
            let body = |numbers: std::ops::Range<usize>| {
                let edus: Vec<_> = numbers.map(edu).collect();
                json!({"origin": "peer.test", "origin_server_ts": 1, "pdus": [], "edus": edus})
            };
            let (two, more) = (body(0..2), body(0..4));
            let send = async |server: &Mortal, name: &str, body| {
                let path = format!("/_matrix/federation/v1/send/{name}{kill}");
                server.peer.ask(&server.http, "hs1", "PUT", &path, body).await.ok()
            };
            send(&server, "one", &two).await;
            alice = server.kill(&alice);
            // The same again, and what came before beside what is new.
            send(&server, "one", &two).await;
            send(&server, "two", &more).await;
        }
        let sync = alice.sync(None).await;
        let events = sync["to_device"]["events"].as_array().unwrap();
        let texts: Vec<&str> = events.iter().filter_map(|event| event["content"]["text"].as_str()).collect();
        let expected: Vec<String> = (0..KILLS).flat_map(|kill| (0..4).map(move |n| format!("{kill}/{n}"))).collect();
        assert_eq!(texts, expected);
    }
}

/// A machine that swaps, a paused container: another process has taken over by the time it comes back, and has sent what comes next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_stopped_for_longer_than_its_lease_sends_nothing_more_of_what_it_had() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let server = Mortal::start(&database).await;
    let inbox = Inbox::of(&server.peer);
    let (other, other_http) = start(server.folder.path(), &[]);
    let alice = register(&server.http, "alice").await;
    let there = alice.at(&other_http);
    let room = alice.create_public_room().await;
    server.peer.join(&server.http, "hs1", &room, BOB).await;
    // 1. The other process sends to the peer: at once, or when the lease of the first one is over.
    server.program.signal("STOP");
    inbox.hold(true);
    there.send_text(&room, "first").await;
    eventually!(inbox.texts(&room) == ["first"]);
    server.program.signal("CONT");
    // 2. It is stopped with a transaction under way and many events behind that.
    let mut said = vec!["first".to_owned()];
    for number in 0..120 {
        let text = format!("message {number}");
        alice.send_text(&room, &text).await;
        said.push(text);
    }
    eventually!(there.texts(&room).await.last() == said.last());
    other.signal("STOP");
    inbox.hold(false);
    // 3. The first one takes over.
    eventually!(inbox.texts(&room).contains(&"message 119".to_owned()));
    // 4. The other one is back.
    other.signal("CONT");
    for (user, text) in [(&there, "back"), (&alice, "last")] {
        user.send_text(&room, text).await;
        said.push(text.to_owned());
        eventually!(inbox.texts(&room).contains(&text.to_owned()));
    }
    // What was under way when it was stopped came twice at most; the rest once, and in order.
    let mut taken = inbox.texts(&room);
    let is_first = |text: &String| text == "first";
    assert!(taken.iter().filter(|text| is_first(text)).count() <= 2, "{taken:?}");
    taken.retain(|text| !is_first(text));
    assert_eq!(taken, said[1..]);
}
