//! Spaces over several servers, and what rooms show of themselves to users of others. Server-Server API, "Spaces".

use serde_json::{Value, json};
use test_kit::{Answer, Peer, TestFederation, TestUser, encode};

async fn room(user: &TestUser, name: &str, more: Value) -> String {
    let mut body = json!({"name": name, "preset": "public_chat", "room_version": "11"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    user.create_room_with(&body).await
}

async fn space(user: &TestUser, name: &str) -> String {
    room(user, name, json!({"creation_content": {"type": "m.space"}})).await
}

async fn add(user: &TestUser, space: &str, child: &str, via: &str, more: Value) {
    let mut content = json!({"via": [via]});
    content.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    user.set_state(space, "m.space.child", child, &content).await;
}

async fn hierarchy(user: &TestUser, space: &str, query: &str) -> Value {
    user.get(&format!("/_matrix/client/v1/rooms/{}/hierarchy?{query}", encode(space))).await.ok()
}

async fn summary(user: &TestUser, room: &str, query: &str) -> Answer {
    user.get(&format!("/_matrix/client/v1/room_summary/{}?{query}", encode(room))).await
}

fn names(page: &Value) -> Vec<&str> {
    page["rooms"].as_array().unwrap().iter().map(|room| room["name"].as_str().unwrap_or("-")).collect()
}

// shows: getSpaceHierarchy
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_goes_on_at_other_servers() {
    let federation = TestFederation::of(3).await;
    let (alice, bob) = (federation.user("hs1", "alice").await, federation.user("hs2", "bob").await);
    let carol = federation.user("hs3", "carol").await;
    let (top, below, far) = (space(&alice, "top").await, space(&bob, "below").await, space(&carol, "far").await);
    let (near, deep) = (room(&alice, "near", json!({})).await, room(&bob, "deep", json!({})).await);
    let secret = room(&bob, "secret", json!({"preset": "private_chat"})).await;
    let readable = json!([{"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}}]);
    let glass = room(&carol, "glass", json!({"preset": "private_chat", "initial_state": readable})).await;
    add(&alice, &top, &below, "hs2", json!({"order": "a"})).await;
    add(&alice, &top, &near, "hs1", json!({"order": "b"})).await;
    add(&bob, &below, &secret, "hs2", json!({"order": "a"})).await;
    add(&bob, &below, &deep, "hs2", json!({"order": "b", "suggested": true})).await;
    add(&bob, &below, &far, "hs3", json!({"order": "c"})).await;
    // Back to the top: a circle over three servers.
    add(&carol, &far, &top, "hs1", json!({})).await;
    add(&carol, &far, &glass, "hs3", json!({})).await;

    let all = hierarchy(&alice, &top, "").await;
    assert_eq!(names(&all), ["top", "below", "deep", "far", "glass", "near"]);
    let rooms = all["rooms"].as_array().unwrap();
    assert_eq!((&rooms[1]["room_type"], &rooms[1]["room_version"]), (&json!("m.space"), &json!("11")));
    let children: Vec<&str> = rooms[1]["children_state"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["state_key"].as_str().unwrap())
        .collect();
    assert_eq!(children, [&*secret, &deep, &far]);
    assert_eq!(names(&hierarchy(&alice, &top, "max_depth=1").await), ["top", "below", "near"]);
    assert_eq!(names(&hierarchy(&alice, &top, "suggested_only=true").await), ["top"]);
    // Page by page the same.
    let (mut paged, mut from) = (Vec::new(), String::new());
    for _ in 0..10 {
        let page = hierarchy(&alice, &top, &format!("limit=1{from}")).await;
        paged.extend(names(&page).into_iter().map(str::to_owned));
        let Some(next) = page["next_batch"].as_str() else { break };
        from = format!("&from={}", encode(next));
    }
    assert_eq!(paged, ["top", "below", "deep", "far", "glass", "near"]);

    // What was told is remembered for a while; a server that is gone takes nothing with it but its rooms.
    federation.cut("hs1", "hs2");
    assert_eq!(names(&hierarchy(&alice, &top, "").await).len(), 6);
    let other = space(&alice, "other").await;
    let unheard = room(&bob, "unheard", json!({})).await;
    add(&alice, &other, &unheard, "hs2", json!({})).await;
    add(&alice, &other, &near, "hs1", json!({})).await;
    assert_eq!(names(&hierarchy(&alice, &other, "").await), ["other", "near"]);
}

// shows: getRoomSummary
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_of_another_server_shows_itself_before_somebody_comes_in() {
    let federation = TestFederation::of(2).await;
    let (alice, bob) = (federation.user("hs1", "alice").await, federation.user("hs2", "bob").await);
    let open = room(&bob, "open", json!({"room_alias_name": "open", "topic": "all of it"})).await;
    let newest = room(&bob, "newest", json!({"room_version": "12"})).await;
    let closed = room(&bob, "closed", json!({"preset": "private_chat"})).await;
    let found = summary(&alice, &open, "via=nowhere.test&via=hs2").await.ok();
    assert_eq!((&found["name"], &found["topic"]), (&json!("open"), &json!("all of it")));
    assert_eq!((&found["num_joined_members"], &found["membership"]), (&json!(1), &json!("leave")));
    assert_eq!(summary(&alice, "#open:hs2", "").await.ok()["room_id"], json!(open));
    assert_eq!(summary(&alice, &newest, "via=hs2").await.ok()["name"], "newest");
    // Nobody knows where to ask.
    let unasked = room(&bob, "unasked", json!({"room_version": "12"})).await;
    summary(&alice, &unasked, "").await.is_error(404, "M_NOT_FOUND");
    summary(&alice, &closed, "via=hs2").await.is_error(404, "M_NOT_FOUND");
    // For strangers nobody is asked: they see what was told to others.
    let as_stranger = async |room: &str| {
        let path = format!("/_matrix/client/v1/room_summary/{}?via=hs2", encode(room));
        federation.server("hs1").http().request("GET", &path, None, &Value::Null).await
    };
    let told = as_stranger(&open).await.ok();
    assert_eq!((&told["name"], &told["membership"]), (&json!("open"), &Value::Null));
    as_stranger(&unasked).await.is_error(404, "M_NOT_FOUND");
}

// shows: server-server:getSpaceHierarchy
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_told_of_the_rooms_that_its_users_may_come_in_to() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let peer = federation.peer("peer.test").await;
    let http = federation.server("hs1").http();
    let ask = async |room: &str, query: &str| {
        let path = format!("/_matrix/federation/v1/hierarchy/{}{query}", encode(room));
        peer.ask(http, "hs1", "GET", &path, &Value::Null).await
    };
    let (top, below) = (space(&alice, "top").await, space(&alice, "below").await);
    let (open, secret) =
        (room(&alice, "open", json!({})).await, room(&alice, "secret", json!({"preset": "private_chat"})).await);
    let join_rule = |rule: Value| json!([{"type": "m.room.join_rules", "content": rule}]);
    let knock = json!({"initial_state": join_rule(json!({"join_rule": "knock"})), "preset": "private_chat"});
    let allow = json!([{"type": "m.room_membership", "room_id": secret}]);
    let restricted = join_rule(json!({"join_rule": "restricted", "allow": allow}));
    let (knock, restricted) =
        (room(&alice, "knock", knock).await, room(&alice, "restricted", json!({"initial_state": restricted})).await);
    for (child, order, suggested) in [
        (&below, "a", true),
        (&open, "b", false),
        (&secret, "c", true),
        (&knock, "d", false),
        (&restricted, "e", false),
    ] {
        add(&alice, &top, child, "hs1", json!({"order": order, "suggested": suggested})).await;
    }
    add(&alice, &top, "!elsewhere:other.test", "other.test", json!({"order": "f"})).await;
    add(&alice, &below, &top, "hs1", json!({})).await;

    let told = ask(&top, "").await.ok();
    assert_eq!((&told["room"]["name"], told["room"]["children_state"].as_array().unwrap().len()), (&json!("top"), 6));
    let mut seen: Vec<&str> =
        told["children"].as_array().unwrap().iter().map(|room| room["name"].as_str().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, ["below", "knock", "open"]);
    let mut closed: Vec<&str> =
        told["inaccessible_children"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    let mut expected = [&*secret, &restricted];
    closed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(closed, expected, "of a room that we do not know nothing is said");
    let told = ask(&top, "?suggested_only=true").await.ok();
    assert_eq!(told["room"]["children_state"].as_array().unwrap().len(), 2);
    assert_eq!(told["children"][0]["name"], "below");
    assert_eq!(ask(&open, "").await.ok()["room"]["children_state"], json!([]));
    for unseen in [&*secret, &restricted, "!unknown:hs1"] {
        ask(unseen, "").await.is_error(404, "M_NOT_FOUND");
    }
}

/// The path under which a peer is asked about a room.
fn asked_at(room: &str) -> String {
    format!("GET /_matrix/federation/v1/hierarchy/{room}")
}

fn told(room: &str, children: &[String]) -> Value {
    let child = |id: &String| {
        json!({"type": "m.space.child", "state_key": id, "sender": "@eve:peer.test", "origin_server_ts": 1,
               "content": {"via": ["peer.test"]}})
    };
    json!({"room": {"room_id": room, "name": room, "join_rule": "public", "room_type": "m.space", "num_joined_members": 1,
                    "world_readable": true, "guest_can_join": false,
                    "children_state": children.iter().map(child).collect::<Vec<_>>()},
           "children": [], "inaccessible_children": []})
}

fn about_rooms(peer: &Peer) -> usize {
    peer.asked().iter().filter(|asked| asked.what.contains("/hierarchy/")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_space_costs_a_bounded_number_of_questions() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let peer = federation.peer("peer.test").await;
    let id = |number: usize| format!("!s{number}:peer.test");
    // Each leads to the next and back, and to many that nobody tells of.
    for number in 0..200 {
        let mut children = vec![id(number + 1), id(0), id(number)];
        children.extend((0..20).map(|leaf| format!("!leaf{number}x{leaf}:peer.test")));
        peer.answer(&asked_at(&id(number)), 200, &told(&id(number), &children));
    }
    let top = space(&alice, "top").await;
    add(&alice, &top, &id(0), "peer.test", json!({})).await;
    let found = hierarchy(&alice, &top, "").await;
    assert_eq!(names(&found)[..2], ["top", "!s0:peer.test"]);
    assert!(names(&found).len() < 60, "{}", names(&found).len());
    let asked = about_rooms(&peer);
    assert!((2..=50).contains(&asked), "{asked}");
    hierarchy(&alice, &top, "max_depth=1").await;
    assert_eq!(about_rooms(&peer), asked, "what was told is remembered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_says_of_other_rooms_than_its_own_is_not_believed() {
    let federation = TestFederation::of(1).await;
    let alice = federation.user("hs1", "alice").await;
    let peer = federation.peer("peer.test").await;
    let ours = room(&alice, "ours", json!({})).await;
    let private = room(&alice, "private", json!({"preset": "private_chat"})).await;
    let mut number = 0;
    let mut say = |answer: Value| {
        number += 1;
        let room = format!("!r{number}:peer.test");
        let text = answer.to_string().replace("!this", &room);
        peer.answer(&asked_at(&room), 200, &serde_json::from_str(&text).unwrap());
        room
    };
    let child = |id: &str| {
        json!({"room_id": id, "name": "claimed", "join_rule": "public", "num_joined_members": 9,
                                  "world_readable": true, "guest_can_join": true})
    };
    let with_children = |children: Value| {
        let mut answer = told("!this:x", &[ours.clone(), private.clone()]);
        answer["room"]["room_id"] = json!("!this");
        answer["room"]["name"] = json!("believed");
        answer["children"] = children;
        answer
    };
    let hidden = json!({"room": {"room_id": "!this", "name": "hidden", "join_rule": "invite", "num_joined_members": 1,
        "world_readable": false, "guest_can_join": false, "children_state": []}, "children": [], "inaccessible_children": []});
    let rooms = [
        // About our own rooms: what we know counts.
        say(with_children(json!([child(&ours), child(&private), child("!unnamed:peer.test")]))),
        say(told("!another:peer.test", &[])),
        say(hidden),
        say(json!([])),
        say(json!({"room": 1})),
        say(json!({"room": {"room_id": "!this", "name": "x".repeat(2 << 20)}})),
    ];
    let bob = federation.user("hs1", "bob").await;
    let top = space(&alice, "top").await;
    for room in &rooms {
        add(&alice, &top, room, "peer.test", json!({"order": room})).await;
    }
    let found = hierarchy(&bob, &top, "").await;
    assert_eq!(names(&found), ["top", "believed", "ours"]);
    assert_eq!(found["rooms"][2]["num_joined_members"], 1);
    for room in &rooms[1..] {
        summary(&bob, room, "via=peer.test").await.is_error(404, "M_NOT_FOUND");
    }
}
