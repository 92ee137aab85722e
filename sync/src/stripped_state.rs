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
        Ok(events.iter().filter_map(|event| Some(ClientEvent::of(&event.pdu.json).ok()?.to_stripped())).collect())
    }
}
