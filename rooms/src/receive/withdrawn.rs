//! Invitations that are taken back, and knocks that are turned down, in rooms that none of our servers is in.
//!
//! The server of who does it sends us the event, as of all that happens to our users. We do not know the room, and cannot tell whether it
//! allows that. Synapse believes who has invited; we believe the servers that we would ask to bring the user into the room: that of who has
//! invited, and those of whom the state is that showed the room. All that they can do by it is to end what they have begun.

use std::sync::Arc;

use model::{EventNr, Membership, Pdu};
use ruma::{OwnedEventId, UserId, events::TimelineEventType};
use serde_json::value::RawValue;
use storage::RoomRow;

use super::{Received, legible::legible, verify::id_of};
use crate::{Error, Rooms, head::membership_of, power::rules_of};

impl Rooms {
    /// Takes in, of events of a room that none of ours is in, those by which a user of ours is no longer invited there.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`], [`Error::Busy`], [`Error::Remote`]; for each event that is no such one [`Error::RoomUnknown`].
    pub(super) async fn receive_outside(
        &self,
        room: &Arc<RoomRow>,
        events: Vec<Box<RawValue>>,
    ) -> Result<Vec<(OwnedEventId, Result<Received, Error>)>, Error> {
        let rules = Arc::new(rules_of(&room.version)?);
        let objects: Vec<_> = events.iter().filter_map(|event| legible(event, &rules)).collect();
        let ids: Vec<_> = objects.iter().map(|object| id_of(object, &rules)).collect();
        let mut outcomes = Vec::with_capacity(ids.len());
        for (event_id, (_, read)) in ids.into_iter().zip(self.read_events(room, &rules, objects).await?) {
            let Some(event_id) = event_id else { continue };
            let mut outcome = Err(Error::RoomUnknown);
            if let Ok(event) = read
                && let Some(invited) = self.withdrawn_by(room, &event.pdu).await?
            {
                outcome = match self.verify_events(vec![event]).await?.pop() {
                    Some(Ok(pdu)) => {
                        self.commit_outside_after(room, pdu, None, Some(invited)).await?;
                        Ok(Received::Accepted)
                    }
                    Some(Err(error)) => Err(error),
                    None => Err(Error::Busy),
                };
            }
            outcomes.push((event_id, outcome));
        }
        Ok(outcomes)
    }

    /// The invitation or knock of a user of ours that an event ends, if it does and its sender is believed.
    async fn withdrawn_by(&self, room: &RoomRow, pdu: &Pdu) -> Result<Option<EventNr>, Error> {
        let user = pdu.state_key.as_deref().and_then(|key| <&UserId>::try_from(key).ok());
        let user = user.filter(|user| self.servers().has_user(user) && **user != *pdu.sender);
        let ends = pdu.event_type == TimelineEventType::RoomMember
            && matches!(membership_of(pdu), Some(Membership::Leave | Membership::Ban));
        let (Some(user), true) = (user, ends) else { return Ok(None) };
        let Some(user_nr) = self.storage().find_user_nr(user).await? else { return Ok(None) };
        let Some(row) = self.storage().get_membership(room.nr, user_nr).await? else { return Ok(None) };
        if !matches!(row.membership, Membership::Invite | Membership::Knock) {
            return Ok(None);
        }
        let Some(before) = self.storage().get_event(row.event_nr).await? else { return Ok(None) };
        // What refers to it came after it, and not from who does not know it.
        let is_believed = pdu.auth_events.contains(&before.pdu.event_id)
            && self.residents(user, &room.id, &[]).await?.iter().any(|server| server == pdu.sender.server_name());
        Ok(is_believed.then_some(row.event_nr))
    }
}
