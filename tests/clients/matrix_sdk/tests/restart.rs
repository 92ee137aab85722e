//! The server restarts while people talk: nothing is lost, nothing is doubled.

#![recursion_limit = "256"]

use std::collections::HashSet;

use anyhow::{Context, Result};
use matrix_sdk::{
    RoomState,
    ruma::{OwnedEventId, OwnedRoomId},
};
use matrix_sdk_scenarios::{Person, Server, Signal, id_of, text_of};
use tokio::sync::mpsc;

/// Texts that alice sends, the restart in the middle of them.
const TEXTS: usize = 60;

#[tokio::test]
async fn a_restart_in_order_loses_nothing_and_doubles_nothing() -> Result<()> {
    talk_through_a_restart(Signal::Terminate).await
}

#[tokio::test]
async fn a_crash_loses_nothing_that_was_acknowledged_and_doubles_nothing() -> Result<()> {
    talk_through_a_restart(Signal::Kill).await
}

async fn talk_through_a_restart(signal: Signal) -> Result<()> {
    let mut server = Server::start().await?;
    let (mut alice, mut bob, room) = two_in_a_public_room(&server).await?;
    let (acknowledged, mut acknowledgements) = mpsc::unbounded_channel();
    let (speaker, talks_in) = (alice.client.clone(), room.clone());

    // The library repeats with the same transaction id what broke with the connection.
    let talking = tokio::spawn(async move {
        let room = speaker.get_room(&talks_in).context("alice is in the room")?;
        for number in 0..TEXTS {
            let text = matrix_sdk::ruma::events::room::message::RoomMessageEventContent::text_plain(text(number));
            acknowledged.send(room.send(text).await?.response.event_id)?;
        }
        anyhow::Ok(())
    });
    let mut known: Vec<OwnedEventId> = Vec::new();
    while known.len() < TEXTS / 3 {
        known.push(acknowledgements.recv().await.context("alice stopped talking")?);
    }
    server.stop(signal).await?;
    server.start_again(signal).await?;
    while let Some(event_id) = acknowledgements.recv().await {
        known.push(event_id);
    }
    talking.await??;

    let last = known.last().context("no text was sent")?.clone();
    for person in [&mut alice, &mut bob] {
        person.sync_until("the last text", |person| person.event(&room, last.as_str()).is_some()).await?;
        assert!(!person.had_limited_timeline(&room));
        check(person.events(&room), &known);
        check(&person.history(&room).await?, &known);
    }
    // A client that was not there before the restart sees the same.
    let mut another = bob.another_client(&server).await?;
    another.sync_until_room_is(&room, RoomState::Joined).await?;
    check(&another.history(&room).await?, &known);
    Ok(())
}

/// Every text once, in the order in which they were said, and every acknowledged event.
fn check(events: &[serde_json::Value], known: &[OwnedEventId]) {
    let ids: HashSet<_> = events.iter().filter_map(id_of).collect();
    assert_eq!(ids.len(), events.len(), "an event came twice");
    let texts: Vec<_> = events.iter().filter_map(text_of).collect();
    assert_eq!(texts, (0..TEXTS).map(text).collect::<Vec<_>>());
    for event_id in known {
        assert!(ids.contains(event_id.as_str()), "{event_id} was acknowledged and is lost");
    }
}

fn text(number: usize) -> String {
    format!("number {number}")
}

async fn two_in_a_public_room(server: &Server) -> Result<(Person, Person, OwnedRoomId)> {
    let mut alice = Person::register(server, "alice").await?;
    let mut bob = Person::register(server, "bob").await?;
    let room = alice.create_public_room().await?;
    alice.sync_until_room_is(&room, RoomState::Joined).await?;
    bob.client.join_room_by_id(&room).await?;
    bob.sync_until_room_is(&room, RoomState::Joined).await?;
    Ok((alice, bob, room))
}
