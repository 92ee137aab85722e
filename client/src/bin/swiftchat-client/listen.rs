//! `listen`: what happens, a line each, for scripts and bots.
//!
//! The library keeps events on disk until they are forgotten here, which is after they were printed: nothing is lost when either end is killed.

use std::{
    io::{self, Write as _, stdout},
    time::Duration,
};

use client::{Client, Event, Events, KeptEvent, News};
use jiff::Timestamp;
use ruma::{EventId, OwnedRoomId, RoomId, UserId};
use serde::Serialize;
use serde_json::Value;

use crate::{
    Interrupts,
    arguments::Listen,
    failure::Failure,
    rooms,
    show::{name_of, safe, safe_line},
    while_syncing,
};

/// Events that are printed at once.
const EVENTS_AT_ONCE: usize = 100;

/// A line of JSON; `listen --help` explains it.
#[derive(Serialize)]
struct Line<'a> {
    kind: News,
    room: &'a RoomId,
    room_name: String,
    sender: Option<&'a UserId>,
    event_id: Option<&'a EventId>,
    time: Option<String>,
    #[serde(rename = "type")]
    event_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a str>,
    body: Option<&'a str>,
    encrypted: bool,
    trusted: bool,
    problem: Option<&'a str>,
    content: &'a client::signatures::Object,
}

pub(crate) async fn listen(client: &Client, options: Listen) -> Result<(), Failure> {
    let mut of = Vec::new();
    for room in &options.room {
        of.push(rooms::find(client, room).await?.room_id);
    }
    let mut events = client.events();
    client.keep_events().await?;
    if options.once {
        client.sync_once(Duration::ZERO).await?;
        return print_kept(client, &options, &of).await;
    }
    let mut interrupts = Interrupts::new()?;
    let work = Box::pin(async {
        loop {
            print_kept(client, &options, &of).await?;
            tokio::select! {
                () = wait(&mut events) => {}
                () = interrupts.next() => return Ok(()),
            }
        }
    });
    while_syncing(client, work).await
}

/// Waits until there may be more, and passes on what no room tells.
async fn wait(events: &mut Events) {
    match events.next().await {
        Some(Event::IdentityChanged { user_id }) => {
            eprintln!("{user_id} has a new identity: nothing is trusted that it signs until you verify it");
        }
        Some(Event::BackupReplaced) => eprintln!("The backup was replaced: nothing is backed up any more"),
        _ => {}
    }
}

/// Prints everything that is kept, and forgets it.
async fn print_kept(client: &Client, options: &Listen, of: &[OwnedRoomId]) -> Result<(), Failure> {
    loop {
        let kept = client.kept_events(EVENTS_AT_ONCE).await?;
        let Some((last, _)) = kept.last() else { return Ok(()) };
        let last = *last;
        let mut text = String::new();
        for (_, event) in kept.iter().filter(|(_, event)| of.is_empty() || of.contains(&event.room_id)) {
            text += &line(client, options, event).await?;
            text.push('\n');
        }
        // Whoever reads may be slow: not on the thread that answers signals.
        let write = move || -> io::Result<()> {
            let mut stdout = stdout().lock();
            stdout.write_all(text.as_bytes())?;
            stdout.flush()
        };
        tokio::task::spawn_blocking(write).await.expect("writing does not panic")?;
        client.forget_kept(last).await?;
    }
}

async fn line(client: &Client, options: &Listen, event: &KeptEvent) -> Result<String, Failure> {
    let room = client.room(&event.room_id).await?;
    let room_name = room.display_name(client.user_id());
    let timestamp = event.timestamp_ms.and_then(|ms| Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok());
    let body = event.content.get("body").and_then(Value::as_str).filter(|_| event.event_type == "m.room.message");
    if options.json {
        let line = Line {
            kind: event.kind,
            room: &event.room_id,
            room_name,
            sender: event.sender.as_deref(),
            event_id: event.event_id.as_deref(),
            time: timestamp.map(|timestamp| format!("{timestamp:.3}")),
            event_type: &event.event_type,
            state_key: event.state_key.as_deref(),
            body,
            encrypted: event.is_encrypted,
            trusted: event.is_trusted,
            problem: event.doubt.as_deref(),
            content: &event.content,
        };
        return Ok(serde_json::to_string(&line).expect("an event can be JSON"));
    }
    let time = timestamp.unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let sender = event.sender.as_ref().map(|sender| name_of(&room, sender)).unwrap_or_default();
    let text = match (event.kind, body) {
        (News::Invite, _) => "invites you".to_owned(),
        (_, Some(body)) => safe(body).replace('\n', "\n  | "),
        (_, None) => format!("({})", safe_line(&event.event_type)),
    };
    Ok(format!("{time} [{}] {sender}: {text}", safe_line(&room_name)))
}
