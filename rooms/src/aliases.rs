//! Names of rooms. Client-Server API, "Room aliases".

use accounts::Requester;
use ruma::{
    OwnedRoomAliasId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, ServerName, events::TimelineEventType,
};
use serde::Deserialize;
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};
use storage::RoomRow;
use tracing::debug;

use crate::{Error, Rooms};

/// Most servers that are named beside an alias.
const SERVERS_MAX: u32 = 50;

const CANONICAL: &str = "m.room.canonical_alias";

/// The aliases that the content of `m.room.canonical_alias` names.
pub(crate) fn named_aliases(content: &RawValue) -> Result<Vec<String>, Error> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Content {
        alias: Option<String>,
        alt_aliases: Vec<String>,
    }
    let content: Content = serde_json::from_str(content.get()).map_err(|error| Error::BadEvent(error.to_string()))?;
    Ok(content.alias.into_iter().chain(content.alt_aliases).collect())
}

/// Leaves in the content of `m.room.canonical_alias` only some of the aliases that it names; whether any was taken off.
pub(crate) fn keep_aliases(content: &mut Map<String, Value>, keep: impl Fn(&str) -> bool) -> bool {
    let mut is_changed = false;
    if content.get("alias").and_then(Value::as_str).is_some_and(|alias| !keep(alias)) {
        content.remove("alias");
        is_changed = true;
    }
    if let Some(Value::Array(others)) = content.get_mut("alt_aliases") {
        let before = others.len();
        others.retain(|alias| alias.as_str().is_none_or(&keep));
        is_changed |= others.len() != before;
    }
    is_changed
}

impl Rooms {
    /// The room that an alias points to, and servers that are in it; the server of the alias is asked, if it is not ours.
    ///
    /// # Errors
    ///
    /// [`Error::AliasUnknown`]; [`Error::Remote`] when its server gives no answer.
    pub async fn resolve_alias(
        &self,
        as_server: &ServerName,
        alias: &RoomAliasId,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
        if self.servers().is_local(alias.server_name()) {
            return self.resolve_local_alias(alias).await;
        }
        self.remote().find_alias(as_server, alias).await?.ok_or(Error::AliasUnknown)
    }

    /// The room that an alias of ours points to, and servers that are in it. Server-Server API, "GET /query/directory".
    ///
    /// # Errors
    ///
    /// [`Error::AliasUnknown`].
    pub async fn resolve_local_alias(&self, alias: &RoomAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
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
    /// Who made it may, an administrator of the server, and who may change `m.room.canonical_alias` in the room. That event loses the
    /// alias, too, if the requester may change it.
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
        if !self.storage().delete_alias(alias.as_str()).await? {
            return Err(Error::AliasUnknown);
        }
        // Whether or not the requester may change the room: the alias is gone.
        if let Err(error) = self.take_off(requester, &room, alias).await {
            debug!(room.id = %room.id, %error, "an alias that was removed is still named by its room");
        }
        Ok(())
    }

    /// Takes an alias that was removed off those that the room names.
    async fn take_off(&self, requester: &Requester, room: &RoomRow, alias: &RoomAliasId) -> Result<(), Error> {
        let Some(event) = self.find_state(room, CANONICAL, "").await? else { return Ok(()) };
        let mut content: Map<String, Value> = serde_json::from_str(event.pdu.content.get()).unwrap_or_default();
        if !keep_aliases(&mut content, |named| named != alias.as_str()) {
            return Ok(());
        }
        let content = to_raw_value(&content).map_err(|error| Error::BadEvent(error.to_string()))?;
        self.send_state(requester, &room.id, TimelineEventType::RoomCanonicalAlias, "", &content, None).await?;
        Ok(())
    }

    /// New aliases in `m.room.canonical_alias` must point to the room. Client-Server API, "m.room.canonical_alias".
    pub(crate) async fn check_canonical_aliases(&self, room: &RoomRow, content: &RawValue) -> Result<(), Error> {
        let old = self.find_state(room, CANONICAL, "").await?;
        let old = old.and_then(|event| named_aliases(&event.pdu.content).ok()).unwrap_or_default();
        let mut new = named_aliases(content)?;
        new.retain(|alias| !old.contains(alias));
        if let Some(alias) = new.iter().find(|alias| RoomAliasId::parse(alias).is_err()) {
            return Err(Error::InvalidParam(format!("`{alias}` is not a room alias")));
        }
        if new.is_empty() {
            return Ok(());
        }
        let ours = self.storage().find_aliases(new.clone()).await?;
        let points_here = |alias: &String| ours.iter().any(|row| row.alias == *alias && row.room_nr == room.nr);
        match new.into_iter().find(|alias| !points_here(alias)) {
            Some(alias) => Err(Error::BadAlias(alias)),
            None => Ok(()),
        }
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
}
