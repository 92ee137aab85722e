//! What other servers are asked about rooms. The door to them fills this; without one there are no others.

use std::{pin::Pin, sync::Arc};

use ruma::{CanonicalJsonObject, OwnedRoomId, OwnedServerName, RoomAliasId, ServerName};

use crate::OutgoingInvite;

/// An answer that takes its time.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, RemoteError>> + Send + 'a>>;

/// Asks other servers about rooms, in the name of one of ours.
pub trait RemoteServers: Send + Sync {
    /// The room that an alias points to, and servers that are in it; nothing when its server knows no such alias.
    fn find_alias<'a>(
        &'a self,
        as_server: &'a ServerName,
        alias: &'a RoomAliasId,
    ) -> Asking<'a, Option<(OwnedRoomId, Vec<OwnedServerName>)>>;

    /// The invitation with the signature of the server whose user is invited, which was verified; all else in it is as it was.
    fn sign_invite<'a>(
        &'a self,
        as_server: &'a ServerName,
        destination: &'a ServerName,
        invite: &'a OutgoingInvite,
    ) -> Asking<'a, CanonicalJsonObject>;
}

/// Why another server gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemoteError {
    /// It was not reached, or made no sense. Trying again later may help.
    #[error("{server} gave no answer")]
    Unavailable {
        /// The server.
        server: OwnedServerName,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// It refused, and said why.
    #[error("{server} refused")]
    Refused {
        /// The server.
        server: OwnedServerName,
        /// What it said.
        #[source]
        error: Box<ruma::api::error::Error>,
    },
    /// This server asks no others.
    #[error("this server does not federate")]
    NotFederating,
}

/// No other servers.
pub(crate) struct Nobody;

impl RemoteServers for Nobody {
    fn find_alias<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _alias: &'a RoomAliasId,
    ) -> Asking<'a, Option<(OwnedRoomId, Vec<OwnedServerName>)>> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    fn sign_invite<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _destination: &'a ServerName,
        _invite: &'a OutgoingInvite,
    ) -> Asking<'a, CanonicalJsonObject> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }
}
