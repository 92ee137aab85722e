//! Rooms by lists: the sync service and the room list of matrix-sdk-ui, as apps of today use them.

#![recursion_limit = "256"]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use matrix_sdk::{
    Room, RoomState,
    ruma::{OwnedEventId, RoomId, events::room::message::OriginalSyncRoomMessageEvent},
};
use matrix_sdk_scenarios::{Person, Server, Signal};
use matrix_sdk_ui::{
    room_list_service::{RoomList, RoomListLoadingState},
    sync_service::{State, SyncService},
};
use tokio::time::{Instant, sleep};

/// How long a scenario waits for something to happen.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Texts of each person before and after the restart.
const TEXTS: usize = 8;

/// Somebody whose client has a sync service.
struct Listener {
    person: Person,
    service: SyncService,
    list: RoomList,
    /// The messages that came, in the order in which they came.
    heard: Arc<Mutex<Vec<(OwnedEventId, String)>>>,
}

impl Listener {
    async fn start(person: Person) -> Result<Self> {
        let heard: Arc<Mutex<Vec<_>>> = Arc::default();
        let hearing = heard.clone();
        person.client.add_event_handler(move |event: OriginalSyncRoomMessageEvent, _: Room| {
            hearing.lock().expect("nobody panics").push((event.event_id, event.content.body().to_owned()));
            std::future::ready(())
        });
        let service = SyncService::builder(person.client.clone())
            .with_offline_mode()
            .with_room_list_timeline_limit(20)
            .build()
            .await?;
        service.start().await;
        let list = service.room_list_service().all_rooms().await?;
        Ok(Self { person, service, list, heard })
    }

    /// Waits until something holds; a service that gave up is started again, as an app does.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        while !holds(self) {
            if Instant::now() > deadline {
                bail!("{} waited in vain for: {what}; heard {:?}", self.person.id(), self.heard());
            }
            if matches!(self.service.state().get(), State::Error(_) | State::Terminated) {
                self.service.start().await;
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn until_room_is(&self, room: &RoomId, state: RoomState) -> Result<()> {
        self.until(&format!("{room} becomes {state:?}"), |listener| listener.person.state_of(room) == Some(state)).await
    }

    fn heard(&self) -> Vec<(OwnedEventId, String)> {
        self.heard.lock().expect("nobody panics").clone()
    }

    /// How many rooms the server says are in the list.
    fn count(&self) -> Option<u32> {
        match self.list.loading_state().get() {
            RoomListLoadingState::Loaded { maximum_number_of_rooms } => maximum_number_of_rooms,
            RoomListLoadingState::NotLoaded => None,
        }
    }
}

#[tokio::test]
async fn people_with_room_lists_talk_through_a_restart_in_order() -> Result<()> {
    talk_through_a_restart(Signal::Terminate).await
}

#[tokio::test]
async fn people_with_room_lists_talk_through_a_crash() -> Result<()> {
    talk_through_a_restart(Signal::Kill).await
}

async fn talk_through_a_restart(signal: Signal) -> Result<()> {
    let mut server = Server::start().await?;
    let alice = Listener::start(Person::register(&server, "alice").await?).await?;
    let bob = Listener::start(Person::register(&server, "bob").await?).await?;
    let room = alice.person.create_private_room(&[&bob.person]).await?;
    alice.until_room_is(&room, RoomState::Joined).await?;
    bob.until_room_is(&room, RoomState::Invited).await?;
    bob.person.client.join_room_by_id(&room).await?;
    bob.until_room_is(&room, RoomState::Joined).await?;
    bob.until("the list has the room", |bob| bob.count() == Some(1)).await?;
    bob.until("the room has its name", |bob| {
        bob.person.client.get_room(&room).and_then(|room| room.name()).as_deref() == Some("a private room")
    })
    .await?;

    let mut said: Vec<(OwnedEventId, String)> = Vec::new();
    for part in 0..2 {
        for number in 0..TEXTS {
            let speaker = if number % 2 == 0 { &alice } else { &bob };
            let text = format!("{part}-{number}");
            said.push((speaker.person.say(&room, &text).await?, text));
        }
        for listener in [&alice, &bob] {
            listener.until("all that was said", |listener| listener.heard().len() >= said.len()).await?;
            assert_eq!(listener.heard(), said, "each text once and in order");
        }
        if part == 0 {
            server.stop(signal).await?;
            server.start_again(signal).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn keys_come_over_the_connection_for_encryption() -> Result<()> {
    let server = Server::start().await?;
    let alice = Listener::start(Person::register(&server, "alice").await?).await?;
    let bob = Listener::start(Person::register(&server, "bob").await?).await?;
    let room = alice.person.create_private_room(&[&bob.person]).await?;
    bob.until_room_is(&room, RoomState::Invited).await?;
    bob.person.client.join_room_by_id(&room).await?;
    bob.until_room_is(&room, RoomState::Joined).await?;
    alice.until_room_is(&room, RoomState::Joined).await?;
    alice.person.room(&room)?.enable_encryption().await?;
    let secret = alice.person.say(&room, "a secret").await?;
    let bobs = bob.person.room(&room)?;
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let event = bobs.event(&secret, None).await?;
        let content: serde_json::Value = serde_json::from_str(event.raw().json().get())?;
        if content["content"]["body"] == "a secret" {
            assert!(event.encryption_info().context("it was not encrypted")?.sender == *alice.person.id());
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("bob cannot read the secret: {content}");
        }
        sleep(Duration::from_millis(50)).await;
    }
}
