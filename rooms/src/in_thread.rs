//! Which thread an event is in. Client-Server API, "Threaded read receipts".

use model::{Pdu, RoomNr};
use ruma::OwnedEventId;
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::Storage;

use crate::Error;

/// How far relations are followed to find an event's thread.
pub(crate) const HOPS_MAX: usize = 3;

/// How an event relates to another.
#[derive(Deserialize)]
pub(crate) struct Relation {
    pub(crate) rel_type: String,
    pub(crate) event_id: OwnedEventId,
}

/// The relation that a content names.
pub(crate) fn relation_of(content: &RawValue) -> Option<Relation> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.relates_to")]
        relates_to: Option<Relation>,
    }
    serde_json::from_str::<Content>(content.get()).ok()?.relates_to
}

/// The root of the thread that an event is in; nothing in the main timeline.
///
/// # Errors
///
/// When the database fails.
pub(crate) async fn thread_root(storage: &Storage, room_nr: RoomNr, pdu: &Pdu) -> Result<Option<OwnedEventId>, Error> {
    let mut relation = relation_of(&pdu.content);
    for hop in 1..=HOPS_MAX {
        let Some(found) = relation else { return Ok(None) };
        if found.rel_type == "m.thread" {
            return Ok(Some(found.event_id));
        }
        if hop == HOPS_MAX {
            break;
        }
        let parent = storage.find_event(&found.event_id).await?.filter(|parent| parent.room_nr == room_nr);
        relation = parent.and_then(|parent| relation_of(&parent.pdu.content));
    }
    Ok(None)
}
