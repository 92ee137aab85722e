//! What can go wrong with a room.

use std::sync::Arc;

/// Why something was not done to a room.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No such room here, or none that the requester may know of; 404 `M_NOT_FOUND`.
    #[error("the room is not known to this server")]
    RoomUnknown,
    /// No such event, or none that the requester may see; 404 `M_NOT_FOUND`.
    #[error("the event was not found")]
    EventUnknown,
    /// No state of that type and key; 404 `M_NOT_FOUND`.
    #[error("the room has no such state")]
    StateUnknown,
    /// No such alias; 404 `M_NOT_FOUND`.
    #[error("the room alias was not found")]
    AliasUnknown,
    /// The requester is not, or was never, a member; 403 `M_FORBIDDEN`.
    #[error("you are not a member of this room")]
    NotMember,
    /// The rules of the room forbid it; 403 `M_FORBIDDEN`.
    #[error("{0}")]
    NotAllowed(String),
    /// The user lets nobody invite them; 403 `M_INVITE_BLOCKED`.
    #[error("{0} takes no invitations")]
    InviteBlocked(ruma::OwnedUserId),
    /// The room lets no guests in; 403 `M_GUEST_ACCESS_FORBIDDEN`.
    #[error("this room lets no guests in")]
    GuestsForbidden,
    /// The event has no canonical form, or not the shape of its type; 400 `M_BAD_JSON`.
    #[error("{0}")]
    BadEvent(String),
    /// The sender annotates the event like this already; 400 `M_DUPLICATE_ANNOTATION`.
    #[error("you have annotated the event like this already")]
    DuplicateAnnotation,
    /// The events cannot relate to each other in that way; 400 `M_UNKNOWN`.
    #[error("{0}")]
    BadRelation(&'static str),
    /// A parameter makes no sense; 400 `M_INVALID_PARAM`.
    #[error("{0}")]
    InvalidParam(String),
    /// The event would be larger than events may be; 413 `M_TOO_LARGE`.
    #[error("the event is larger than 65536 bytes")]
    TooLarge,
    /// The alias is taken; 400 `M_ROOM_IN_USE` at creation, 409 `M_UNKNOWN` in the directory.
    #[error("the room alias is already taken")]
    AliasInUse,
    /// The alias does not point to the room; 400 `M_BAD_ALIAS`.
    #[error("the alias {0} does not point to this room")]
    BadAlias(String),
    /// We do not know that version; 400 `M_UNSUPPORTED_ROOM_VERSION`.
    #[error("this server does not support room version {0}")]
    UnsupportedVersion(String),
    /// The asking server does not know the version of the room; 400 `M_INCOMPATIBLE_ROOM_VERSION`.
    #[error("the room has version {0}, which your server does not support")]
    IncompatibleVersion(ruma::RoomVersionId),
    /// Whether a condition of a restricted room holds cannot be told here; 400 `M_UNABLE_TO_AUTHORISE_JOIN`.
    #[error("none of our servers is in the rooms whose members may join")]
    UnableToAuthorize,
    /// A condition of a restricted room holds, but nobody of ours may let anybody in; 400 `M_UNABLE_TO_GRANT_JOIN`.
    #[error("none of our users in the room may invite")]
    UnableToGrant,
    /// The room would break its own rules from the start; 400 `M_INVALID_ROOM_STATE`.
    #[error("the room cannot be made like this: {0}")]
    InvalidRoomState(String),
    /// Who was asked, or is to act, is none of ours; 404 `M_NOT_FOUND`.
    #[error("this is no server, and no user, of this deployment")]
    NotLocal,
    /// Another server that had to be asked gave no answer; 502 `M_UNKNOWN`, or 404 `M_NOT_FOUND` when none is asked.
    #[error(transparent)]
    Remote(crate::RemoteError),
    /// The policy server of the room does not recommend the event; what it said is passed on. Server-Server API, "Policy Servers".
    #[error("the policy server of the room refuses the event")]
    RefusedByPolicyServer(#[source] Box<ruma::api::error::Error>),
    /// The policy server of the room does not sign, for it or us; 502 `M_UNKNOWN`.
    #[error("the policy server of the room, {0}, does not sign")]
    PolicyServerSilent(ruma::OwnedServerName),
    /// Too much is waiting to be written, or the room changed again and again; 503, try again later.
    #[error("the server is busy; try again in a moment")]
    Busy,
    /// The cause of an automatic subscription is not in the thread; 400 `M_NOT_IN_THREAD`. MSC4306.
    #[error("the event is not in the thread")]
    NotInThread,
    /// The user has unsubscribed since the cause; 409 `M_CONFLICTING_UNSUBSCRIPTION`. MSC4306.
    #[error("the thread was unsubscribed from after the event")]
    ConflictingUnsubscription,
    /// Ours; 500, logged at the door.
    #[error("storage failed")]
    Storage(#[source] Arc<storage::Error>),
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        Self::Storage(Arc::new(error))
    }
}

impl From<crate::RemoteError> for Error {
    fn from(error: crate::RemoteError) -> Self {
        match error {
            crate::RemoteError::Storage(error) => Self::Storage(error),
            error => Self::Remote(error),
        }
    }
}

/// What is left when nobody acts on it: a commit that may be tried again later, or a database that failed.
impl From<storage::CommitError> for Error {
    fn from(error: storage::CommitError) -> Self {
        match error {
            storage::CommitError::Storage(source) => Self::Storage(source),
            _ => Self::Busy,
        }
    }
}
