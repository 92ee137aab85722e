//! Servers that are restarted, clients that are killed, answers that are lost: nothing is lost by it, and nothing is said twice.

use std::time::Duration;

use client::{Error, Event};
use test_kit::{TestServer, eventually};

use crate::{
    people::{Person, encrypted_room, texts},
    relay::{Relay, two_and_a_relay},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_between_claim_and_delivery_loses_no_key() {
    let mut server = TestServer::start().await;
    let relay = Relay::to(&server).await;
    let alice = Person::by_way_of(relay.address(), server.user("alice").await).await;
    let bob = Person::by_way_of(relay.address(), server.user("bob").await).await;
    let room = encrypted_room(&alice, &[&bob]).await;

    relay.lose("/sendToDevice/");
    let sending = tokio::spawn({
        let (client, room) = (alice.client.clone(), room.clone());
        async move { client.send_text(&room, "over the restart").await }
    });
    eventually!(!relay.seen("/sendToDevice/").is_empty());
    assert_eq!(relay.seen("/keys/claim").len(), 1);
    server.restart().await;
    relay.follow(&server);
    relay.heal();
    let sent = sending.await.unwrap().unwrap();
    assert_eq!(bob.hears(&sent).await.body(), Some("over the restart"));
    assert_eq!(relay.seen("/keys/claim").len(), 1, "what was claimed is used");
}

/// The message, the key that it needs and the state of the ratchets are durable before anything is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_killed_before_it_sends_sends_afterwards() {
    let (_server, relay, alice, bob, room) = two_and_a_relay().await;

    // The first of what has to leave is the room's key, and even that does not get through.
    relay.lose("/sendToDevice/");
    let sending = tokio::spawn({
        let (client, room) = (alice.client.clone(), room.clone());
        async move { client.send_text(&room, "said by the dying").await }
    });
    eventually!(!relay.seen("/sendToDevice/").is_empty());
    sending.abort();
    assert!(sending.await.unwrap_err().is_cancelled());
    let alice = alice.killed().await;
    assert!(texts(&bob, &room).await.is_empty());

    relay.heal();
    alice.sync().await;
    eventually!(
        texts(&bob, &room).await == ["said by the dying"] || {
            bob.sync().await;
            false
        }
    );
    let next = alice.client.send_text(&room, "and more").await.unwrap();
    assert_eq!(bob.hears(&next).await.body(), Some("and more"));
}

/// What is sent again has the transaction id of the first time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_answer_was_lost_is_said_once() {
    let (_server, relay, alice, bob, room) = two_and_a_relay().await;

    relay.lose_answers_to("/send/m.room.encrypted/");
    let sending = tokio::spawn({
        let (client, room) = (alice.client.clone(), room.clone());
        async move { client.send_text(&room, "once").await }
    });
    eventually!(relay.seen("/send/m.room.encrypted/").len() > 1);
    sending.abort();
    assert!(sending.await.unwrap_err().is_cancelled());
    let alice = alice.killed().await;
    relay.heal();
    alice.sync().await;
    bob.sync().await;
    assert_eq!(texts(&bob, &room).await, ["once"]);
    let next = alice.client.send_text(&room, "twice").await.unwrap();
    bob.hears(&next).await;
    assert_eq!(texts(&bob, &room).await, ["once", "twice"]);
}

/// What `/sync` says counts from when it is durable; until then the server is asked for the same again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_killed_while_it_syncs_misses_no_key() {
    let server = TestServer::start().await;
    let relay = Relay::to(&server).await;
    let alice = Person::new(&server, "alice").await;
    let bob = Person::by_way_of(relay.address(), server.user("bob").await).await;
    let room = encrypted_room(&alice, &[&bob]).await;
    let sent = alice.client.send_text(&room, "the key is on its way").await.unwrap();

    relay.lose_answers_to("/sync");
    assert!(matches!(bob.client.sync_once(Duration::ZERO).await, Err(Error::Unreachable(_))));
    let bob = bob.killed().await;
    relay.heal();
    assert_eq!(bob.hears(&sent).await.body(), Some("the key is on its way"));
}

/// That somebody has a new device is durable with the token after which the server does not say it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_killed_before_it_asks_for_a_new_device_does_not_miss_it() {
    let (_server, relay, alice, bob, room) = two_and_a_relay().await;
    let first = alice.client.send_text(&room, "first").await.unwrap();
    bob.hears(&first).await;
    let known = alice.client.devices(bob.client.user_id()).await.unwrap().len();

    let laptop = bob.another_device().await;
    let asked = relay.seen("/keys/query").len();
    relay.lose("/keys/query");
    let syncing = tokio::spawn({
        let client = alice.client.clone();
        async move { client.sync_once(Duration::from_secs(5)).await }
    });
    eventually!(relay.seen("/keys/query").len() > asked);
    syncing.abort();
    assert!(syncing.await.unwrap_err().is_cancelled());
    let alice = alice.killed().await;
    relay.heal();
    let second = alice.client.send_text(&room, "for the laptop too").await.unwrap();
    assert_eq!(laptop.hears(&second).await.body(), Some("for the laptop too"));
    assert_eq!(alice.client.devices(bob.client.user_id()).await.unwrap().len(), known + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_syncs_outlives_the_restart_of_its_server() {
    let mut server = TestServer::start().await;
    let relay = Relay::to(&server).await;
    let alice = Person::by_way_of(relay.address(), server.user("alice").await).await;
    let bob = Person::by_way_of(relay.address(), server.user("bob").await).await;
    let room = encrypted_room(&alice, &[&bob]).await;
    let mut events = bob.client.events();
    let syncing = tokio::spawn({
        let client = bob.client.clone();
        async move { client.sync().await }
    });
    server.stop().await;
    let asked = relay.seen("/sync").len();
    eventually!(relay.seen("/sync").len() > asked + 1);
    server.go_on().await;
    relay.follow(&server);
    let sent = alice.client.send_text(&room, "still there?").await.unwrap();
    let heard = async {
        loop {
            match events.next().await.unwrap() {
                Event::Room(event) | Event::Late(event) if event.event_id == sent => return event,
                _ => {}
            }
        }
    };
    let heard = tokio::time::timeout(Duration::from_secs(60), heard).await.unwrap();
    assert_eq!(heard.body(), Some("still there?"));
    assert!(!syncing.is_finished());
    syncing.abort();
}

/// A session may end without the user's doing; the device's keys are worth more than its token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_whose_session_ended_goes_on_after_it_logged_in_again() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let first = alice.client.send_text(&room, "before").await.unwrap();
    bob.hears(&first).await;
    let device = bob.client.device_id().to_owned();

    assert!(matches!(bob.client.login_again("wrong").await, Err(Error::Refused { status: 403, .. })));
    bob.client.login_again("bob's password").await.unwrap();
    let bob = bob.restarted().await;
    assert_eq!(bob.client.device_id(), device);
    let second = alice.client.send_text(&room, "after").await.unwrap();
    assert_eq!(bob.hears(&second).await.body(), Some("after"));
    assert_eq!(texts(&bob, &room).await, ["before", "after"]);
}

/// With a session the server forgets its device's keys, too, unless it says otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_the_server_forgot_is_given_keys_again_after_it_logged_in_again() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let first = alice.client.send_text(&room, "before").await.unwrap();
    bob.hears(&first).await;

    bob.user.post("/logout/all", &serde_json::json!({})).await.ok();
    assert!(matches!(bob.client.sync().await, Err(Error::LoggedOut)));
    bob.client.login_again("bob's password").await.unwrap();
    alice.client.sync_once(Duration::ZERO).await.unwrap();
    let second = alice.client.send_text(&room, "after").await.unwrap();
    assert_eq!(bob.hears(&second).await.body(), Some("after"));
}

/// Who was logged out elsewhere is told so, by everything that asks the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_was_logged_out_elsewhere_stops() {
    let server = TestServer::start().await;
    let alice = Person::new(&server, "alice").await;
    alice.user.post("/logout/all", &serde_json::json!({})).await.ok();
    assert!(matches!(alice.client.sync().await, Err(Error::LoggedOut)));
}

/// What else an answer holds, room keys among it, must not wait for a room that the server cannot read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_that_cannot_be_filled_does_not_keep_the_rest_from_being_heard() {
    let (_server, relay, alice, bob, room) = two_and_a_relay().await;
    let mut last = None;
    for number in 0..30 {
        last = Some(bob.client.send_text(&room, &format!("number {number}")).await.unwrap());
    }
    relay.refuse("/messages", 500, "M_UNKNOWN");
    let mut events = alice.client.events();
    for round in 0.. {
        match alice.client.sync_once(Duration::ZERO).await {
            Ok(()) => break,
            Err(error) => assert!(error.is_temporary() && round < 3, "{round}: {error:?}"),
        }
    }
    assert!(!relay.seen("/messages").is_empty(), "there was a gap");
    let heard = async {
        loop {
            if let Event::Room(event) = events.next().await.unwrap()
                && Some(&event.event_id) == last.as_ref()
            {
                return event;
            }
        }
    };
    let heard = tokio::time::timeout(Duration::from_secs(10), heard).await.unwrap();
    assert_eq!(heard.body(), Some("number 29"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_thing_that_the_server_refuses_does_not_keep_the_others_from_being_done() {
    let (_server, relay, alice, bob, room) = two_and_a_relay().await;
    alice.client.enable_backup(false).await.unwrap();
    alice.sync().await;
    relay.refuse("/keys/query", 403, "M_FORBIDDEN");
    let laptop = bob.another_device().await;
    laptop.sync().await;
    bob.client.send_text(&room, "by a key that the backup lacks").await.unwrap();
    let mut refused = false;
    eventually!({
        refused |= matches!(alice.client.sync_once(Duration::ZERO).await, Err(Error::Refused { status: 403, .. }));
        refused && texts(&alice, &room).await.len() == 1
    });
    let _ = alice.client.sync_once(Duration::ZERO).await;
    assert_eq!(alice.client.keys_to_back_up().await.unwrap(), Some(0));
}
