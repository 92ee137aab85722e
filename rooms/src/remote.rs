//! What other servers are asked about rooms. The door to them fills this; without one there are no others.

mod events;

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
};

use model::{Membership, Pdu};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName,
    OwnedServerSigningKeyId, RoomAliasId, RoomId, RoomVersionId, ServerName, UserId,
    api::error::{Error as RumaError, ErrorBody, ErrorKind, StandardErrorBody},
    signatures::PublicKeyMap,
};
use serde_json::value::RawValue;
use storage::TimelineDirection;

use crate::{OutgoingInvite, PolicyAnswer, PublicRooms, PublicRoomsRequest, ServedSpace};

/// Most characters of what another server says that somebody is shown.
const MESSAGE_LENGTH_MAX: usize = 500;

pub use self::events::{RemoteEvents, StateIds};

/// An answer that takes its time.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, RemoteError>> + Send + 'a>>;

/// Asks other servers about rooms, in the name of one of ours.
pub trait RemoteServers: RemoteEvents {
    /// The room that an alias points to, and servers that are in it; nothing when its server knows no such alias.
    fn find_alias<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _alias: &'a RoomAliasId,
    ) -> Asking<'a, Option<(OwnedRoomId, Vec<OwnedServerName>)>> {
        nobody()
    }

    /// The signature of a room's policy server on an event.
    fn sign_by_policy_server<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _policy_server: &'a ServerName,
        _pdu: &'a Pdu,
    ) -> Asking<'a, PolicyAnswer> {
        nobody()
    }

    /// A page of another server's directory: its tokens are that server's.
    fn public_rooms<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _asked: &'a PublicRoomsRequest<'a>,
    ) -> Asking<'a, PublicRooms> {
        nobody()
    }

    /// A space as another server tells of it, or another room; nothing when it does not, or not to us.
    fn space<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _server: &'a ServerName,
        _room_id: &'a RoomId,
    ) -> Asking<'a, Option<ServedSpace>> {
        nobody()
    }

    /// The event of a room closest to a time that another server knows, and when it was made.
    fn event_by_timestamp<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _server: &'a ServerName,
        _room_id: &'a RoomId,
        _time: MilliSecondsSinceUnixEpoch,
        _direction: TimelineDirection,
    ) -> Asking<'a, Option<(OwnedEventId, MilliSecondsSinceUnixEpoch)>> {
        nobody()
    }

    /// The invitation with the signature of the server whose user is invited, which was verified; all else in it is as it was.
    fn sign_invite<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _destination: &'a ServerName,
        _invite: &'a OutgoingInvite,
    ) -> Asking<'a, CanonicalJsonObject> {
        nobody()
    }

    /// The public keys by which events may have been signed, for each event; keys that cannot be had are left out.
    ///
    /// Those that are not known are asked for together.
    fn find_public_keys<'a>(&'a self, _signers: &'a [EventSigners]) -> Asking<'a, Vec<PublicKeyMap>> {
        nobody()
    }

    /// What the member event has to refer to by which a user of ours joins, leaves or knocks on a room that `server` is in.
    fn make_membership<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _server: &'a ServerName,
        _room_id: &'a RoomId,
        _user_id: &'a UserId,
        _membership: Membership,
    ) -> Asking<'a, MemberTemplate> {
        nobody()
    }

    /// Has a join brought into its room; gives the room's state before it, with `omit_members` one that may lack members.
    fn send_join<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _server: &'a ServerName,
        _join: &'a Pdu,
        _omit_members: bool,
    ) -> Asking<'a, JoinAnswer> {
        nobody()
    }

    /// Has a leave brought into its room.
    fn send_leave<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _server: &'a ServerName,
        _leave: &'a Pdu,
    ) -> Asking<'a, ()> {
        nobody()
    }

    /// Has a knock brought into its room; gives stripped state that shows what the room is.
    fn send_knock<'a>(
        &'a self,
        _as_server: &'a ServerName,
        _server: &'a ServerName,
        _knock: &'a Pdu,
    ) -> Asking<'a, Vec<Box<RawValue>>> {
        nobody()
    }
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
    /// Whether the state lacks members.
    pub members_omitted: bool,
    /// The servers that are in the room, where members were left out.
    pub servers: Vec<String>,
}

/// By which keys an event must have been signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventSigners {
    /// The servers that must have signed it, with the keys by which each of them did.
    pub keys: BTreeMap<OwnedServerName, BTreeSet<OwnedServerSigningKeyId>>,
    /// When the keys must have been valid, in milliseconds since 1970, if the room version asks for that.
    pub valid_at_ms: Option<i64>,
}

/// What there is to hear where nobody is asked.
fn nobody<'a, T: Send + 'a>() -> Asking<'a, T> {
    Box::pin(async { Err(RemoteError::NotFederating) })
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
    /// The room has a version that we do not know.
    #[error("the room has version {0}, which this server does not support")]
    UnsupportedVersion(RoomVersionId),
    /// It understood, and says no.
    #[error("{server} says: {}", told(error))]
    Refused {
        /// The server.
        server: OwnedServerName,
        /// What it said.
        error: Box<RumaError>,
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

impl RemoteError {
    /// Whether it is the rules of the room that forbid what was asked for.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        let Self::Refused { error, .. } = self else { return false };
        matches!(error.error_kind(), Some(ErrorKind::Forbidden | ErrorKind::UnableToGrantJoin))
    }
}

/// What another server says in words, as far as somebody can read it.
fn told(error: &RumaError) -> String {
    match &error.body {
        // On one line: it goes into the log, too.
        ErrorBody::Standard(StandardErrorBody { message, .. }) => {
            message.chars().filter(|char| !char.is_control()).take(MESSAGE_LENGTH_MAX).collect()
        }
        _ => error.status_code.to_string(),
    }
}

/// No other servers.
pub(crate) struct Nobody;

impl RemoteEvents for Nobody {}

impl RemoteServers for Nobody {}
