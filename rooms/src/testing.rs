//! For tests: other servers of which only the keys are known.

use ruma::{CanonicalJsonObject, RoomId, server_name, signatures::PublicKeyMap};
use serde_json::value::{RawValue, to_raw_value};

use crate::{Asking, Error, EventSigners, Received, RemoteEvents, RemoteServers, Rooms, Source};

/// Other servers that answer nothing, and have these keys.
#[derive(Clone, Debug)]
pub struct KnownKeys(pub PublicKeyMap);

impl RemoteEvents for KnownKeys {}

impl RemoteServers for KnownKeys {
    fn find_public_keys<'a>(&'a self, signers: &'a [EventSigners]) -> Asking<'a, Vec<PublicKeyMap>> {
        Box::pin(async move { Ok(signers.iter().map(|_| self.0.clone()).collect()) })
    }
}

/// Takes in one event of the server `other`, also when nobody of ours is in its room.
///
/// # Errors
///
/// What became of it, or of the whole.
pub async fn receive(rooms: &Rooms, object: CanonicalJsonObject) -> Result<Received, Error> {
    let source = Source { as_server: rooms.servers().primary(), server: server_name!("other") };
    let room_id = object.get("room_id").and_then(|id| id.as_str()).and_then(|id| RoomId::parse(id).ok());
    let room = rooms.room(&room_id.ok_or(Error::RoomUnknown)?).await?;
    let head = rooms.storage().get_head(room.nr).await?.ok_or(Error::RoomUnknown)?;
    let outcomes = rooms.receive_of_rooms(source, vec![(room, head.state, vec![raw(&object)])]).await?;
    outcomes.into_values().next().unwrap_or_else(|| Err(Error::BadEvent("it has no id".to_owned())))
}

/// An event as another server sends it.
///
/// # Panics
///
/// Never: canonical JSON is JSON.
#[must_use]
pub fn raw(object: &CanonicalJsonObject) -> Box<RawValue> {
    to_raw_value(object).expect("canonical JSON is JSON")
}
