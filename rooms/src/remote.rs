//! What other servers are asked about rooms. The door to them fills this; without one there are no others.

mod events;

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
};

use model::{Membership, Pdu};
use ruma::{
    OwnedRoomId, OwnedServerName, OwnedServerSigningKeyId, RoomAliasId, RoomId, RoomVersionId, ServerName, UserId,
    signatures::PublicKeyMap,
};
use serde_json::value::RawValue;

pub use self::events::{RemoteEvents, StateIds};

/// An answer that takes its time.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, RemoteError>> + Send + 'a>>;

/// Asks other servers about rooms, in the name of one of ours.
pub trait RemoteServers: RemoteEvents {
    /// The room that an alias points to, and servers that are in it; nothing when its server knows no such alias.
    fn find_alias<'a>(
        &'a self,
        as_server: &'a ServerName,
        alias: &'a RoomAliasId,
    ) -> Asking<'a, Option<(OwnedRoomId, Vec<OwnedServerName>)>>;

    /// The public keys by which events may have been signed, for each event; keys that cannot be had are left out.
    ///
    /// Those that are not known are asked for together.
    fn find_public_keys<'a>(&'a self, signers: &'a [EventSigners]) -> Asking<'a, Vec<PublicKeyMap>>;

    /// What the member event has to refer to by which a user of ours joins, leaves or knocks on a room that `server` is in.
    fn make_membership<'a>(
        &'a self,
        as_server: &'a ServerName,
        server: &'a ServerName,
        room_id: &'a RoomId,
        user_id: &'a UserId,
        membership: Membership,
    ) -> Asking<'a, MemberTemplate>;

    /// Has a join brought into its room; gives the room's state before it.
    fn send_join<'a>(
        &'a self,
        as_server: &'a ServerName,
        server: &'a ServerName,
        join: &'a Pdu,
    ) -> Asking<'a, JoinAnswer>;

    /// Has a leave brought into its room.
    fn send_leave<'a>(&'a self, as_server: &'a ServerName, server: &'a ServerName, leave: &'a Pdu) -> Asking<'a, ()>;

    /// Has a knock brought into its room; gives stripped state that shows what the room is.
    fn send_knock<'a>(
        &'a self,
        as_server: &'a ServerName,
        server: &'a ServerName,
        knock: &'a Pdu,
    ) -> Asking<'a, Vec<Box<RawValue>>>;
}

/// What a member event has to refer to.
#[derive(Clone, Debug)]
pub struct MemberTemplate {
    /// The version of the room.
    pub version: RoomVersionId,
    /// The event, not complete and not signed.
    pub event: Box<RawValue>,
}

/// What a resident answers whom it has let in. Nothing of it is checked.
#[derive(Debug)]
pub struct JoinAnswer {
    /// The join event, if the resident has signed it too.
    pub event: Option<Box<RawValue>>,
    /// The state of the room before the join.
    pub state: Vec<Box<RawValue>>,
    /// The events that allow the state and the join, and those that allow them.
    pub auth_chain: Vec<Box<RawValue>>,
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
    /// It understood, and says no.
    #[error("{server} says: {message}")]
    Refused {
        /// The server.
        server: OwnedServerName,
        /// Why, in its words.
        message: String,
        /// Whether it is the rules of the room that forbid it.
        is_forbidden: bool,
    },
    /// What it told makes no sense.
    #[error("{server} broke the protocol: {what}")]
    Misbehaved {
        /// The server.
        server: OwnedServerName,
        /// How.
        what: String,
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

impl RemoteEvents for Nobody {}

impl RemoteServers for Nobody {
    fn find_alias<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _alias: &'a RoomAliasId,
    ) -> Asking<'a, Option<(OwnedRoomId, Vec<OwnedServerName>)>> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    fn find_public_keys<'a>(&'a self, _signers: &'a [EventSigners]) -> Asking<'a, Vec<PublicKeyMap>> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    fn make_membership<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _server: &'a ServerName,
        _room_id: &'a RoomId,
        _user_id: &'a UserId,
        _membership: Membership,
    ) -> Asking<'a, MemberTemplate> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    fn send_join<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _server: &'a ServerName,
        _join: &'a Pdu,
    ) -> Asking<'a, JoinAnswer> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    fn send_leave<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _server: &'a ServerName,
        _leave: &'a Pdu,
    ) -> Asking<'a, ()> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    fn send_knock<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _server: &'a ServerName,
        _knock: &'a Pdu,
    ) -> Asking<'a, Vec<Box<RawValue>>> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }
}
