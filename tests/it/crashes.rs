//! What was answered is there after the program was killed right behind the answer. Messages have `durability.rs`.

use model::{Clock, Random};
use serde_json::{Value, json};
use storage::{Options, Storage};
use test_kit::{Http, TestDatabase, TestUser, encode};

use crate::{
    durability::{Program, folder, start},
    sliding_sync::{FORMS, Form, pos},
    thread_subscriptions,
};

/// A program that is killed again and again.
struct Mortal {
    database: TestDatabase,
    folder: tempfile::TempDir,
    program: Program,
    http: Http,
}

impl Mortal {
    fn start(database: TestDatabase) -> Self {
        let folder = folder(&database);
        let (program, http) = start(folder.path(), &[]);
        Self { database, folder, program, http }
    }

    /// Kills it and starts it again; gives the user at the new one.
    fn kill(&mut self, user: &TestUser) -> TestUser {
        self.program.kill();
        (self.program, self.http) = start(self.folder.path(), &[]);
        user.at(&self.http)
    }

    /// The database, once the program is dead.
    async fn storage(mut self) -> Storage {
        self.program.kill();
        let options = match self.database.options.clone() {
            Options::Sqlite { read_connections, .. } => {
                Options::Sqlite { path: self.folder.path().join("data/swiftchat.db"), read_connections }
            }
            postgres => postgres,
        };
        Storage::open(options, Clock::system(), Random::system()).await.unwrap()
    }
}

fn texts(room: &Value) -> Vec<String> {
    let events = room["timeline"].as_array().cloned().unwrap_or_default();
    events.iter().filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_to_a_thread_survives_a_kill() {
    for database in TestDatabase::each().await {
        let mut server = Mortal::start(database);
        let alice = test_kit::register(&server.http, "alice").await;
        let room = alice.create_room().await;
        let root = alice.send_text(&room, "root").await;
        let path = thread_subscriptions::path(&room, &root);
        let before = Form::V4.sync(&alice, None, 0, &thread_subscriptions::body()).await;
        alice.put(&path, &json!({})).await.ok();
        let alice = server.kill(&alice);
        assert_eq!(alice.get(&path).await.ok(), json!({ "automatic": false }));
        // Also on the connection that was there before.
        let news = Form::V4.sync(&alice, Some(pos(&before)), 0, &thread_subscriptions::body()).await;
        assert!(thread_subscriptions::shown(&news)["subscribed"][&room][&root].is_object(), "{news}");
        alice.request("DELETE", &path, &Value::Null).await.ok();
        let alice = server.kill(&alice);
        alice.get(&path).await.is_error(404, "M_NOT_FOUND");
        let news = Form::V4.sync(&alice, Some(pos(&news)), 0, &thread_subscriptions::body()).await;
        assert!(thread_subscriptions::shown(&news)["unsubscribed"][&room][&root].is_object(), "{news}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_survive_a_kill() {
    for database in TestDatabase::each().await {
        let mut server = Mortal::start(database);
        let alice = test_kit::register(&server.http, "alice").await;
        let room = alice.create_room().await;
        let event = alice.send_text(&room, "bad").await;
        let of_room = format!("/rooms/{}/report", encode(&room));
        alice.post(&format!("{of_room}/{}", encode(&event)), &json!({ "reason": "an event" })).await.ok();
        let alice = server.kill(&alice);
        alice.post(&of_room, &json!({ "reason": "a room" })).await.ok();
        let alice = server.kill(&alice);
        alice.post(&format!("/users/{}/report", encode(alice.id())), &json!({ "reason": "a user" })).await.ok();
        let reports = server.storage().await.list_reports(i64::MAX, 10).await.unwrap();
        let reasons: Vec<&str> = reports.iter().rev().map(|row| row.report.reason.as_str()).collect();
        assert_eq!(reasons, ["an event", "a room", "a user"]);
        assert_eq!((&*reports[2].report.event_id, &*reports[1].report.room_id), (&*event, &*room));
    }
}

/// A client that has an answer goes on from it: nothing comes twice, and no room anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_of_sliding_sync_survives_a_kill() {
    for database in TestDatabase::each().await {
        let mut server = Mortal::start(database);
        let mut alice = test_kit::register(&server.http, "alice").await;
        let (one, two) = (alice.create_room().await, alice.create_room().await);
        for form in FORMS {
            let body = |last: u64| json!({ "conn_id": "main", "lists": { "all": form.list([0, last], 3, &[["m.room.create", ""]]) } });
            // A connection begins: the newest room.
            let first = form.sync(&alice, None, 0, &body(0)).await;
            assert_eq!(first["rooms"][&two]["initial"], true, "{first}");
            alice = server.kill(&alice);
            alice.send_text(&two, "after the first").await;
            // It grows: the other room is new, and the state of the connection another.
            let second = form.sync(&alice, Some(pos(&first)), 0, &body(1)).await;
            assert_eq!(second["rooms"][&one]["initial"], true, "{second}");
            assert_eq!(texts(&second["rooms"][&two]), ["after the first"], "{second}");
            assert_eq!(second["rooms"][&two]["initial"], Value::Null, "{second}");
            alice = server.kill(&alice);
            assert_eq!(form.sync(&alice, Some(pos(&second)), 0, &body(1)).await["rooms"], json!({}));
            // The answer was lost with the server: from the position before it comes again.
            let again = form.sync(&alice, Some(pos(&first)), 0, &body(1)).await;
            assert_eq!(again["rooms"][&one]["initial"], true, "{again}");
            assert_eq!(texts(&again["rooms"][&two]), ["after the first"], "{again}");
            // One room is looked at no more, and stays behind: that is kept, too.
            alice.send_text(&one, "unseen").await;
            alice.send_text(&two, "seen").await;
            let third = form.sync(&alice, Some(pos(&again)), 0, &body(0)).await;
            assert_eq!(texts(&third["rooms"][&two]), ["seen"], "{third}");
            alice = server.kill(&alice);
            let fourth = form.sync(&alice, Some(pos(&third)), 0, &body(1)).await;
            assert_eq!(texts(&fourth["rooms"][&one]), ["unseen"], "{fourth}");
            assert!(fourth["rooms"][&two].is_null() && fourth["rooms"][&one]["initial"].is_null(), "{fourth}");
            alice.send_text(&two, "for the next").await;
        }
    }
}
