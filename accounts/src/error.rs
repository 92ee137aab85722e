//! What can go wrong with accounts.

use ruma::api::client::uiaa::UiaaInfo;

/// Why something was not done; nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The access or refresh token is unknown or has ended; with `soft_logout` the device may log in again. 401 `M_UNKNOWN_TOKEN`.
    #[error("the token is unknown or has ended")]
    UnknownToken {
        /// Whether the client keeps its session. Client-Server API, "Soft logout".
        soft_logout: bool,
    },
    /// The account is locked for now. 401 `M_USER_LOCKED`.
    #[error("this account is locked")]
    UserLocked,
    /// The account was closed for good. 403 `M_USER_DEACTIVATED`.
    #[error("this account has been deactivated")]
    UserDeactivated,
    /// An application service names a device that does not exist. 400 `M_UNKNOWN_DEVICE`.
    #[error("there is no such device")]
    UnknownDevice,
    /// The requester may not do this. 403 `M_FORBIDDEN`.
    #[error("{0}")]
    Forbidden(&'static str),
    /// Guests may not do this. 403 `M_GUEST_ACCESS_FORBIDDEN`.
    #[error("guests may not do this")]
    GuestForbidden,
    /// More authentication is needed, or something was wrong with it. 401 with the flows.
    #[error("more authentication is needed")]
    AuthenticationNeeded(Box<UiaaInfo>),
    /// 400 `M_USER_IN_USE`.
    #[error("this user name is taken")]
    UserInUse,
    /// 400 `M_INVALID_USERNAME`.
    #[error("{0}")]
    InvalidUsername(&'static str),
    /// The name belongs to an application service, or not to this one. 400 `M_EXCLUSIVE`.
    #[error("{0}")]
    Exclusive(&'static str),
    /// 400 `M_WEAK_PASSWORD`.
    #[error("{0}")]
    WeakPassword(&'static str),
    /// 404 `M_NOT_FOUND`.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// 400 `M_INVALID_PARAM`.
    #[error("{0}")]
    InvalidParam(String),
    /// 400 `M_BAD_JSON`.
    #[error("{0}")]
    BadJson(String),
    /// 400 `M_MISSING_PARAM`.
    #[error("{0} is missing")]
    MissingParam(&'static str),
    /// A bad signature on a key. 400 `M_INVALID_SIGNATURE`.
    #[error("{0}")]
    InvalidSignature(String),
    /// Keys go into the newest backup only. 403 `M_WRONG_ROOM_KEYS_VERSION` with the version of that one.
    #[error("this is not the current version of the backup")]
    WrongBackupVersion {
        /// The version of the newest backup.
        current: String,
    },
    /// The endpoint has no such kind of thing. 400 `M_UNKNOWN`.
    #[error("{0}")]
    Unknown(&'static str),
    /// 413 `M_TOO_LARGE`.
    #[error("larger than {0} bytes")]
    TooLarge(usize),
    /// The requester keeps as much as one may. 413 `M_TOO_LARGE`.
    #[error("{0}")]
    TooMuch(&'static str),
    /// 400 `M_PROFILE_TOO_LARGE`.
    #[error("a profile may have at most {0} bytes")]
    ProfileTooLarge(usize),
    /// 400 `M_TOO_LARGE`. MSC4426.
    #[error("a status has a text of at most {text} bytes and an emoji of at most {emoji}")]
    StatusTooLarge {
        /// Most bytes of the text.
        text: usize,
        /// Most bytes of the emoji.
        emoji: usize,
    },
    /// 400 `M_KEY_TOO_LARGE`.
    #[error("the name of a profile field may have at most {0} bytes")]
    KeyTooLarge(usize),
    /// Account data that clients may not set this way. 405 `M_BAD_JSON`. Client-Server API, "Client Config".
    #[error("this type of account data is set by an endpoint of its own")]
    OwnEndpoint,
    /// Too many wrong passwords; one more is taken after this time. 429 `M_LIMIT_EXCEEDED`.
    #[error("too many wrong passwords")]
    LimitExceeded(std::time::Duration),
    /// Another server that had to be asked gave no answer; 502 `M_UNKNOWN`, 403 `M_FORBIDDEN` when it refused, or 404 `M_NOT_FOUND` when none
    /// is asked.
    #[error(transparent)]
    Remote(#[from] crate::RemoteError),
    /// Too much is waiting; 503.
    #[error("the server is busy")]
    Busy,
    /// Ours; 500, logged once, at the door.
    #[error("storage failed")]
    Storage(#[from] storage::Error),
    /// Ours; 500.
    #[error("a commit failed")]
    Commit(#[source] storage::CommitError),
    /// Ours; 500.
    #[error("a password could not be hashed: {0}")]
    Hashing(String),
}

impl From<storage::CommitError> for Error {
    fn from(error: storage::CommitError) -> Self {
        match error {
            storage::CommitError::Busy => Self::Busy,
            other => Self::Commit(other),
        }
    }
}

impl From<model::ContentError> for Error {
    fn from(error: model::ContentError) -> Self {
        Self::BadJson(error.to_string())
    }
}
