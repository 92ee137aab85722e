//! What waits to be sent. It is durable together with the state of the ratchets that encrypted it, and leaves in order: room keys before the
//! message that they decrypt. What the server fails on holds up only what must not overtake it. Each entry has its transaction id, so that what is sent again after a crash counts once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
};

use rand::RngExt as _;
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedTransactionId, OwnedUserId,
    api::client::{message::send_message_event, to_device::send_event_to_device},
    serde::Raw,
    to_device::DeviceIdOrAllDevices,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::{Api, Batch, Error, Kind, Patience, Store, machine::now_ms, megolm::OUTBOUND};

const OUTBOX: Kind = Kind("outbox");
/// How long the server may fail on an entry before that is given up: a day.
const FAILING_MS_MAX: u64 = 24 * 3600 * 1000;

/// Messages to devices, by user and device.
pub(crate) type Messages = BTreeMap<OwnedUserId, BTreeMap<DeviceIdOrAllDevices, Value>>;

/// What is sent.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) enum Outgoing {
    ToDevice { event_type: String, messages: Messages },
    Room { room_id: OwnedRoomId, event_type: String, content: Value },
}

#[derive(Clone, Deserialize, Serialize)]
struct Entry {
    transaction_id: OwnedTransactionId,
    outgoing: Outgoing,
    /// Since when the server answers with something else than a decision.
    #[serde(default)]
    failing_since_ms: Option<u64>,
}

/// The numbers of what waits, and who waits for it.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    /// Held by whoever sends.
    turn: tokio::sync::Mutex<()>,
}

type Answer = Result<OwnedEventId, Error>;

#[derive(Debug)]
struct Queue {
    next: u64,
    waiting: BTreeSet<u64>,
    answers: BTreeMap<u64, oneshot::Sender<Answer>>,
}

impl Outbox {
    /// That of this store.
    pub(crate) async fn load(store: &Store) -> Result<Self, Error> {
        let waiting: BTreeSet<u64> =
            store.list::<Entry>(OUTBOX).await?.keys().filter_map(|number| number.parse().ok()).collect();
        let next = waiting.last().map_or(0, |last| last + 1);
        let queue = Queue { next, waiting, answers: BTreeMap::new() };
        Ok(Self { queue: Mutex::new(queue), turn: tokio::sync::Mutex::default() })
    }

    /// Puts something at the end, as part of `batch`: it is sent once that is durable, even if whoever makes it so does not hear of it.
    pub(crate) fn post(&self, batch: &mut Batch, outgoing: Outgoing) -> u64 {
        let number = {
            let mut queue = self.queue();
            let number = queue.next;
            queue.next += 1;
            queue.waiting.insert(number);
            number
        };
        let transaction_id = format!("{:032x}", rand::rng().random::<u128>()).into();
        batch.put(OUTBOX, number.to_string(), &Entry { transaction_id, outgoing, failing_since_ms: None });
        number
    }

    /// Hears what becomes of an entry that was posted and not committed yet.
    pub(crate) fn answer_to(&self, number: u64) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.queue().answers.insert(number, sender);
        receiver
    }

    /// Sends what waits, in order, until nothing is left but what the server fails on and what must come after that. `machine` guards the
    /// sessions of rooms.
    ///
    /// # Errors
    ///
    /// Why something is left: it waits for the next time. What the server refuses is dropped, and whoever waits for it is told; room keys
    /// that it refused are not used for what is encrypted later.
    pub(crate) async fn flush<M>(
        &self,
        api: &Api,
        store: &Store,
        machine: &tokio::sync::Mutex<M>,
    ) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        let mut begin = 0;
        let (mut stuck, mut failure) = (Stuck::default(), Ok(()));
        loop {
            let Some(number) = self.queue().waiting.range(begin..).next().copied() else { return failure };
            begin = number + 1;
            let key = number.to_string();
            // What is not durable yet may become so, and is sent the next time.
            let Some(mut entry) = store.get::<Entry>(OUTBOX, &key).await? else { continue };
            if stuck.holds(&entry.outgoing) {
                stuck.add(&entry.outgoing);
                continue;
            }
            let answer = send(api, entry.clone()).await;
            let mut batch = Batch::new();
            match &answer {
                // It would say the same of all others.
                Err(Error::Unreachable(_) | Error::LoggedOut | Error::Refused { status: 429, .. }) => {
                    return answer.map(drop);
                }
                Err(error) if !is_decision(error) => {
                    let since_ms = *entry.failing_since_ms.get_or_insert_with(now_ms);
                    if now_ms().saturating_sub(since_ms) < FAILING_MS_MAX {
                        batch.put(OUTBOX, key, &entry);
                        store.commit(batch).await?;
                        stuck.add(&entry.outgoing);
                        failure = failure.and(answer.map(drop));
                        continue;
                    }
                }
                _ => {}
            }
            batch.delete(OUTBOX, key);
            let guard = match answer.is_err() && entry.outgoing.is_encrypted_to_devices() {
                true => Some(machine.lock().await),
                false => None,
            };
            if guard.is_some() {
                // There may have been a room's key in it, which its devices seem to have.
                for room_id in store.list::<serde::de::IgnoredAny>(OUTBOUND).await?.into_keys() {
                    batch.delete(OUTBOUND, room_id);
                }
            }
            store.commit(batch).await?;
            drop(guard);
            let mut queue = self.queue();
            queue.waiting.remove(&number);
            match (queue.answers.remove(&number), answer) {
                // Whoever does not wait any more does not want to know.
                (Some(waiting), Ok(Some(event_id))) => drop(waiting.send(Ok(event_id))),
                (Some(waiting), Err(error)) => drop(waiting.send(Err(error))),
                (None, Err(error)) => tracing::warn!(%error, "the server refused what was to be sent"),
                (_, Ok(_)) => {}
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nobody panics with the queue in hand")
    }
}

impl Outgoing {
    fn is_encrypted_to_devices(&self) -> bool {
        matches!(self, Self::ToDevice { event_type, .. } if event_type == "m.room.encrypted")
    }
}

/// What the server failed on, and so what must not overtake it: messages to the same devices, the event that needs the keys, and later events
/// of its room.
#[derive(Default)]
struct Stuck {
    devices: BTreeSet<(OwnedUserId, DeviceIdOrAllDevices)>,
    rooms: BTreeSet<OwnedRoomId>,
    /// Whether there may be keys for the next event in it.
    has_keys: bool,
}

impl Stuck {
    fn holds(&self, outgoing: &Outgoing) -> bool {
        match outgoing {
            Outgoing::ToDevice { messages, .. } => devices(messages).any(|device| self.devices.contains(&device)),
            Outgoing::Room { room_id, .. } => self.has_keys || self.rooms.contains(room_id),
        }
    }

    fn add(&mut self, outgoing: &Outgoing) {
        match outgoing {
            Outgoing::ToDevice { messages, .. } => {
                self.devices.extend(devices(messages));
                self.has_keys |= outgoing.is_encrypted_to_devices();
            }
            // Its keys are right before it.
            Outgoing::Room { room_id, .. } => {
                self.rooms.insert(room_id.clone());
                self.has_keys = false;
            }
        }
    }
}

fn devices(messages: &Messages) -> impl Iterator<Item = (OwnedUserId, DeviceIdOrAllDevices)> {
    messages.iter().flat_map(|(user_id, devices)| devices.keys().map(|device| (user_id.clone(), device.clone())))
}

/// Whether it is the homeserver that refuses this, and not a proxy, or a server that is not what it will be.
fn is_decision(error: &Error) -> bool {
    let Error::Refused { code, .. } = error else { return false };
    !error.is_temporary() && !matches!(code.as_str(), "M_UNKNOWN" | "M_UNRECOGNIZED")
}

async fn send(api: &Api, entry: Entry) -> Result<Option<OwnedEventId>, Error> {
    let Entry { transaction_id, outgoing, failing_since_ms } = entry;
    // What it failed on before does not hold up the rest for long.
    let patience = if failing_since_ms.is_some() { Patience::ONCE } else { Patience::default() };
    match outgoing {
        Outgoing::ToDevice { event_type, messages } => {
            let raw = |content: &Value| Raw::new(content).expect("JSON is JSON").cast_unchecked();
            let of_user = |devices: BTreeMap<DeviceIdOrAllDevices, Value>| {
                devices.iter().map(|(device, content)| (device.clone(), raw(content))).collect()
            };
            let messages = messages.into_iter().map(|(user, devices)| (user, of_user(devices))).collect();
            let request = send_event_to_device::v3::Request::new_raw(event_type.into(), transaction_id, messages);
            api.send_with(request, patience).await?;
            Ok(None)
        }
        Outgoing::Room { room_id, event_type, content } => {
            let content = Raw::new(&content).expect("JSON is JSON").cast_unchecked();
            let request = send_message_event::v3::Request::new_raw(room_id, transaction_id, event_type.into(), content);
            Ok(Some(api.send_with(request, patience).await?.event_id))
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::{owned_user_id, room_id};
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::Mutex,
    };

    use super::*;
    use crate::StoreKey;

    type Answers = fn(&str) -> (u16, Value);

    /// A server that answers by the first line of a request; and which of them it has seen.
    async fn server(answers: Answers) -> (Api, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let seen = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let requests = seen.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let bytes = stream.read(&mut request).await.unwrap();
                assert!(bytes > 0, "a request");
                let request = String::from_utf8_lossy(&request[..bytes]).lines().next().unwrap().to_owned();
                let (status, body) = answers(&request);
                requests.lock().unwrap().push(request);
                let (body, length) = (body.to_string(), body.to_string().len());
                let head = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all((head + &body).as_bytes()).await.unwrap();
            }
        });
        let api = Api::new(url).unwrap();
        api.set_token(Some("token"));
        (api, seen)
    }

    async fn opened() -> (tempfile::TempDir, Store, Outbox) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store"), &StoreKey::raw([1; 32])).await.unwrap();
        let outbox = Outbox::load(&store).await.unwrap();
        (folder, store, outbox)
    }

    fn event(room_id: &ruma::RoomId) -> Outgoing {
        Outgoing::Room { room_id: room_id.to_owned(), event_type: "m.room.encrypted".to_owned(), content: json!({}) }
    }

    fn keys() -> Outgoing {
        let device = DeviceIdOrAllDevices::DeviceId("DEVICE".into());
        let messages = [(owned_user_id!("@bob:example.org"), [(device, json!({}))].into())].into();
        Outgoing::ToDevice { event_type: "m.room.encrypted".to_owned(), messages }
    }

    async fn post(outbox: &Outbox, store: &Store, outgoing: Outgoing) -> oneshot::Receiver<Answer> {
        let mut batch = Batch::new();
        let answer = outbox.answer_to(outbox.post(&mut batch, outgoing));
        store.commit(batch).await.unwrap();
        answer
    }

    fn forbidden() -> (u16, Value) {
        (403, json!({ "errcode": "M_FORBIDDEN", "error": "no" }))
    }

    /// A call may be dropped while it makes something durable, and what is durable has to leave.
    #[tokio::test]
    async fn an_entry_is_sent_from_when_it_is_durable_and_not_before() {
        let (_folder, store, outbox) = opened().await;
        let (api, _) = server(|_| forbidden()).await;
        let mut batch = Batch::new();
        let number = outbox.post(&mut batch, event(room_id!("!room:example.org")));
        let mut answer = outbox.answer_to(number);
        outbox.flush(&api, &store, &Mutex::new(())).await.unwrap();
        assert!(answer.try_recv().is_err(), "it is not durable yet");
        store.commit(batch).await.unwrap();
        outbox.flush(&api, &store, &Mutex::new(())).await.unwrap();
        let answer = answer.await.unwrap();
        assert!(matches!(answer, Err(Error::Refused { status: 403, .. })), "{answer:?}");
        assert_eq!(store.count(OUTBOX).await.unwrap(), 0);
    }

    /// A proxy that is being set up answers 404, a captive portal 200 with something else.
    #[tokio::test]
    async fn what_is_not_the_homeservers_decision_keeps_the_message_and_its_room_waiting() {
        let (_folder, store, outbox) = opened().await;
        let (api, seen) = server(|request| match request {
            request if request.contains("first") => (404, json!({})),
            request if request.contains("second") => (200, json!({ "welcome": "to our network" })),
            _ => (200, json!({ "event_id": "$event" })),
        })
        .await;
        let mut answers = Vec::new();
        for room_id in [room_id!("!first:x.org"), room_id!("!second:x.org"), room_id!("!first:x.org")] {
            answers.push(post(&outbox, &store, event(room_id)).await);
        }
        let other = post(&outbox, &store, event(room_id!("!other:x.org"))).await;
        let left = outbox.flush(&api, &store, &Mutex::new(())).await;
        assert!(matches!(left, Err(Error::Refused { status: 404, .. })), "{left:?}");
        assert_eq!(other.await.unwrap().unwrap(), "$event", "other rooms go on");
        assert!(answers.iter_mut().all(|answer| answer.try_recv().is_err()));
        assert_eq!(store.count(OUTBOX).await.unwrap(), 3);
        assert_eq!(seen.lock().unwrap().len(), 3, "nothing overtakes in a room");
        let (api, _) = server(|_| (200, json!({ "event_id": "$event" }))).await;
        outbox.flush(&api, &store, &Mutex::new(())).await.unwrap();
        for answer in answers {
            assert_eq!(answer.await.unwrap().unwrap(), "$event");
        }
    }

    #[tokio::test]
    async fn an_event_does_not_overtake_its_keys() {
        let (_folder, store, outbox) = opened().await;
        let (api, seen) = server(|request| match request {
            request if request.contains("/sendToDevice/") => (404, json!({})),
            _ => (200, json!({ "event_id": "$event" })),
        })
        .await;
        drop(post(&outbox, &store, keys()).await);
        let mut held = post(&outbox, &store, event(room_id!("!first:x.org"))).await;
        let other = post(&outbox, &store, event(room_id!("!other:x.org"))).await;
        assert!(outbox.flush(&api, &store, &Mutex::new(())).await.is_err());
        assert!(held.try_recv().is_err());
        assert_eq!(other.await.unwrap().unwrap(), "$event");
        assert_eq!(seen.lock().unwrap().len(), 2);
    }

    /// The devices seem to have them, and would read nothing more.
    #[tokio::test]
    async fn room_keys_that_the_server_refused_are_not_used_again() {
        let (_folder, store, outbox) = opened().await;
        let (api, _) = server(|_| forbidden()).await;
        let mut batch = Batch::new();
        batch.put(OUTBOUND, "!room:example.org", &json!({ "a": "session" }));
        store.commit(batch).await.unwrap();
        drop(post(&outbox, &store, event(room_id!("!other:x.org"))).await);
        outbox.flush(&api, &store, &Mutex::new(())).await.unwrap();
        assert_eq!(store.count(OUTBOUND).await.unwrap(), 1, "no key was refused");
        drop(post(&outbox, &store, keys()).await);
        outbox.flush(&api, &store, &Mutex::new(())).await.unwrap();
        assert_eq!((store.count(OUTBOUND).await.unwrap(), store.count(OUTBOX).await.unwrap()), (0, 0));
    }

    #[tokio::test]
    async fn what_the_server_fails_on_for_a_day_is_given_up() {
        let (_folder, store, outbox) = opened().await;
        let (api, _) = server(|_| (404, json!({}))).await;
        let mut answer = post(&outbox, &store, event(room_id!("!room:example.org"))).await;
        assert!(outbox.flush(&api, &store, &Mutex::new(())).await.is_err());
        assert!(answer.try_recv().is_err());
        let mut entry: Entry = store.get(OUTBOX, "0").await.unwrap().unwrap();
        entry.failing_since_ms = entry.failing_since_ms.map(|since_ms| since_ms - FAILING_MS_MAX);
        let mut batch = Batch::new();
        batch.put(OUTBOX, "0", &entry);
        store.commit(batch).await.unwrap();
        outbox.flush(&api, &store, &Mutex::new(())).await.unwrap();
        assert!(matches!(answer.await.unwrap(), Err(Error::Refused { status: 404, .. })));
    }
}
