//! What `rooms` asks of other servers.

mod events;
mod membership;
mod reads;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use model::{Membership, Pdu};
use rooms::{
    Asking, EventSigners, JoinAnswer, MemberTemplate, OutgoingInvite, PolicyAnswer, PublicRooms, PublicRoomsRequest,
    RemoteError, RemoteServers, ServedSpace,
};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId,
    ServerName, UserId,
    api::{error::ErrorKind, federation::query::get_room_information},
    signatures::PublicKeyMap,
};

use serde_json::value::RawValue;
use storage::TimelineDirection;

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
                Err(error) if is_not_found(&error) => Ok(None),
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

    fn sign_invite<'a>(
        &'a self,
        as_server: &'a ServerName,
        destination: &'a ServerName,
        invite: &'a OutgoingInvite,
    ) -> Asking<'a, CanonicalJsonObject> {
        Box::pin(async move {
            let signed = self.ask_for_signature(as_server, destination, invite).await;
            signed.map_err(|error| membership::remote_error(destination, error))
        })
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

    fn make_membership<'a>(
        &'a self,
        as_server: &'a ServerName,
        server: &'a ServerName,
        room_id: &'a RoomId,
        user_id: &'a UserId,
        membership: Membership,
    ) -> Asking<'a, MemberTemplate> {
        Box::pin(self.ask_for_template(as_server, server, (room_id, user_id), membership))
    }

    fn send_join<'a>(
        &'a self,
        as_server: &'a ServerName,
        server: &'a ServerName,
        join: &'a Pdu,
        omit_members: bool,
    ) -> Asking<'a, JoinAnswer> {
        Box::pin(self.ask_to_join(as_server, server, join, omit_members))
    }

    fn send_leave<'a>(&'a self, as_server: &'a ServerName, server: &'a ServerName, leave: &'a Pdu) -> Asking<'a, ()> {
        Box::pin(self.ask_to_leave(as_server, server, leave))
    }

    fn send_knock<'a>(
        &'a self,
        as_server: &'a ServerName,
        server: &'a ServerName,
        knock: &'a Pdu,
    ) -> Asking<'a, Vec<Box<RawValue>>> {
        Box::pin(self.ask_to_knock(as_server, server, knock))
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

/// Whether a server says that there is no such thing.
fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Refused { error, .. } if error.error_kind() == Some(&ErrorKind::NotFound))
}

pub(crate) fn unavailable(server: &ServerName, error: Error) -> RemoteError {
    RemoteError::Unavailable { server: server.to_owned(), source: Arc::new(error) }
}
