//! Events by their time, and reports of them.

use model::Clock;
use serde_json::json;
use storage::testing::TestDatabase;
use test_kit::{ServerOptions, TestServer, TestUser, encode, on_each_database};

async fn event_at(user: &TestUser, room: &str, ts: i64, direction: &str) -> test_kit::Answer {
    let path = format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?ts={ts}&dir={direction}", encode(room));
    user.get(&path).await
}

// shows: getEventByTimestamp
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_event_closest_to_a_time_is_found_both_ways() {
    for database in TestDatabase::each().await {
        let clock = Clock::manual(1_000_000);
        let server = TestServer::on(database, ServerOptions { clock: clock.clone(), ..ServerOptions::default() }).await;
        let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let mut sent = Vec::new();
        for n in 1..=4 {
            clock.advance_ms(1_000);
            sent.push((clock.now_ms(), alice.send_text(&room, &format!("{n}")).await));
            // A second one of the same time.
            alice.send_text(&room, &format!("{n} again")).await;
            if n == 3 {
                bob.leave(&room).await;
            }
        }
        let found = async |user: &TestUser, ts: i64, direction: &str| {
            let answer = event_at(user, &room, ts, direction).await.ok();
            (answer["origin_server_ts"].as_i64().unwrap(), answer["event_id"].as_str().unwrap().to_owned())
        };
        for (made, event) in &sent {
            assert_eq!(found(&alice, *made, "f").await, (*made, event.clone()), "at the time, the first one");
            assert_eq!(found(&alice, *made - 999, "f").await, (*made, event.clone()));
            let (made_before, at_or_before) = found(&alice, *made + 999, "b").await;
            assert_eq!(made_before, *made);
            assert_ne!(at_or_before, *event, "the last one of its time");
        }
        event_at(&alice, &room, clock.now_ms() + 1, "f").await.is_error(404, "M_NOT_FOUND");
        event_at(&alice, &room, 999_999, "b").await.is_error(404, "M_NOT_FOUND");
        assert_eq!(found(&alice, 0, "f").await.0, 1_000_000);
        // Who left sees no further, and who never was there sees nothing.
        assert_eq!(found(&bob, i64::from(u32::MAX), "b").await.0, sent[2].0);
        event_at(&bob, &room, sent[3].0, "f").await.is_error(404, "M_NOT_FOUND");
        event_at(&eve, &room, 0, "f").await.is_error(403, "M_FORBIDDEN");
        event_at(&eve, "!none:example.org", 0, "f").await.is_error(403, "M_FORBIDDEN");
        server.shutdown().await;
    }
}

on_each_database! {
    // shows: reportEvent, reportRoom, reportUser
    async fn reports_are_taken_from_whom_the_specification_says(server: TestServer) {
        let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_room().await;
        alice.invite(&room, &bob).await;
        bob.join(&room).await;
        let event = alice.send_text(&room, "a bad thing").await;
        let event_path = format!("/rooms/{}/report/{}", encode(&room), encode(&event));
        let room_path = format!("/rooms/{}/report", encode(&room));
        let user_path = format!("/users/{}/report", encode(alice.id()));
        let reason = json!({ "reason": "bad", "score": -100 });
        // An event is reported by who is in the room; strangers cannot tell whether it exists.
        assert_eq!(bob.post(&event_path, &reason).await.ok(), json!({}));
        assert_eq!(bob.post(&event_path, &json!({})).await.ok(), json!({}));
        eve.post(&event_path, &reason).await.is_error(404, "M_NOT_FOUND");
        let unknown = format!("/rooms/{}/report/{}", encode(&room), encode("$none"));
        bob.post(&unknown, &reason).await.is_error(404, "M_NOT_FOUND");
        // Who ignores a user may go on to report them.
        let list = json!({ "ignored_users": { alice.id(): {} } });
        bob.put(&format!("/user/{}/account_data/m.ignored_user_list", encode(bob.id())), &list).await.ok();
        assert_eq!(bob.post(&event_path, &reason).await.ok(), json!({}));
        bob.leave(&room).await;
        bob.post(&event_path, &reason).await.is_error(404, "M_NOT_FOUND");
        // Rooms and users are reported by anyone, and the answer is the same whether they exist.
        for path in [&room_path, &user_path, "/rooms/!none:example.org/report", "/users/@none:example.org/report"] {
            assert_eq!(eve.post(path, &reason).await.ok(), json!({}), "{path}");
        }
        eve.post(&user_path, &json!({ "reason": 1 })).await.is_error(400, "M_BAD_JSON");
        let long = json!({ "reason": "a".repeat(4_097) });
        for path in [&event_path, &room_path, &user_path] {
            alice.post(path, &long).await.is_error(400, "M_INVALID_PARAM");
            let answer = server.http().request("POST", &format!("/_matrix/client/v3{path}"), None, &reason).await;
            answer.is_error(401, "M_MISSING_TOKEN");
            server.guest().await.post(path, &reason).await.is_error(403, "M_GUEST_ACCESS_FORBIDDEN");
        }
    }
}
