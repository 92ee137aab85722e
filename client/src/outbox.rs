//! What waits to be sent. It is durable together with the state of the ratchets that encrypted it, and leaves in order: room keys before the
//! message that they decrypt. Each entry has its transaction id, so that what is sent again after a crash counts once.

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

use crate::{Api, Batch, Error, Kind, Store};

const OUTBOX: Kind = Kind("outbox");

/// Messages to devices, by user and device.
pub(crate) type Messages = BTreeMap<OwnedUserId, BTreeMap<DeviceIdOrAllDevices, Value>>;

/// What is sent.
#[derive(Deserialize, Serialize)]
pub(crate) enum Outgoing {
    ToDevice { event_type: String, messages: Messages },
    Room { room_id: OwnedRoomId, event_type: String, content: Value },
}

#[derive(Deserialize, Serialize)]
struct Entry {
    transaction_id: OwnedTransactionId,
    outgoing: Outgoing,
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
        batch.put(OUTBOX, number.to_string(), &Entry { transaction_id, outgoing });
        number
    }

    /// Hears what becomes of an entry that was posted and not committed yet.
    pub(crate) fn answer_to(&self, number: u64) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.queue().answers.insert(number, sender);
        receiver
    }

    /// Sends what waits, in order, until nothing is left.
    ///
    /// # Errors
    ///
    /// A temporary one when the server does not answer: what is left waits for the next time. What the server refuses is dropped, and whoever
    /// waits for it is told.
    pub(crate) async fn flush(&self, api: &Api, store: &Store) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        let mut begin = 0;
        loop {
            let Some(number) = self.queue().waiting.range(begin..).next().copied() else { return Ok(()) };
            begin = number + 1;
            let key = number.to_string();
            // What is not durable yet may become so, and is sent the next time.
            let Some(entry) = store.get::<Entry>(OUTBOX, &key).await? else { continue };
            let answer = send(api, entry).await;
            if let Err(error) = &answer
                && (error.is_temporary() || matches!(error, Error::LoggedOut))
            {
                return Err(answer.expect_err("it is one"));
            }
            let mut batch = Batch::new();
            batch.delete(OUTBOX, key);
            store.commit(batch).await?;
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

async fn send(api: &Api, Entry { transaction_id, outgoing }: Entry) -> Result<Option<OwnedEventId>, Error> {
    match outgoing {
        Outgoing::ToDevice { event_type, messages } => {
            let raw = |content: &Value| Raw::new(content).expect("JSON is JSON").cast_unchecked();
            let of_user = |devices: BTreeMap<DeviceIdOrAllDevices, Value>| {
                devices.iter().map(|(device, content)| (device.clone(), raw(content))).collect()
            };
            let messages = messages.into_iter().map(|(user, devices)| (user, of_user(devices))).collect();
            api.send(send_event_to_device::v3::Request::new_raw(event_type.into(), transaction_id, messages)).await?;
            Ok(None)
        }
        Outgoing::Room { room_id, event_type, content } => {
            let content = Raw::new(&content).expect("JSON is JSON").cast_unchecked();
            let request = send_message_event::v3::Request::new_raw(room_id, transaction_id, event_type.into(), content);
            Ok(Some(api.send(request).await?.event_id))
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::room_id;
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::StoreKey;

    /// A server that refuses everything.
    async fn refusing_server() -> Api {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                assert!(stream.read(&mut request).await.unwrap() > 0, "a request");
                let answer = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let api = Api::new(url).unwrap();
        api.set_token(Some("token"));
        api
    }

    /// A call may be dropped while it makes something durable, and what is durable has to leave.
    #[tokio::test]
    async fn an_entry_is_sent_from_when_it_is_durable_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store"), &StoreKey::raw([1; 32])).await.unwrap();
        let (api, outbox) = (refusing_server().await, Outbox::load(&store).await.unwrap());
        let mut batch = Batch::new();
        let (room_id, event_type) = (room_id!("!room:example.org").to_owned(), "m.room.message".to_owned());
        let number = outbox.post(&mut batch, Outgoing::Room { room_id, event_type, content: json!({}) });
        let mut answer = outbox.answer_to(number);
        outbox.flush(&api, &store).await.unwrap();
        assert!(answer.try_recv().is_err(), "it is not durable yet");
        store.commit(batch).await.unwrap();
        outbox.flush(&api, &store).await.unwrap();
        let answer = answer.await.unwrap();
        assert!(matches!(answer, Err(Error::Refused { status: 403, .. })), "{answer:?}");
        assert_eq!(store.count(OUTBOX).await.unwrap(), 0);
    }
}
