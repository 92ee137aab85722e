//! Events that relate to others: edits, reactions, references, threads.

use serde_json::{Value, json};
use test_kit::{TestServer, TestUser, encode, eventually, on_each_database};

/// A message that relates to an event.
fn related(rel_type: &str, event: &str, body: &str) -> Value {
    json!({ "msgtype": "m.text", "body": body, "m.relates_to": { "rel_type": rel_type, "event_id": event } })
}

fn edit(event: &str, body: &str) -> Value {
    let mut content = related("m.replace", event, &format!("* {body}"));
    content["m.new_content"] = json!({ "msgtype": "m.text", "body": body });
    content
}

fn reaction(event: &str, key: &str) -> Value {
    json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": event, "key": key } })
}

async fn send(user: &TestUser, room: &str, content: &Value) -> String {
    user.send(room, "m.room.message", content).await
}

/// What relates to an event, as its answer.
async fn relations(user: &TestUser, room: &str, event: &str, rest: &str) -> Value {
    let path = format!("/_matrix/client/v1/rooms/{}/relations/{}{rest}", encode(room), encode(event));
    user.get(&path).await.ok()
}

async fn event(user: &TestUser, room: &str, event: &str) -> Value {
    user.get(&format!("/rooms/{}/event/{}", encode(room), encode(event))).await.ok()
}

async fn bundle(user: &TestUser, room: &str, id: &str) -> Value {
    event(user, room, id).await["unsigned"]["m.relations"].clone()
}

async fn threads(user: &TestUser, room: &str, query: &str) -> Value {
    user.get(&format!("/_matrix/client/v1/rooms/{}/threads{query}", encode(room))).await.ok()
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["chunk"].as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap()).collect()
}

/// Alice and bob in a room of theirs.
async fn two_in_a_room(server: &TestServer) -> (TestUser, TestUser, String) {
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    (alice, bob, room)
}

on_each_database! {
    // shows: getRelatingEvents, getRelatingEventsWithRelType, getRelatingEventsWithRelTypeAndEventType
    async fn what_relates_to_an_event_is_listed_in_all_forms(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let parent = alice.send_text(&room, "parent").await;
        let other = alice.send_text(&room, "other").await;
        let first = send(&bob, &room, &related("m.reference", &parent, "first")).await;
        let second = bob.send(&room, "m.reaction", &reaction(&parent, "👍")).await;
        let third = send(&alice, &room, &related("m.reference", &parent, "third")).await;
        send(&alice, &room, &related("m.reference", &other, "of another")).await;
        assert_eq!(ids(&relations(&bob, &room, &parent, "").await), [&*third, &*second, &*first]);
        assert_eq!(ids(&relations(&bob, &room, &parent, "?dir=f").await), [&*first, &*second, &*third]);
        assert_eq!(ids(&relations(&bob, &room, &parent, "/m.reference").await), [&*third, &*first]);
        assert_eq!(ids(&relations(&bob, &room, &parent, "/m.reference?dir=f").await), [&*first, &*third]);
        assert_eq!(ids(&relations(&bob, &room, &parent, "/m.annotation/m.reaction").await), [&*second]);
        for nothing in ["/m.annotation/m.room.message", "/org.example.never", "/m.reference/org.example.never"] {
            assert!(ids(&relations(&bob, &room, &parent, nothing).await).is_empty(), "{nothing}");
        }
        let shown = &relations(&bob, &room, &parent, "/m.annotation").await["chunk"][0];
        assert_eq!((&shown["room_id"], &shown["content"]), (&json!(room), &reaction(&parent, "👍")));
        assert!(relations(&bob, &room, &parent, "").await.get("recursion_depth").is_none());
    }

    /// The tokens are those of the other endpoints that page.
    // shows: getRelatingEvents, getRelatingEventsWithRelType
    async fn what_relates_to_an_event_is_paged(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let parent = alice.send_text(&room, "parent").await;
        let mut sent = Vec::new();
        for n in 0..7 {
            sent.push(send(&alice, &room, &related("m.reference", &parent, &n.to_string())).await);
        }
        let between = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        for n in 7..10 {
            sent.push(send(&alice, &room, &related("m.reference", &parent, &n.to_string())).await);
        }
        for (form, direction) in [("", "b"), ("", "f"), ("/m.reference", "b"), ("/m.reference", "f")] {
            let (mut paged, mut from) = (Vec::new(), None::<String>);
            loop {
                let token = from.as_ref().map(|from| format!("&from={}", encode(from))).unwrap_or_default();
                let page = relations(&bob, &room, &parent, &format!("{form}?limit=3&dir={direction}{token}")).await;
                assert!(ids(&page).len() <= 3);
                assert_eq!(page["prev_batch"].as_str(), from.as_deref());
                paged.extend(ids(&page).into_iter().map(str::to_owned));
                from = page["next_batch"].as_str().map(str::to_owned);
                if from.is_none() {
                    break;
                }
            }
            if direction == "b" {
                paged.reverse();
            }
            assert_eq!(paged, sent, "{form} {direction}");
        }
        // What a sync or a page of messages ended with begins or ends a page here.
        let token = encode(&between);
        let older = relations(&bob, &room, &parent, &format!("?from={token}")).await;
        assert_eq!(ids(&older)[0], sent[6]);
        let newer = relations(&bob, &room, &parent, &format!("?to={token}")).await;
        assert_eq!(ids(&newer), [&*sent[9], &*sent[8], &*sent[7]]);
        let messages = bob.get(&format!("/rooms/{}/messages?dir=b&limit=2", encode(&room))).await.ok();
        let end = encode(messages["end"].as_str().unwrap());
        assert_eq!(ids(&relations(&bob, &room, &parent, &format!("?from={end}")).await)[0], sent[7]);
        let path = format!("/_matrix/client/v1/rooms/{}/relations/{}?from=nonsense", encode(&room), encode(&parent));
        bob.get(&path).await.is_error(400, "M_INVALID_PARAM");
    }

    // shows: getRelatingEvents, getRelatingEventsWithRelType
    async fn relations_are_followed_over_three_levels(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let mut chain = vec![alice.send_text(&room, "root").await];
        for level in 1..=4 {
            let parent = chain.last().unwrap().clone();
            chain.push(send(&bob, &room, &related("m.reference", &parent, &level.to_string())).await);
        }
        let liked = bob.send(&room, "m.reaction", &reaction(&chain[1], "👍")).await;
        let all = relations(&alice, &room, &chain[0], "?recurse=true").await;
        assert_eq!(ids(&all), [&*liked, &*chain[3], &*chain[2], &*chain[1]]);
        assert_eq!(all["recursion_depth"], 3);
        assert_eq!(ids(&relations(&alice, &room, &chain[0], "?recurse=false").await), [&*chain[1]]);
        // What is related over an event of another type does not count.
        let references = relations(&alice, &room, &chain[0], "/m.reference?recurse=true&dir=f").await;
        assert_eq!(ids(&references), [&*chain[1], &*chain[2], &*chain[3]]);
        assert!(ids(&relations(&alice, &room, &chain[0], "/m.annotation?recurse=true").await).is_empty());
    }

    // shows: getRelatingEvents
    async fn who_may_not_see_an_event_learns_nothing_of_what_relates_to_it(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let eve = server.user("eve").await;
        let parent = alice.send_text(&room, "parent").await;
        send(&alice, &room, &related("m.reference", &parent, "seen by bob")).await;
        bob.leave(&room).await;
        send(&alice, &room, &edit(&parent, "not seen by bob")).await;
        send(&alice, &room, &related("m.reference", &parent, "not seen by bob")).await;
        send(&alice, &room, &related("m.thread", &parent, "not seen by bob")).await;
        let path = format!("/_matrix/client/v1/rooms/{}/relations/{}", encode(&room), encode(&parent));
        eve.get(&path).await.is_error(404, "M_NOT_FOUND");
        let unknown = format!("/_matrix/client/v1/rooms/{}/relations/{}", encode("!none:hs"), encode(&parent));
        alice.get(&unknown).await.is_error(404, "M_NOT_FOUND");
        assert_eq!(ids(&relations(&bob, &room, &parent, "").await).len(), 1);
        assert_eq!(ids(&relations(&alice, &room, &parent, "").await).len(), 4);
        let seen = bundle(&bob, &room, &parent).await;
        assert_eq!(seen["m.reference"]["chunk"].as_array().unwrap().len(), 1, "{seen}");
        assert!(seen.get("m.replace").is_none() && seen.get("m.thread").is_none(), "{seen}");
        assert!(ids(&threads(&bob, &room, "").await).is_empty());
        eve.get(&format!("/_matrix/client/v1/rooms/{}/threads", encode(&room))).await.is_error(403, "M_FORBIDDEN");
        // An event of another room relates to nothing here.
        let elsewhere = alice.create_room().await;
        send(&alice, &elsewhere, &edit(&parent, "from elsewhere")).await;
        assert_eq!(bundle(&alice, &room, &parent).await["m.replace"]["content"]["m.new_content"]["body"], "not seen by bob");
    }

    /// Who came back does not see what was edited while they were away, but what was edited before.
    // shows: getOneRoomEvent
    async fn the_newest_edit_that_a_reader_sees_is_shown(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        alice.set_state(&room, "m.room.history_visibility", "", &json!({ "history_visibility": "joined" })).await;
        bob.join(&room).await;
        let parent = alice.send_text(&room, "one").await;
        send(&alice, &room, &edit(&parent, "two")).await;
        send(&alice, &room, &related("m.thread", &parent, "thread one")).await;
        bob.leave(&room).await;
        send(&alice, &room, &edit(&parent, "three")).await;
        send(&alice, &room, &related("m.thread", &parent, "thread two")).await;
        bob.join(&room).await;
        let seen = bundle(&bob, &room, &parent).await;
        assert_eq!(seen["m.replace"]["content"]["m.new_content"]["body"], "two", "{seen}");
        assert_eq!(seen["m.thread"]["latest_event"]["content"]["body"], "thread one", "{seen}");
        let seen = bundle(&alice, &room, &parent).await;
        assert_eq!(seen["m.replace"]["content"]["m.new_content"]["body"], "three", "{seen}");
    }

    // shows: getOneRoomEvent
    async fn only_valid_edits_are_bundled_and_the_content_stays(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let original = alice.send_text(&room, "original").await;
        assert_eq!(bundle(&bob, &room, &original).await, Value::Null);
        // Of another sender, of another type, without a new content, as state, of an edit.
        send(&bob, &room, &edit(&original, "by bob")).await;
        alice.send(&room, "org.example.note", &edit(&original, "of another type")).await;
        send(&alice, &room, &related("m.replace", &original, "without a new content")).await;
        alice.set_state(&room, "m.room.message", "", &edit(&original, "as state")).await;
        assert_eq!(bundle(&bob, &room, &original).await, Value::Null);
        let first = send(&alice, &room, &edit(&original, "first")).await;
        let second = send(&alice, &room, &edit(&original, "second")).await;
        send(&alice, &room, &edit(&second, "of an edit")).await;
        let shown = event(&bob, &room, &original).await;
        assert_eq!(shown["content"]["body"], "original");
        let edit = &shown["unsigned"]["m.relations"]["m.replace"];
        assert_eq!((&edit["event_id"], &edit["sender"]), (&json!(second), &json!(alice.id())), "{shown}");
        assert_eq!(edit["content"]["m.new_content"]["body"], "second");
        assert_eq!(bundle(&bob, &room, &second).await, Value::Null);
        // A revision that is redacted is gone, and with the original all of them are.
        alice.redact(&room, &second).await;
        assert_eq!(bundle(&bob, &room, &original).await["m.replace"]["event_id"], json!(first));
        alice.redact(&room, &original).await;
        assert_eq!(bundle(&bob, &room, &original).await, Value::Null);
        // What is encrypted is known by its outside.
        let secret = json!({ "algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "a", "session_id": "s" });
        let encrypted = alice.send(&room, "m.room.encrypted", &secret).await;
        let mut replacement = secret.clone();
        replacement["m.relates_to"] = json!({ "rel_type": "m.replace", "event_id": encrypted });
        let replacement = alice.send(&room, "m.room.encrypted", &replacement).await;
        assert_eq!(bundle(&bob, &room, &encrypted).await["m.replace"]["event_id"], json!(replacement));
    }

    // shows: getRoomEvents, getEventContext, sync, getRelatingEvents, getThreadRoots
    async fn aggregations_are_served_wherever_the_specification_says(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let root = alice.send_text(&room, "root").await;
        let reply = send(&bob, &room, &related("m.thread", &root, "reply")).await;
        let edited = send(&bob, &room, &edit(&reply, "better reply")).await;
        let thread_of = |event: &Value| {
            let thread = event["unsigned"]["m.relations"]["m.thread"].clone();
            let latest = &thread["latest_event"];
            assert_eq!(latest["event_id"], json!(reply), "{event}");
            // The newest event has aggregations of its own.
            assert_eq!(latest["unsigned"]["m.relations"]["m.replace"]["event_id"], json!(edited), "{event}");
            assert_eq!((&thread["count"], &thread["current_user_participated"]), (&json!(1), &json!(true)));
        };
        let by_id = |events: &Value, id: &str| {
            let mut events = events.as_array().unwrap().iter();
            events.find(|event| event["event_id"] == *id).unwrap_or_else(|| panic!("{id} is missing")).clone()
        };
        let messages = bob.get(&format!("/rooms/{}/messages?dir=b", encode(&room))).await.ok();
        thread_of(&by_id(&messages["chunk"], &root));
        thread_of(&event(&bob, &room, &root).await);
        let context = bob.get(&format!("/rooms/{}/context/{}", encode(&room), encode(&root))).await.ok();
        thread_of(&context["event"]);
        let around = by_id(&context["events_after"], &reply);
        assert_eq!(around["unsigned"]["m.relations"]["m.replace"]["event_id"], json!(edited));
        let context = bob.get(&format!("/rooms/{}/context/{}", encode(&room), encode(&reply))).await.ok();
        thread_of(&by_id(&context["events_before"], &root));
        let listed = relations(&bob, &room, &root, "/m.thread").await;
        assert_eq!(listed["chunk"][0]["unsigned"]["m.relations"]["m.replace"]["event_id"], json!(edited));
        thread_of(&threads(&bob, &room, "").await["chunk"][0]);
        // A timeline with a gap has them; who was told everything puts them together.
        let filter = json!({ "room": { "timeline": { "limit": 3 } } }).to_string();
        let limited = bob.get(&format!("/sync?filter={}", encode(&filter))).await.ok();
        let timeline = &limited["rooms"]["join"][&room]["timeline"];
        assert_eq!(timeline["limited"], true);
        thread_of(&by_id(&timeline["events"], &root));
        let body = json!({ "lists": { "all": { "ranges": [[0, 9]], "timeline_limit": 3, "required_state": [] } } });
        let sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";
        let shown = bob.post(sliding, &body).await.ok()["rooms"][&room].clone();
        assert_eq!(shown["limited"], true);
        thread_of(&by_id(&shown["timeline"], &root));
        let complete = bob.sync(Some(&since)).await;
        let timeline = &complete["rooms"]["join"][&room]["timeline"];
        assert!(timeline.get("limited").is_none(), "{complete}");
        assert!(by_id(&timeline["events"], &root)["unsigned"].get("m.relations").is_none());
    }

    // shows: getOneRoomEvent, redactEvent
    async fn a_thread_is_summed_up_for_each_reader(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let carol = server.user("carol").await;
        carol.join(&room).await;
        let root = alice.send_text(&room, "root").await;
        assert_eq!(bundle(&carol, &room, &root).await, Value::Null);
        let mut replies = Vec::new();
        for body in ["one", "two", "three"] {
            replies.push(send(&bob, &room, &related("m.thread", &root, body)).await);
        }
        let of = |thread: &Value| {
            let thread = &thread["m.thread"];
            let latest = thread["latest_event"]["event_id"].as_str().unwrap().to_owned();
            (latest, thread["count"].as_u64().unwrap(), thread["current_user_participated"].as_bool().unwrap())
        };
        assert_eq!(of(&bundle(&alice, &room, &root).await), (replies[2].clone(), 3, true), "the root is hers");
        assert_eq!(of(&bundle(&bob, &room, &root).await), (replies[2].clone(), 3, true));
        assert_eq!(of(&bundle(&carol, &room, &root).await), (replies[2].clone(), 3, false));
        // What is redacted is out of the thread, twice or once.
        bob.redact(&room, &replies[2]).await;
        alice.redact(&room, &replies[2]).await;
        assert_eq!(of(&bundle(&carol, &room, &root).await), (replies[1].clone(), 2, false));
        let last = send(&carol, &room, &related("m.thread", &root, "four")).await;
        assert_eq!(of(&bundle(&carol, &room, &root).await), (last.clone(), 3, true));
        // Of whom one ignores nothing is in it.
        let list = json!({ "ignored_users": { carol.id(): {} } });
        let path = format!("/user/{}/account_data/m.ignored_user_list", encode(alice.id()));
        alice.put(&path, &list).await.ok();
        assert_eq!(of(&bundle(&alice, &room, &root).await), (replies[1].clone(), 2, true));
        assert_eq!(of(&bundle(&bob, &room, &root).await), (last.clone(), 3, true));
        assert!(!ids(&relations(&alice, &room, &root, "").await).contains(&&*last));
        for event in [&replies[0], &replies[1]] {
            bob.redact(&room, event).await;
        }
        assert_eq!(bundle(&alice, &room, &root).await, Value::Null, "only an ignored user is left");
        carol.redact(&room, &last).await;
        assert_eq!(bundle(&bob, &room, &root).await, Value::Null);
        assert!(ids(&threads(&bob, &room, "").await).is_empty());
    }

    // shows: getThreadRoots
    async fn threads_are_listed_by_their_newest_event(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let mut roots = Vec::new();
        for n in 0..5 {
            roots.push(alice.send_text(&room, &format!("root {n}")).await);
        }
        for root in &roots {
            send(&alice, &room, &related("m.thread", root, "first")).await;
        }
        // The first thread gets a new event, the second one an event of bob's.
        let own = send(&bob, &room, &related("m.thread", &roots[1], "bob's")).await;
        send(&alice, &room, &related("m.thread", &roots[0], "newest")).await;
        let order = [&*roots[0], &*roots[1], &*roots[4], &*roots[3], &*roots[2]];
        assert_eq!(ids(&threads(&bob, &room, "").await), order);
        assert_eq!(ids(&threads(&bob, &room, "?include=participated").await), [&*roots[1]]);
        assert_eq!(ids(&threads(&alice, &room, "?include=participated").await), order, "the roots are hers");
        let (mut paged, mut from) = (Vec::new(), String::new());
        loop {
            let page = threads(&bob, &room, &format!("?limit=2{from}")).await;
            assert!(ids(&page).len() <= 2);
            paged.extend(ids(&page).into_iter().map(str::to_owned));
            let Some(next) = page["next_batch"].as_str() else { break };
            from = format!("&from={}", encode(next));
        }
        assert_eq!(paged, order);
        // Without its newest event a thread stands where the one before it is.
        bob.redact(&room, &own).await;
        let order = [&*roots[0], &*roots[4], &*roots[3], &*roots[2], &*roots[1]];
        assert_eq!(ids(&threads(&alice, &room, "").await), order);
        let path = format!("/_matrix/client/v1/rooms/{}/threads", encode(&room));
        for bad in ["?limit=0", "?from=nonsense", "?include=some"] {
            alice.get(&format!("{path}{bad}")).await.is_error(400, "M_INVALID_PARAM");
        }
        // The root of an ignored user is shown, but not what it says.
        let list = json!({ "ignored_users": { alice.id(): {} } });
        bob.put(&format!("/user/{}/account_data/m.ignored_user_list", encode(bob.id())), &list).await.ok();
        assert!(ids(&threads(&bob, &room, "").await).is_empty(), "all threads are alice's alone");
        send(&bob, &room, &related("m.thread", &roots[3], "bob's")).await;
        let page = threads(&bob, &room, "").await;
        assert_eq!((ids(&page), &page["chunk"][0]["content"]), (vec![&*roots[3]], &json!({})));
        // What others say in it is found as for any thread.
        assert_eq!(ids(&relations(&bob, &room, &roots[3], "/m.thread").await).len(), 1);
    }

    /// Client-Server API, "Aggregations of child events": of a thread one is told what one can see of it.
    // shows: getOneRoomEvent
    async fn a_thread_counts_what_its_reader_may_see(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let carol = server.user("carol").await;
        let count = async |who: &TestUser, root: &str| bundle(who, &room, root).await["m.thread"]["count"].clone();
        let visibility = async |word: &str| {
            let content = json!({ "history_visibility": word });
            alice.set_state(&room, "m.room.history_visibility", "", &content).await;
        };
        let root = alice.send_text(&room, "root").await;
        send(&alice, &room, &related("m.thread", &root, "seen by all")).await;
        visibility("joined").await;
        bob.leave(&room).await;
        for n in 0..3 {
            send(&alice, &room, &related("m.thread", &root, &format!("seen by alice {n}"))).await;
        }
        bob.join(&room).await;
        carol.join(&room).await;
        send(&alice, &room, &related("m.thread", &root, "seen by all three")).await;
        for (who, expected) in [(&alice, 5), (&bob, 2), (&carol, 2)] {
            assert_eq!(count(who, &root).await, expected, "{}", who.id());
        }
        carol.leave(&room).await;
        send(&alice, &room, &related("m.thread", &root, "not seen by carol")).await;
        visibility("shared").await;
        send(&alice, &room, &related("m.thread", &root, "the last")).await;
        for (who, expected) in [(&alice, 7), (&bob, 4), (&carol, 2)] {
            assert_eq!(count(who, &root).await, expected, "{}", who.id());
        }
        // Who ignores alice sees nothing of the thread; each event is left out once.
        let list = json!({ "ignored_users": { alice.id(): {} } });
        for body in ["bob's", "bob's too"] {
            send(&bob, &room, &related("m.thread", &root, body)).await;
        }
        bob.put(&format!("/user/{}/account_data/m.ignored_user_list", encode(bob.id())), &list).await.ok();
        let threads = threads(&bob, &room, "").await;
        assert_eq!(threads["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["count"], 2);
    }

    /// Made-up roots would be rows that nobody can be shown, as many as somebody likes.
    // shows: sendMessage
    async fn a_thread_does_not_start_from_an_event_that_is_not_here(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let root = alice.send_text(&room, "root").await;
        let elsewhere = alice.create_room().await;
        let far = alice.send_text(&elsewhere, "far").await;
        for parent in ["$nothing", &far] {
            let made_up = related("m.thread", parent, "of nothing");
            bob.try_send(&room, "m.room.message", &made_up).await.is_error(400, "M_UNKNOWN");
        }
        send(&bob, &room, &related("m.thread", &root, "in a thread")).await;
        assert_eq!(ids(&threads(&bob, &room, "").await), [&*root]);
    }

    /// Who sees a bundle of references takes it for complete.
    async fn references_are_bundled_all_or_not_at_all(server: TestServer) {
        let (alice, _bob, room) = two_in_a_room(&server).await;
        let parent = alice.send_text(&room, "parent").await;
        for n in 0..100 {
            send(&alice, &room, &related("m.reference", &parent, &n.to_string())).await;
        }
        assert_eq!(bundle(&alice, &room, &parent).await["m.reference"]["chunk"].as_array().map(Vec::len), Some(100));
        send(&alice, &room, &related("m.reference", &parent, "one more")).await;
        assert_eq!(bundle(&alice, &room, &parent).await, Value::Null);
    }

    // shows: sendMessage
    async fn a_thread_does_not_start_from_an_event_that_relates_to_another_one(server: TestServer) {
        let (alice, _bob, room) = two_in_a_room(&server).await;
        let root = alice.send_text(&room, "root").await;
        let reply = send(&alice, &room, &related("m.thread", &root, "reply")).await;
        let edit = send(&alice, &room, &edit(&root, "edited")).await;
        for parent in [&reply, &edit] {
            let nested = related("m.thread", parent, "nested");
            alice.try_send(&room, "m.room.message", &nested).await.is_error(400, "M_UNKNOWN");
        }
        // A reply has no type of relation.
        let in_reply = json!({ "body": "a reply", "msgtype": "m.text",
                               "m.relates_to": { "m.in_reply_to": { "event_id": root } } });
        let in_reply = send(&alice, &room, &in_reply).await;
        send(&alice, &room, &related("m.thread", &in_reply, "from a reply")).await;
        assert_eq!(ids(&threads(&alice, &room, "").await).len(), 2);
    }

    // shows: sendMessage, redactEvent
    async fn the_same_reaction_is_sent_once(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let parent = alice.send_text(&room, "parent").await;
        let first = bob.send(&room, "m.reaction", &reaction(&parent, "👍")).await;
        let again = reaction(&parent, "👍");
        bob.try_send(&room, "m.reaction", &again).await.is_error(400, "M_DUPLICATE_ANNOTATION");
        // Another key, another type of event, another event and another person.
        bob.send(&room, "m.reaction", &reaction(&parent, "👎")).await;
        bob.send(&room, "org.example.reaction", &again).await;
        bob.send(&room, "m.reaction", &reaction(&first, "👍")).await;
        alice.send(&room, "m.reaction", &again).await;
        alice.redact(&room, &first).await;
        bob.send(&room, "m.reaction", &again).await;
        bob.try_send(&room, "m.reaction", &again).await.is_error(400, "M_DUPLICATE_ANNOTATION");
        // The same request is the same event, as always.
        let path = format!("/rooms/{}/send/m.reaction/once", encode(&room));
        let party = reaction(&parent, "🎉");
        assert_eq!(bob.put(&path, &party).await.ok(), bob.put(&path, &party).await.ok());
        assert_eq!(bundle(&bob, &room, &parent).await, Value::Null, "annotations are counted by clients");
    }

    /// They are in one turn of the room, or in the turns of two requests: one of them comes first.
    // shows: sendMessage
    async fn of_equal_reactions_at_once_one_passes(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        for round in 0..5 {
            let parent = alice.send_text(&room, &format!("parent {round}")).await;
            let sent = (0..8).map(|_| {
                let (bob, room, content) = (bob.clone(), room.clone(), reaction(&parent, "👍"));
                tokio::spawn(async move { bob.try_send(&room, "m.reaction", &content).await.status.as_u16() })
            });
            let mut statuses = Vec::new();
            for task in sent.collect::<Vec<_>>() {
                statuses.push(task.await.unwrap());
            }
            statuses.sort_unstable();
            assert_eq!(statuses, [200, 400, 400, 400, 400, 400, 400, 400]);
            assert_eq!(ids(&relations(&alice, &room, &parent, "/m.annotation").await).len(), 1);
        }
    }

    /// Polls, stickers and locations are events like any other: clients ask for what relates to a poll.
    // shows: sendMessage, getRelatingEventsWithRelTypeAndEventType
    async fn a_poll_is_answered_and_ended_by_references(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let text = |body: &str| json!([{ "body": body }]);
        let question = json!({
            "m.text": text("Tea? 1. yes 2. no"),
            "m.poll": {
                "kind": "m.disclosed", "max_selections": 1, "question": { "m.text": text("Tea?") },
                "answers": [{ "m.id": "y", "m.text": text("yes") }, { "m.id": "n", "m.text": text("no") }],
            },
        });
        for prefix in ["m.poll", "org.matrix.msc3381.poll"] {
            let poll = alice.send(&room, &format!("{prefix}.start"), &question).await;
            let refers = json!({ "rel_type": "m.reference", "event_id": poll });
            let vote = json!({ "m.selections": ["y"], "m.relates_to": refers });
            let first = bob.send(&room, &format!("{prefix}.response"), &vote).await;
            let second = alice.send(&room, &format!("{prefix}.response"), &vote).await;
            let end = json!({ "m.text": text("over"), "m.relates_to": refers });
            let end = alice.send(&room, &format!("{prefix}.end"), &end).await;
            let votes = relations(&bob, &room, &poll, &format!("/m.reference/{prefix}.response?dir=f")).await;
            assert_eq!(ids(&votes), [&*first, &*second]);
            let chunk: Vec<Value> = [&first, &second, &end].map(|id| json!({ "event_id": id })).into();
            assert_eq!(bundle(&bob, &room, &poll).await, json!({ "m.reference": { "chunk": chunk } }));
            // A vote that is redacted counts no more.
            bob.redact(&room, &first).await;
            let votes = relations(&bob, &room, &poll, &format!("/m.reference/{prefix}.response")).await;
            assert_eq!(ids(&votes), [&*second]);
        }
        let sticker = json!({ "body": "a cat", "info": {}, "url": "mxc://example.org/cat" });
        let location = json!({ "msgtype": "m.location", "body": "here", "geo_uri": "geo:51.5,0.1" });
        for (event_type, content) in [("m.sticker", sticker), ("m.room.message", location)] {
            let sent = alice.send(&room, event_type, &content).await;
            let shown = event(&bob, &room, &sent).await;
            assert_eq!((&shown["type"], &shown["content"]), (&json!(event_type), &content));
        }
    }

    /// MSC3912: what relates to a redacted event goes with it, as far as was asked and is allowed.
    // shows: redactEvent
    async fn what_relates_to_an_event_is_redacted_with_it_if_asked_for(server: TestServer) {
        let (alice, bob, room) = two_in_a_room(&server).await;
        let versions = alice.get("/_matrix/client/versions").await.ok();
        assert_eq!(versions["unstable_features"]["org.matrix.msc3912"], true);
        let redact = async |user: &TestUser, event: &str, txn: &str, related: Value| {
            let path = format!("/rooms/{}/redact/{}/{txn}", encode(&room), encode(event));
            user.put(&path, &json!({ "reason": "why", "org.matrix.msc3912.with_relations": related })).await
        };
        let is_redacted = async |id: &str| event(&alice, &room, id).await["unsigned"].get("redacted_because").is_some();
        let message = bob.send_text(&room, "message").await;
        let (first, second) = (send(&bob, &room, &edit(&message, "1")).await, send(&bob, &room, &edit(&message, "2")).await);
        let of_edit = send(&bob, &room, &edit(&first, "an edit of an edit")).await;
        let foreign = send(&alice, &room, &edit(&message, "alice's")).await;
        let reaction = bob.send(&room, "m.reaction", &reaction(&message, "👍")).await;
        let of_second = send(&bob, &room, &related("m.reference", &second, "refers")).await;
        // An edit of an edit is none, and a parent is no relative.
        redact(&bob, &second, "1", json!(["m.replace", "m.reference"])).await.ok();
        eventually!(is_redacted(&of_second).await);
        assert!(!is_redacted(&message).await && !is_redacted(&first).await);
        redact(&bob, &message, "2", json!(["m.replace"])).await.ok();
        eventually!(is_redacted(&first).await);
        assert!(!is_redacted(&of_edit).await && !is_redacted(&foreign).await && !is_redacted(&reaction).await);
        // All types, as far as the sender may: bob may not redact what alice has said.
        let root = bob.send_text(&room, "root").await;
        let mut thread = Vec::new();
        for n in 0..3 {
            thread.push(send(&bob, &room, &related("m.thread", &root, &n.to_string())).await);
        }
        let by_alice = send(&alice, &room, &related("m.thread", &root, "alice's")).await;
        let liked = bob.send(&room, "m.reaction", &json!({
            "m.relates_to": { "rel_type": "m.annotation", "event_id": root, "key": "👍" },
        })).await;
        let once = redact(&bob, &root, "3", json!(["*"])).await.ok();
        for id in thread.iter().chain([&liked]) {
            eventually!(is_redacted(id).await);
        }
        assert!(!is_redacted(&by_alice).await);
        assert_eq!(bundle(&alice, &room, &root).await["m.thread"]["count"], 1);
        assert_eq!(redact(&bob, &root, "3", json!(["*"])).await.ok(), once, "the same request");
        // Alice may redact all of it.
        redact(&alice, &root, "4", json!(["m.thread"])).await.ok();
        eventually!(is_redacted(&by_alice).await);
        let because = event(&bob, &room, &by_alice).await["unsigned"]["redacted_because"].clone();
        assert_eq!((&because["sender"], &because["content"]["reason"]), (&json!(alice.id()), &json!("why")));
        redact(&alice, &root, "5", json!(vec!["a"; 21])).await.is_error(400, "M_INVALID_PARAM");
        redact(&alice, &root, "6", json!([""])).await.is_error(400, "M_INVALID_PARAM");
        redact(&alice, &root, "7", json!("m.thread")).await.is_error(400, "M_BAD_JSON");
    }

    /// Older clients look at the top level, newer ones into the content.
    // shows: redactEvent, getOneRoomEvent
    async fn a_redaction_says_what_it_redacts_in_both_places(server: TestServer) {
        let alice = server.user("alice").await;
        for version in ["1", "10", "11", "12"] {
            let room = alice.create_room_with(&json!({ "room_version": version })).await;
            let message = alice.send_text(&room, "message").await;
            let redaction = alice.redact(&room, &message).await;
            let shown = event(&alice, &room, &redaction).await;
            assert_eq!((&shown["redacts"], &shown["content"]["redacts"]), (&json!(message), &json!(message)), "{version}");
        }
    }
}
