//! Which thread an event is in. Client-Server API, "Threaded read receipts".

use model::{Pdu, Relation, RoomNr};
use ruma::OwnedEventId;
use storage::Storage;

use crate::Error;

/// How far relations are followed to find an event's thread.
pub(crate) const HOPS_MAX: usize = 3;

/// The root of the thread that an event is in; nothing in the main timeline.
///
/// # Errors
///
/// When the database fails.
pub(crate) async fn thread_root(storage: &Storage, room_nr: RoomNr, pdu: &Pdu) -> Result<Option<OwnedEventId>, Error> {
    let mut relation = Relation::of_content(&pdu.content);
    for hop in 1..=HOPS_MAX {
        let Some(found) = relation else { return Ok(None) };
        if found.rel_type == Relation::THREAD {
            return Ok(Some(found.parent));
        }
        if hop == HOPS_MAX {
            break;
        }
        let parent = storage.find_event(&found.parent).await?.filter(|parent| parent.room_nr == room_nr);
        relation = parent.and_then(|parent| parent.relation().cloned());
    }
    Ok(None)
}
