//! After whom a room without a name is called. Client-Server API, "RoomSummary", `m.heroes`.

use std::collections::HashMap;

use model::{EventNr, Membership, RoomNr, UserNr};

use crate::{Error, Sync};

/// Most members after whom a room is called.
const HEROES_MAX: u32 = 5;

/// Heroes and their member events, oldest first, by room.
pub(crate) type Heroes = HashMap<RoomNr, Vec<(UserNr, EventNr)>>;

impl Sync {
    /// Those after whom rooms are called: the first who are there or invited but for the reader, or where there are none, those who were.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub(crate) async fn heroes(&self, reader: UserNr, rooms: &[RoomNr]) -> Result<Heroes, Error> {
        let mut heroes = Heroes::new();
        let mut missing = rooms.to_vec();
        for kinds in [[Membership::Join, Membership::Invite], [Membership::Leave, Membership::Ban]] {
            if missing.is_empty() {
                break;
            }
            // One more than are shown: the reader may be among them.
            let mut found = self.0.storage.list_oldest_members(&missing, &kinds, HEROES_MAX + 1).await?;
            missing.retain(|room_nr| {
                let mut members = found.remove(room_nr).unwrap_or_default();
                members.retain(|(user_nr, _)| *user_nr != reader);
                members.truncate(HEROES_MAX as usize);
                let is_missing = members.is_empty();
                heroes.insert(*room_nr, members);
                is_missing
            });
        }
        Ok(heroes)
    }
}
