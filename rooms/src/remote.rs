//! What other servers are asked about rooms. The door to them fills this; without one there are no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
};

use model::Pdu;
use ruma::{OwnedRoomId, OwnedServerName, OwnedServerSigningKeyId, RoomAliasId, ServerName, signatures::PublicKeyMap};

use crate::PolicyAnswer;

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

    /// The signature of a room's policy server on an event.
    fn sign_by_policy_server<'a>(
        &'a self,
        as_server: &'a ServerName,
        policy_server: &'a ServerName,
        pdu: &'a Pdu,
    ) -> Asking<'a, PolicyAnswer>;

    /// The public keys by which events may have been signed, for each event; keys that cannot be had are left out.
    ///
    /// Those that are not known are asked for together.
    fn find_public_keys<'a>(&'a self, signers: &'a [EventSigners]) -> Asking<'a, Vec<PublicKeyMap>>;
}

/// By which keys an event must have been signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventSigners {
    /// The servers that must have signed it, with the keys by which each of them did.
    pub keys: BTreeMap<OwnedServerName, BTreeSet<OwnedServerSigningKeyId>>,
    /// When the keys must have been valid, in milliseconds since 1970, if the room version asks for that.
    pub valid_at_ms: Option<i64>,
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
    /// What is known of others could not be read: ours.
    #[error("storage failed")]
    Storage(#[source] Arc<storage::Error>),
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

    fn sign_by_policy_server<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _policy_server: &'a ServerName,
        _pdu: &'a Pdu,
    ) -> Asking<'a, PolicyAnswer> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    fn find_public_keys<'a>(&'a self, _signers: &'a [EventSigners]) -> Asking<'a, Vec<PublicKeyMap>> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }
}
