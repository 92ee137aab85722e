//! What `rooms` asks of other servers.

use std::sync::Arc;

use rooms::{Asking, RemoteError, RemoteServers};
use ruma::{
    OwnedRoomId, OwnedServerName, RoomAliasId, ServerName,
    api::{error::ErrorKind, federation::query::get_room_information},
};

use crate::{Error, Federation, client::SHORT};

impl RemoteServers for Federation {
    fn find_alias<'a>(
        &'a self,
        as_server: &'a ServerName,
        alias: &'a RoomAliasId,
    ) -> Asking<'a, Option<(OwnedRoomId, Vec<OwnedServerName>)>> {
        Box::pin(async move {
            let request = get_room_information::v1::Request::new(alias.to_owned());
            let server = alias.server_name();
            match self.client().send(as_server, server, request, SHORT).await {
                Ok(response) => Ok(Some((response.room_id, response.servers))),
                Err(Error::Refused { error, .. }) if error.error_kind() == Some(&ErrorKind::NotFound) => Ok(None),
                Err(error) => Err(unavailable(server, error)),
            }
        })
    }
}

fn unavailable(server: &ServerName, error: Error) -> RemoteError {
    RemoteError::Unavailable { server: server.to_owned(), source: Arc::new(error) }
}
