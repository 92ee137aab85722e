//! Invitations that nobody is told of. Client-Server API, "Ignoring Users", "Invite permission".

use std::collections::HashSet;

use accounts::UserSettings;
use model::{EventNr, Membership, RoomNr};
use storage::RoomMembership;

use crate::{Error, Sync};

impl Sync {
    /// The rooms among these to which somebody invites whom the invited user ignores, or all of them for who wants no invitations. Free for
    /// who wants all.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub(crate) async fn ignored_invites<'a>(
        &self,
        settings: &UserSettings,
        rows: impl Iterator<Item = &'a RoomMembership>,
    ) -> Result<HashSet<RoomNr>, Error> {
        if settings.ignored.is_empty() && !settings.blocks_invites {
            return Ok(HashSet::new());
        }
        let invites = rows.filter(|row| row.membership == Membership::Invite);
        if settings.blocks_invites {
            return Ok(invites.map(|row| row.room_nr).collect());
        }
        let numbers: Vec<EventNr> = invites.map(|row| row.event_nr).collect();
        let events = self.0.storage.get_events(&numbers).await?;
        let events = events.into_values().filter(|event| settings.ignores(&event.pdu.sender));
        Ok(events.map(|event| event.room_nr).collect())
    }
}
