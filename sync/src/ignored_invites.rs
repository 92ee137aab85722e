//! Invitations that nobody is told of. Client-Server API, "Ignoring Users".

use std::collections::HashSet;

use accounts::UserSettings;
use model::{EventNr, Membership, RoomNr};
use storage::RoomMembership;

use crate::{Error, Sync};

impl Sync {
    /// The rooms among these to which somebody invites whom the invited user ignores. Free for who ignores nobody.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub(crate) async fn ignored_invites<'a>(
        &self,
        settings: &UserSettings,
        rows: impl Iterator<Item = &'a RoomMembership>,
    ) -> Result<HashSet<RoomNr>, Error> {
        if settings.ignored.is_empty() {
            return Ok(HashSet::new());
        }
        let invites = rows.filter(|row| row.membership == Membership::Invite);
        let numbers: Vec<EventNr> = invites.map(|row| row.event_nr).collect();
        let events = self.0.storage.get_events(&numbers).await?;
        let events = events.into_values().filter(|event| settings.ignores(&event.pdu.sender));
        Ok(events.map(|event| event.room_nr).collect())
    }
}
