//! What happened and its listener has not got yet, on disk. It is written together with the token of the next `/sync`, so a program that is
//! killed loses nothing, and neither does a listener whose store another program syncs in between.

use std::collections::BTreeSet;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};

use crate::{Batch, Error, Kind, Store, events::Event, signatures::Object};

/// [`KeptEvent`]s by number.
const INBOX: Kind = Kind("inbox");
/// Whether events are kept.
const OPEN: Kind = Kind("inbox is open");
const OWN: &str = "own";
/// Events that wait. Beyond that nobody seems to listen any more, and the oldest are dropped: their rooms' history has them.
const EVENTS_MAX: usize = 100_000;

/// Something that happened in a room, in the form in which it waits for its listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptEvent {
    /// What sort of news it is.
    pub kind: News,
    /// Where.
    pub room_id: OwnedRoomId,
    /// Who did it; of an invitation the server may not say so.
    pub sender: Option<OwnedUserId>,
    /// The event; an invitation has none.
    pub event_id: Option<OwnedEventId>,
    /// When, says the sender's server, in milliseconds.
    pub timestamp_ms: Option<u64>,
    /// The event's type, after decryption.
    pub event_type: String,
    /// Which piece of state, if it is one.
    pub state_key: Option<String>,
    /// Its content, after decryption.
    pub content: Object,
    /// Whether it was encrypted.
    pub is_encrypted: bool,
    /// Whether it came from a verified device of its sender.
    pub is_trusted: bool,
    /// Why it is not trusted or could not be read, for people.
    pub doubt: Option<String>,
}

/// Sorts of news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum News {
    /// [`Event::Room`].
    Event,
    /// [`Event::Late`]: it was told before, when it could not be read.
    Late,
    /// [`Event::Invite`].
    Invite,
}

impl KeptEvent {
    fn of(event: &Event) -> Option<Self> {
        let (kind, event) = match event {
            Event::Room(event) => (News::Event, event),
            Event::Late(event) => (News::Late, event),
            Event::Invite { room_id, inviter } => {
                return Some(Self {
                    kind: News::Invite,
                    room_id: room_id.clone(),
                    sender: inviter.clone(),
                    event_id: None,
                    timestamp_ms: None,
                    event_type: "m.room.member".to_owned(),
                    state_key: None,
                    content: Object::new(),
                    is_encrypted: false,
                    is_trusted: false,
                    doubt: None,
                });
            }
            _ => return None,
        };
        Some(Self {
            kind,
            room_id: event.room_id.clone(),
            sender: Some(event.sender.clone()),
            event_id: Some(event.event_id.clone()),
            timestamp_ms: Some(event.timestamp_ms),
            event_type: event.event_type.clone(),
            state_key: event.state_key.clone(),
            content: event.content.clone(),
            is_encrypted: event.secrecy.is_encrypted(),
            is_trusted: event.secrecy.is_trusted(),
            doubt: event.secrecy.doubt(),
        })
    }
}

/// The numbers of what waits.
#[derive(Debug)]
pub(crate) struct Inbox {
    is_open: bool,
    next: u64,
    waiting: BTreeSet<u64>,
}

impl Inbox {
    /// That of this store.
    pub(crate) async fn load(store: &Store) -> Result<Self, Error> {
        let is_open = store.get(OPEN, OWN).await?.unwrap_or(false);
        let kept = store.list::<KeptEvent>(INBOX).await?;
        let waiting: BTreeSet<u64> = kept.keys().filter_map(|number| number.parse().ok()).collect();
        Ok(Self { is_open, next: waiting.last().map_or(0, |last| last + 1), waiting })
    }

    /// Keeps events from now on.
    pub(crate) async fn open(&mut self, store: &Store) -> Result<(), Error> {
        if !self.is_open {
            let mut batch = Batch::new();
            batch.put(OPEN, OWN, &true);
            store.commit(batch).await?;
            self.is_open = true;
        }
        Ok(())
    }

    /// Adds what happened to `batch`, if somebody listens: it is there once that is durable, even if whoever makes it so does not hear of it.
    pub(crate) fn deliver(&mut self, batch: &mut Batch, events: &[Event]) {
        if !self.is_open {
            return;
        }
        for kept in events.iter().filter_map(KeptEvent::of) {
            batch.put(INBOX, self.next.to_string(), &kept);
            self.waiting.insert(self.next);
            self.next += 1;
        }
        while self.waiting.len() > EVENTS_MAX
            && let Some(oldest) = self.waiting.pop_first()
        {
            tracing::warn!("nobody takes the events that are kept: the oldest is dropped");
            batch.delete(INBOX, oldest.to_string());
        }
    }

    /// The oldest events, with their numbers.
    pub(crate) async fn oldest(&self, store: &Store, max: usize) -> Result<Vec<(u64, KeptEvent)>, Error> {
        let mut oldest = Vec::new();
        for number in &self.waiting {
            if oldest.len() == max {
                break;
            }
            // What did not become durable will be told again by the server.
            oldest.extend(store.get(INBOX, &number.to_string()).await?.map(|kept| (*number, kept)));
        }
        Ok(oldest)
    }

    /// Forgets everything up to `number`.
    pub(crate) async fn forget(&mut self, store: &Store, number: u64) -> Result<(), Error> {
        let mut batch = Batch::new();
        for number in self.waiting.range(..=number) {
            batch.delete(INBOX, number.to_string());
        }
        store.commit(batch).await?;
        self.waiting.retain(|waiting| *waiting > number);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ruma::room_id;

    use super::*;
    use crate::StoreKey;

    fn invitation() -> Event {
        Event::Invite { room_id: room_id!("!room:example.org").to_owned(), inviter: None }
    }

    async fn numbers(inbox: &Inbox, store: &Store) -> Vec<u64> {
        inbox.oldest(store, 100).await.unwrap().into_iter().map(|(number, _)| number).collect()
    }

    /// A call may be dropped while it makes something durable, and a program may be killed.
    #[tokio::test]
    async fn an_event_waits_from_when_it_is_durable_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store"), &StoreKey::raw([1; 32])).await.unwrap();
        let mut inbox = Inbox::load(&store).await.unwrap();
        let mut batch = Batch::new();
        inbox.deliver(&mut batch, &[invitation()]);
        assert!(batch.is_empty(), "nobody listens");
        inbox.open(&store).await.unwrap();
        inbox.deliver(&mut batch, &vec![invitation(); 12]);
        assert_eq!(numbers(&inbox, &store).await, [0; 0], "it is not durable yet");
        store.commit(batch).await.unwrap();
        assert_eq!(numbers(&inbox, &store).await, (0..12).collect::<Vec<_>>());
        inbox.forget(&store, 9).await.unwrap();

        let mut inbox = Inbox::load(&store).await.unwrap();
        assert_eq!(numbers(&inbox, &store).await, [10, 11], "in the order in which they came");
        let mut batch = Batch::new();
        inbox.deliver(&mut batch, &[invitation(), Event::BackupReplaced]);
        store.commit(batch).await.unwrap();
        assert_eq!(numbers(&inbox, &store).await, [10, 11, 12], "it is still open, and keeps what happens in rooms");
    }

    #[test]
    fn what_nobody_takes_is_bounded_and_the_newest_stay() {
        let mut inbox = Inbox { is_open: true, next: 0, waiting: BTreeSet::new() };
        for _ in 0..=EVENTS_MAX / 1_000 {
            inbox.deliver(&mut Batch::new(), &vec![invitation(); 1_000]);
        }
        assert_eq!(inbox.waiting.len(), EVENTS_MAX);
        assert_eq!(inbox.waiting.last(), Some(&(EVENTS_MAX as u64 + 999)));
    }
}
