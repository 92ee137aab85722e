//! What `rooms` asks of other servers.

mod reads;

use std::sync::Arc;

use rooms::{Asking, OutgoingInvite, PublicRooms, PublicRoomsRequest, RemoteError, RemoteServers, ServedSpace};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId,
    ServerName,
    api::{error::ErrorKind, federation::query::get_room_information},
};
use storage::TimelineDirection;

use crate::{Error, Federation, client::SMALL};

impl RemoteServers for Federation {
    fn find_alias<'a>(
        &'a self,
        as_server: &'a ServerName,
        alias: &'a RoomAliasId,
    ) -> Asking<'a, Option<(OwnedRoomId, Vec<OwnedServerName>)>> {
        Box::pin(async move {
            let request = get_room_information::v1::Request::new(alias.to_owned());
            let server = alias.server_name();
            match self.client().send(as_server, server, request, SMALL).await {
                Ok(response) => Ok(Some((response.room_id, response.servers))),
                Err(error) if is_not_found(&error) => Ok(None),
                Err(error) => Err(unavailable(server, error)),
            }
        })
    }

    fn sign_invite<'a>(
        &'a self,
        as_server: &'a ServerName,
        destination: &'a ServerName,
        invite: &'a OutgoingInvite,
    ) -> Asking<'a, CanonicalJsonObject> {
        Box::pin(async move {
            let signed = self.ask_for_signature(as_server, destination, invite).await;
            signed.map_err(|error| match error {
                Error::Refused { server, error } => RemoteError::Refused { server, error },
                error => unavailable(destination, error),
            })
        })
    }

    fn public_rooms<'a>(
        &'a self,
        as_server: &'a ServerName,
        asked: &'a PublicRoomsRequest<'a>,
    ) -> Asking<'a, PublicRooms> {
        Box::pin(reads::public_rooms(self, as_server, asked))
    }

    fn space<'a>(
        &'a self,
        as_server: &'a ServerName,
        server: &'a ServerName,
        room_id: &'a RoomId,
    ) -> Asking<'a, Option<ServedSpace>> {
        Box::pin(reads::space(self, as_server, server, room_id))
    }

    fn event_by_timestamp<'a>(
        &'a self,
        as_server: &'a ServerName,
        server: &'a ServerName,
        room_id: &'a RoomId,
        time: MilliSecondsSinceUnixEpoch,
        direction: TimelineDirection,
    ) -> Asking<'a, Option<(OwnedEventId, MilliSecondsSinceUnixEpoch)>> {
        Box::pin(reads::event_by_timestamp(self, as_server, server, room_id, (time, direction)))
    }
}

/// Whether a server says that there is no such thing.
fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Refused { error, .. } if error.error_kind() == Some(&ErrorKind::NotFound))
}

fn unavailable(server: &ServerName, error: Error) -> RemoteError {
    RemoteError::Unavailable { server: server.to_owned(), source: Arc::new(error) }
}
