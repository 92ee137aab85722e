//! Spaces, and what rooms show of themselves to who is outside of them.

use serde_json::{Value, json};
use test_kit::{TestServer, TestUser, encode, on_each_database};

async fn space(user: &TestUser, name: &str) -> String {
    user.create_room_with(&json!({
        "name": name, "preset": "public_chat", "creation_content": { "type": "m.space" },
    }))
    .await
}

async fn room(user: &TestUser, name: &str) -> String {
    user.create_room_with(&json!({ "name": name, "preset": "public_chat" })).await
}

async fn add(user: &TestUser, space: &str, child: &str, more: &Value) {
    let mut content = json!({ "via": ["localhost"] });
    content.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    user.set_state(space, "m.space.child", child, &content).await;
}

fn path(space: &str, query: &str) -> String {
    format!("/_matrix/client/v1/rooms/{}/hierarchy?{query}", encode(space))
}

/// The names of the rooms of a page.
fn names(page: &Value) -> Vec<&str> {
    page["rooms"].as_array().unwrap().iter().map(|room| room["name"].as_str().unwrap_or("-")).collect()
}

/// The names of all rooms, page by page.
async fn walk(user: &TestUser, space: &str, query: &str) -> Vec<String> {
    let (mut found, mut from) = (Vec::new(), String::new());
    for _ in 0..100 {
        let page = user.get(&path(space, &format!("{query}{from}"))).await.ok();
        found.extend(names(&page).into_iter().map(str::to_owned));
        let Some(next) = page["next_batch"].as_str() else { return found };
        from = format!("&from={}", encode(next));
    }
    panic!("the pages do not end: {found:?}");
}

async fn summary(user: &TestUser, room: &str) -> test_kit::Answer {
    user.get(&format!("/_matrix/client/v1/room_summary/{}", encode(room))).await
}

on_each_database! {
    /// Client-Server API, "Ordering of children within a space": by `order`, then by time.
    // shows: getSpaceHierarchy
    async fn a_space_is_walked_depth_first_in_the_order_of_its_children(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let top = space(&alice, "top").await;
        let below = space(&alice, "below").await;
        let (first, last, deep) = (room(&alice, "first").await, room(&alice, "last").await, room(&alice, "deep").await);
        // No `order`: after those that have one, the oldest first. An `order` outside of its grammar counts as none.
        let (old, new) = (room(&alice, "old").await, room(&alice, "new").await);
        add(&alice, &top, &old, &json!({ "order": "\u{7}" })).await;
        add(&alice, &top, &new, &json!({ "order": 5, "suggested": "maybe" })).await;
        add(&alice, &top, &last, &json!({ "order": "last" })).await;
        add(&alice, &top, &below, &json!({ "order": "aaaa", "suggested": true })).await;
        add(&alice, &top, &first, &json!({ "order": " ", "suggested": true })).await;
        add(&alice, &below, &deep, &json!({ "suggested": true })).await;
        let page = bob.get(&path(&top, "")).await.ok();
        assert_eq!(names(&page), ["top", "first", "below", "deep", "last", "old", "new"]);
        assert_eq!(page["next_batch"], Value::Null);
        let children = page["rooms"][0]["children_state"].as_array().unwrap();
        assert_eq!(children.len(), 5);
        let child = children[1].as_object().unwrap();
        assert_eq!((&child["type"], &child["state_key"]), (&json!("m.space.child"), &json!(below)));
        assert_eq!((&child["sender"], &child["content"]["via"]), (&json!(alice.id()), &json!(["localhost"])));
        assert!(child["origin_server_ts"].is_u64());
        let mut fields: Vec<&str> = child.keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["content", "origin_server_ts", "sender", "state_key", "type"]);
        assert_eq!(page["rooms"][1]["children_state"], json!([]));
        assert_eq!(page["rooms"][2]["room_type"], "m.space");

        assert_eq!(names(&bob.get(&path(&top, "max_depth=0")).await.ok()), ["top"]);
        let one = bob.get(&path(&top, "max_depth=1")).await.ok();
        assert_eq!(names(&one), ["top", "first", "below", "last", "old", "new"]);
        assert_eq!(one["rooms"][2]["children_state"].as_array().unwrap().len(), 1);
        let suggested = bob.get(&path(&top, "suggested_only=true")).await.ok();
        assert_eq!(names(&suggested), ["top", "first", "below", "deep"]);
        assert_eq!(suggested["rooms"][0]["children_state"].as_array().unwrap().len(), 2);
    }

    // shows: getSpaceHierarchy
    async fn the_pages_of_a_space_are_the_whole_and_belong_to_one_walk(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let top = space(&alice, "top").await;
        let mut expected = vec!["top".to_owned()];
        for outer in 0..3 {
            let below = space(&alice, &format!("s{outer}")).await;
            add(&alice, &top, &below, &json!({ "order": outer.to_string() })).await;
            expected.push(format!("s{outer}"));
            for inner in 0..3 {
                let name = format!("r{outer}{inner}");
                add(&alice, &below, &room(&alice, &name).await, &json!({ "order": inner.to_string() })).await;
                expected.push(name);
            }
        }
        for limit in [1, 2, 3, 5, 13, 50] {
            assert_eq!(walk(&bob, &top, &format!("limit={limit}")).await, expected, "by {limit}");
        }
        let page = bob.get(&path(&top, "limit=2&max_depth=2")).await.ok();
        let from = encode(page["next_batch"].as_str().unwrap());
        bob.get(&path(&top, &format!("max_depth=2&from={from}"))).await.ok();
        for query in ["max_depth=1", "", "max_depth=2&suggested_only=true"] {
            bob.get(&path(&top, &format!("{query}&from={from}"))).await.is_error(400, "M_INVALID_PARAM");
        }
        alice.get(&path(&top, &format!("max_depth=2&from={from}"))).await.is_error(400, "M_INVALID_PARAM");
        for query in ["from=nonsense", "limit=0", "limit=-1", "max_depth=-1", "limit=x", "suggested_only=2"] {
            bob.get(&path(&top, query)).await.is_error(400, "M_INVALID_PARAM");
        }
        // What was a page's last room is in the space no more: the walk that was begun goes on after it.
        let gone = page["rooms"][1]["room_id"].as_str().unwrap();
        alice.set_state(&top, "m.space.child", gone, &json!({})).await;
        let rest = bob.get(&path(&top, &format!("max_depth=2&from={from}"))).await.ok();
        assert_eq!(names(&rest), expected[2..]);
    }

    /// Client-Server API, "Spaces": loops are prohibited and happen.
    async fn spaces_in_a_circle_end(server: TestServer) {
        let alice = server.user("alice").await;
        let (a, b, c) = (space(&alice, "a").await, space(&alice, "b").await, space(&alice, "c").await);
        for (parent, child) in [(&a, &b), (&b, &c), (&c, &a), (&a, &a), (&a, &c)] {
            add(&alice, parent, child, &json!({})).await;
        }
        assert_eq!(walk(&alice, &a, "").await, ["a", "b", "c"]);
        assert_eq!(walk(&alice, &b, "limit=1").await, ["b", "c", "a"]);
    }

    async fn only_a_space_has_children_and_only_valid_ones(server: TestServer) {
        let alice = server.user("alice").await;
        let (top, plain, inner) = (space(&alice, "top").await, room(&alice, "plain").await, room(&alice, "inner").await);
        add(&alice, &top, &plain, &json!({})).await;
        add(&alice, &plain, &inner, &json!({})).await;
        for (key, content) in [
            ("!elsewhere:example.org", json!({ "via": ["example.org"] })),
            ("not a room", json!({ "via": ["localhost"] })),
            (&*inner, json!({ "via": [] })),
        ] {
            alice.set_state(&top, "m.space.child", key, &content).await;
        }
        let page = alice.get(&path(&top, "")).await.ok();
        assert_eq!(names(&page), ["top", "plain"]);
        let mut children: Vec<&str> =
            page["rooms"][0]["children_state"].as_array().unwrap().iter().map(|child| child["state_key"].as_str().unwrap()).collect();
        children.sort_unstable();
        let mut expected = ["!elsewhere:example.org", &*plain];
        expected.sort_unstable();
        assert_eq!(children, expected);
        assert_eq!(page["rooms"][1]["children_state"], json!([]));
        for content in [json!({ "via": "localhost" }), json!({ "via": [1] }), json!({ "via": null })] {
            alice.set_state(&top, "m.space.child", &inner, &content).await;
            assert_eq!(walk(&alice, &top, "").await, ["top", "plain"], "{content}");
        }
        // A redacted child is none, though the state has the same event as before.
        alice.set_state(&top, "m.space.child", &inner, &json!({ "via": ["localhost"] })).await;
        assert_eq!(walk(&alice, &top, "").await, ["top", "plain", "inner"]);
        let redacted = alice.set_state(&top, "m.space.child", &inner, &json!({ "via": ["localhost"], "x": 1 })).await;
        alice.redact(&top, &redacted).await;
        assert_eq!(walk(&alice, &top, "").await, ["top", "plain"]);
    }

    /// Client-Server API, "GET /rooms/{roomId}/hierarchy": each sees what they are in, may come into, or may look into.
    // shows: getSpaceHierarchy, getRoomSummary
    async fn each_sees_the_rooms_of_a_space_that_are_for_them(server: TestServer) {
        let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let top = space(&alice, "top").await;
        bob.join(&top).await;
        let with_rule = |name: &str, rule: Value| json!({
            "name": name, "initial_state": [{ "type": "m.room.join_rules", "content": rule }],
        });
        let allow = json!([{ "type": "m.room_membership", "room_id": top }, { "type": "org.example.other" }, 7]);
        let bodies = [
            with_rule("invite", json!({ "join_rule": "invite" })),
            with_rule("knock", json!({ "join_rule": "knock" })),
            with_rule("restricted", json!({ "join_rule": "restricted", "allow": allow })),
            with_rule("knock_restricted", json!({ "join_rule": "knock_restricted", "allow": allow })),
            json!({ "name": "readable", "initial_state": [
                { "type": "m.room.history_visibility", "content": { "history_visibility": "world_readable" } },
            ] }),
            with_rule("public", json!({ "join_rule": "public" })),
            with_rule("unknown", json!({ "join_rule": "org.example.rule" })),
        ];
        let mut rooms = std::collections::HashMap::new();
        for (index, body) in bodies.iter().enumerate() {
            let room = alice.create_room_with(body).await;
            add(&alice, &top, &room, &json!({ "order": index.to_string() })).await;
            rooms.insert(body["name"].as_str().unwrap(), room);
        }
        assert_eq!(
            walk(&alice, &top, "").await,
            ["top", "invite", "knock", "restricted", "knock_restricted", "readable", "public", "unknown"]
        );
        assert_eq!(walk(&bob, &top, "").await, ["top", "knock", "restricted", "knock_restricted", "readable", "public"]);
        assert_eq!(walk(&eve, &top, "").await, ["top", "knock", "knock_restricted", "readable", "public"]);
        alice.invite(&rooms["invite"], &eve).await;
        alice.remove(&rooms["public"], "ban", &eve).await;
        alice.remove(&rooms["readable"], "ban", &eve).await;
        assert_eq!(walk(&eve, &top, "").await, ["top", "invite", "knock", "knock_restricted"]);
        for (name, room) in &rooms {
            let seen = summary(&eve, room).await;
            match *name {
                "invite" => assert_eq!(seen.ok()["membership"], "invite"),
                "knock" | "knock_restricted" => assert_eq!(seen.ok()["membership"], "leave"),
                _ => seen.is_error(404, "M_NOT_FOUND"),
            }
        }
        let page = bob.get(&path(&top, "")).await.ok();
        let restricted = &page["rooms"][2];
        assert_eq!((&restricted["join_rule"], &restricted["allowed_room_ids"]), (&json!("restricted"), &json!([top])));
        assert_eq!(summary(&bob, &rooms["restricted"]).await.ok()["allowed_room_ids"], json!([top]));
        // Who leaves the space loses what its members see.
        bob.leave(&top).await;
        summary(&bob, &rooms["restricted"]).await.is_error(404, "M_NOT_FOUND");
        summary(&bob, &rooms["knock_restricted"]).await.ok();
        // A space that is not for somebody's eyes looks like one that does not exist.
        alice.remove(&top, "ban", &eve).await;
        eve.get(&path(&top, "")).await.is_error(403, "M_FORBIDDEN");
        eve.get(&path("!nowhere:localhost", "")).await.is_error(403, "M_FORBIDDEN");
        server.guest().await.get(&path(&top, "")).await.is_error(403, "M_GUEST_ACCESS_FORBIDDEN");
    }

    /// Nothing of a walk is in memory only: after a restart it goes on where it was, and what it needs is read from the database.
    async fn a_walk_goes_on_after_a_restart(server: TestServer) {
        let mut server = server;
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let top = space(&alice, "top").await;
        bob.join(&top).await;
        let allow = json!([{ "type": "m.room_membership", "room_id": top }]);
        let restricted = json!({ "join_rule": "restricted", "allow": allow });
        // Enough state that it has more than one node.
        for index in 0..20 {
            let body = json!({
                "name": format!("r{index:02}"),
                "initial_state": [{ "type": "m.room.join_rules", "content": restricted }],
            });
            let room = alice.create_room_with(&body).await;
            add(&alice, &top, &room, &json!({ "order": format!("{index:02}") })).await;
        }
        let first = bob.get(&path(&top, "limit=4")).await.ok();
        assert_eq!(names(&first), ["top", "r00", "r01", "r02"]);
        server.restart().await;
        let (alice, bob) = (alice.at(server.http()), bob.at(server.http()));
        let from = encode(first["next_batch"].as_str().unwrap());
        let second = bob.get(&path(&top, &format!("limit=4&from={from}"))).await.ok();
        assert_eq!(names(&second), ["r03", "r04", "r05", "r06"]);
        assert_eq!(second["rooms"][0]["allowed_room_ids"], json!([top]));
        assert_eq!(walk(&bob, &top, "limit=5").await.len(), 21);
        // What changes in the space afterwards is seen.
        let late = room(&alice, "late").await;
        add(&alice, &top, &late, &json!({ "order": "0" })).await;
        assert_eq!(walk(&bob, &top, "").await[..3], ["top", "late", "r00"]);
        server.shutdown().await;
    }

    // shows: getRoomSummary
    async fn a_room_shows_what_it_is_before_somebody_comes_in(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let body = json!({
            "preset": "public_chat", "name": "a name", "topic": "a topic", "room_alias_name": "place", "room_version": "11",
            "creation_content": { "type": "org.example.kind" },
            "initial_state": [
                { "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } },
                { "type": "m.room.avatar", "content": { "url": "mxc://localhost/picture" } },
                { "type": "m.room.guest_access", "content": { "guest_access": "can_join" } },
            ],
        });
        let room = alice.create_room_with(&body).await;
        let mut expected = json!({
            "room_id": room, "name": "a name", "topic": "a topic", "canonical_alias": "#place:localhost",
            "avatar_url": "mxc://localhost/picture", "guest_can_join": true, "world_readable": false,
            "num_joined_members": 1, "room_type": "org.example.kind", "encryption": "m.megolm.v1.aes-sha2",
            "room_version": "11",
        });
        let known = format!("/_matrix/client/v1/room_summary/{}", encode("#place:localhost"));
        assert_eq!(server.http().request("GET", &known, None, &Value::Null).await.ok(), expected);
        expected["membership"] = json!("leave");
        assert_eq!(bob.get(&known).await.ok(), expected);
        assert_eq!(server.guest().await.get(&known).await.ok(), expected);
        bob.join(&room).await;
        expected["membership"] = json!("join");
        expected["num_joined_members"] = json!(2);
        for path in [format!("rooms/{}/summary?via=localhost", encode(&room)), format!("summary/{}", encode(&room))] {
            let unstable = format!("/_matrix/client/unstable/im.nheko.summary/{path}");
            assert_eq!(bob.get(&unstable).await.ok(), expected);
        }
        summary(&bob, "#nowhere:localhost").await.is_error(404, "M_NOT_FOUND");
        summary(&bob, "!nowhere:localhost").await.is_error(404, "M_NOT_FOUND");
        summary(&bob, "nonsense").await.is_error(400, "M_INVALID_PARAM");
    }

    /// Client-Server API, "GET /room_summary/{roomIdOrAlias}": without an account one sees what is open to all.
    // shows: getRoomSummary
    async fn without_an_account_one_sees_what_is_open_to_all(server: TestServer) {
        let alice = server.user("alice").await;
        let ask = async |room: &str| {
            let path = format!("/_matrix/client/v1/room_summary/{}", encode(room));
            server.http().request("GET", &path, None, &Value::Null).await
        };
        let closed = alice.create_room().await;
        ask(&closed).await.is_error(404, "M_NOT_FOUND");
        let allow = json!([{ "type": "m.room_membership", "room_id": closed }]);
        for (rule, is_open) in [
            (json!({ "join_rule": "public" }), true),
            (json!({ "join_rule": "knock" }), true),
            (json!({ "join_rule": "knock_restricted", "allow": allow }), true),
            (json!({ "join_rule": "restricted", "allow": allow }), false),
            (json!({ "join_rule": "private" }), false),
        ] {
            alice.set_state(&closed, "m.room.join_rules", "", &rule).await;
            let answer = ask(&closed).await;
            if is_open {
                assert_eq!(answer.ok()["membership"], Value::Null);
            } else {
                answer.is_error(404, "M_NOT_FOUND");
            }
        }
        alice.set_state(&closed, "m.room.history_visibility", "", &json!({ "history_visibility": "world_readable" })).await;
        assert_eq!(ask(&closed).await.ok()["world_readable"], true);
        let path = format!("/_matrix/client/v1/room_summary/{}", encode(&closed));
        server.http().request("GET", &path, Some("nonsense"), &Value::Null).await.is_error(401, "M_UNKNOWN_TOKEN");
    }

    /// Client-Server API, "Mutual Rooms".
    // shows: getMutualRooms
    async fn two_people_see_the_rooms_that_they_share(server: TestServer) {
        let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let mutual = async |who: &TestUser, user_id: &str, from: &str| {
            who.get(&format!("/_matrix/client/v1/mutual_rooms?user_id={}{from}", encode(user_id))).await
        };
        let mut shared = Vec::new();
        for name in ["a", "b"] {
            let room = room(&alice, name).await;
            bob.join(&room).await;
            shared.push(room);
        }
        let (only_invited, left) = (room(&alice, "c").await, room(&alice, "d").await);
        alice.invite(&only_invited, &bob).await;
        bob.join(&left).await;
        bob.leave(&left).await;
        for (one, other) in [(&alice, &bob), (&bob, &alice)] {
            assert_eq!(mutual(one, other.id(), "").await.ok(), json!({ "joined": shared, "count": 2 }));
        }
        let none = json!({ "joined": [], "count": 0 });
        assert_eq!(mutual(&eve, bob.id(), "").await.ok(), none);
        for unknown in ["@nobody:localhost", "@somebody:example.org"] {
            assert_eq!(mutual(&alice, unknown, "").await.ok(), none);
        }
        for bad in [alice.id(), "@UPPER:localhost", "nonsense"] {
            mutual(&alice, bad, "").await.is_error(400, "M_INVALID_PARAM");
        }
        mutual(&alice, bob.id(), "&from=nonsense").await.is_error(400, "M_INVALID_PARAM");
        alice.get("/_matrix/client/v1/mutual_rooms").await.is_error(400, "M_MISSING_PARAM");
        server.guest().await.get(&format!("/_matrix/client/v1/mutual_rooms?user_id={}", encode(bob.id()))).await
            .is_error(403, "M_GUEST_ACCESS_FORBIDDEN");
    }
}

/// More rooms than a page has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_mutual_rooms_come_in_pages() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let mut expected = Vec::new();
    for _ in 0..101 {
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        expected.push(json!(room));
    }
    let path = format!("/_matrix/client/v1/mutual_rooms?user_id={}", encode(bob.id()));
    let first = alice.get(&path).await.ok();
    let next = encode(first["next_batch"].as_str().unwrap());
    let second = alice.get(&format!("{path}&from={next}")).await.ok();
    let pages = [&first, &second].map(|page| page["joined"].as_array().unwrap().clone());
    assert_eq!((pages[0].len(), pages[1].len(), &second["next_batch"]), (100, 1, &Value::Null));
    assert_eq!(pages.concat(), expected);
    assert_eq!((&first["count"], &second["count"]), (&json!(101), &json!(101)));
    server.shutdown().await;
}
