//! What somebody sees of a room who is not in it. Client-Server API, "Stripped state".

use accounts::Requester;
use model::ClientEvent;
use serde_json::value::RawValue;
use storage::{RoomMembership, RoomRow};

use crate::{Error, Sync};

impl Sync {
    /// What an invited user may see of a room: as it was when they were invited.
    pub(crate) async fn stripped_state(
        &self,
        row: &RoomMembership,
        room: &RoomRow,
        requester: &Requester,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        let Some(member) = self.0.storage.get_event(row.event_nr).await? else { return Ok(Vec::new()) };
        let members = [&*member.pdu.sender, &*requester.user_id];
        let events = self.0.rooms.stripped_state_events(room.nr, member.state, &members).await?;
        let own = events.iter().filter_map(|event| Some(ClientEvent::of(&event.pdu.json).ok()?.to_stripped()));
        if !member.outlier {
            return Ok(own.collect());
        }
        // None of our servers was in the room: what another one showed of it.
        let given = self.0.storage.get_stripped_state(member.nr).await?;
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
