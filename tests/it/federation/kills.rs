//! What was answered is there, and gets to the other servers, after the program was killed right behind the answer.

use std::{fs, net::IpAddr};

use serde_json::json;
use test_kit::{Authority, Http, Peer, TestDatabase, TestDns, TestUser, encode, eventually, register};

use super::{
    partial_joins::{Gate, Resident},
    sending::Inbox,
};
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

/// The join counts, what was said too, and the members come all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_lacks_members_becomes_whole_in_spite_of_a_kill() {
    for database in TestDatabase::each().await {
        let mut server = Mortal::start(&database).await;
        let (alice, gate) = (register(&server.http, "alice").await, Gate::default());
        let resident = Resident::of(&server.peer, 40);
        resident.let_in(&server.peer, alice.id());
        resident.tell_state(&server.peer, &gate);
        let room = &resident.room.id;
        alice.post(&format!("/join/{}?via=peer.test", encode(room)), &json!({})).await.ok();
        alice.send_text(room, "before").await;
        let alice = server.kill(&alice);
        alice.send_text(room, "after").await;
        gate.open();
        let members = async || {
            let answer = alice.get(&format!("/rooms/{}/joined_members", encode(room))).await.ok();
            answer["joined"].as_object().map_or(0, serde_json::Map::len)
        };
        eventually!(members().await == 40 + 2);
        assert_eq!(alice.texts(room).await, ["before", "after"]);
    }
}
