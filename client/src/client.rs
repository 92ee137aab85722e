//! The client: it logs in, follows what happens, sends and reads.

mod backing_up;
mod files;
mod gaps;
mod identity;
mod listening;
mod recovery;
mod verifying;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use ruma::{
    OneTimeKeyAlgorithm, OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedRoomOrAliasId, OwnedUserId, RoomId, UserId,
    api::{
        Direction,
        client::{
            keys::{claim_keys, upload_keys},
            membership::{invite_user, join_room_by_id_or_alias, leave_room},
            message::get_message_events,
            room::create_room,
            session::{login, logout},
            sync::sync_events,
            uiaa::{MatrixUserIdentifier, UserIdentifier},
        },
    },
    presence::PresenceState,
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use url::Url;
use zeroize::Zeroize as _;

use self::verifying::Letters;
pub use self::{files::NewFile, recovery::Recovered};
use crate::{
    Api, Batch, Error, Kind, Patience, Store,
    account::{Account, MEGOLM},
    devices::{Device, LocalTrust},
    events::{Event, Events, RoomEvent},
    machine::{Machine, ShareWith},
    outbox::Outbox,
    rooms::{Membership, ROOMS, Room},
};

const SESSION: Kind = Kind("session");
const OWN: &str = "own";

/// How long the server waits for something to happen before it answers.
const SYNC_WAIT: Duration = Duration::from_secs(30);
/// How much longer an answer may take than the server waits.
const SYNC_SLACK: Duration = Duration::from_secs(60);
/// First wait after a failure of `/sync`; it doubles up to the longest.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Events that wait for whoever listens.
const EVENTS_MAX: usize = 1_024;
/// How often devices are met that came while others were, before a message goes out without them.
const MEETINGS_MAX: u32 = 5;
/// Devices in one claim of keys.
const CLAIM_MAX: usize = 500;
/// Longest a server is given to ask another one.
const REMOTE_WAIT: Duration = Duration::from_secs(10);
/// Events of a room that are asked for at once, unless the caller wants another number.
const HISTORY_EVENTS: u32 = 50;

/// A user's device: logged in, with everything that it knows in its [`Store`]. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    api: Api,
    store: Store,
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    machine: tokio::sync::Mutex<Machine>,
    outbox: Arc<Outbox>,
    /// Held by whoever asks for devices: an older answer must not come after a newer one.
    asking: tokio::sync::Mutex<()>,
    /// Held by whoever begins sessions: two at once would use up two one-time keys.
    claiming: tokio::sync::Mutex<()>,
    /// Held by whoever uploads keys: what was uploaded and what was made meanwhile must not be confused.
    uploading: tokio::sync::Mutex<()>,
    /// Held by whoever uploads signatures.
    signing: tokio::sync::Mutex<()>,
    /// Held by whoever uploads room keys to the backup.
    backing_up: tokio::sync::Mutex<()>,
    /// Held by whoever reads letters; before `letters`.
    reading: tokio::sync::Mutex<()>,
    /// Held by whoever sends letters; before `letters`.
    mailing: tokio::sync::Mutex<()>,
    /// What belongs to verifications and secrets; before `machine`.
    letters: tokio::sync::Mutex<Letters>,
    /// Held by whoever syncs; how often in a row the gaps of an answer could not be filled.
    syncing: tokio::sync::Mutex<u32>,
    events: Mutex<broadcast::Sender<Event>>,
}

/// Who logged in where.
#[derive(Deserialize, Serialize)]
struct Session {
    homeserver: Url,
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    access_token: String,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.access_token.zeroize();
    }
}

/// Who logs in.
#[derive(Clone)]
pub struct Login<'a> {
    /// Where the server is, such as `https://matrix.example.org`.
    pub homeserver: &'a Url,
    /// The user's id or the part of it before the colon.
    pub user: &'a str,
    /// The password.
    pub password: &'a str,
    /// What the device is called among the user's devices.
    pub device_name: &'a str,
}

impl std::fmt::Debug for Login<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("homeserver", &self.homeserver.as_str()).finish_non_exhaustive()
    }
}

/// A room to be made.
#[derive(Clone, Debug)]
pub struct NewRoom {
    /// What it is called.
    pub name: Option<String>,
    /// Who is invited.
    pub invite: Vec<OwnedUserId>,
    /// Whether it is a conversation with those who are invited.
    pub is_direct: bool,
    /// Whether it is encrypted, which cannot be taken back.
    pub is_encrypted: bool,
    /// How often its key is changed, if not as usual: after so many messages.
    pub rotation_period_msgs: Option<u64>,
    /// `m.room.history_visibility`, if not as usual.
    pub history_visibility: Option<String>,
}

impl Default for NewRoom {
    fn default() -> Self {
        Self {
            name: None,
            invite: Vec::new(),
            is_direct: false,
            is_encrypted: true,
            rotation_period_msgs: None,
            history_visibility: None,
        }
    }
}

/// A piece of a room's history, newest first.
#[derive(Clone, Debug)]
pub struct History {
    /// What happened.
    pub events: Vec<RoomEvent>,
    /// Where older events are asked for; nothing at the beginning of the room.
    pub older: Option<String>,
}

impl Client {
    /// Logs in as a new device, whose keys are with the server when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::StoreTaken`] when the store is another device's; [`Error::Refused`] when the password is wrong. If the server did not answer
    /// after the login itself, [`restore`](Self::restore) goes on.
    pub async fn login(store: Store, who: Login<'_>) -> Result<Self, Error> {
        if let Some(session) = store.get::<Session>(SESSION, OWN).await? {
            return Err(Error::StoreTaken(session.user_id.clone()));
        }
        let api = Api::new(who.homeserver.clone())?;
        let mut request = password_login(who.user, who.password);
        request.initial_device_display_name = Some(who.device_name.to_owned());
        // Twice would make two devices.
        let answer = api.send_once(request).await?;
        let session = Session {
            homeserver: who.homeserver.clone(),
            user_id: answer.user_id,
            device_id: answer.device_id,
            access_token: answer.access_token,
        };
        let mut batch = Batch::new();
        Account::new(session.user_id.clone(), session.device_id.clone()).save(&mut batch);
        batch.put(SESSION, OWN, &session);
        store.commit(batch).await?;
        let client = Self::with(store, session).await?;
        client.upload_keys().await?;
        Ok(client)
    }

    /// The device that logged in with this store. Nothing is asked of the server.
    ///
    /// # Errors
    ///
    /// [`Error::NotLoggedIn`].
    pub async fn restore(store: Store) -> Result<Self, Error> {
        let session = store.get(SESSION, OWN).await?.ok_or(Error::NotLoggedIn)?;
        Self::with(store, session).await
    }

    async fn with(store: Store, session: Session) -> Result<Self, Error> {
        let api = Api::new(session.homeserver.clone())?;
        api.set_token(Some(&session.access_token));
        let outbox = Arc::new(Outbox::load(&store).await?);
        let machine = Machine::load(store.clone(), outbox.clone()).await?;
        Ok(Self(Arc::new(Inner {
            api,
            store,
            user_id: session.user_id.clone(),
            device_id: session.device_id.clone(),
            machine: tokio::sync::Mutex::new(machine),
            outbox,
            asking: tokio::sync::Mutex::default(),
            claiming: tokio::sync::Mutex::default(),
            uploading: tokio::sync::Mutex::default(),
            signing: tokio::sync::Mutex::default(),
            backing_up: tokio::sync::Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            mailing: tokio::sync::Mutex::default(),
            letters: tokio::sync::Mutex::default(),
            syncing: tokio::sync::Mutex::default(),
            events: Mutex::new(broadcast::Sender::new(EVENTS_MAX)),
        })))
    }

    /// Logs the same device in again, whose session has ended without the user's doing ([`Error::LoggedOut`]): its keys stay.
    /// Client-Server API, "Soft logout".
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the password is wrong.
    pub async fn login_again(&self, password: &str) -> Result<(), Error> {
        let mut session: Session = self.0.store.get(SESSION, OWN).await?.ok_or(Error::NotLoggedIn)?;
        let mut request = password_login(self.0.user_id.as_str(), password);
        request.device_id = Some(self.0.device_id.clone());
        let answer = self.0.api.send(request).await?;
        if (&answer.user_id, &answer.device_id) != (&self.0.user_id, &self.0.device_id) {
            return Err(Error::ServerMisbehaved("logging in as a certain device"));
        }
        session.access_token.zeroize();
        session.access_token = answer.access_token;
        let mut batch = Batch::new();
        batch.put(SESSION, OWN, &session);
        self.0.store.commit(batch).await?;
        self.0.api.set_token(Some(&session.access_token));
        self.machine().await.publish_again().await?;
        self.upload_keys().await
    }

    /// Logs out, and forgets everything, keys included: what only this device could decrypt nobody can any more.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] when the server does not answer; then nothing is forgotten.
    pub async fn logout(self) -> Result<(), Error> {
        match self.0.api.send(logout::v3::Request::new()).await {
            Ok(_) | Err(Error::LoggedOut) => self.0.store.clear().await,
            Err(error) => Err(error),
        }
    }

    /// Closes the store, so that another program may open it.
    pub async fn close(self) {
        self.0.store.close().await;
    }

    /// Who is logged in.
    #[must_use]
    pub fn user_id(&self) -> &UserId {
        &self.0.user_id
    }

    /// As which device.
    #[must_use]
    pub fn device_id(&self) -> &ruma::DeviceId {
        &self.0.device_id
    }

    /// The connection to the server.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.0.api
    }

    /// Everything that happens from now on, as [`sync`](Self::sync) learns of it.
    #[must_use]
    pub fn events(&self) -> Events {
        Events(self.0.events.lock().expect("nobody panics with the events in hand").subscribe())
    }

    /// The rooms that the user is in or invited to.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn rooms(&self) -> Result<Vec<Room>, Error> {
        let rooms = self.0.store.list::<Room>(ROOMS).await?.into_values();
        Ok(rooms.filter(|room| matches!(room.membership, Membership::Join | Membership::Invite)).collect())
    }

    /// A room that the client has heard of.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRoom`].
    pub async fn room(&self, room_id: &RoomId) -> Result<Room, Error> {
        self.0.machine.lock().await.room(room_id).await
    }

    /// Makes a room, and learns of it.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`]. After [`Error::Unreachable`] there may or may not be a new room.
    pub async fn create_room(&self, room: NewRoom) -> Result<OwnedRoomId, Error> {
        let mut request = create_room::v3::Request::new();
        request.name = room.name;
        request.invite = room.invite;
        request.is_direct = room.is_direct;
        request.preset = Some(create_room::v3::RoomPreset::PrivateChat);
        let mut state = Vec::new();
        if room.is_encrypted {
            let mut content = json!({ "algorithm": MEGOLM });
            if let Some(messages) = room.rotation_period_msgs {
                content["rotation_period_msgs"] = messages.into();
            }
            state.push(json!({ "type": "m.room.encryption", "state_key": "", "content": content }));
        }
        if let Some(visibility) = room.history_visibility {
            let content = json!({ "history_visibility": visibility });
            state.push(json!({ "type": "m.room.history_visibility", "state_key": "", "content": content }));
        }
        let raw = |event: &Value| Raw::new(event).expect("JSON is JSON").cast_unchecked();
        request.initial_state = state.iter().map(raw).collect();
        let room_id = self.0.api.send_once(request).await?.room_id;
        self.learn_of(&room_id, Membership::Join).await?;
        Ok(room_id)
    }

    /// Joins a room by its id or alias, and learns of it.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn join(&self, room: OwnedRoomOrAliasId) -> Result<OwnedRoomId, Error> {
        let room_id = self.0.api.send(join_room_by_id_or_alias::v3::Request::new(room)).await?.room_id;
        self.learn_of(&room_id, Membership::Join).await?;
        Ok(room_id)
    }

    /// Leaves a room.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn leave(&self, room_id: &RoomId) -> Result<(), Error> {
        self.0.api.send(leave_room::v3::Request::new(room_id.to_owned())).await.map(drop)
    }

    /// Invites somebody to a room.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn invite(&self, room_id: &RoomId, user_id: &UserId) -> Result<(), Error> {
        let user = invite_user::v3::InvitationRecipient::UserId(invite_user::v3::InviteUserId::new(user_id.to_owned()));
        self.0.api.send(invite_user::v3::Request::new(room_id.to_owned(), user)).await.map(drop)
    }

    /// Syncs until the room is there as it is expected, or the next answer has nothing of it.
    async fn learn_of(&self, room_id: &RoomId, membership: Membership) -> Result<(), Error> {
        for _ in 0..10 {
            if self.room(room_id).await.is_ok_and(|room| room.membership == membership) {
                return Ok(());
            }
            self.sync_once(Duration::from_secs(1)).await?;
        }
        Ok(())
    }

    /// Sends a text message.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn send_text(&self, room_id: &RoomId, body: &str) -> Result<OwnedEventId, Error> {
        self.send(room_id, "m.room.message", &json!({ "msgtype": "m.text", "body": body })).await
    }

    /// Sends an event: encrypted if the room is, for all devices of its members.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRoom`]; [`Error::UnknownAlgorithm`]; [`Error::IdentityChanged`]; [`Error::Refused`]; [`Error::Unreachable`] when it could not be encrypted since
    /// the server did not answer; [`Error::NotSentYet`] when it could not be sent for the same reason: then it is kept and will be sent.
    pub async fn send(&self, room_id: &RoomId, event_type: &str, content: &Value) -> Result<OwnedEventId, Error> {
        let mut answer = self.post(room_id, event_type, content).await?;
        let flushed = self.flush().await;
        match (answer.try_recv(), flushed) {
            // Whatever became of what waits behind it.
            (Ok(answer), _) => answer,
            (Err(_), Err(error)) => Err(not_sent_yet(error)),
            (Err(_), Ok(())) => answer.await.unwrap_or(Err(Error::ServerMisbehaved("a message that is gone"))),
        }
    }

    /// Puts an event into the outbox, once all devices of the room's readers are met: those, too, that came while others were asked for keys.
    async fn post(
        &self,
        room_id: &RoomId,
        event_type: &str,
        content: &Value,
    ) -> Result<tokio::sync::oneshot::Receiver<Result<OwnedEventId, Error>>, Error> {
        for round in 1.. {
            self.meet_readers(room_id).await?;
            let is_last = round >= MEETINGS_MAX;
            if let Some(answer) = self.machine().await.post(room_id, event_type, content, is_last).await? {
                return Ok(answer);
            }
        }
        unreachable!("the last round posts")
    }

    /// Learns the devices of the room's readers, and begins a session with each that lacks one.
    async fn meet_readers(&self, room_id: &RoomId) -> Result<(), Error> {
        let readers = self.machine().await.readers_of(room_id).await?;
        if readers.is_empty() {
            return Ok(());
        }
        self.machine().await.follow(&readers).await?;
        self.ask_for_devices(Some(readers)).await?;
        let _turn = self.0.claiming.lock().await;
        let devices = self.machine().await.without_session(room_id).await?;
        self.begin_sessions(&devices).await
    }

    /// Sends a message to devices, in clear: servers read it, and could have written it.
    ///
    /// # Errors
    ///
    /// [`Error::NotSentYet`] when the server does not answer: it is kept and will be sent.
    pub async fn send_to_devices(&self, devices: &[Device], event_type: &str, content: &Value) -> Result<(), Error> {
        self.machine().await.post_clear(event_type, devices, content).await?;
        self.flush().await.map_err(not_sent_yet)
    }

    /// Sends a message to devices, encrypted for each. Returns how many it was for: a device that has no keys left cannot be reached.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] when it could not be encrypted since the server did not answer; [`Error::NotSentYet`] when it could not be sent.
    pub async fn send_encrypted_to_devices(
        &self,
        devices: &[Device],
        event_type: &str,
        content: &Value,
    ) -> Result<usize, Error> {
        {
            let _turn = self.0.claiming.lock().await;
            let lacking = self.machine().await.lacking(devices.to_vec()).await?;
            self.begin_sessions(&lacking).await?;
        }
        let count = self.machine().await.post_to(devices, event_type, content).await?;
        self.flush().await.map_err(not_sent_yet)?;
        Ok(count)
    }

    /// Sends what waits to be sent.
    ///
    /// # Errors
    ///
    /// Why something is left; it is sent the next time.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        self.0.outbox.flush(&self.0.api, &self.0.store, &self.0.machine).await
    }

    /// A piece of a room's history, newest first, from the newest event or from where [`History::older`] said. What can be decrypted is.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn history(&self, room_id: &RoomId, from: Option<&str>, limit: Option<u32>) -> Result<History, Error> {
        let mut request = get_message_events::v3::Request::new(room_id.to_owned(), Direction::Backward);
        request.from = from.map(str::to_owned);
        request.limit = limit.unwrap_or(HISTORY_EVENTS).into();
        let answer = self.0.api.send(request).await?;
        let events: Vec<Value> =
            answer.chunk.iter().filter_map(|event| serde_json::from_str(event.json().get()).ok()).collect();
        Ok(History { events: self.read(room_id, &events).await?, older: answer.end })
    }

    /// Reads events of a room that came by another way, such as a search. What can be decrypted is.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn read(&self, room_id: &RoomId, events: &[Value]) -> Result<Vec<RoomEvent>, Error> {
        let events = self.machine().await.read_history(room_id, events).await?;
        // Keys that are lacking were asked for; that can wait for a server that is away.
        match self.flush().await {
            Err(error) if error.is_fatal() => Err(error),
            _ => Ok(events),
        }
    }

    /// Somebody's devices, as the server says, those left out whose keys are not to be believed.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`].
    pub async fn devices(&self, user_id: &UserId) -> Result<Vec<Device>, Error> {
        self.machine().await.doubt_untracked(user_id).await?;
        self.ask_for_devices(Some(vec![user_id.to_owned()])).await?;
        self.machine().await.known_devices(user_id).await
    }

    /// Says that a device is who it claims to be, or that it gets no room keys.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownDevice`].
    pub async fn set_local_trust(
        &self,
        user_id: &UserId,
        device_id: &ruma::DeviceId,
        trust: LocalTrust,
    ) -> Result<(), Error> {
        self.machine().await.set_local_trust(user_id, device_id, trust).await
    }

    /// Which devices get room keys from now on, also after a restart; until this is called all do.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn share_with(&self, share_with: ShareWith) -> Result<(), Error> {
        self.machine().await.set_share_with(share_with).await
    }

    /// Follows what happens, for ever: bad networks and servers that are away are waited for.
    ///
    /// Dropping it is safe at any time: it goes on where it stopped.
    ///
    /// # Errors
    ///
    /// [`Error::LoggedOut`], and those of the store. All others it outlives.
    pub async fn sync(&self) -> Result<std::convert::Infallible, Error> {
        let mut wait = RETRY_MIN;
        loop {
            // What was heard is worked off while the server waits for more.
            let (synced, tended) = tokio::join!(self.poll(SYNC_WAIT), self.tend());
            let is_deaf = synced.is_err();
            match Error::gravest([synced, tended]) {
                Ok(()) => wait = RETRY_MIN,
                Err(error) if error.is_fatal() => return Err(error),
                // Waiting does not mend it, and what is said meanwhile need not wait for it.
                Err(error) if !is_deaf && !error.is_temporary() => tracing::warn!(%error, "something cannot be done"),
                Err(error) => {
                    tracing::debug!(%error, ?wait, "syncing again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Asks once what happened, waiting so long for something to happen, and does what there is to do about it.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] and others; it may be tried again.
    pub async fn sync_once(&self, wait: Duration) -> Result<(), Error> {
        self.poll(wait).await?;
        self.tend().await
    }

    async fn poll(&self, wait: Duration) -> Result<(), Error> {
        let mut failures = self.0.syncing.lock().await;
        let mut request = sync_events::v3::Request::new();
        let since = self.machine().await.begin_sync().await?;
        request.since = since.clone();
        request.timeout = Some(wait);
        request.set_presence = PresenceState::Offline;
        let patience = Patience { answer: wait.saturating_add(SYNC_SLACK), repeat: Duration::ZERO };
        let answer = self.0.api.send_with(request, patience).await?;
        let is_last_try = *failures + 1 >= gaps::TRIES_MAX;
        let gaps = match self.fill_gaps(since.as_deref(), &answer, is_last_try).await {
            Ok(gaps) => gaps,
            Err(error) => {
                *failures += 1;
                return Err(error);
            }
        };
        *failures = 0;
        let events = self.machine().await.receive(answer, gaps).await?;
        let events = self.sort(events).await;
        self.tell(events);
        Ok(())
    }

    fn tell(&self, events: Vec<Event>) {
        let sender = self.0.events.lock().expect("nobody panics with the events in hand");
        for event in events {
            // Nobody needs to listen.
            let _ = sender.send(event);
        }
    }

    /// Does what is to be done besides: sends what waits, uploads keys, asks for devices, replaces broken sessions, answers our own devices.
    /// One that fails does not keep the others from being done.
    async fn tend(&self) -> Result<(), Error> {
        Error::gravest([
            self.flush().await,
            self.upload_keys().await,
            self.ask_for_devices(None).await,
            self.repair_sessions().await,
            self.answer_key_requests().await,
            self.read_letters().await,
            self.ask_again_for_secrets().await,
            self.upload_signatures().await,
            // What came of that.
            self.flush().await,
            self.back_up().await,
        ])
    }

    async fn repair_sessions(&self) -> Result<(), Error> {
        let _turn = self.0.claiming.lock().await;
        let broken = self.machine().await.broken_devices().await?;
        self.begin_sessions(&broken).await
    }

    async fn answer_key_requests(&self) -> Result<(), Error> {
        let _turn = self.0.claiming.lock().await;
        let mut machine = self.machine().await;
        let asking = machine.asking_devices().await?;
        let lacking = machine.lacking(asking).await?;
        drop(machine);
        self.begin_sessions(&lacking).await?;
        self.machine().await.answer_key_requests().await
    }

    async fn upload_keys(&self) -> Result<(), Error> {
        let _turn = self.0.uploading.lock().await;
        let upload = self.machine().await.keys_to_upload().await?;
        if upload.is_empty() {
            return Ok(());
        }
        let raw = |value: &Value| Raw::new(value).expect("JSON is JSON");
        let keys = |keys: Vec<(String, Value)>| {
            let keys = keys.into_iter();
            keys.map(|(id, key)| (id.as_str().try_into().expect("our own ids are ids"), raw(&key).cast_unchecked()))
                .collect()
        };
        let mut request = upload_keys::v3::Request::new();
        request.device_keys = upload.device_keys.as_ref().map(|keys| raw(keys).cast_unchecked());
        request.one_time_keys = keys(upload.one_time_keys);
        request.fallback_keys = keys(upload.fallback_keys);
        let answer = self.0.api.send(request).await?;
        let count = answer.one_time_key_counts.get(&OneTimeKeyAlgorithm::SignedCurve25519);
        self.machine().await.keys_uploaded(count.copied().map(u64::from).unwrap_or_default()).await
    }

    /// Asks for the devices of these users, or of all, if they changed since they were asked for.
    async fn ask_for_devices(&self, of: Option<Vec<OwnedUserId>>) -> Result<(), Error> {
        let _turn = self.0.asking.lock().await;
        loop {
            let Some(mut question) = self.machine().await.question(of.clone()).await? else { return Ok(()) };
            question.request.timeout = Some(REMOTE_WAIT);
            let answer = self.0.api.send(question.request.clone()).await?;
            let events = self.machine().await.answered(question, answer).await?;
            self.tell(events);
        }
    }

    /// Claims keys and begins sessions with these devices, as far as their servers and keys allow.
    async fn begin_sessions(&self, devices: &[Device]) -> Result<(), Error> {
        for devices in devices.chunks(CLAIM_MAX) {
            let mut wanted: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, OneTimeKeyAlgorithm>> = BTreeMap::new();
            for device in devices {
                let of_user = wanted.entry(device.user_id.clone()).or_default();
                of_user.insert(device.device_id.clone(), OneTimeKeyAlgorithm::SignedCurve25519);
            }
            let mut request = claim_keys::v3::Request::new(wanted);
            request.timeout = Some(REMOTE_WAIT);
            let answer = self.0.api.send(request).await?;
            self.machine().await.begin_sessions(devices, &answer).await?;
        }
        Ok(())
    }

    async fn machine(&self) -> tokio::sync::MutexGuard<'_, Machine> {
        self.0.machine.lock().await
    }
}

fn password_login(user: &str, password: &str) -> login::v3::Request {
    let user = UserIdentifier::Matrix(MatrixUserIdentifier::new(user.to_owned()));
    let password = login::v3::Password::new(user, password.to_owned());
    login::v3::Request::new(login::v3::LoginInfo::Password(password))
}

/// What is to be sent is kept.
fn not_sent_yet(error: Error) -> Error {
    if error.is_fatal() { error } else { Error::NotSentYet(Box::new(error)) }
}
