//! What `rooms` asks of other servers.

use std::sync::Arc;

use rooms::{Asking, OutgoingInvite, RemoteError, RemoteServers};
use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedServerName, RoomAliasId, ServerName,
    api::{error::ErrorKind, federation::query::get_room_information},
};

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
                Err(Error::Refused { error, .. }) if error.error_kind() == Some(&ErrorKind::NotFound) => Ok(None),
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
}

fn unavailable(server: &ServerName, error: Error) -> RemoteError {
    RemoteError::Unavailable { server: server.to_owned(), source: Arc::new(error) }
}
