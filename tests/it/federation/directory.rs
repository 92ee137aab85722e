//! Directories of rooms between servers. Server-Server API, "Public Room Directory".

use serde_json::{Value, json};
use storage::testing::TestDatabase;
use test_kit::{Answer, ServerOptions, TestFederation, TestUser, encode};

const PATH: &str = "/_matrix/federation/v1/publicRooms";

async fn listed(user: &TestUser, name: &str, more: Value) -> String {
    let mut body = json!({"name": name, "preset": "public_chat", "visibility": "public"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    user.create_room_with(&body).await
}

async fn read(user: &TestUser, query: &str) -> Answer {
    user.get(&format!("/_matrix/client/v3/publicRooms?{query}")).await
}

fn names(page: &Value) -> Vec<&str> {
    page["chunk"].as_array().unwrap().iter().map(|room| room["name"].as_str().unwrap_or("-")).collect()
}

// shows: getPublicRooms, queryPublicRooms
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directory_of_another_server_is_read_page_by_page() {
    let federation = TestFederation::of(2).await;
    let (alice, bob) = (federation.user("hs1", "alice").await, federation.user("hs2", "bob").await);
    for name in ["first", "second", "third"] {
        listed(&bob, name, json!({})).await;
    }
    listed(&bob, "space", json!({"creation_content": {"type": "m.space"}})).await;
    listed(&alice, "ours", json!({})).await;
    bob.create_public_room().await;

    let page = read(&alice, "server=hs2&limit=3").await.ok();
    assert_eq!(names(&page), ["first", "second", "third"]);
    assert_eq!(page["total_room_count_estimate"], 4);
    let next = encode(page["next_batch"].as_str().unwrap());
    let page = read(&alice, &format!("server=hs2&limit=3&since={next}")).await.ok();
    assert_eq!(names(&page), ["space"]);
    assert_eq!(page["next_batch"], Value::Null);
    let previous = encode(page["prev_batch"].as_str().unwrap());
    let page = read(&alice, &format!("server=hs2&limit=3&since={previous}")).await.ok();
    assert_eq!(names(&page), ["first", "second", "third"]);

    let path = "/_matrix/client/v3/publicRooms?server=hs2";
    let found = alice.post(path, &json!({"filter": {"generic_search_term": "SECOND"}})).await.ok();
    assert_eq!(names(&found), ["second"]);
    let found = alice.post(path, &json!({"filter": {"room_types": ["m.space"]}})).await.ok();
    assert_eq!(names(&found), ["space"]);
    let found = alice.post(path, &json!({"filter": {"room_types": [null]}, "limit": 1})).await.ok();
    assert_eq!(names(&found), ["first"]);

    // Strangers make us ask nobody.
    let http = federation.server("hs1").http();
    let stranger = http.request("GET", "/_matrix/client/v3/publicRooms?server=hs2", None, &Value::Null).await;
    stranger.is_error(401, "M_MISSING_TOKEN");
    http.request("GET", "/_matrix/client/v3/publicRooms?server=hs1", None, &Value::Null).await.ok();
    read(&alice, "server=nowhere.test").await.is_error(502, "M_UNKNOWN");
    federation.cut("hs1", "hs2");
    read(&alice, "server=hs2").await.is_error(502, "M_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_directory_says_is_bounded_or_not_believed() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let peer = federation.peer("peer.test").await;
    let what = format!("POST {PATH}");
    let room = |number: usize| {
        json!({"room_id": format!("!r{number}:peer.test"), "num_joined_members": 1, "world_readable": false,
               "guest_can_join": false, "name": format!("room {number}")})
    };
    let rooms: Vec<Value> = (0..10).map(room).collect();
    let (short, long) = ("n".repeat(900), "n".repeat(2_000));
    peer.answer(&what, 200, &json!({"chunk": rooms, "next_batch": short, "prev_batch": long}));
    let page = read(&alice, "server=peer.test&limit=3").await.ok();
    assert_eq!(names(&page), ["room 0", "room 1", "room 2"], "no more than were asked for");
    assert_eq!((&page["next_batch"], &page["prev_batch"]), (&json!(short), &Value::Null));
    assert_eq!(page["total_room_count_estimate"], Value::Null);
    read(&alice, &format!("server=peer.test&limit=3&since={short}")).await.ok();
    let asked = peer.asked();
    assert_eq!(asked.last().unwrap().body, json!({"limit": 3, "since": short}));

    for (status, body) in [
        (403, json!({"errcode": "M_FORBIDDEN", "error": "not for you"})),
        (404, json!({"errcode": "M_UNRECOGNIZED", "error": "?"})),
        (429, json!({"errcode": "M_LIMIT_EXCEEDED", "error": "?"})),
        (500, json!([])),
        (200, json!([])),
        (200, json!({"chunk": 1})),
        (200, json!({"chunk": [{"room_id": "no room"}]})),
        (200, json!({"chunk": [], "next_batch": "x".repeat(5 << 20)})),
    ] {
        peer.answer(&what, status, &body);
        read(&alice, "server=peer.test").await.is_error(502, "M_UNKNOWN");
    }
}

// shows: server-server:getPublicRooms, server-server:queryPublicRooms
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_told_of_the_rooms_of_the_name_that_it_asks() {
    for database in TestDatabase::each().await {
        let mut federation = TestFederation::empty();
        let mut options = ServerOptions::default();
        options.config.server.names = vec!["hs1".try_into().unwrap(), "hs2".try_into().unwrap()];
        federation.add("hs1", database, options).await;
        let alice = federation.user("hs1", "alice").await;
        listed(&alice, "one", json!({})).await;
        listed(&alice, "two", json!({"topic": "about cheese"})).await;
        let peer = federation.peer("peer.test").await;
        let http = federation.server("hs1").http();
        let page = peer.ask(http, "hs1", "GET", &format!("{PATH}?limit=1"), &Value::Null).await.ok();
        assert_eq!((names(&page), &page["total_room_count_estimate"]), (vec!["one"], &json!(2)));
        let next = page["next_batch"].as_str().unwrap();
        let path = format!("{PATH}?limit=1&since={}&include_all_networks=true", encode(next));
        assert_eq!(names(&peer.ask(http, "hs1", "GET", &path, &Value::Null).await.ok()), ["two"]);
        let path = format!("{PATH}?third_party_instance_id=irc%7Cnet");
        assert_eq!(names(&peer.ask(http, "hs1", "GET", &path, &Value::Null).await.ok()), Vec::<&str>::new());
        let both = format!("{path}&include_all_networks=true");
        assert_eq!(peer.ask(http, "hs1", "GET", &both, &Value::Null).await.ok()["chunk"].as_array().unwrap().len(), 2);
        let body = json!({"filter": {"generic_search_term": "cheese"}});
        assert_eq!(names(&peer.ask(http, "hs1", "POST", PATH, &body).await.ok()), ["two"]);
        let all = json!({"include_all_networks": true, "limit": 1_000_000});
        assert_eq!(names(&peer.ask(http, "hs1", "POST", PATH, &all).await.ok()), ["one", "two"]);
        let page = peer.ask(http, "hs2", "GET", PATH, &Value::Null).await.ok();
        assert_eq!(names(&page), Vec::<&str>::new(), "the other name has a directory of its own");
        let bad = peer.ask(http, "hs1", "GET", &format!("{PATH}?since=nonsense"), &Value::Null).await;
        bad.is_error(400, "M_INVALID_PARAM");
        http.request("GET", PATH, None, &Value::Null).await.is_error(401, "M_UNAUTHORIZED");
    }
}
