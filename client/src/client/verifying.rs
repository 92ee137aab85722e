//! Verifications as the user sees them: who asks, what is compared, what it leads to. Client-Server API, "Device verification".
//!
//! Messages of others wait in [`Letters`] until [`Client::sync`] has asked for the keys of whoever sent them; ours wait there until they are
//! sent. A verification lives in memory: a program that ends in the middle of one does not go on with it.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use ruma::{DeviceId, OwnedDeviceId, OwnedRoomId, OwnedUserId, UserId};
use serde_json::Value;
use tokio::time::Instant;

use super::Client;
use crate::{
    Error,
    events::{Event, RoomEvent, ToDeviceEvent, VerificationChange},
    machine::now_ms,
    rooms::Membership,
    signatures::Object,
    verification::{Flow, Incoming, Message, Ongoing, Outgoing, Stage, Verification, room_request},
};

/// Messages that wait to be read. More come only from somebody who wants to keep us busy.
const LETTERS_MAX: usize = 1_000;
/// How often secrets are asked for that do not come.
const ASKING_PERIOD: Duration = Duration::from_secs(3600);

/// What waits to be read or sent.
#[derive(Default)]
pub(super) struct Letters {
    received: VecDeque<Event>,
    outgoing: VecDeque<Outgoing>,
    ongoing: Ongoing,
    /// What was told of each verification.
    told: HashMap<(OwnedUserId, String), Stage>,
    /// When secrets were asked for that had been asked for before.
    asked_again_at: Option<Instant>,
}

impl Letters {
    pub(super) fn is_time_to_ask_again(&self) -> bool {
        self.asked_again_at.is_none_or(|at| at.elapsed() >= ASKING_PERIOD)
    }

    pub(super) fn asked_again(&mut self) {
        self.asked_again_at = Some(Instant::now());
    }
}

impl std::fmt::Debug for Letters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Letters").finish_non_exhaustive()
    }
}

impl Client {
    /// Keeps what belongs to verifications and secrets until it is worked off. Returns what everybody is told.
    pub(super) async fn sort(&self, events: Vec<Event>) -> Vec<Event> {
        let mut letters = self.0.letters.lock().await;
        events
            .into_iter()
            .filter_map(|event| {
                let (event_type, content, is_private) = match &event {
                    Event::ToDevice(event) => (event.event_type.as_str(), &event.content, true),
                    Event::Room(event) | Event::Late(event) => (event.event_type.as_str(), &event.content, false),
                    _ => return Some(event),
                };
                let is_secret = is_private && event_type.starts_with("m.secret.");
                if !is_secret && Message::parse(event_type, content).is_none() {
                    return Some(event);
                }
                if letters.received.len() < LETTERS_MAX {
                    letters.received.push_back(event.clone());
                }
                (!is_private).then_some(event)
            })
            .collect()
    }

    /// Reads what has come of verifications and secrets, and sends what is to be sent.
    pub(super) async fn read_letters(&self) -> Result<(), Error> {
        let _turn = self.0.reading.lock().await;
        loop {
            let letter = self.0.letters.lock().await.received.front().cloned();
            let Some(letter) = letter else { break };
            match self.read_letter(letter).await {
                // It is read again when the server answers.
                Err(error) if error.is_temporary() && !matches!(error, Error::NotSentYet(_)) => return Err(error),
                Err(error @ (Error::Store(_) | Error::StoreDamaged(_) | Error::LoggedOut)) => return Err(error),
                Err(error) => tracing::warn!(%error, "a verification or secret came to nothing"),
                Ok(()) => {}
            }
            self.0.letters.lock().await.received.pop_front();
        }
        let outgoing = self.0.letters.lock().await.ongoing.check_time(now_ms());
        self.settle(outgoing).await?;
        self.send_letters().await
    }

    async fn read_letter(&self, letter: Event) -> Result<(), Error> {
        match letter {
            Event::ToDevice(event) if event.event_type == "m.secret.request" => self.answer_secret_request(event).await,
            Event::ToDevice(event) if event.event_type == "m.secret.send" => self.receive_secret(event).await,
            Event::ToDevice(ToDeviceEvent { sender, event_type, content, .. }) => {
                let Some(flow) = Flow::of_to_device(&content) else { return Ok(()) };
                self.receive_verification(flow, sender, &event_type, &content, None).await
            }
            Event::Room(event) | Event::Late(event) => {
                let RoomEvent { room_id, event_id, sender, timestamp_ms, event_type, content, .. } = event;
                let flow = match event_type.as_str() {
                    "m.room.message" => Some(Flow::InRoom { room_id, event_id }),
                    _ => Flow::of_room_event(room_id, &content),
                };
                let Some(flow) = flow else { return Ok(()) };
                self.receive_verification(flow, sender, &event_type, &content, Some(timestamp_ms)).await
            }
            _ => Ok(()),
        }
    }

    async fn receive_verification(
        &self,
        flow: Flow,
        sender: OwnedUserId,
        event_type: &str,
        content: &Object,
        made_at: Option<u64>,
    ) -> Result<(), Error> {
        let Some(message) = Message::parse(event_type, content) else { return Ok(()) };
        let from_device = message.as_ref().ok().and_then(Message::from_device).cloned();
        let theirs = match from_device {
            None => None,
            Some(device_id) => {
                self.learn(&sender).await?;
                self.machine().await.party(&sender, &device_id).await?
            }
        };
        let ours = self.machine().await.own_party();
        let incoming = Incoming { flow, sender, message, theirs, made_at };
        let outgoing = self.0.letters.lock().await.ongoing.receive(incoming, ours, now_ms());
        self.settle(outgoing).await
    }

    /// Keeps what is to be sent, tells what changed, and keeps what was verified.
    async fn settle(&self, outgoing: Vec<Outgoing>) -> Result<(), Error> {
        let mut lacks_keys = false;
        let mut letters = self.0.letters.lock().await;
        let Letters { outgoing: waiting, ongoing, told, .. } = &mut *letters;
        waiting.extend(outgoing);
        let mut changes = Vec::new();
        for one in ongoing.iter_mut() {
            // Who asked begins, when the other side is ready.
            if one.stage() == Stage::Ready && one.is_by_us() {
                waiting.extend(one.start()?);
            }
            let key = (one.their_user().clone(), one.flow().id().to_owned());
            let mut stage = one.stage();
            if told.get(&key) == Some(&stage) {
                continue;
            }
            if let (Stage::Done { verified }, Some(device_id)) = (&stage, one.their_device()) {
                match self.machine().await.verified(one.their_user(), device_id, verified).await {
                    Ok(lacks) => lacks_keys |= lacks,
                    Err(Error::Forged(_)) => {
                        one.distrust();
                        stage = one.stage();
                    }
                    Err(error) => return Err(error),
                }
            }
            told.insert(key, stage.clone());
            let device_id = one.their_device().map(ToOwned::to_owned);
            let (user_id, flow_id) = (one.their_user().clone(), one.flow().id().to_owned());
            changes.push(Event::Verification(VerificationChange { user_id, flow_id, device_id, stage }));
        }
        told.retain(|(user_id, flow_id), _| ongoing.get_mut(user_id, flow_id).is_some());
        drop(letters);
        self.tell(changes);
        if lacks_keys { self.ask_for_secrets().await } else { Ok(()) }
    }

    /// Sends what waits. One at a time, since order matters to the other side.
    async fn send_letters(&self) -> Result<(), Error> {
        let _turn = self.0.mailing.lock().await;
        loop {
            let next = self.0.letters.lock().await.outgoing.front().cloned();
            let Some(Outgoing { flow, user_id, devices, event_type, content }) = next else { return Ok(()) };
            let sent = match &flow {
                Flow::ToDevice { .. } => {
                    self.machine().await.post_to_ids(&user_id, &devices, event_type, &Value::Object(content)).await
                }
                Flow::InRoom { room_id, .. } => self.send(room_id, event_type, &Value::Object(content)).await.map(drop),
            };
            match sent {
                Err(error) if error.is_temporary() && !matches!(error, Error::NotSentYet(_)) => return Err(error),
                Err(error @ (Error::Store(_) | Error::StoreDamaged(_) | Error::LoggedOut)) => return Err(error),
                Err(error) => tracing::warn!(%error, "a message of a verification was not sent"),
                Ok(()) => {}
            }
            self.0.letters.lock().await.outgoing.pop_front();
        }
    }

    /// Asks for a verification: of another user in a room with them, or of this device by the user's other ones. Returns what it is called.
    /// Once the other side is ready, the comparison begins; [`Event::Verification`] says so.
    ///
    /// # Errors
    ///
    /// [`Error::NotNow`] when there is no room with that user alone, or no other device; [`Error::Unreachable`].
    pub async fn request_verification(&self, user_id: &UserId) -> Result<String, Error> {
        self.request(user_id, None).await
    }

    /// The same of one device, which may be another user's.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownDevice`]; [`Error::Unreachable`].
    pub async fn request_device_verification(&self, user_id: &UserId, device_id: &DeviceId) -> Result<String, Error> {
        self.request(user_id, Some(device_id)).await
    }

    async fn request(&self, user_id: &UserId, of: Option<&DeviceId>) -> Result<String, Error> {
        self.learn(user_id).await?;
        // Nobody reads an answer before it is known what it answers.
        let turn = self.0.reading.lock().await;
        let ours = self.machine().await.own_party();
        let (verification, outgoing) = if of.is_some() || *user_id == *self.user_id() {
            let devices = self.machine().await.known_devices(user_id).await?.into_iter().map(|device| device.device_id);
            let is_own = |device_id: &DeviceId| *user_id == *self.user_id() && *device_id == *self.device_id();
            let wanted = |device_id: &OwnedDeviceId| !is_own(device_id) && of.is_none_or(|of| *of == **device_id);
            let devices: Vec<_> = devices.filter(wanted).collect();
            if devices.is_empty() {
                let unknown =
                    |of: &DeviceId| Error::UnknownDevice { user_id: user_id.to_owned(), device_id: of.to_owned() };
                return Err(of.map_or(Error::NotNow("the user has no other device"), unknown));
            }
            let transaction_id = format!("{:032x}", rand::random::<u128>());
            Verification::request_devices(transaction_id, ours, user_id.to_owned(), devices, now_ms())
        } else {
            let room_id = self.room_with(user_id).await?;
            let request = room_request(self.device_id(), user_id);
            let event_id = self.send(&room_id, "m.room.message", &Value::Object(request)).await?;
            let flow = Flow::InRoom { room_id, event_id };
            (Verification::requested_in_room(flow, ours, user_id.to_owned(), now_ms()), Vec::new())
        };
        let flow_id = verification.flow().id().to_owned();
        self.0.letters.lock().await.ongoing.insert(verification);
        drop(turn);
        self.settle(outgoing).await?;
        self.send_letters().await?;
        self.flush().await?;
        Ok(flow_id)
    }

    /// A room that the user of this client and another one are in alone.
    async fn room_with(&self, user_id: &UserId) -> Result<OwnedRoomId, Error> {
        let rooms = self.rooms().await?.into_iter().filter(|room| room.membership == Membership::Join);
        rooms
            .filter(|room| {
                let mut present = room.members.iter().filter(|(_, member)| member.membership == Membership::Join);
                present.by_ref().all(|(member, _)| *member == *self.user_id() || *member == *user_id)
                    && room.members.get(user_id).is_some_and(|member| member.membership == Membership::Join)
            })
            // An encrypted one rather.
            .max_by_key(|room| room.encryption.is_some())
            .map(|room: crate::Room| room.room_id)
            .ok_or(Error::NotNow("there is no room with that user alone"))
    }

    /// All verifications, oldest first, as they stand.
    pub async fn verifications(&self) -> Vec<VerificationChange> {
        let letters = self.0.letters.lock().await;
        let change = |one: &Verification| VerificationChange {
            user_id: one.their_user().clone(),
            flow_id: one.flow().id().to_owned(),
            device_id: one.their_device().map(ToOwned::to_owned),
            stage: one.stage(),
        };
        letters.ongoing.iter().map(change).collect()
    }

    /// Agrees to what another device asks for.
    ///
    /// # Errors
    ///
    /// [`Error::NotNow`] when it asks for nothing.
    pub async fn accept_verification(&self, user_id: &UserId, flow_id: &str) -> Result<(), Error> {
        self.decide(user_id, flow_id, Verification::accept).await
    }

    /// Begins the comparison, if the side that asked does not.
    ///
    /// # Errors
    ///
    /// [`Error::NotNow`] when not both sides are ready, or it has begun.
    pub async fn start_verification(&self, user_id: &UserId, flow_id: &str) -> Result<(), Error> {
        self.decide(user_id, flow_id, Verification::start).await
    }

    /// Both users see the same pictures or numbers.
    ///
    /// # Errors
    ///
    /// [`Error::NotNow`] when there is nothing to compare.
    pub async fn confirm_verification(&self, user_id: &UserId, flow_id: &str) -> Result<(), Error> {
        self.decide(user_id, flow_id, Verification::confirm).await
    }

    /// They see different ones.
    ///
    /// # Errors
    ///
    /// [`Error::NotNow`] when there is nothing to compare.
    pub async fn reject_verification(&self, user_id: &UserId, flow_id: &str) -> Result<(), Error> {
        self.decide(user_id, flow_id, Verification::mismatch).await
    }

    /// Ends a verification.
    ///
    /// # Errors
    ///
    /// [`Error::NotNow`] when there is none.
    pub async fn cancel_verification(&self, user_id: &UserId, flow_id: &str) -> Result<(), Error> {
        self.decide(user_id, flow_id, |one| Ok(one.cancel())).await
    }

    async fn decide(
        &self,
        user_id: &UserId,
        flow_id: &str,
        decision: impl FnOnce(&mut Verification) -> Result<Vec<Outgoing>, Error>,
    ) -> Result<(), Error> {
        let outgoing = {
            let mut letters = self.0.letters.lock().await;
            let one =
                letters.ongoing.get_mut(user_id, flow_id).ok_or(Error::NotNow("there is no such verification"))?;
            decision(one)?
        };
        self.settle(outgoing).await?;
        self.send_letters().await?;
        // What was signed and is lacking is sent by the next sync, if not now.
        self.upload_signatures().await?;
        self.flush().await
    }
}
