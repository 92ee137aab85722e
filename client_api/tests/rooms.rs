//! The endpoints of rooms, asked as a listener asks them, on both databases.

use std::sync::Arc;

use accounts::Accounts;
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
};
use client_api::ClientApi;
use event_bus::{Bus, Typing};
use media::Media;
use model::{KeyPair, LocalServer, LocalServers, Random};
use rooms::Rooms;
use ruma::{RoomVersionId, server_name};
use serde_json::{Value, json};
use storage::{Storage, testing::TestDatabase};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use web::RateLimits;

struct House {
    router: Router,
    accounts: Accounts,
    rooms: Rooms,
    storage: Storage,
    stopping: CancellationToken,
    _folder: tempfile::TempDir,
}

/// Somebody's access token.
type Token<'a> = Option<&'a str>;

impl House {
    async fn open(database: &TestDatabase) -> Self {
        let storage = database.open().await;
        let key = KeyPair::generate(&Random::seeded(1));
        let servers = LocalServers::new(vec![LocalServer::new(server_name!("hs").to_owned(), key)]);
        let options = accounts::Options {
            registration: accounts::Registration::Open,
            guests: true,
            cheap_password_hashing: true,
            ..accounts::Options::default()
        };
        let accounts = Accounts::new(storage.clone(), servers.clone(), options);
        let options = rooms::Options { default_version: RoomVersionId::V12, ..rooms::Options::default() };
        let rooms = Rooms::new(storage.clone(), servers.clone(), options);
        let typing = Typing::new(storage.clock().clone(), storage.random());
        let stopping = CancellationToken::new();
        let folder = tempfile::tempdir().unwrap();
        let options = media::Options {
            folder: folder.path().to_owned(),
            is_shared: false,
            upload_bytes_max: 1,
            remote_bytes_max: 1,
        };
        let media = Media::open_store(storage.clone(), servers, options, None, stopping.clone()).unwrap();
        let sync = sync::Sync::start(storage.clone(), rooms.clone(), typing.clone(), Bus::memory(), stopping.clone());
        let api = ClientApi {
            accounts: accounts.clone(),
            rooms: rooms.clone(),
            sync,
            typing,
            media,
            rate_limits: RateLimits::off(),
            options: Arc::default(),
        };
        Self { router: web::finish(client_api::router(api)), accounts, rooms, storage, stopping, _folder: folder }
    }

    async fn close(self) {
        self.stopping.cancel();
        self.storage.close().await;
    }

    async fn ask(&self, who: Token<'_>, method: &str, path: &str, body: Value) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(format!("/_matrix/client/v3{path}"));
        if let Some(token) = who {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 16 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// The answer to what must succeed.
    #[track_caller]
    fn ok(&self, who: Token<'_>, method: &str, path: &str, body: Value) -> impl Future<Output = Value> {
        let call = format!("{method} {path}");
        async move {
            let (status, answer) = self.ask(who, method, path, body).await;
            assert_eq!(status, 200, "{call}: {answer}");
            answer
        }
    }

    /// The status and errcode of what must fail.
    async fn err(&self, who: Token<'_>, method: &str, path: &str, body: Value) -> (u16, String) {
        let (status, answer) = self.ask(who, method, path, body).await;
        (status, answer["errcode"].as_str().unwrap_or_else(|| panic!("{method} {path}: {answer}")).to_owned())
    }

    async fn register(&self, name: &str) -> String {
        let body = json!({"username": name, "password": "long enough", "auth": {"type": "m.login.dummy"}});
        let answer = self.ok(None, "POST", "/register", body).await;
        answer["access_token"].as_str().unwrap().to_owned()
    }

    async fn guest(&self) -> String {
        let answer = self.ok(None, "POST", "/register?kind=guest", json!({})).await;
        answer["access_token"].as_str().unwrap().to_owned()
    }

    async fn create(&self, who: &str, body: Value) -> String {
        let answer = self.ok(Some(who), "POST", "/createRoom", body).await;
        answer["room_id"].as_str().unwrap().to_owned()
    }

    async fn say(&self, who: &str, room: &str, txn: &str, content: Value) -> String {
        let path = format!("/rooms/{room}/send/m.room.message/{txn}");
        self.ok(Some(who), "PUT", &path, content).await["event_id"].as_str().unwrap().to_owned()
    }
}

fn text(body: &str) -> Value {
    json!({"msgtype": "m.text", "body": body})
}

/// The bodies of messages in a list of events.
fn bodies(events: &Value) -> Vec<&str> {
    events.as_array().unwrap().iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

macro_rules! on_each_database {
    ($($(#[$doc:meta])* async fn $name:ident($house:ident) $body:block)+) => {$(
        $(#[$doc])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            for database in TestDatabase::each().await {
                let $house = House::open(&database).await;
                $body
                $house.close().await;
            }
        }
    )+};
}

on_each_database! {
    /// Client-Server API, "Room membership": who may come, go and be sent away.
    async fn people_come_and_go_by_the_rules(house) {
        let (alice, bob) = (house.register("alice").await, house.register("bob").await);
        let (alice, bob) = (Some(&*alice), Some(&*bob));
        let room = house.create(alice.unwrap(), json!({"name": "Kitchen"})).await;
        let at = |action: &str| format!("/rooms/{room}/{action}");
        let forbidden = (403, "M_FORBIDDEN".to_owned());
        assert_eq!(house.err(bob, "POST", &at("join"), json!({})).await, forbidden);
        house.ok(alice, "POST", &at("invite"), json!({"user_id": "@bob:hs"})).await;
        house.ok(bob, "POST", &format!("/join/{room}"), Value::Null).await;
        assert_eq!(house.err(alice, "POST", &at("invite"), json!({"user_id": "@bob:hs"})).await, forbidden);
        assert_eq!(house.err(bob, "POST", &at("kick"), json!({"user_id": "@alice:hs"})).await, forbidden);
        assert_eq!(house.ok(bob, "GET", "/joined_rooms", Value::Null).await, json!({"joined_rooms": [room]}));
        assert_eq!(house.err(bob, "POST", &at("forget"), json!({})).await, (400, "M_UNKNOWN".to_owned()));
        house.ok(alice, "POST", &at("kick"), json!({"user_id": "@bob:hs", "reason": "too loud"})).await;
        assert_eq!(house.err(alice, "POST", &at("kick"), json!({"user_id": "@bob:hs"})).await, forbidden);
        house.ok(alice, "POST", &at("ban"), json!({"user_id": "@bob:hs"})).await;
        assert_eq!(house.err(alice, "POST", &at("invite"), json!({"user_id": "@bob:hs"})).await, forbidden);
        house.ok(alice, "POST", &at("unban"), json!({"user_id": "@bob:hs"})).await;
        assert_eq!(house.err(alice, "POST", &at("unban"), json!({"user_id": "@bob:hs"})).await, forbidden);
        house.ok(bob, "POST", &at("forget"), json!({})).await;
        assert_eq!(house.err(bob, "GET", &at("messages?dir=b"), Value::Null).await, forbidden);
        let joined = house.ok(alice, "GET", &at("joined_members"), Value::Null).await;
        assert_eq!(joined["joined"].as_object().unwrap().keys().collect::<Vec<_>>(), ["@alice:hs"]);
        let gone = house.ok(alice, "GET", &at("members?membership=leave"), Value::Null).await;
        assert_eq!(gone["chunk"][0]["state_key"], "@bob:hs");
        assert_eq!(gone["chunk"].as_array().unwrap().len(), 1);
        let (status, code) = house.err(alice, "POST", &at("invite"), json!({
            "id_server": "id.hs", "id_access_token": "t", "medium": "email", "address": "a@b",
        })).await;
        assert_eq!((status, &*code), (403, "M_SERVER_NOT_TRUSTED"));
    }

    /// A room that was busy when an account was closed, or a server that ended, must not keep a member for ever who can never leave.
    async fn who_has_closed_the_account_leaves_all_rooms_in_the_end(house) {
        let (alice, bob, carol) = (house.register("alice").await, house.register("bob").await, house.register("carol").await);
        let room = house.create(&alice, json!({"preset": "public_chat", "invite": ["@carol:hs"]})).await;
        let private = house.create(&alice, json!({"invite": ["@bob:hs"]})).await;
        house.ok(Some(&bob), "POST", &format!("/join/{room}"), Value::Null).await;
        house.ok(Some(&carol), "POST", &format!("/join/{room}"), Value::Null).await;
        let members = async |room: &str| {
            let path = format!("/rooms/{room}/members?not_membership=leave");
            let members = house.ok(Some(&alice), "GET", &path, Value::Null).await;
            let members = members["chunk"].as_array().unwrap().iter();
            let mut members: Vec<_> = members.map(|event| event["state_key"].as_str().unwrap().to_owned()).collect();
            members.sort_unstable();
            members
        };
        // 1. The ordinary way: gone with the answer.
        let identifier = json!({"type": "m.id.user", "user": "carol"});
        let auth = json!({"type": "m.login.password", "identifier": identifier, "password": "long enough"});
        house.ok(Some(&carol), "POST", "/account/deactivate", json!({"auth": auth})).await;
        assert_eq!(members(&room).await, ["@alice:hs", "@bob:hs"]);
        // 2. A server that ends right after an account was closed, as nobody can ask it once more.
        let requester = house.accounts.authenticate(&bob, None).await.unwrap();
        house.accounts.deactivate(&requester, false).await.unwrap();
        assert_eq!(members(&room).await, ["@alice:hs", "@bob:hs"]);
        // 3. The next one takes it up.
        let all_have_left = async {
            while members(&room).await.len() + members(&private).await.len() > 2 {}
        };
        client_api::follow_departures(house.accounts.clone(), house.rooms.clone(), all_have_left).await;
        // 4. And is done when it finds nobody who is still there.
        let nothing_is_left = async { while !house.accounts.departures(None).await.unwrap().is_empty() {} };
        client_api::follow_departures(house.accounts.clone(), house.rooms.clone(), nothing_is_left).await;
    }

    /// A room that cannot be as it was asked for is not made, and the error says why.
    async fn a_room_is_made_as_asked_or_not_at_all(house) {
        let alice = house.register("alice").await;
        let who = Some(&*alice);
        let room = house.create(&alice, json!({
            "preset": "public_chat", "room_alias_name": "kitchen", "topic": "food", "visibility": "public",
            "initial_state": [{"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}],
        })).await;
        let state = |key: &str| format!("/rooms/{room}/state/{key}");
        assert_eq!(house.ok(who, "GET", &state("m.room.topic"), Value::Null).await["topic"], "food");
        let visibility = house.ok(who, "GET", &state("m.room.history_visibility/"), Value::Null).await;
        assert_eq!(visibility, json!({"history_visibility": "joined"}));
        let event = house.ok(who, "GET", &state("m.room.join_rules/?format=event"), Value::Null).await;
        assert_eq!((&event["content"]["join_rule"], &event["room_id"]), (&json!("public"), &json!(room)));
        for (body, expected) in [
            (json!({"room_alias_name": "kitchen"}), "M_ROOM_IN_USE"),
            (json!({"room_alias_name": "a:b"}), "M_INVALID_PARAM"),
            (json!({"room_version": "99"}), "M_UNSUPPORTED_ROOM_VERSION"),
            (json!({"preset": "party"}), "M_INVALID_PARAM"),
            (json!({"initial_state": [{"type": "m.room.name"}]}), "M_BAD_JSON"),
            (json!({"initial_state": [{"type": "m.x", "content": {"float": 1.5}}]}), "M_BAD_JSON"),
            (json!({"invite": ["nobody"]}), "M_BAD_JSON"),
            (json!({"invite": 5}), "M_BAD_JSON"),
            (json!({"power_level_content_override": {"users": {"@alice:hs": 100}}}), "M_INVALID_ROOM_STATE"),
        ] {
            assert_eq!(house.err(who, "POST", "/createRoom", body.clone()).await, (400, expected.to_owned()), "{body}");
        }
        let rooms = house.ok(who, "GET", "/joined_rooms", Value::Null).await;
        assert_eq!(rooms["joined_rooms"].as_array().unwrap().len(), 1);
    }

    /// What is sent twice under one transaction id is there once; pages in both directions have the same events.
    async fn messages_are_paged_in_both_directions(house) {
        let (alice, bob) = (house.register("alice").await, house.register("bob").await);
        let who = Some(&*alice);
        let room = house.create(&alice, json!({"preset": "public_chat"})).await;
        house.ok(Some(&bob), "POST", &format!("/join/{room}"), json!({})).await;
        let mut sent = Vec::new();
        for n in 0..25 {
            let author = if n % 5 == 0 { &bob } else { &alice };
            sent.push(house.say(author, &room, &n.to_string(), text(&n.to_string())).await);
        }
        assert_eq!(house.say(&alice, &room, "24", text("again")).await, sent[24]);
        let mut seen = Vec::new();
        let mut from = String::new();
        loop {
            let path = format!("/rooms/{room}/messages?dir=b&limit=7{from}");
            let page = house.ok(who, "GET", &path, Value::Null).await;
            seen.extend(bodies(&page["chunk"]).iter().map(|body| (*body).to_owned()));
            let Some(end) = page["end"].as_str() else { break };
            from = format!("&from={end}");
        }
        assert_eq!(seen, (0..25).rev().map(|n| n.to_string()).collect::<Vec<_>>());
        let path = format!("/rooms/{room}/messages?dir=f&limit=100");
        let page = house.ok(who, "GET", &path, Value::Null).await;
        assert_eq!(bodies(&page["chunk"]).len(), 25);

        let filter = "%7B%22senders%22%3A%5B%22%40bob%3Ahs%22%5D%2C%22types%22%3A%5B%22m.room.m%2A%22%5D%2C%22not_types%22%3A%5B%22m.room.member%22%5D%2C%22lazy_load_members%22%3Atrue%7D";
        let page = house.ok(who, "GET", &format!("{path}&filter={filter}"), Value::Null).await;
        assert_eq!(bodies(&page["chunk"]), ["0", "5", "10", "15", "20"]);
        assert_eq!(page["state"].as_array().unwrap().len(), 1, "the member event of the one who speaks");
        assert_eq!(page["state"][0]["state_key"], "@bob:hs");

        let context = house.ok(who, "GET", &format!("/rooms/{room}/context/{}?limit=4", sent[10]), Value::Null).await;
        assert_eq!(context["event"]["content"]["body"], "10");
        assert_eq!((bodies(&context["events_before"]), bodies(&context["events_after"])), (vec!["9", "8"], vec!["11", "12"]));
        let path = format!("/rooms/{room}/messages?dir=b&limit=1&from={}", context["start"].as_str().unwrap());
        assert_eq!(bodies(&house.ok(who, "GET", &path, Value::Null).await["chunk"]), ["7"]);
        let bad = format!("/rooms/{room}/messages?dir=b&from=nonsense");
        assert_eq!(house.err(who, "GET", &bad, Value::Null).await, (400, "M_INVALID_PARAM".to_owned()));
    }

    /// A redacted event keeps its place and loses its content.
    async fn a_redacted_message_is_empty_everywhere(house) {
        let (alice, bob) = (house.register("alice").await, house.register("bob").await);
        let room = house.create(&alice, json!({"preset": "public_chat"})).await;
        house.ok(Some(&bob), "POST", &format!("/join/{room}"), json!({})).await;
        let event = house.say(&alice, &room, "1", text("oops")).await;
        let redact = format!("/rooms/{room}/redact/{event}/r");
        assert_eq!(house.err(Some(&bob), "PUT", &redact, json!({})).await, (403, "M_FORBIDDEN".to_owned()));
        let redaction = house.ok(Some(&alice), "PUT", &redact, json!({"reason": "typo"})).await;
        let event = house.ok(Some(&bob), "GET", &format!("/rooms/{room}/event/{event}"), Value::Null).await;
        assert_eq!(event["content"], json!({}));
        assert_eq!(event["unsigned"]["redacted_because"]["event_id"], redaction["event_id"]);
        assert_eq!(event["unsigned"]["redacted_because"]["content"]["reason"], "typo");
        let unknown = format!("/rooms/{room}/event/$unknown");
        assert_eq!(house.err(Some(&bob), "GET", &unknown, Value::Null).await, (404, "M_NOT_FOUND".to_owned()));
        let eve = house.register("eve").await;
        let path = format!("/rooms/{room}/event/{}", redaction["event_id"].as_str().unwrap());
        assert_eq!(house.err(Some(&eve), "GET", &path, Value::Null).await, (404, "M_NOT_FOUND".to_owned()));
    }

    /// Client-Server API, "Room aliases": made by members, removed by their maker or who has the power.
    async fn an_alias_points_to_one_room(house) {
        let (alice, bob) = (house.register("alice").await, house.register("bob").await);
        let (alice, bob) = (Some(&*alice), Some(&*bob));
        let room = house.create(alice.unwrap(), json!({"preset": "public_chat"})).await;
        let alias = "/directory/room/%23kitchen%3Ahs";
        let body = json!({"room_id": room});
        assert_eq!(house.err(None, "GET", alias, Value::Null).await, (404, "M_NOT_FOUND".to_owned()));
        assert_eq!(house.err(bob, "PUT", alias, body.clone()).await, (403, "M_FORBIDDEN".to_owned()));
        house.ok(alice, "PUT", alias, body.clone()).await;
        assert_eq!(house.err(alice, "PUT", alias, body.clone()).await, (409, "M_UNKNOWN".to_owned()));
        let elsewhere = "/directory/room/%23kitchen%3Aelsewhere";
        assert_eq!(house.err(alice, "PUT", elsewhere, body).await, (400, "M_INVALID_PARAM".to_owned()));
        assert_eq!(house.err(bob, "POST", "/join/%23kitchen%3Aelsewhere", json!({})).await, (404, "M_NOT_FOUND".to_owned()));
        let found = house.ok(None, "GET", alias, Value::Null).await;
        assert_eq!(found, json!({"room_id": room, "servers": ["hs"]}));
        assert_eq!(house.ok(bob, "POST", "/join/%23kitchen%3Ahs", json!({})).await, json!({"room_id": room}));
        let aliases = house.ok(bob, "GET", &format!("/rooms/{room}/aliases"), Value::Null).await;
        assert_eq!(aliases, json!({"aliases": ["#kitchen:hs"]}));
        let canonical = format!("/rooms/{room}/state/m.room.canonical_alias");
        let wrong = json!({"alias": "#cellar:hs"});
        assert_eq!(house.err(alice, "PUT", &canonical, wrong).await, (400, "M_BAD_ALIAS".to_owned()));
        house.ok(alice, "PUT", &canonical, json!({"alias": "#kitchen:hs"})).await;
        assert_eq!(house.err(bob, "DELETE", alias, Value::Null).await, (403, "M_FORBIDDEN".to_owned()));
        house.ok(alice, "DELETE", alias, Value::Null).await;
        assert_eq!(house.err(alice, "DELETE", alias, Value::Null).await, (404, "M_NOT_FOUND".to_owned()));
    }

    /// The directory shows what was published, most members first, in pages that lead both ways.
    async fn the_directory_is_searched_and_paged(house) {
        let (alice, bob) = (house.register("alice").await, house.register("bob").await);
        let mut rooms = Vec::new();
        for name in ["Apples", "Pears 100%", "Plums"] {
            let body = json!({"visibility": "public", "name": name, "topic": format!("all about {name}")});
            rooms.push(house.create(&alice, body).await);
        }
        let space = json!({"visibility": "public", "name": "Fruit", "creation_content": {"type": "m.space"}});
        rooms.push(house.create(&alice, space).await);
        house.create(&alice, json!({"name": "Apples in secret"})).await;
        house.ok(Some(&bob), "POST", &format!("/join/{}", rooms[1]), json!({})).await;
        let names = |answer: &Value| {
            let names = answer["chunk"].as_array().unwrap().iter().map(|room| room["name"].as_str().unwrap().to_owned());
            names.collect::<Vec<_>>()
        };
        let first = house.ok(None, "GET", "/publicRooms?limit=2", Value::Null).await;
        assert_eq!(names(&first), ["Pears 100%", "Apples"]);
        assert_eq!((&first["total_room_count_estimate"], &first["prev_batch"]), (&json!(4), &Value::Null));
        assert_eq!(first["chunk"][0]["num_joined_members"], 2);
        let next = format!("/publicRooms?limit=2&since={}", first["next_batch"].as_str().unwrap());
        let second = house.ok(None, "GET", &next, Value::Null).await;
        assert_eq!((names(&second), &second["next_batch"]), (vec!["Plums".to_owned(), "Fruit".to_owned()], &Value::Null));
        let back = format!("/publicRooms?limit=2&since={}", second["prev_batch"].as_str().unwrap());
        assert_eq!(names(&house.ok(None, "GET", &back, Value::Null).await), names(&first));
        for (filter, expected) in [
            (json!({"generic_search_term": "aPPles"}), vec!["Apples"]),
            (json!({"generic_search_term": "0%"}), vec!["Pears 100%"]),
            (json!({"generic_search_term": "_"}), vec![]),
            (json!({"room_types": ["m.space"]}), vec!["Fruit"]),
            (json!({"room_types": [null], "generic_search_term": "plum"}), vec!["Plums"]),
        ] {
            let found = house.ok(Some(&bob), "POST", "/publicRooms", json!({"filter": filter})).await;
            assert_eq!(names(&found), expected, "{filter}");
            assert_eq!(found["total_room_count_estimate"], expected.len());
        }
        let visibility = format!("/directory/list/room/{}", rooms[0]);
        let private = json!({"visibility": "private"});
        assert_eq!(house.err(Some(&bob), "PUT", &visibility, private.clone()).await, (403, "M_FORBIDDEN".to_owned()));
        house.ok(Some(&alice), "PUT", &visibility, private.clone()).await;
        assert_eq!(house.ok(None, "GET", &visibility, Value::Null).await, private);
        let unknown = "/directory/list/room/!unknown:hs";
        assert_eq!(house.err(None, "GET", unknown, Value::Null).await, (404, "M_NOT_FOUND".to_owned()));
        // Strangers do not make this server ask others, and it asks none.
        for (who, expected) in [(None, (401, "M_MISSING_TOKEN")), (Some(&*bob), (404, "M_NOT_FOUND"))] {
            let (status, errcode) = house.err(who, "GET", "/publicRooms?server=elsewhere", Value::Null).await;
            assert_eq!((status, &*errcode), expected);
        }
    }

    /// Client-Server API, "Receipts": one mark a thread, only forward; a private one is nobody else's.
    async fn receipts_go_forward_and_fit_their_thread(house) {
        let (alice, bob) = (house.register("alice").await, house.register("bob").await);
        let who = Some(&*bob);
        let room = house.create(&alice, json!({"preset": "public_chat"})).await;
        let other = house.create(&alice, json!({"preset": "public_chat"})).await;
        house.ok(who, "POST", &format!("/join/{room}"), json!({})).await;
        let root = house.say(&alice, &room, "1", text("root")).await;
        let mut reply = text("reply");
        reply["m.relates_to"] = json!({"rel_type": "m.thread", "event_id": root});
        let reply = house.say(&alice, &room, "2", reply).await;
        let last = house.say(&alice, &room, "3", text("last")).await;
        let foreign = house.say(&alice, &other, "1", text("elsewhere")).await;
        let gone = house.say(&alice, &room, "4", text("gone")).await;
        house.ok(Some(&alice), "PUT", &format!("/rooms/{room}/redact/{gone}/5"), json!({})).await;
        let receipt = |kind: &str, event: &str| format!("/rooms/{room}/receipt/{kind}/{event}");
        house.ok(who, "POST", &receipt("m.read", &last), json!({})).await;
        house.ok(who, "POST", &receipt("m.read", &root), json!({})).await;
        house.ok(who, "POST", &receipt("m.read", &reply), json!({"thread_id": root})).await;
        house.ok(who, "POST", &receipt("m.read", &root), json!({"thread_id": "main"})).await;
        house.ok(who, "POST", &receipt("m.read.private", &last), json!({})).await;
        let invalid = (400, "M_INVALID_PARAM".to_owned());
        for (kind, event, body) in [
            ("m.read", &reply, json!({"thread_id": "main"})),
            ("m.read", &last, json!({"thread_id": root})),
            ("m.read", &last, json!({"thread_id": ""})),
            ("m.fully_read", &last, json!({"thread_id": "main"})),
            ("m.read", &foreign, json!({})),
            ("m.other", &last, json!({})),
            // What a redacted event related to is gone, but a thread is still one that there is.
            ("m.read", &gone, json!({"thread_id": "any"})),
            ("m.read", &gone, json!({"thread_id": "$any"})),
            ("m.read", &gone, json!({"thread_id": foreign})),
            ("m.read", &gone, json!({"thread_id": format!("${}", "x".repeat(300))})),
        ] {
            assert_eq!(house.err(who, "POST", &receipt(kind, event), body.clone()).await, invalid, "{kind} {event} {body}");
        }
        let foreign_room = format!("/rooms/{other}/receipt/m.read/{foreign}");
        assert_eq!(house.err(who, "POST", &foreign_room, json!({})).await, (403, "M_FORBIDDEN".to_owned()));
        let markers = format!("/rooms/{room}/read_markers");
        house.ok(who, "POST", &markers, json!({"m.fully_read": last, "m.read": last})).await;
        house.ok(who, "POST", &markers, json!({"m.fully_read": root})).await;

        let sync = house.ok(who, "GET", "/sync", Value::Null).await;
        let room_data = &sync["rooms"]["join"][&room];
        let marker = room_data["account_data"]["events"].as_array().unwrap();
        assert_eq!(marker.iter().find(|event| event["type"] == "m.fully_read").unwrap()["content"]["event_id"], *last);
        let shown = |sync: &Value| {
            let events = sync["rooms"]["join"][&room]["ephemeral"]["events"].as_array().unwrap().clone();
            events.into_iter().find(|event| event["type"] == "m.receipt").unwrap()["content"].clone()
        };
        let own = shown(&sync);
        assert!(own[&last]["m.read"]["@bob:hs"]["ts"].is_i64(), "the unthreaded one did not go back: {own}");
        assert_eq!(own[&reply]["m.read"]["@bob:hs"]["thread_id"], *root);
        assert_eq!(own[&root]["m.read"]["@bob:hs"]["thread_id"], "main");
        assert!(own[&last]["m.read.private"]["@bob:hs"].is_object());
        let others = shown(&house.ok(Some(&alice), "GET", "/sync", Value::Null).await);
        assert!(others[&last]["m.read"]["@bob:hs"].is_object());
        assert!(others[&last]["m.read.private"].is_null(), "{others}");
    }

    /// Who types is shown to those in the room, and nobody types for another.
    async fn typing_is_shown_to_the_room(house) {
        let (alice, bob) = (house.register("alice").await, house.register("bob").await);
        let room = house.create(&alice, json!({"preset": "public_chat"})).await;
        let typing = |user: &str| format!("/rooms/{room}/typing/{user}");
        let body = json!({"typing": true, "timeout": 30_000});
        let forbidden = (403, "M_FORBIDDEN".to_owned());
        assert_eq!(house.err(Some(&bob), "PUT", &typing("@bob:hs"), body.clone()).await, forbidden);
        house.ok(Some(&bob), "POST", &format!("/join/{room}"), json!({})).await;
        assert_eq!(house.err(Some(&bob), "PUT", &typing("@alice:hs"), body.clone()).await, forbidden);
        house.ok(Some(&bob), "PUT", &typing("@bob:hs"), body).await;
        let sync = house.ok(Some(&alice), "GET", "/sync", Value::Null).await;
        let events = sync["rooms"]["join"][&room]["ephemeral"]["events"].clone();
        assert_eq!(events, json!([{"type": "m.typing", "content": {"user_ids": ["@bob:hs"]}}]));
    }

    /// Whoever is out of the room does not type there, however they came out.
    async fn who_leaves_types_no_more(house) {
        let (alice, bob) = (house.register("alice").await, house.register("bob").await);
        let room = house.create(&alice, json!({"preset": "public_chat"})).await;
        let (at, bob_id) = (|action: &str| format!("/rooms/{room}/{action}"), json!({"user_id": "@bob:hs"}));
        let member = json!({"membership": "ban"});
        for (who, method, path, body) in [
            (&bob, "POST", at("leave"), json!({})),
            (&alice, "POST", at("kick"), bob_id.clone()),
            (&bob, "PUT", at("state/m.room.member/@bob:hs"), json!({"membership": "leave"})),
            (&alice, "PUT", at("state/m.room.member/@bob:hs"), member),
            (&alice, "POST", at("ban"), bob_id.clone()),
        ] {
            let _ = house.ask(Some(&alice), "POST", &at("unban"), bob_id.clone()).await;
            house.ok(Some(&bob), "POST", &at("join"), json!({})).await;
            house.ok(Some(&bob), "PUT", &at("typing/@bob:hs"), json!({"typing": true, "timeout": 30_000})).await;
            let typing = async || {
                let sync = house.ok(Some(&alice), "GET", "/sync", Value::Null).await;
                let events = sync["rooms"]["join"][&room]["ephemeral"]["events"].as_array().cloned().unwrap_or_default();
                events.iter().any(|event| event["content"]["user_ids"] == json!(["@bob:hs"]))
            };
            assert!(typing().await);
            house.ok(Some(who), method, &path, body).await;
            assert!(!typing().await, "{method} {path}");
        }
    }

    /// Client-Server API, "Room Upgrades": whoever joins the new room finds it as they had arranged the old one.
    async fn an_upgraded_room_keeps_what_was_set_for_the_old_one(house) {
        let (alice, bob) = (house.register("alice").await, house.register("bob").await);
        let old = house.create(&alice, json!({"preset": "public_chat"})).await;
        house.ok(Some(&bob), "POST", &format!("/join/{old}"), json!({})).await;
        for (name, who) in [("alice", &alice), ("bob", &bob)] {
            let own = format!("/user/@{name}:hs");
            house.ok(Some(who), "PUT", &format!("{own}/rooms/{old}/tags/m.favourite"), json!({"order": 0.5})).await;
            house.ok(Some(who), "PUT", &format!("{own}/account_data/m.direct"), json!({"@eve:hs": [old]})).await;
            house.ok(Some(who), "PUT", &format!("/pushrules/global/room/{old}"), json!({"actions": ["notify"]})).await;
        }
        let upgrade = json!({"new_version": "12"});
        let answer = house.ok(Some(&alice), "POST", &format!("/rooms/{old}/upgrade"), upgrade).await;
        let new = answer["replacement_room"].as_str().unwrap();
        house.ok(Some(&bob), "POST", &format!("/join/{new}"), json!({})).await;
        for (name, who) in [("alice", &alice), ("bob", &bob)] {
            let own = format!("/user/@{name}:hs");
            let tags = house.ok(Some(who), "GET", &format!("{own}/rooms/{new}/tags"), Value::Null).await;
            assert_eq!(tags, json!({"tags": {"m.favourite": {"order": 0.5}}}));
            let direct = house.ok(Some(who), "GET", &format!("{own}/account_data/m.direct"), Value::Null).await;
            assert_eq!(direct, json!({"@eve:hs": [old, new]}));
            let rule = house.ok(Some(who), "GET", &format!("/pushrules/global/room/{new}"), Value::Null).await;
            assert_eq!(rule["actions"], json!(["notify"]));
        }
        // A room that only says of itself that it replaces another gets nothing of it.
        let body = json!({"preset": "public_chat", "creation_content": {"predecessor": {"room_id": old}}});
        let false_one = house.create(&alice, body).await;
        house.ok(Some(&bob), "POST", &format!("/join/{false_one}"), json!({})).await;
        let tags = house.ok(Some(&bob), "GET", &format!("/user/@bob:hs/rooms/{false_one}/tags"), Value::Null).await;
        assert_eq!(tags, json!({"tags": {}}));
        // Joining again brings nothing back that was taken away.
        house.ok(Some(&bob), "DELETE", &format!("/user/@bob:hs/rooms/{new}/tags/m.favourite"), Value::Null).await;
        house.ok(Some(&bob), "POST", &format!("/join/{new}"), json!({})).await;
        let tags = house.ok(Some(&bob), "GET", &format!("/user/@bob:hs/rooms/{new}/tags"), Value::Null).await;
        assert_eq!(tags, json!({"tags": {}}));
    }

    /// What could not be shown inside of an answer is not taken in, and all that is taken in can be shown and redacted.
    async fn content_is_nested_no_deeper_than_can_be_shown(house) {
        let alice = house.register("alice").await;
        let who = Some(&*alice);
        let room = house.create(&alice, json!({"preset": "public_chat"})).await;
        let nested = |levels: usize| {
            let json = format!("{{\"a\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
            serde_json::from_str::<Value>(&json).unwrap()
        };
        let path = |txn: &str| format!("/rooms/{room}/send/m.x/{txn}");
        for levels in [101, 120, 126] {
            assert_eq!(house.err(who, "PUT", &path("1"), nested(levels)).await, (400, "M_BAD_JSON".to_owned()));
        }
        let event = house.ok(who, "PUT", &path("1"), nested(100)).await;
        let event = event["event_id"].as_str().unwrap();
        let filter = "%7B%22room%22%3A%7B%22include_leave%22%3Atrue%7D%7D";
        let sync = house.ok(who, "GET", &format!("/sync?filter={filter}"), Value::Null).await;
        assert!(sync["rooms"]["join"][&room].is_object());
        house.ok(who, "POST", &format!("/rooms/{room}/leave"), json!({})).await;
        let sync = house.ok(who, "GET", &format!("/sync?filter={filter}"), Value::Null).await;
        assert!(sync["rooms"]["leave"][&room]["timeline"].to_string().contains(event));
        house.ok(who, "POST", &format!("/join/{room}"), json!({})).await;
        house.ok(who, "PUT", &format!("/rooms/{room}/redact/{event}/1"), json!({})).await;
    }

    /// Client-Server API, "Guest Access": guests come in where the room says so, and do a few things there.
    async fn guests_do_what_guests_may(house) {
        let alice = house.register("alice").await;
        let guest = house.guest().await;
        let who = Some(&*guest);
        let closed = house.create(&alice, json!({"preset": "public_chat"})).await;
        let open = house.create(&alice, json!({
            "preset": "public_chat", "initial_state": [{"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}],
        })).await;
        let guests = (403, "M_GUEST_ACCESS_FORBIDDEN".to_owned());
        assert_eq!(house.err(who, "POST", &format!("/rooms/{closed}/join"), json!({})).await, guests);
        assert_eq!(house.err(who, "POST", "/createRoom", json!({})).await, guests);
        house.ok(who, "POST", &format!("/rooms/{open}/join"), json!({})).await;
        house.say(&guest, &open, "1", text("hello")).await;
        assert_eq!(house.err(who, "POST", &format!("/rooms/{open}/invite"), json!({"user_id": "@alice:hs"})).await, guests);
        assert_eq!(house.err(who, "GET", "/joined_rooms", Value::Null).await, guests);
        house.ok(who, "POST", &format!("/rooms/{open}/leave"), json!({})).await;
    }

    /// Client-Server API, "Guest Access": guests leave when the room closes for them.
    async fn guests_leave_a_room_that_closes_for_them(house) {
        let alice = house.register("alice").await;
        let guest = house.guest().await;
        let room = house.create(&alice, json!({
            "preset": "public_chat", "initial_state": [{"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}],
        })).await;
        house.ok(Some(&guest), "POST", &format!("/rooms/{room}/join"), json!({})).await;
        let access = format!("/rooms/{room}/state/m.room.guest_access");
        house.ok(Some(&alice), "PUT", &access, json!({"guest_access": "forbidden"})).await;
        let joined = house.ok(Some(&alice), "GET", &format!("/rooms/{room}/joined_members"), Value::Null).await;
        assert_eq!(joined["joined"].as_object().unwrap().keys().collect::<Vec<_>>(), ["@alice:hs"]);
        let by_state = format!("/rooms/{room}/state/m.room.member/@guest:hs");
        let refused = house.err(Some(&guest), "PUT", &by_state, json!({"membership": "join"})).await;
        assert_eq!(refused, (403, "M_GUEST_ACCESS_FORBIDDEN".to_owned()));
    }

    /// Client-Server API, "Room upgrades": the new room takes over what it can, and the old one points to it.
    async fn an_upgraded_room_takes_the_place_of_the_old_one(house) {
        let (alice, bob) = (house.register("alice").await, house.register("bob").await);
        for (from, to) in [("9", "11"), ("11", "12"), ("12", "11"), ("12", "12")] {
            let old = house.create(&alice, json!({
                "room_version": from, "preset": "public_chat", "name": "Kitchen", "room_alias_name": format!("from{from}to{to}"),
                "visibility": "public", "creation_content": {"type": "m.space"},
            })).await;
            house.ok(Some(&bob), "POST", &format!("/join/{old}"), json!({})).await;
            let upgrade = format!("/rooms/{old}/upgrade");
            let refused = house.err(Some(&bob), "POST", &upgrade, json!({"new_version": to})).await;
            assert_eq!(refused, (403, "M_FORBIDDEN".to_owned()));
            let unknown = house.err(Some(&alice), "POST", &upgrade, json!({"new_version": "99"})).await;
            assert_eq!(unknown, (400, "M_UNSUPPORTED_ROOM_VERSION".to_owned()));
            let answer = house.ok(Some(&alice), "POST", &upgrade, json!({"new_version": to})).await;
            let new = answer["replacement_room"].as_str().unwrap();
            let state = async |room: &str, key: &str| {
                house.ok(Some(&alice), "GET", &format!("/rooms/{room}/state/{key}"), Value::Null).await
            };
            assert_eq!(state(&old, "m.room.tombstone").await["replacement_room"], new);
            let create = state(new, "m.room.create").await;
            assert_eq!((&create["room_version"], &create["type"]), (&json!(to), &json!("m.space")));
            assert_eq!(create["predecessor"]["room_id"], *old);
            assert_eq!(create["predecessor"]["event_id"].is_string(), to != "12");
            assert_eq!(state(new, "m.room.name").await["name"], "Kitchen");
            assert_eq!(state(new, "m.room.join_rules").await["join_rule"], "public");
            let alias = format!("#from{from}to{to}:hs");
            assert_eq!(state(new, "m.room.canonical_alias").await["alias"], *alias);
            let found = house.ok(None, "GET", &format!("/directory/room/%23{}", &alias[1..]), Value::Null).await;
            assert_eq!(found["room_id"], new);
            let listed = house.ok(None, "GET", &format!("/directory/list/room/{new}"), Value::Null).await;
            assert_eq!(listed["visibility"], "public");
            let send = format!("/rooms/{old}/send/m.room.message/1");
            assert_eq!(house.err(Some(&bob), "PUT", &send, text("still here")).await, (403, "M_FORBIDDEN".to_owned()));
            house.ok(Some(&bob), "POST", &format!("/join/{new}"), json!({})).await;
            house.say(&bob, new, "1", text("hello")).await;
        }
    }

    /// Client-Server API, "Knocking on rooms": who knocks waits outside until a member lets them in.
    async fn who_knocks_is_let_in_by_a_member(house) {
        let (alice, bob) = (house.register("alice").await, house.register("bob").await);
        let (who, guest) = (Some(&*bob), house.guest().await);
        let closed = house.create(&alice, json!({})).await;
        let room = house.create(&alice, json!({
            "room_alias_name": "door", "initial_state": [{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}],
        })).await;
        let forbidden = (403, "M_FORBIDDEN".to_owned());
        assert_eq!(house.err(who, "POST", &format!("/knock/{closed}"), json!({})).await, forbidden);
        assert_eq!(house.err(who, "POST", "/knock/!unknown:hs", json!({})).await, (404, "M_NOT_FOUND".to_owned()));
        let refused = house.err(Some(&guest), "POST", &format!("/knock/{room}"), json!({})).await;
        assert_eq!(refused, (403, "M_GUEST_ACCESS_FORBIDDEN".to_owned()));
        for _ in 0..2 {
            let answer = house.ok(who, "POST", "/knock/%23door%3Ahs", json!({"reason": "it is cold"})).await;
            assert_eq!(answer, json!({"room_id": room}));
        }
        assert_eq!(house.err(who, "POST", &format!("/join/{room}"), json!({})).await, forbidden);
        let knocking = house.ok(Some(&alice), "GET", &format!("/rooms/{room}/members?membership=knock"), Value::Null).await;
        assert_eq!(knocking["chunk"][0]["content"]["reason"], "it is cold");
        house.ok(Some(&alice), "POST", &format!("/rooms/{room}/invite"), json!({"user_id": "@bob:hs"})).await;
        house.ok(who, "POST", &format!("/join/{room}"), json!({})).await;
        assert_eq!(house.err(who, "POST", &format!("/knock/{room}"), json!({})).await, forbidden);
    }

    /// A zero byte is legal in JSON and in a path, and PostgreSQL stores none in a text: it must never be our failure.
    async fn a_zero_byte_is_never_our_failure(house) {
        let alice = house.register("alice").await;
        let who = Some(&*alice);
        let room = house.create(&alice, json!({"preset": "public_chat"})).await;
        let event = house.say(&alice, &room, "1", text("a\0b")).await;
        let create = "/createRoom".to_owned();
        let at = |path: &str| format!("/rooms/{room}/{path}");
        for (method, path, body) in [
            ("POST", create.clone(), json!({"name": "a\0b", "topic": "a\0b"})),
            ("POST", create.clone(), json!({"creation_content": {"type": "a\0b"}})),
            ("POST", create.clone(), json!({"room_version": "a\0b"})),
            ("POST", create.clone(), json!({"room_alias_name": "a\0b"})),
            ("POST", create.clone(), json!({"invite": ["@a\0b:hs"]})),
            ("POST", create, json!({"initial_state": [{"type": "a\0b", "state_key": "\0", "content": {"\0": "\0"}}]})),
            ("PUT", at("state/m.room.name"), json!({"name": "a\0b"})),
            ("PUT", at("state/m.room.topic"), json!({"topic": "a\0b"})),
            ("PUT", at("state/m.room.avatar"), json!({"url": "a\0b"})),
            ("PUT", at("state/m.room.canonical_alias"), json!({"alias": "#a\0b:hs"})),
            ("PUT", at("state/m.room.join_rules"), json!({"join_rule": "a\0b"})),
            ("PUT", at("state/m.room.guest_access"), json!({"guest_access": "a\0b"})),
            ("PUT", at("state/m.room.history_visibility"), json!({"history_visibility": "a\0b"})),
            ("PUT", at("state/m.room.encryption"), json!({"algorithm": "a\0b"})),
            ("PUT", at("state/m%00x/key"), json!({})),
            ("PUT", at("state/m.x/a%00b"), json!({})),
            ("GET", at("state/m.x/a%00b"), Value::Null),
            ("GET", at("state/m%00x"), Value::Null),
            ("PUT", at("state/m.room.member/@a%00b:hs"), json!({"membership": "invite"})),
            ("PUT", at("send/m%00x/t"), json!({})),
            ("PUT", at("send/m.x/t%00t"), json!({})),
            ("PUT", at(&format!("redact/{event}/t%00t")), json!({})),
            ("PUT", at("redact/$a%00b/t"), json!({})),
            ("GET", at("event/$a%00b"), Value::Null),
            ("GET", at("context/$a%00b"), Value::Null),
            ("GET", at("messages?dir=b&from=a%00b"), Value::Null),
            ("GET", at("messages?dir=b&filter=%7B%22types%22%3A%5B%22a%5Cu0000%22%5D%7D"), Value::Null),
            ("GET", at("members?at=a%00b"), Value::Null),
            ("GET", at("members?membership=a%00b"), Value::Null),
            ("POST", at(&format!("receipt/m.read/{event}")), json!({"thread_id": "$a\0b"})),
            ("POST", at("receipt/m.read/$a%00b"), json!({})),
            ("POST", at("receipt/m%00/$a"), json!({})),
            ("POST", at("read_markers"), json!({"m.fully_read": "$a\0b"})),
            ("POST", at("invite"), json!({"user_id": "@a\0b:hs"})),
            ("POST", at("kick"), json!({"user_id": "@a\0b:hs"})),
            ("POST", at("ban"), json!({"user_id": "@a\0b:hs"})),
            ("POST", at("upgrade"), json!({"new_version": "a\0b"})),
            ("POST", "/join/!a%00b:hs".to_owned(), json!({})),
            ("POST", "/join/%23a%00b:hs".to_owned(), json!({})),
            ("POST", "/rooms/!a%00b:hs/join".to_owned(), json!({})),
            ("GET", "/directory/room/%23a%00b:hs".to_owned(), Value::Null),
            ("PUT", "/directory/room/%23a%00b:hs".to_owned(), json!({"room_id": room})),
            ("DELETE", "/directory/room/%23a%00b:hs".to_owned(), Value::Null),
            ("GET", "/directory/list/room/!a%00b:hs".to_owned(), Value::Null),
            ("GET", "/publicRooms?since=a%00b".to_owned(), Value::Null),
            ("POST", "/publicRooms".to_owned(), json!({"filter": {"generic_search_term": "a\0b"}})),
            ("POST", "/publicRooms".to_owned(), json!({"filter": {"room_types": ["a\0b"]}})),
        ] {
            let (status, answer) = house.ask(who, method, &path, body.clone()).await;
            assert!(status < 500, "{method} {path} {body}: {answer}");
        }
    }
}
