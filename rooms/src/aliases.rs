//! Names of rooms. Client-Server API, "Room aliases".

use accounts::Requester;
use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId};
use storage::RoomRow;

use crate::{Error, Rooms, head};

/// Most servers that are named beside an alias.
const SERVERS_MAX: u32 = 50;

impl Rooms {
    /// The room that an alias of ours points to, and servers that are in it.
    ///
    /// # Errors
    ///
    /// [`Error::AliasUnknown`]; also for an alias of another server, which cannot be asked yet.
    pub async fn resolve_alias(&self, alias: &RoomAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
        let row = self.storage().find_alias(alias.as_str()).await?.ok_or(Error::AliasUnknown)?;
        let room = self.storage().get_rooms(&[row.room_nr]).await?.remove(&row.room_nr).ok_or(Error::AliasUnknown)?;
        let servers = self.storage().list_servers(row.room_nr, SERVERS_MAX).await?;
        Ok((room.id.clone(), servers.into_iter().filter_map(|server| server.try_into().ok()).collect()))
    }

    /// Makes an alias on the requester's server. Client-Server API, "PUT /directory/room/{roomAlias}".
    ///
    /// Any joined member may.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] for an alias of another server, [`Error::AliasInUse`], [`Error::NotMember`].
    pub async fn create_alias(
        &self,
        requester: &Requester,
        alias: &RoomAliasId,
        room_id: &RoomId,
    ) -> Result<(), Error> {
        if alias.server_name() != requester.user_id.server_name() {
            return Err(Error::InvalidParam("an alias is made on your own server".to_owned()));
        }
        let room = self.joined_room(requester, room_id).await?;
        if self.storage().insert_alias(alias.as_str(), room.nr, requester.user_nr).await? {
            Ok(())
        } else {
            Err(Error::AliasInUse)
        }
    }

    /// Removes an alias of ours. Client-Server API, "DELETE /directory/room/{roomAlias}".
    ///
    /// Who made it may, an administrator of the server, and who may change `m.room.canonical_alias` in the room.
    ///
    /// # Errors
    ///
    /// [`Error::AliasUnknown`], [`Error::NotAllowed`].
    pub async fn delete_alias(&self, requester: &Requester, alias: &RoomAliasId) -> Result<(), Error> {
        let row = self.storage().find_alias(alias.as_str()).await?.ok_or(Error::AliasUnknown)?;
        let room = self.storage().get_rooms(&[row.room_nr]).await?.remove(&row.room_nr).ok_or(Error::AliasUnknown)?;
        if row.creator_nr != requester.user_nr
            && !requester.is_admin
            && !self.may_send_state(requester, &room, "m.room.canonical_alias").await?
        {
            return Err(Error::NotAllowed(
                "an alias is removed by who made it, or who may change the room's canonical alias".to_owned(),
            ));
        }
        if self.storage().delete_alias(alias.as_str()).await? { Ok(()) } else { Err(Error::AliasUnknown) }
    }

    /// The aliases that a room has here. Client-Server API, "GET /rooms/{roomId}/aliases".
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`] for all but joined members, unless the room is readable for the world.
    pub async fn aliases(&self, requester: &Requester, room_id: &RoomId) -> Result<Vec<OwnedRoomAliasId>, Error> {
        let reader = self.reader(requester, room_id).await?;
        if !reader.is_joined() && !self.is_world_readable(reader.room.nr).await? {
            return Err(Error::NotMember);
        }
        let rows = self.storage().list_aliases(reader.room.nr).await?;
        Ok(rows.into_iter().filter_map(|row| row.alias.try_into().ok()).collect())
    }

    /// Whether a joined member has the power to send a kind of state.
    pub(crate) async fn may_send_state(
        &self,
        requester: &Requester,
        room: &RoomRow,
        event_type: &str,
    ) -> Result<bool, Error> {
        let membership = self.storage().get_membership(room.nr, requester.user_nr).await?;
        if membership.is_none_or(|row| row.membership != model::Membership::Join) {
            return Ok(false);
        }
        let power = self.power_of_room(room).await?;
        Ok(power.of_user(&requester.user_id) >= power.needed_for_state(event_type))
    }

    /// The power levels of a room of now.
    pub(crate) async fn power_of_room(&self, room: &RoomRow) -> Result<head::Power, Error> {
        let rules = room.version.rules().ok_or_else(|| Error::UnsupportedVersion(room.version.to_string()))?;
        let mut state = std::collections::HashMap::new();
        for event_type in ["m.room.create", "m.room.power_levels"] {
            if let Some(event) = self.find_state(room, event_type, "").await? {
                state.insert((event_type.into(), String::new()), (event.nr, event.pdu.clone()));
            }
        }
        head::power_levels(&rules, &state)
    }
}
