//! What can go wrong, by what the caller may do about it.

use std::time::Duration;

use ruma::{
    OwnedRoomId, OwnedUserId,
    api::{
        client::uiaa::{UiaaInfo, UiaaResponse},
        error::{ErrorKind, RetryAfter},
    },
};

/// Longest wait that a server may ask for: with what it says beyond that no sum of times overflows.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server does not do this, for this user or at all. Asking again will not help, unless `status` is 429 or above 499.
    #[error("the server refused: {message} ({code}, status {status})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The `errcode`, or `M_UNKNOWN` where the server gave none.
        code: String,
        /// What the server says to people.
        message: String,
        /// When the server wants to be asked again, if it said so.
        retry_after: Option<Duration>,
    },
    /// The server wants to know again who asks. Client-Server API, "User-Interactive Authentication API".
    #[error("the server wants this confirmed by the user's password")]
    NeedsAuthentication(Box<UiaaInfo>),
    /// The session has ended: log in again.
    #[error("this device is logged out")]
    LoggedOut,
    /// No answer came, however often it was asked. What was to be sent may or may not have arrived.
    #[error("the server does not answer")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An answer broke the protocol. Asking again will not help.
    #[error("the server's answer broke the rule on {0}")]
    ServerMisbehaved(&'static str),
    /// An answer could not be read.
    #[error("the server's answer is not what the specification says")]
    Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The address of the server is none.
    #[error("`{0}` is not the address of a server")]
    NotAServer(String),

    /// The message is kept and will be sent as soon as the server takes it: it must not be sent again.
    #[error("the server does not take the message now; it is kept and will be sent later")]
    NotSentYet(#[source] Box<Error>),
    /// The client is not in this room, or has not heard of it yet.
    #[error("this device knows no room {0} that its user is in")]
    UnknownRoom(OwnedRoomId),
    /// The room asks for an encryption that this client does not know. It does not send in clear instead.
    #[error("the room is encrypted by `{0}`, which this client does not know")]
    UnknownAlgorithm(String),
    /// The server shows other identities of these users than the ones that were verified. Nothing is encrypted for them until somebody
    /// verifies or accepts the new ones. Client-Server API, "Recommended client behaviour".
    #[error("the identity of {} is not the one that was verified: verify or accept it", list(.0))]
    IdentityChanged(Vec<OwnedUserId>),
    /// There is no such device, or its keys are not to be believed.
    #[error("{user_id} has no device {device_id} with keys that can be believed")]
    UnknownDevice {
        /// Whose device it would be.
        user_id: OwnedUserId,
        /// Which one.
        device_id: ruma::OwnedDeviceId,
    },
    /// What somebody sent cannot be read as what it should be; says what it should have been.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// A key, signature or encrypted text is not what it claims to be; says what is wrong with it.
    #[error("not to be believed: {0}")]
    Forged(&'static str),

    /// The recovery key is mistyped.
    #[error("this is not a recovery key: please check it letter by letter")]
    MistypedKey,
    /// The recovery key or passphrase is another one, or what it should open was changed.
    #[error("this key or passphrase does not open the secret storage")]
    WrongSecretStorageKey,
    /// The key of a backup is that of another version of it.
    #[error("this is not the key of the backup that the server has")]
    WrongBackupKey,
    /// What this takes of the user's cross-signing keys is not on this device: verify it, or restore from secret storage.
    #[error("the private keys of the user's identity are not on this device")]
    NoIdentity,
    /// The user has an identity: verify this device or recover, instead of making another one.
    #[error("the user has an identity already: verify this device, or recover")]
    IdentityExists,
    /// The user has a backup of room keys that this device cannot read: recover, instead of making another one.
    #[error("there is a backup of room keys already: recover it")]
    BackupExists,
    /// There is no backup of room keys, or no secret storage.
    #[error("the user has no {0}")]
    Absent(&'static str),
    /// It is not the time for this; says what is.
    #[error("not now: {0}")]
    NotNow(&'static str),
    /// A file is not the one that was sent: nothing of it was kept.
    #[error("the file was changed on its way")]
    AttachmentChanged,
    /// Something is larger than the caller or this client allows.
    #[error("it is larger than {bytes_max} bytes")]
    TooLarge {
        /// The bound.
        bytes_max: u64,
    },

    /// The passphrase or key does not open this store.
    #[error("the passphrase does not open this store")]
    WrongPassphrase,
    /// Another program has the store open. Two that use the same keys would break each other's encryption.
    #[error("the store is in use by another program")]
    StoreInUse,
    /// The store has no session in it: log in first.
    #[error("nobody is logged in with this store")]
    NotLoggedIn,
    /// The store belongs to another session: use another one, or log that one out.
    #[error("the store belongs to {0}, who is logged in")]
    StoreTaken(OwnedUserId),
    /// A value of the store is not what was written: the file is damaged, or somebody changed it.
    #[error("the store is damaged: {0}")]
    StoreDamaged(&'static str),
    /// The store is of a newer version of this program.
    #[error("the store was written by a newer version ({0}) of this program")]
    StoreTooNew(i64),
    /// The disk or the database failed.
    #[error("the store failed")]
    Store(#[from] sqlx::Error),
    /// A file could not be read or written.
    #[error("a file could not be read or written")]
    File(#[from] std::io::Error),
}

impl Error {
    /// Whether the same may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::NotSentYet(_) => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// Whether nothing else can be done before somebody acts: logs in again, or makes room on the disk.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self, Self::LoggedOut | Self::Store(_) | Self::StoreDamaged(_))
    }

    /// The gravest of what went wrong: what is fatal, else what may pass by itself, else the first.
    pub(crate) fn gravest(results: impl IntoIterator<Item = Result<(), Self>>) -> Result<(), Self> {
        let errors = results.into_iter().filter_map(Result::err);
        errors.min_by_key(|error| (!error.is_fatal(), !error.is_temporary())).map_or(Ok(()), Err)
    }
}

fn list(users: &[OwnedUserId]) -> String {
    users.iter().map(|user_id| user_id.as_str()).collect::<Vec<_>>().join(", ")
}

impl From<ruma::api::error::Error> for Error {
    fn from(error: ruma::api::error::Error) -> Self {
        let status = error.status_code.as_u16();
        let retry_after = match error.error_kind() {
            Some(ErrorKind::UnknownToken(_)) => return Self::LoggedOut,
            Some(ErrorKind::LimitExceeded(limit)) => match limit.retry_after {
                Some(RetryAfter::Delay(delay)) => Some(delay.min(RETRY_AFTER_MAX)),
                _ => None,
            },
            _ => None,
        };
        let (code, message) = match &error.body {
            ruma::api::error::ErrorBody::Standard(body) => (body.kind.errcode().to_string(), body.message.clone()),
            _ => ("M_UNKNOWN".to_owned(), "no reason that can be read".to_owned()),
        };
        Self::Refused { status, code, message, retry_after }
    }
}

impl From<UiaaResponse> for Error {
    fn from(response: UiaaResponse) -> Self {
        match response {
            UiaaResponse::AuthResponse(info) => Self::NeedsAuthentication(Box::new(info)),
            UiaaResponse::MatrixError(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::api::{IncomingResponseExt as _, client::account::whoami};

    use super::*;

    #[test]
    fn a_wait_without_end_can_be_added_to() {
        let answer = http::Response::builder()
            .status(429)
            .header(http::header::RETRY_AFTER, u64::MAX.to_string())
            .body(br#"{"errcode":"M_LIMIT_EXCEEDED","error":"later"}"#.as_slice())
            .unwrap();
        let error = crate::api::failed(whoami::v3::Response::try_from_http_response(answer).unwrap_err());
        let Error::Refused { status: 429, retry_after: Some(wait), .. } = error else { panic!("{error:?}") };
        assert!(wait + Duration::from_secs(60) < Duration::from_secs(48 * 3600));
    }

    /// A full disk must not be hidden by a server that is away.
    #[test]
    fn what_is_fatal_is_told_before_what_passes_and_that_before_the_rest() {
        let away = || Err(Error::Unreachable("away".into()));
        let refused = || Err(Error::Malformed("answer"));
        assert!(matches!(Error::gravest([refused(), away(), Err(Error::LoggedOut)]), Err(Error::LoggedOut)));
        assert!(matches!(Error::gravest([Ok(()), refused(), away()]), Err(Error::Unreachable(_))));
        assert!(matches!(Error::gravest([Ok(()), refused()]), Err(Error::Malformed(_))));
        assert!(Error::gravest([Ok(()), Ok(())]).is_ok());
    }
}
