//! Which thread an event is in. Client-Server API, "Threaded read receipts".

use model::{Pdu, Relation, RoomNr, Thread};
use ruma::OwnedEventId;
use storage::{Storage, StoredEvent};

use crate::Error;

/// How far relations are followed to find an event's thread.
const HOPS_MAX: usize = 3;

/// What is found out about the thread of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InThread {
    /// It is in none.
    Main,
    /// It is in the one with that root.
    Root(OwnedEventId),
    /// What it related to is gone: it, or the event that it relates to, is redacted.
    Unknown,
}

impl From<InThread> for Thread {
    /// Of which nothing is known counts as in the main timeline.
    fn from(found: InThread) -> Self {
        match found {
            InThread::Root(root) => Self::Root(root),
            InThread::Main | InThread::Unknown => Self::Main,
        }
    }
}

/// The thread that a new event is in.
///
/// # Errors
///
/// When the database fails.
pub(crate) async fn thread_of_new(storage: &Storage, room_nr: RoomNr, pdu: &Pdu) -> Result<InThread, Error> {
    follow(storage, room_nr, Relation::of_content(&pdu.content)).await
}

/// The thread that an event is in, as far as it can be told now. A thread's root is not in it.
///
/// # Errors
///
/// When the database fails.
pub(crate) async fn thread_of(storage: &Storage, event: &StoredEvent) -> Result<InThread, Error> {
    if event.redacted_by.is_some() {
        return Ok(InThread::Unknown);
    }
    follow(storage, event.room_nr, event.relation().cloned()).await
}

async fn follow(storage: &Storage, room_nr: RoomNr, relation: Option<Relation>) -> Result<InThread, Error> {
    let mut relation = relation;
    for hop in 1..=HOPS_MAX {
        let Some(found) = relation else { break };
        if found.rel_type == Relation::THREAD {
            return Ok(InThread::Root(found.parent));
        }
        if hop == HOPS_MAX {
            break;
        }
        let parent = storage.find_event(&found.parent).await?.filter(|parent| parent.room_nr == room_nr);
        let Some(parent) = parent else { break };
        if parent.redacted_by.is_some() {
            return Ok(InThread::Unknown);
        }
        relation = parent.relation().cloned();
    }
    Ok(InThread::Main)
}
