//! People talk.

#![recursion_limit = "256"]

use anyhow::{Context, Result};
use matrix_sdk::{
    RoomState,
    config::SyncSettings,
    ruma::{
        api::client::receipt::create_receipt::v3::ReceiptType,
        events::{
            reaction::ReactionEventContent,
            receipt::ReceiptThread,
            relation::Annotation,
            room::message::{OriginalSyncRoomMessageEvent, ReplacementMetadata, RoomMessageEventContent},
        },
    },
};
use matrix_sdk_scenarios::{Person, Server, id_of};
use tokio::sync::mpsc;

/// Two people in a room that one of them made.
async fn two_in_a_room(server: &Server) -> Result<(Person, Person, matrix_sdk::ruma::OwnedRoomId)> {
    let mut alice = Person::register(server, "alice").await?;
    let mut bob = Person::register(server, "bob").await?;
    let room = alice.create_private_room(&[&bob]).await?;
    bob.sync_until_room_is(&room, RoomState::Invited).await?;
    bob.room(&room)?.join().await?;
    bob.sync_until_room_is(&room, RoomState::Joined).await?;
    alice.sync_until_room_is(&room, RoomState::Joined).await?;
    Ok((alice, bob, room))
}

#[tokio::test]
async fn messages_go_both_ways_and_each_comes_once() -> Result<()> {
    let server = Server::start().await?;
    let (mut alice, mut bob, room) = two_in_a_room(&server).await?;
    alice.say(&room, "hello bob").await?;
    bob.sync_until("alice's hello", |bob| bob.texts(&room) == ["hello bob"]).await?;
    bob.say(&room, "hello alice").await?;
    alice.say(&room, "how are you?").await?;
    for person in [&mut alice, &mut bob] {
        person.sync_until("three texts", |person| person.texts(&room).len() >= 3).await?;
        assert_eq!(person.texts(&room), ["hello bob", "hello alice", "how are you?"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_message_reaches_a_client_whose_sync_is_running() -> Result<()> {
    let server = Server::start().await?;
    let (alice, bob, room) = two_in_a_room(&server).await?;
    let (heard, mut hears) = mpsc::unbounded_channel();
    bob.client.add_event_handler(move |event: OriginalSyncRoomMessageEvent| {
        let heard = heard.clone();
        async move {
            let _ = heard.send(event.content.body().to_owned());
        }
    });
    let client = bob.client.clone();
    let syncing = tokio::spawn(async move { client.sync(SyncSettings::new()).await });
    for number in 0..20 {
        let text = format!("number {number}");
        alice.say(&room, &text).await?;
        let came = tokio::time::timeout(std::time::Duration::from_secs(20), hears.recv()).await?;
        assert_eq!(came.context("bob's sync ended")?, text);
    }
    assert!(hears.try_recv().is_err(), "a message came twice");
    syncing.abort();
    Ok(())
}

#[tokio::test]
async fn an_edit_names_the_message_that_it_replaces() -> Result<()> {
    let server = Server::start().await?;
    let (alice, mut bob, room) = two_in_a_room(&server).await?;
    let original = alice.say(&room, "helo").await?;
    let edit =
        RoomMessageEventContent::text_plain("hello").make_replacement(ReplacementMetadata::new(original.clone(), None));
    let edit = alice.room(&room)?.send(edit).await?.response.event_id;
    bob.sync_until("the edit", |bob| bob.event(&room, edit.as_str()).is_some()).await?;
    let content = &bob.event(&room, edit.as_str()).context("the edit")?["content"];
    assert_eq!(content["m.relates_to"]["event_id"], original.as_str());
    assert_eq!(content["m.new_content"]["body"], "hello");
    Ok(())
}

#[tokio::test]
async fn a_reaction_comes_with_its_key_and_its_event() -> Result<()> {
    let server = Server::start().await?;
    let (mut alice, mut bob, room) = two_in_a_room(&server).await?;
    let message = alice.say(&room, "shall we?").await?;
    bob.sync_until("the question", |bob| bob.texts(&room) == ["shall we?"]).await?;
    let reaction = ReactionEventContent::new(Annotation::new(message.clone(), "👍".to_owned()));
    let reaction = bob.room(&room)?.send(reaction).await?.response.event_id;
    alice.sync_until("the reaction", |alice| alice.event(&room, reaction.as_str()).is_some()).await?;
    let event = alice.event(&room, reaction.as_str()).context("the reaction")?;
    assert_eq!(event["type"], "m.reaction");
    assert_eq!(event["content"]["m.relates_to"]["event_id"], message.as_str());
    assert_eq!(event["content"]["m.relates_to"]["key"], "👍");
    assert_eq!(event["sender"], bob.id().as_str());
    Ok(())
}

#[tokio::test]
async fn a_redacted_message_loses_its_text_for_everybody() -> Result<()> {
    let server = Server::start().await?;
    let (alice, mut bob, room) = two_in_a_room(&server).await?;
    let message = alice.say(&room, "a secret").await?;
    bob.sync_until("the secret", |bob| bob.texts(&room) == ["a secret"]).await?;
    let redaction = alice.room(&room)?.redact(&message, Some("said too much"), None).await?.event_id;
    bob.sync_until("the redaction", |bob| bob.event(&room, redaction.as_str()).is_some()).await?;
    let event = bob.event(&room, redaction.as_str()).context("the redaction")?;
    assert_eq!(event["type"], "m.room.redaction");
    assert_eq!(event["content"]["reason"], "said too much");
    let history = bob.history(&room).await?;
    let redacted = history.iter().find(|event| id_of(event) == Some(message.as_str())).context("the message")?;
    assert_eq!(redacted["content"], serde_json::json!({}));
    assert_eq!(redacted["unsigned"]["redacted_because"]["event_id"], redaction.as_str());
    Ok(())
}

#[tokio::test]
async fn a_read_receipt_is_seen_by_the_other() -> Result<()> {
    let server = Server::start().await?;
    let (mut alice, mut bob, room) = two_in_a_room(&server).await?;
    let message = alice.say(&room, "read this").await?;
    bob.sync_until("the message", |bob| bob.texts(&room) == ["read this"]).await?;
    bob.room(&room)?.send_single_receipt(ReceiptType::Read, ReceiptThread::Unthreaded, message.clone()).await?;
    let reader = bob.id().to_owned();
    alice
        .sync_until("bob's receipt", |alice| {
            alice.ephemerals(&room).iter().any(|event| {
                event["type"] == "m.receipt"
                    && event["content"][message.as_str()]["m.read"][reader.as_str()]["ts"].is_u64()
            })
        })
        .await
}

#[tokio::test]
async fn typing_is_seen_when_it_begins_and_when_it_ends() -> Result<()> {
    let server = Server::start().await?;
    let (mut alice, bob, room) = two_in_a_room(&server).await?;
    let typist = bob.id().to_owned();
    let typing_lists = |alice: &Person| -> Vec<bool> {
        let typing = alice.ephemerals(&room).iter().filter(|event| event["type"] == "m.typing");
        let users = typing.filter_map(|event| event["content"]["user_ids"].as_array());
        users.map(|users| users.iter().any(|user| user == typist.as_str())).collect()
    };
    bob.room(&room)?.typing_notice(true).await?;
    alice.sync_until("bob types", |alice| typing_lists(alice).last() == Some(&true)).await?;
    bob.room(&room)?.typing_notice(false).await?;
    alice.sync_until("bob has stopped", |alice| typing_lists(alice).last() == Some(&false)).await
}

#[tokio::test]
async fn an_encrypted_message_is_read_by_the_other_and_not_by_the_server() -> Result<()> {
    let server = Server::start().await?;
    let (mut alice, mut bob, room) = two_in_a_room(&server).await?;
    alice.room(&room)?.enable_encryption().await?;
    bob.sync_until("the room is encrypted", |bob| {
        bob.events(&room).iter().any(|event| event["type"] == "m.room.encryption")
    })
    .await?;
    alice.sync().await?;
    let sent = alice.say(&room, "for your eyes only").await?;
    bob.sync_until("the decrypted text", |bob| bob.texts(&room) == ["for your eyes only"]).await?;
    // What the server has is ciphertext: a new client without keys gets no text.
    let mut stranger = bob.another_client(&server).await?;
    stranger.sync_until("the message", |bob| bob.event(&room, sent.as_str()).is_some()).await?;
    let stored = stranger.event(&room, sent.as_str()).context("the message")?;
    assert_eq!(stored["type"], "m.room.encrypted");
    assert_eq!(stored["content"]["algorithm"], "m.megolm.v1.aes-sha2");
    Ok(())
}
