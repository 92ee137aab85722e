//! What somebody sees of a room who is not in it. Client-Server API, "Stripped state".

use accounts::Requester;
use model::ClientEvent;
use serde_json::value::RawValue;
use storage::{RoomMembership, RoomRow};

use crate::{Error, Sync};

/// State that shows somebody who they are invited by and to what. Client-Server API, "Stripped state".
const STRIPPED_STATE: &[&str] = &[
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
];

impl Sync {
    /// What an invited user may see of a room: as it was when they were invited.
    pub(crate) async fn stripped_state(
        &self,
        row: &RoomMembership,
        room: &RoomRow,
        requester: &Requester,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        let storage = &self.0.storage;
        let Some(member) = storage.get_event(row.event_nr).await? else { return Ok(Vec::new()) };
        let mut keys: Vec<(&str, String)> = STRIPPED_STATE.iter().map(|word| (*word, String::new())).collect();
        keys.push(("m.room.member", member.pdu.sender.to_string()));
        keys.push(("m.room.member", requester.user_id.to_string()));
        keys.dedup();
        let mut numbers = Vec::new();
        for (event_type, state_key) in keys {
            if let Some(key) = storage.find_state_key(event_type, &state_key).await? {
                numbers.extend(storage.get_state_event(room.nr, member.state, key).await?);
            }
        }
        let events = storage.get_events(&numbers).await?;
        let own = numbers
            .iter()
            .filter_map(|nr| events.get(nr))
            .filter_map(|event| Some(ClientEvent::of(&event.pdu.json).ok()?.to_stripped()));
        if !member.outlier {
            return Ok(own.collect());
        }
        // None of our servers was in the room: what another one showed of it.
        let given = storage.get_stripped_state(member.nr).await?;
        let given = given.and_then(|json| serde_json::from_str::<Vec<Box<RawValue>>>(&json).ok()).unwrap_or_default();
        let is_own = |event: &RawValue| is_member_event_of(event, requester.user_id.as_str());
        Ok(given.into_iter().filter(|event| !is_own(event)).chain(own).collect())
    }
}

/// Whether this is the member event of that user.
fn is_member_event_of(event: &RawValue, user_id: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Kind {
        #[serde(rename = "type")]
        event_type: String,
        state_key: String,
    }
    let kind = serde_json::from_str::<Kind>(event.get());
    kind.is_ok_and(|kind| kind.event_type == "m.room.member" && kind.state_key == user_id)
}
