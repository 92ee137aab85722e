//! What `rooms` asks of other servers.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use model::Pdu;
use rooms::{Asking, EventSigners, PolicyAnswer, RemoteError, RemoteServers};
use ruma::{
    OwnedRoomId, OwnedServerName, RoomAliasId, ServerName,
    api::{error::ErrorKind, federation::query::get_room_information},
    signatures::PublicKeyMap,
};

use crate::{
    Error, Federation,
    client::SHORT,
    keys::{Known, Wanted},
    policy_servers,
};

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

    fn sign_by_policy_server<'a>(
        &'a self,
        as_server: &'a ServerName,
        policy_server: &'a ServerName,
        pdu: &'a Pdu,
    ) -> Asking<'a, PolicyAnswer> {
        Box::pin(policy_servers::sign(self, as_server, policy_server, pdu))
    }

    fn find_public_keys<'a>(&'a self, signers: &'a [EventSigners]) -> Asking<'a, Vec<PublicKeyMap>> {
        Box::pin(async move {
            let mut wanted: BTreeMap<OwnedServerName, Wanted> = BTreeMap::new();
            for (server, key_ids, valid_at_ms) in signers
                .iter()
                .flat_map(|of_event| of_event.keys.iter().map(|(server, ids)| (server, ids, of_event.valid_at_ms)))
            {
                let wanted = wanted.entry(server.clone()).or_default();
                wanted.key_ids.extend(key_ids.iter().cloned());
                wanted.valid_at_ms = wanted.valid_at_ms.max(valid_at_ms.unwrap_or(0));
            }
            let known = self.keys().get_all(wanted).await.map_err(|error| match error {
                Error::Storage(error) => RemoteError::Storage(Arc::new(error)),
                error => unavailable(self.servers().primary(), error),
            })?;
            Ok(signers.iter().map(|signers| keys_of(signers, &known)).collect())
        })
    }
}

/// The keys of an event's signers that were valid when the room version wants them to be. Room Version 5, "Signing key validity period".
fn keys_of(signers: &EventSigners, known: &HashMap<OwnedServerName, Arc<Known>>) -> PublicKeyMap {
    let keys = signers.keys.iter().filter_map(|(server, key_ids)| {
        let mut keys = known.get(server)?.valid_at(signers.valid_at_ms.unwrap_or(i64::MIN));
        keys.retain(|id, _| key_ids.iter().any(|wanted| wanted.as_str() == id));
        Some((server.to_string(), keys))
    });
    keys.collect()
}

pub(crate) fn unavailable(server: &ServerName, error: Error) -> RemoteError {
    RemoteError::Unavailable { server: server.to_owned(), source: Arc::new(error) }
}
