//! Clients of ours in encrypted rooms of one server.

use std::time::Duration;

use client::{Error, Event, LocalTrust, NewRoom, Secrecy, ShareWith, Trust, Undecryptable};
use serde_json::json;
use test_kit::TestServer;

use crate::{
    people::{Person, encrypted_room, texts},
    relay::Relay,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_read_by_the_other_and_not_by_the_server() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;

    let sent = alice.client.send_text(&room, "only for bob").await.unwrap();
    let event = bob.hears(&sent).await;
    assert_eq!(event.body(), Some("only for bob"));
    assert_eq!(event.secrecy, Secrecy::Encrypted(Trust::Unverified { device_id: alice.client.device_id().to_owned() }));
    let answer = bob.client.send_text(&room, "and back").await.unwrap();
    assert_eq!(alice.hears(&answer).await.body(), Some("and back"));

    // What the server has of it.
    let stored = alice.raw_event(&room, &sent).await;
    assert_eq!(stored["type"], "m.room.encrypted");
    assert!(!stored.to_string().contains("only for bob"));
    // One's own message can be read again.
    assert_eq!(texts(&alice, &room).await, ["only for bob", "and back"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_goes_on_after_both_were_restarted() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let first = alice.client.send_text(&room, "before").await.unwrap();
    bob.hears(&first).await;

    let (alice, bob) = (alice.restarted().await, bob.restarted().await);
    let second = alice.client.send_text(&room, "after").await.unwrap();
    let event = bob.hears(&second).await;
    assert_eq!(event.body(), Some("after"));
    let answer = bob.client.send_text(&room, "heard").await.unwrap();
    assert_eq!(alice.hears(&answer).await.body(), Some("heard"));
    assert_eq!(texts(&bob, &room).await, ["before", "after", "heard"]);
}

/// A device that comes later reads what is said from then on, and is told why it cannot read the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_device_reads_what_is_said_after_it_came() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let before = alice.client.send_text(&room, "before").await.unwrap();
    bob.hears(&before).await;

    let laptop = bob.another_device().await;
    alice.sync().await;
    let after = alice.client.send_text(&room, "after").await.unwrap();
    assert_eq!(laptop.hears(&after).await.body(), Some("after"));
    assert_eq!(bob.hears(&after).await.body(), Some("after"));
    let history = laptop.client.history(&room, None, None).await.unwrap().events;
    let old = history.iter().find(|event| event.event_id == before).unwrap();
    assert_eq!(old.secrecy, Secrecy::Undecryptable(Undecryptable::BeforeTheKey));
}

/// Client-Server API, "m.megolm.v1.aes-sha2": the session is replaced when somebody leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_has_no_key_for_what_is_said_afterwards() {
    let server = TestServer::start().await;
    let (alice, bob, carol) =
        (Person::new(&server, "alice").await, Person::new(&server, "bob").await, Person::new(&server, "carol").await);
    let room = encrypted_room(&alice, &[&bob, &carol]).await;
    let before = alice.client.send_text(&room, "with carol").await.unwrap();
    assert_eq!(carol.hears(&before).await.body(), Some("with carol"));
    let old_session = alice.session_of(&room, &before).await;

    carol.client.leave(&room).await.unwrap();
    alice.sync().await;
    let after = alice.client.send_text(&room, "without carol").await.unwrap();
    assert_eq!(bob.hears(&after).await.body(), Some("without carol"));
    assert_ne!(alice.session_of(&room, &after).await, old_session);

    // Even if the server gave her the encrypted text, she could not read it.
    carol.sync().await;
    let stolen = alice.raw_event(&room, &after).await;
    assert_eq!(
        carol.client.read(&room, &[stolen]).await.unwrap()[0].secrecy,
        Secrecy::Undecryptable(Undecryptable::NoKey)
    );
    let known = alice.raw_event(&room, &before).await;
    assert_eq!(carol.client.read(&room, &[known]).await.unwrap()[0].body(), Some("with carol"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_is_changed_after_so_many_messages() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = alice.room_with(&[&bob], NewRoom { rotation_period_msgs: Some(2), ..Default::default() }).await;
    let mut sessions = Vec::new();
    for index in 0..5 {
        let sent = alice.client.send_text(&room, &format!("{index}")).await.unwrap();
        assert_eq!(bob.hears(&sent).await.body(), Some(format!("{index}").as_str()));
        sessions.push(alice.session_of(&room, &sent).await);
    }
    let same: Vec<bool> = sessions.windows(2).map(|pair| pair[0] == pair[1]).collect();
    assert_eq!(same, [true, false, true, false]);
}

/// A blocked device gets a new key no more, and is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_device_is_told_that_it_gets_no_key() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let before = alice.client.send_text(&room, "before").await.unwrap();
    bob.hears(&before).await;
    let (user, device) = (bob.client.user_id(), bob.client.device_id());
    alice.client.set_local_trust(user, device, LocalTrust::Blocked).await.unwrap();
    let after = alice.client.send_text(&room, "not for this device").await.unwrap();
    match bob.hears(&after).await.secrecy {
        Secrecy::Undecryptable(Undecryptable::Withheld { code, .. }) => assert_eq!(code, "m.blacklisted"),
        other => panic!("{other:?}"),
    }
    alice.client.set_local_trust(user, device, LocalTrust::Verified).await.unwrap();
    let again = alice.client.send_text(&room, "again for this device").await.unwrap();
    assert_eq!(bob.hears(&again).await.body(), Some("again for this device"));
}

/// Whoever is invited reads what is said before they join, unless the room says otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_invited_reads_what_was_said_meanwhile_where_the_room_allows_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    for (visibility, is_read) in [("shared", true), ("joined", false)] {
        let new = NewRoom {
            invite: vec![bob.client.user_id().to_owned()],
            history_visibility: Some(visibility.to_owned()),
            ..Default::default()
        };
        let room = alice.client.create_room(new).await.unwrap();
        let sent = alice.client.send_text(&room, "welcome").await.unwrap();
        bob.sync().await;
        bob.client.join(room.clone().into()).await.unwrap();
        let raw = alice.raw_event(&room, &sent).await;
        let read = bob.client.read(&room, &[raw]).await.unwrap().remove(0);
        if is_read {
            assert_eq!(read.body(), Some("welcome"), "{visibility}");
        } else {
            assert_eq!(read.secrecy, Secrecy::Undecryptable(Undecryptable::NoKey), "{visibility}");
        }
    }
}

/// Verified devices of one user give each other the keys that they lack; those that are not verified do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verified_device_of_ones_own_passes_a_key_on() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let old = alice.client.send_text(&room, "long ago").await.unwrap();
    bob.hears(&old).await;
    let laptop = bob.another_device().await;
    laptop.sync().await;
    let (phone_id, laptop_id) = (bob.client.device_id().to_owned(), laptop.client.device_id().to_owned());
    let user = bob.client.user_id();
    laptop.client.devices(user).await.unwrap();
    laptop.client.set_local_trust(user, &phone_id, LocalTrust::Verified).await.unwrap();

    // It asks, and the phone does not know who asks.
    let undecryptable = laptop.client.history(&room, None, None).await.unwrap().events;
    let reason = |event: &client::RoomEvent| event.secrecy.clone();
    let found = undecryptable.iter().find(|event| event.event_id == old).unwrap();
    assert_eq!(reason(found), Secrecy::Undecryptable(Undecryptable::NoKey));
    bob.sync().await;
    laptop.sync().await;
    let again = laptop.client.history(&room, None, None).await.unwrap().events;
    let found = again.iter().find(|event| event.event_id == old).unwrap();
    assert!(matches!(&found.secrecy, Secrecy::Undecryptable(Undecryptable::NoKey)), "{found:?}");

    // Now it does. Another device asks for the same key and gets it.
    let tablet = bob.another_device().await;
    tablet.sync().await;
    tablet.client.devices(user).await.unwrap();
    tablet.client.set_local_trust(user, &phone_id, LocalTrust::Verified).await.unwrap();
    bob.sync().await;
    bob.client.devices(user).await.unwrap();
    bob.client.set_local_trust(user, tablet.client.device_id(), LocalTrust::Verified).await.unwrap();
    assert_ne!(laptop_id, tablet.client.device_id());
    let mut events = tablet.client.events();
    tablet.client.history(&room, None, None).await.unwrap();
    bob.sync().await;
    tablet.sync().await;
    let late = loop {
        match events.next().await.unwrap() {
            Event::Late(event) => break event,
            _ => continue,
        }
    };
    assert_eq!((late.event_id, late.secrecy), (old.clone(), Secrecy::Encrypted(Trust::Imported)));
    let history = tablet.client.history(&room, None, None).await.unwrap().events;
    assert_eq!(history.iter().find(|event| event.event_id == old).unwrap().body(), Some("long ago"));
}

/// Client-Server API, "Recovering from undecryptable messages": a new session, but not more than one an hour.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_does_not_decrypt_is_replaced_once() {
    let server = TestServer::start().await;
    let relay = Relay::to(&server).await;
    let alice = Person::new(&server, "alice").await;
    let bob = Person::by_way_of(relay.address(), server.user("bob").await).await;
    // Each message has a key of its own, which is sent over the session between the two.
    let room = alice.room_with(&[&bob], NewRoom { rotation_period_msgs: Some(1), ..Default::default() }).await;
    let first = alice.client.send_text(&room, "one").await.unwrap();
    bob.hears(&first).await;
    assert_eq!(relay.seen("/keys/claim").len(), 0);

    for _ in 0..2 {
        relay.alter(|path, body| {
            if path.contains("/sync") {
                for message in body["to_device"]["events"].as_array_mut().into_iter().flatten() {
                    for text in message["content"]["ciphertext"]
                        .as_object_mut()
                        .into_iter()
                        .flat_map(|texts| texts.values_mut())
                    {
                        let ciphertext = text["body"].as_str().unwrap();
                        text["body"] = format!("{}AAAAAAAAAAA", &ciphertext[..ciphertext.len() - 11]).into();
                    }
                }
            }
        });
        let lost = alice.client.send_text(&room, "lost").await.unwrap();
        assert_eq!(bob.hears(&lost).await.secrecy, Secrecy::Undecryptable(Undecryptable::NoKey));
        relay.heal();
        bob.sync().await;
        assert_eq!(relay.seen("/keys/claim").len(), 1);
        assert_eq!(relay.seen("/sendToDevice/m.room.encrypted/").len(), 1, "m.dummy tells of the new session");
        alice.sync().await;
        let next = alice.client.send_text(&room, "well again").await.unwrap();
        assert_eq!(bob.hears(&next).await.body(), Some("well again"));
    }
}

/// Whoever was away hears everything, also what one answer of `/sync` does not hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_for_long_hears_everything_in_order() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let bob = bob.restarted().await;
    let mut events = bob.client.events();
    let mut said = Vec::new();
    for index in 0..130 {
        said.push(format!("message {index}"));
        alice.client.send_text(&room, said.last().unwrap()).await.unwrap();
    }
    bob.sync().await;
    let mut heard = Vec::new();
    while heard.last() != said.last() {
        if let Event::Room(event) = events.next().await.unwrap() {
            heard.extend(event.body().map(str::to_owned));
        }
    }
    assert_eq!(heard, said);
}

/// A user may want to be heard by verified devices only; the others are told why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_are_not_verified_get_no_key_if_so_wished() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let laptop = bob.another_device().await;
    let room = encrypted_room(&alice, &[&bob]).await;
    let user = bob.client.user_id();
    alice.client.devices(user).await.unwrap();
    alice.client.set_local_trust(user, bob.client.device_id(), LocalTrust::Verified).await.unwrap();
    alice.client.share_with(ShareWith::Verified).await.unwrap();
    let alice = alice.restarted().await;
    let sent = alice.client.send_text(&room, "for the phone").await.unwrap();
    assert_eq!(bob.hears(&sent).await.body(), Some("for the phone"));
    match laptop.hears(&sent).await.secrecy {
        Secrecy::Undecryptable(Undecryptable::Withheld { code, .. }) => assert_eq!(code, "m.unverified"),
        other => panic!("{other:?}"),
    }
}

/// Who is not in a room cannot send there, and nothing is kept of the attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_one_is_not_in_is_an_error() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[]).await;
    assert!(matches!(bob.client.send_text(&room, "hello").await, Err(Error::UnknownRoom(_))));
    alice.client.leave(&room).await.unwrap();
    alice.sync().await;
    assert!(matches!(alice.client.send_text(&room, "hello").await, Err(Error::UnknownRoom(_))));
}

/// Events come as they happen, while the client syncs by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_syncs_by_itself_answers() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    let bot = tokio::spawn({
        let bob = bob.client.clone();
        let mut events = bob.events();
        async move {
            let answer = async {
                while let Some(event) = events.next().await {
                    if let Event::Room(event) = event
                        && event.body() == Some("ping")
                    {
                        return bob.send_text(&event.room_id, "pong").await.unwrap();
                    }
                }
                unreachable!("the client is there")
            };
            tokio::select! {
                answer = answer => answer,
                error = bob.sync() => panic!("{error:?}"),
            }
        }
    });
    alice.client.send_text(&room, "ping").await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(30), bot).await.unwrap().unwrap();
    assert_eq!(alice.hears(&answer).await.body(), Some("pong"));
    // Reactions and edits are encrypted too, and servers see what they relate to.
    let content = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": answer, "key": "👍" } });
    let reaction = alice.client.send(&room, "m.reaction", &content).await.unwrap();
    let heard = bob.hears(&reaction).await;
    assert_eq!((heard.event_type.as_str(), &heard.content["m.relates_to"]["key"]), ("m.reaction", &json!("👍")));
}
