//! `chat`: a conversation, line by line.
//!
//! One task shows what comes, another sends what is typed: a slow network does not stop the conversation.

use std::{
    io::{IsTerminal as _, stdin, stdout},
    path::Path,
    time::Duration,
};

use client::{Client, Event, Events, Membership, Patience, Room, cross_signing::IdentityTrust, verification::Stage};
use ruma::{OwnedEventId, RoomId, api::client::read_marker::set_read_marker};

use crate::{
    arguments::Chat,
    asking::Lines,
    failure::Failure,
    rooms,
    send::send_file,
    show::{line, name_of, print, safe},
    while_syncing,
};

/// Quiet for so long, what was shown counts as read.
const READ_AFTER: Duration = Duration::from_millis(500);

const HELP: &str =
    "/file PATH sends a file, /members lists who is here, /quit ends. `//` sends a line that begins with a slash.";

pub(crate) async fn chat(client: &Client, options: &Chat) -> Result<(), Failure> {
    let room = rooms::find_joined(client, &options.room).await?;
    let mut events = client.events();
    let history = client.history(&room.room_id, None, Some(options.history.max(1))).await?.events;
    for event in history.iter().take(options.history as usize).rev() {
        show(line(event, &room));
    }
    eprintln!("{HELP}");
    let known: Vec<OwnedEventId> = history.iter().map(|event| event.event_id.clone()).collect();
    let latest = known.first().cloned();
    while_syncing(
        client,
        Box::pin(async {
            tokio::select! {
                outcome = follow(client, &room.room_id, &mut events, known, latest) => outcome,
                outcome = talk(client, &room.room_id) => outcome,
            }
        }),
    )
    .await
}

/// A line for people.
fn show(line: Option<String>) {
    if let Some(line) = line {
        // Nobody may read any more; the end of stdin ends the conversation.
        let _ = print(line);
    }
}

/// Shows what comes, and tells the server that it was read.
async fn follow(
    client: &Client,
    room_id: &RoomId,
    events: &mut Events,
    known: Vec<OwnedEventId>,
    mut latest: Option<OwnedEventId>,
) -> Result<(), Failure> {
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep(READ_AFTER), if latest.is_some() => {
                mark_read(client, room_id, latest.take()).await;
                continue;
            }
        };
        match event {
            Some(Event::Room(event)) if event.room_id == *room_id && !known.contains(&event.event_id) => {
                show(line(&event, &client.room(room_id).await?));
                latest = Some(event.event_id);
            }
            // What could not be read before.
            Some(Event::Late(event)) if event.room_id == *room_id => show(line(&event, &client.room(room_id).await?)),
            Some(Event::IdentityChanged { user_id }) => {
                eprintln!(
                    "{user_id} has a new identity: be careful until you have verified it (`swiftchat-client verify {user_id}`)"
                );
            }
            Some(Event::Verification(change)) if change.stage == (Stage::Requested { by_us: false }) => {
                eprintln!("{} asks to verify: /quit, then `swiftchat-client verify`", change.user_id);
            }
            Some(Event::BackupReplaced) => eprintln!("The backup was replaced: nothing is backed up any more"),
            Some(Event::Missed(count)) => {
                eprintln!("{count} events came too fast to be shown; `chat --history` shows them")
            }
            Some(_) => {}
            None => return Ok(()),
        }
    }
}

/// Client-Server API, "Fully read markers". It is no loss when it fails.
async fn mark_read(client: &Client, room_id: &RoomId, event_id: Option<OwnedEventId>) {
    let mut request = set_read_marker::v3::Request::new(room_id.to_owned());
    request.fully_read.clone_from(&event_id);
    request.read_receipt = event_id;
    if let Err(error) = client.api().send_with(request, Patience::ONCE).await {
        tracing::debug!(%error, "what was read is not known to the server");
    }
}

/// Sends what is typed, until the end of it. A message that was not sent is said so, and the conversation goes on.
async fn talk(client: &Client, room_id: &RoomId) -> Result<(), Failure> {
    let mut lines = Lines::of_stdin();
    let is_terminal = stdin().is_terminal() && stdout().is_terminal();
    while let Some(typed) = lines.next().await {
        let outcome = match typed.strip_prefix('/') {
            Some("quit") => return Ok(()),
            Some("members") => members(client, &client.room(room_id).await?).await,
            Some(command) if command.starts_with("file ") => {
                send_file(client, room_id, Path::new(command["file ".len()..].trim())).await.map(drop)
            }
            Some(text) if !text.starts_with('/') => {
                eprintln!("{HELP}");
                continue;
            }
            _ if typed.trim().is_empty() => continue,
            command => {
                if is_terminal {
                    // It is shown when it has been sent.
                    eprint!("\x1b[1A\x1b[2K");
                }
                client.send_text(room_id, command.unwrap_or(&typed)).await.map(drop).map_err(Failure::from)
            }
        };
        match outcome {
            Ok(()) => {}
            Err(Failure::Client(client::Error::LoggedOut)) => return outcome,
            Err(error) => eprintln!("Not sent: {}", safe(&error.to_string())),
        }
    }
    Ok(())
}

async fn members(client: &Client, room: &Room) -> Result<(), Failure> {
    for (user_id, member) in &room.members {
        if !matches!(member.membership, Membership::Join | Membership::Invite) {
            continue;
        }
        let trust = match client.identity_trust(user_id).await? {
            Some(IdentityTrust::Verified) => "verified",
            Some(IdentityTrust::Pinned) => "not verified",
            Some(IdentityTrust::Changed { .. }) => "has a new identity that is not verified",
            None => "has no identity to verify",
        };
        let invited = if member.membership == Membership::Invite { ", invited" } else { "" };
        let name = name_of(room, user_id);
        let id = if name.contains(user_id.as_str()) { String::new() } else { format!(" ({user_id})") };
        show(Some(format!("{name}{id}: {trust}{invited}")));
    }
    Ok(())
}
