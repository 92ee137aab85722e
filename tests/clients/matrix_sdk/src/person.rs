//! A person with a client, who remembers everything that came by sync.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use matrix_sdk::{
    Client, Room, RoomState,
    config::{RequestConfig, SyncSettings},
    ruma::{
        OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
        api::client::{
            account::register,
            filter::FilterDefinition,
            room::create_room::{self, v3::RoomPreset},
            sync::sync_events::v3::Filter,
            uiaa,
        },
        events::room::message::RoomMessageEventContent,
        presence::PresenceState,
        uint,
    },
};
use serde_json::Value;
use tokio::time::Instant;

use crate::Server;

/// The password of everybody.
const PASSWORD: &str = "correct horse battery staple";
/// How long a scenario waits for something to happen.
const WAIT_MAX: Duration = Duration::from_secs(60);

static PEOPLE: AtomicU32 = AtomicU32::new(0);

/// A person with a client.
pub struct Person {
    /// The client library that is tested with.
    pub client: Client,
    /// What came in timelines, by room, in the order in which it came.
    timelines: HashMap<OwnedRoomId, Vec<Value>>,
    /// What came as ephemeral events, by room.
    ephemerals: HashMap<OwnedRoomId, Vec<Value>>,
    /// Rooms of which a timeline was cut short.
    limited: Vec<OwnedRoomId>,
    /// The newest presence and status message of others.
    presence: HashMap<OwnedUserId, (PresenceState, Option<String>)>,
}

impl Person {
    /// Registers somebody whose name begins with `name` and nobody had before.
    pub async fn register(server: &Server, name: &str) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let name = format!("{name}-{now:x}-{}", PEOPLE.fetch_add(1, Ordering::Relaxed));
        let client = client(server).await?;
        let mut request = register::v3::Request::new();
        request.username = Some(name.clone());
        request.password = Some(PASSWORD.to_owned());
        let refused = client.matrix_auth().register(request.clone()).await;
        let error = refused.err().context("registration without authentication was accepted")?;
        let wanted = error.as_uiaa_response().context("registration does not say which authentication it wants")?;
        let mut dummy = uiaa::Dummy::new();
        dummy.session = wanted.session.clone();
        request.auth = Some(uiaa::AuthData::Dummy(dummy));
        client.matrix_auth().register(request).await?;
        Ok(Self::with(client))
    }

    /// Logs the same person in with another client.
    pub async fn another_client(&self, server: &Server) -> Result<Self> {
        let client = client(server).await?;
        client.matrix_auth().login_username(self.id(), PASSWORD).initial_device_display_name("another").send().await?;
        Ok(Self::with(client))
    }

    fn with(client: Client) -> Self {
        Self {
            client,
            timelines: HashMap::new(),
            ephemerals: HashMap::new(),
            limited: Vec::new(),
            presence: HashMap::new(),
        }
    }

    /// The user id.
    pub fn id(&self) -> &UserId {
        self.client.user_id().expect("somebody who is registered has an id")
    }

    /// Creates a room that needs an invitation, and invites.
    pub async fn create_private_room(&self, invited: &[&Person]) -> Result<OwnedRoomId> {
        let mut request = create_room::v3::Request::new();
        request.preset = Some(RoomPreset::PrivateChat);
        request.name = Some("a private room".to_owned());
        request.invite = invited.iter().map(|person| person.id().to_owned()).collect();
        Ok(self.client.create_room(request).await?.room_id().to_owned())
    }

    /// Creates a room that everybody may join.
    pub async fn create_public_room(&self) -> Result<OwnedRoomId> {
        let mut request = create_room::v3::Request::new();
        request.preset = Some(RoomPreset::PublicChat);
        Ok(self.client.create_room(request).await?.room_id().to_owned())
    }

    /// A room that this client knows of.
    pub fn room(&self, room_id: &RoomId) -> Result<Room> {
        self.client.get_room(room_id).with_context(|| format!("{} does not know {room_id}", self.id()))
    }

    /// How this person stands to a room, as their client knows it.
    pub fn state_of(&self, room_id: &RoomId) -> Option<RoomState> {
        self.client.get_room(room_id).map(|room| room.state())
    }

    /// Sends a text.
    pub async fn say(&self, room_id: &RoomId, text: &str) -> Result<OwnedEventId> {
        let sent = self.room(room_id)?.send(RoomMessageEventContent::text_plain(text)).await?;
        Ok(sent.response.event_id)
    }

    /// Syncs once: a long poll, after the first time.
    pub async fn sync(&mut self) -> Result<()> {
        self.sync_with_timeline_limit(100).await
    }

    /// The same, with the timelines cut at so many events.
    pub async fn sync_with_timeline_limit(&mut self, limit: u32) -> Result<()> {
        let mut filter = FilterDefinition::default();
        filter.room.timeline.limit = Some(limit.into());
        let settings = SyncSettings::new().filter(Filter::FilterDefinition(filter)).timeout(Duration::from_secs(2));
        let synced = self.client.sync_once(settings).await?;
        for event in synced.presence {
            let event = event.deserialize()?;
            self.presence.insert(event.sender, (event.content.presence, event.content.status_msg));
        }
        for (room_id, update) in synced.rooms.joined {
            if update.timeline.limited {
                self.limited.push(room_id.clone());
            }
            let timeline = self.timelines.entry(room_id.clone()).or_default();
            for event in update.timeline.events {
                timeline.push(serde_json::from_str(event.raw().json().get())?);
            }
            let ephemerals = self.ephemerals.entry(room_id).or_default();
            for event in update.ephemeral {
                ephemerals.push(serde_json::from_str(event.json().get())?);
            }
        }
        Ok(())
    }

    /// Syncs until something holds.
    pub async fn sync_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        while !holds(self) {
            if Instant::now() > deadline {
                bail!("{} waited in vain for: {what}; timelines: {:#?}", self.id(), self.timelines);
            }
            self.sync().await?;
        }
        Ok(())
    }

    /// Syncs until the person stands so to a room.
    pub async fn sync_until_room_is(&mut self, room_id: &RoomId, state: RoomState) -> Result<()> {
        self.sync_until(&format!("{room_id} becomes {state:?}"), |person| person.state_of(room_id) == Some(state)).await
    }

    /// What came in the timeline of a room, in the order in which it came.
    pub fn events(&self, room_id: &RoomId) -> &[Value] {
        self.timelines.get(room_id).map_or(&[], Vec::as_slice)
    }

    /// What came as ephemeral events of a room.
    pub fn ephemerals(&self, room_id: &RoomId) -> &[Value] {
        self.ephemerals.get(room_id).map_or(&[], Vec::as_slice)
    }

    /// The newest presence and status message of somebody else.
    pub fn presence_of(&self, user_id: &UserId) -> Option<&(PresenceState, Option<String>)> {
        self.presence.get(user_id)
    }

    /// How many messages of a room notify and are not read, and how many of them highlight, as the server counts.
    pub fn unread(&self, room_id: &RoomId) -> (u64, u64) {
        self.client.get_room(room_id).map_or((0, 0), |room| {
            let counts = room.unread_notification_counts();
            (counts.notification_count, counts.highlight_count)
        })
    }

    /// Whether a timeline of the room was cut short.
    pub fn had_limited_timeline(&self, room_id: &RoomId) -> bool {
        self.limited.iter().any(|limited| limited == room_id)
    }

    /// The event of an id that came in the timeline of a room.
    pub fn event(&self, room_id: &RoomId, event_id: &str) -> Option<&Value> {
        self.events(room_id).iter().find(|event| id_of(event) == Some(event_id))
    }

    /// The texts that came in a room, edits not counted.
    pub fn texts(&self, room_id: &RoomId) -> Vec<&str> {
        self.events(room_id).iter().filter_map(text_of).collect()
    }

    /// The whole history of a room as `/messages` pages it backwards from now, oldest first.
    pub async fn history(&self, room_id: &RoomId) -> Result<Vec<Value>> {
        const PAGES_MAX: u32 = 1_000;
        let room = self.room(room_id)?;
        let (mut history, mut from) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let mut options = matrix_sdk::room::MessagesOptions::backward().from(from.as_deref());
            options.limit = uint!(7);
            let page = room.messages(options).await?;
            for event in &page.chunk {
                history.push(serde_json::from_str(event.raw().json().get())?);
            }
            match page.end {
                Some(end) => from = Some(end),
                None => {
                    history.reverse();
                    return Ok(history);
                }
            }
        }
        bail!("/messages does not come to an end")
    }
}

/// The id of an event.
pub fn id_of(event: &Value) -> Option<&str> {
    event["event_id"].as_str()
}

/// The text of a message, unless it is an edit.
pub fn text_of(event: &Value) -> Option<&str> {
    if event["type"] != "m.room.message" || event["content"]["m.relates_to"]["rel_type"] == "m.replace" {
        return None;
    }
    event["content"]["body"].as_str()
}

async fn client(server: &Server) -> Result<Client> {
    // Without a limit of its own the library does not repeat what broke with the connection.
    let requests = RequestConfig::new().timeout(WAIT_MAX).retry_limit(50).max_retry_time(Duration::from_secs(1));
    Ok(Client::builder().homeserver_url(&server.url).request_config(requests).build().await?)
}
