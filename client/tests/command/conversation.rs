//! `chat`, `rooms` and what else people use.

use rustix::process::Signal;
use serde_json::Value;
use test_kit::TestServer;

use crate::program::Device;

#[tokio::test(flavor = "multi_thread")]
async fn two_people_talk_through_their_programs() {
    let server = TestServer::start().await;
    let (alice, bob) = (Device::new(&server, "alice").await, Device::new(&server, "bob").await);
    let room = alice.room_with("Lunch", &[&bob]);
    alice.run(&["send", "--room", "Lunch", "said before"]).ok();

    let (mut at_alice, mut at_bob) = (alice.start(&["chat", "Lunch"]), bob.start(&["chat", "Lunch", "--history", "1"]));
    let before = at_bob.says("alice: ");
    assert!(
        before.ends_with("~ alice: said before"),
        "one event of the past, of a device that nobody verified: {before}"
    );
    at_alice.says("said before");
    at_alice.types("hungry?");
    assert!(at_bob.says("hungry?").ends_with("~ alice: hungry?"));
    assert!(at_alice.says("hungry?").ends_with("✓ alice: hungry?"), "what is ours is shown when it has been sent");
    at_bob.types("//starving");
    at_alice.says("bob: /starving");
    at_alice.types("/members");
    assert_eq!(at_alice.says("alice"), format!("alice ({}): verified", alice.id()));
    assert_eq!(at_alice.says("bob"), format!("bob ({}): not verified", bob.id()));

    at_alice.types("bye");
    at_alice.types("/quit");
    at_bob.says("alice: bye");
    at_bob.types("bye, too");
    at_bob.is_told_no_more();
    at_alice.ends().ok();
    at_bob.ends().ok();
    let sent = alice.run(&["chat", "Lunch", "--history", "1"]).ok();
    assert!(sent.ends_with("bob: bye, too"), "what was typed before the end of stdin is sent: {sent}");
    let texts = alice.user.texts(&room).await;
    assert_eq!(texts, [""; 0], "the server has seen none of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_conversation_and_leaves_the_store_to_others() {
    let server = TestServer::start().await;
    let alice = Device::new(&server, "alice").await;
    alice.room_with("Notes", &[]);
    let mut chat = alice.start(&["chat", "Notes"]);
    chat.types("one");
    chat.says("alice: one");
    chat.signal(Signal::INT);
    chat.ends().ok();
    let shown = alice.run(&["chat", "Notes"]).ok();
    assert!(shown.contains("✓ alice: one"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_are_listed_with_what_is_unread_until_it_is_read() {
    let server = TestServer::start().await;
    let (alice, bob) = (Device::new(&server, "alice").await, Device::new(&server, "bob").await);
    let room = alice.room_with("Lunch", &[&bob]);
    alice.run(&["create", "Plain", "--unencrypted", "--invite", bob.id()]).ok();
    alice.run(&["send", "--room", &room, "one"]).ok();
    let rooms = |device: &Device| device.run(&["rooms", "--json"]).json_lines().remove(0);
    let find = |rooms: &Value, name: &str| {
        rooms.as_array().unwrap().iter().find(|room| room["name"] == name).cloned().expect("the room is listed")
    };
    let lunch = find(&rooms(&bob), "Lunch");
    assert_eq!(
        (&lunch["id"], &lunch["encrypted"], &lunch["members"]),
        (&room.as_str().into(), &true.into(), &2.into())
    );
    assert_eq!((&lunch["unread"], &lunch["membership"]), (&1.into(), &"join".into()));
    let plain = find(&rooms(&bob), "Plain");
    assert_eq!((&plain["encrypted"], &plain["membership"]), (&false.into(), &"invite".into()));
    let table = bob.run(&["rooms"]).ok();
    assert!(table.starts_with("NAME") && table.lines().count() == 3 && table.contains("invited"), "{table}");

    let mut chat = bob.start(&["chat", "Lunch"]);
    chat.says("alice: one");
    test_kit::eventually!(
        bob.user.sync(None).await["rooms"]["join"][&room]["unread_notifications"]["notification_count"] == 0
    );
    chat.types("/quit");
    chat.ends().ok();
    assert_eq!(find(&rooms(&bob), "Lunch")["unread"], 0);
    bob.run(&["leave", "Plain"]).ok();
    assert_eq!(rooms(&bob).as_array().unwrap().len(), 1, "the invitation is declined");
}
