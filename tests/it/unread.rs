//! How much is unread, and what clears it.

use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

/// A client that syncs on and on, with threads counted apart.
struct Client<'a> {
    user: &'a TestUser,
    since: Option<String>,
    room: String,
}

impl<'a> Client<'a> {
    fn new(user: &'a TestUser, room: &str) -> Self {
        Self { user, since: None, room: room.to_owned() }
    }

    /// The room in the next answer; null when it is not in there.
    async fn next(&mut self) -> Value {
        self.next_waiting(0).await
    }

    async fn next_waiting(&mut self, timeout_ms: u64) -> Value {
        let filter = encode(&json!({ "room": { "timeline": { "unread_thread_notifications": true } } }).to_string());
        let since = self.since.as_ref().map(|since| format!("&since={}", encode(since))).unwrap_or_default();
        let sync = self.user.get(&format!("/sync?timeout={timeout_ms}&filter={filter}{since}")).await.ok();
        self.since = sync["next_batch"].as_str().map(str::to_owned);
        sync["rooms"]["join"][&self.room].clone()
    }

    /// The counts that it waits for: of the main timeline, and of each thread.
    async fn counts(&mut self) -> (Value, Value) {
        let room = self.next_waiting(30_000).await;
        (room["unread_notifications"].clone(), room["unread_thread_notifications"].clone())
    }
}

fn counts(notifications: u64, highlights: u64) -> Value {
    json!({ "notification_count": notifications, "highlight_count": highlights })
}

async fn read(user: &TestUser, room: &str, kind: &str, event: &str, body: Value) {
    user.in_room(room, &format!("receipt/{kind}/{}", encode(event)), &body).await.ok();
}

fn in_thread(root: &str, body: &str) -> Value {
    json!({ "msgtype": "m.text", "body": body, "m.relates_to": { "rel_type": "m.thread", "event_id": root } })
}

on_each_database! {
    // shows: sync, postReceipt
    async fn counts_come_with_the_event_and_go_with_the_receipt(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let mut client = Client::new(&bob, &room);
        assert_eq!(client.next().await["unread_notifications"], counts(0, 0));
        alice.send_text(&room, "one").await;
        assert_eq!(client.counts().await.0, counts(1, 0));
        let mention = json!({ "msgtype": "m.text", "body": "bob", "m.mentions": { "user_ids": [bob.id()] } });
        let last = alice.send(&room, "m.room.message", &mention).await;
        assert_eq!(client.counts().await.0, counts(2, 1));
        let everyone = json!({ "msgtype": "m.text", "body": "@room", "m.mentions": { "room": true } });
        alice.send(&room, "m.room.message", &everyone).await;
        assert_eq!(client.counts().await.0, counts(3, 2));
        // What nobody is notified of.
        alice.send(&room, "m.room.message", &json!({ "msgtype": "m.notice", "body": "beep" })).await;
        assert_eq!(client.counts().await.0, counts(3, 2));
        let phone = bob.log_in_again().await;
        read(&phone, &room, "m.read.private", &last, json!({})).await;
        assert_eq!(client.counts().await.0, counts(1, 1), "another device's receipt, and a private one, count as well");
        assert_eq!(bob.sync(None).await["rooms"]["join"][&room]["unread_notifications"], counts(1, 1));
        // Alice has read what she wrote, and whoever answers has read what came before.
        assert_eq!(alice.sync(None).await["rooms"]["join"][&room]["unread_notifications"], counts(0, 0));
        bob.send_text(&room, "yes").await;
        assert_eq!(client.counts().await.0, counts(0, 0));
        // Who may not call everyone together is not heard by all.
        bob.send(&room, "m.room.message", &everyone).await;
        assert_eq!(alice.sync(None).await["rooms"]["join"][&room]["unread_notifications"], counts(2, 0));
    }

    // shows: sync, postReceipt, setReadMarker
    async fn threads_are_counted_and_read_on_their_own(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let mut client = Client::new(&bob, &room);
        client.next().await;
        let root = alice.send_text(&room, "root").await;
        let reply = alice.send(&room, "m.room.message", &in_thread(&root, "reply")).await;
        let mut mention = in_thread(&root, "bob?");
        mention["m.mentions"] = json!({ "user_ids": [bob.id()] });
        alice.send(&room, "m.room.message", &mention).await;
        let main = alice.send_text(&room, "main").await;
        let (in_main, in_threads) = loop {
            let now = client.counts().await;
            if now.0 == counts(2, 0) {
                break now;
            }
        };
        assert_eq!((in_main, in_threads), (counts(2, 0), json!({ &root: counts(2, 1) })));
        // Without threads they are one number.
        assert_eq!(bob.sync(None).await["rooms"]["join"][&room]["unread_notifications"], counts(4, 1));
        read(&bob, &room, "m.read", &main, json!({ "thread_id": "main" })).await;
        assert_eq!(client.counts().await, (counts(0, 0), json!({ &root: counts(2, 1) })));
        read(&bob, &room, "m.read", &reply, json!({ "thread_id": root })).await;
        assert_eq!(client.counts().await, (counts(0, 0), json!({ &root: counts(1, 1) })));
        // One that knows no threads clears all of them.
        bob.in_room(&room, "read_markers", &json!({ "m.fully_read": main, "m.read": main })).await.ok();
        assert_eq!(client.counts().await, (counts(0, 0), Value::Null));
    }

    // shows: sync, redactEvent, setPushRule, setPushRuleActions, setAccountData
    async fn counts_follow_redactions_rules_and_ignored_users(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let mut client = Client::new(&bob, &room);
        client.next().await;
        alice.send_text(&room, "keep the kettle").await;
        let bad = alice.send_text(&room, "bad").await;
        assert_eq!(bob.sync(None).await["rooms"]["join"][&room]["unread_notifications"], counts(2, 0));
        alice.redact(&room, &bad).await;
        assert_eq!(bob.sync(None).await["rooms"]["join"][&room]["unread_notifications"], counts(1, 0));
        client.next().await;
        let keyword = json!({ "pattern": "kettle", "actions": ["notify", { "set_tweak": "highlight" }] });
        bob.put("/pushrules/global/content/kettle", &keyword).await.ok();
        assert_eq!(client.counts().await.0, counts(1, 1));
        alice.send_text(&room, "a kettle, again").await;
        assert_eq!(client.counts().await.0, counts(2, 2));
        // Mentions only, as clients set it.
        bob.put(&format!("/pushrules/global/room/{}", encode(&room)), &json!({ "actions": [] })).await.ok();
        alice.send_text(&room, "nothing of interest").await;
        assert_eq!(bob.sync(None).await["rooms"]["join"][&room]["unread_notifications"], counts(2, 2));
        client.next().await;
        let ignored = |list: Value| {
            let (bob, path) = (bob.clone(), format!("/user/{}/account_data/m.ignored_user_list", encode(bob.id())));
            async move { bob.put(&path, &json!({ "ignored_users": list })).await.ok() }
        };
        ignored(json!({ alice.id(): {} })).await;
        assert_eq!(client.counts().await.0, counts(0, 0));
        ignored(json!({})).await;
        assert_eq!(client.counts().await.0, counts(2, 2));
        // Muted altogether.
        let condition = json!({ "kind": "event_match", "key": "room_id", "pattern": room });
        let mute = json!({ "actions": [], "conditions": [condition] });
        bob.put(&format!("/pushrules/global/override/{}", encode(&room)), &mute).await.ok();
        assert_eq!(client.counts().await.0, counts(0, 0));
    }

    /// Whatever is in the first events of a room: there are no power levels yet to ask.
    async fn a_room_is_made_with_mentions_in_its_first_event(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mentions = json!({ "m.mentions": { "room": true, "user_ids": [bob.id()] } });
        let request = json!({ "preset": "public_chat", "creation_content": mentions });
        let room = alice.create_room_with(&request).await;
        bob.join(&room).await;
        assert_eq!(bob.sync(None).await["rooms"]["join"][&room]["unread_notifications"], counts(0, 0));
    }

    /// A client that filters messages out counts them all the same.
    async fn counts_come_alone_when_the_filter_keeps_everything_else_back(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let filter = encode(&json!({ "room": { "timeline": { "types": [] }, "ephemeral": { "types": [] } } }).to_string());
        let next = async |since: &str| {
            let path = format!("/sync?timeout=30000&filter={filter}&since={}", encode(since));
            let sync = bob.get(&path).await.ok();
            (sync["next_batch"].as_str().unwrap().to_owned(), sync["rooms"]["join"][&room].clone())
        };
        let since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let said = alice.send_text(&room, "psst").await;
        let (since, told) = next(&since).await;
        assert_eq!(told, json!({ "unread_notifications": counts(1, 0) }));
        read(&bob, &room, "m.read", &said, json!({})).await;
        assert_eq!(next(&since).await.1, json!({ "unread_notifications": counts(0, 0) }));
    }

    async fn who_comes_back_has_read_what_was_before(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        alice.send_text(&room, "before").await;
        bob.join(&room).await;
        alice.send_text(&room, "meanwhile").await;
        assert_eq!(bob.sync(None).await["rooms"]["join"][&room]["unread_notifications"], counts(1, 0));
        bob.leave(&room).await;
        alice.send_text(&room, "while away").await;
        bob.join(&room).await;
        assert_eq!(bob.sync(None).await["rooms"]["join"][&room]["unread_notifications"], counts(0, 0));
        alice.send_text(&room, "again").await;
        assert_eq!(bob.sync(None).await["rooms"]["join"][&room]["unread_notifications"], counts(1, 0));
        // Another name in the room is no reading.
        let member = json!({ "membership": "join", "displayname": "Robert" });
        bob.set_state(&room, "m.room.member", bob.id(), &member).await;
        assert_eq!(bob.sync(None).await["rooms"]["join"][&room]["unread_notifications"], counts(1, 0));
    }

    // shows: setAccountData, sync, getRoomEvents, getEventContext, getOneRoomEvent
    async fn ignored_users_are_not_heard(server: TestServer) {
        let (alice, bob, mallory) = (server.user("alice").await, server.user("bob").await, server.user("mallory").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        mallory.join(&room).await;
        let first = alice.send_text(&room, "hello").await;
        let path = format!("/user/{}/account_data/m.ignored_user_list", encode(bob.id()));
        bob.put(&path, &json!({ "ignored_users": [mallory.id()] })).await.is_error(400, "M_BAD_JSON");
        bob.put(&path, &json!({ "ignored_users": { mallory.id(): {} } })).await.ok();
        let since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let shout = mallory.send_text(&room, "LOUD").await;
        let topic = json!({ "displayname": "Mallory!", "membership": "join" });
        mallory.set_state(&room, "m.room.member", mallory.id(), &topic).await;
        read(&mallory, &room, "m.read", &first, json!({})).await;
        let typing = format!("/rooms/{}/typing/{}", encode(&room), encode(mallory.id()));
        mallory.put(&typing, &json!({ "typing": true })).await.ok();
        let secret = mallory.create_room().await;
        mallory.invite(&secret, &bob).await;
        alice.send_text(&room, "well").await;

        let sync = bob.sync(Some(&since)).await;
        let joined = &sync["rooms"]["join"][&room];
        let events = joined["timeline"]["events"].as_array().unwrap();
        let of_mallory: Vec<_> = events.iter().filter(|event| event["sender"] == mallory.id()).collect();
        assert!(of_mallory.iter().all(|event| event["state_key"].is_string()), "{sync}");
        assert_eq!(of_mallory.len(), 1, "state is shown all the same: {sync}");
        assert!(events.iter().any(|event| event["content"]["body"] == "well"), "{sync}");
        assert_eq!(joined["unread_notifications"], counts(2, 0));
        assert!(!joined["ephemeral"].to_string().contains(mallory.id()), "{sync}");
        assert_eq!(sync["rooms"]["invite"], Value::Null, "{sync}");
        assert_eq!(bob.sync(None).await["rooms"]["invite"], Value::Null);

        assert_eq!(bob.texts(&room).await, ["hello", "well"]);
        assert_eq!(alice.texts(&room).await, ["hello", "LOUD", "well"]);
        let at = |what: &str, event: &str| format!("/rooms/{}/{what}/{}", encode(&room), encode(event));
        let context = bob.get(&at("context", &first)).await.ok();
        assert!(!context["events_after"].to_string().contains("LOUD"), "{context}");
        bob.get(&at("event", &shout)).await.is_error(404, "M_NOT_FOUND");
        // Nobody can ignore themselves away.
        bob.put(&path, &json!({ "ignored_users": { bob.id(): {} } })).await.ok();
        bob.send_text(&room, "me").await;
        assert_eq!(bob.texts(&room).await, ["hello", "LOUD", "well", "me"], "heard again, and oneself always");
    }
}
