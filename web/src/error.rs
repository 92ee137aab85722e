//! The table from our errors to the errors of the Matrix specification. There is no other.

use std::{error::Error as StdError, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::BytesMut;
use http::{HeaderValue, StatusCode, header};
use ruma::api::{
    OutgoingResponseExt as _,
    error::{
        Error as RumaError, ErrorBody, ErrorKind, IncompatibleRoomVersionErrorData, LimitExceededErrorData, RetryAfter,
        StandardErrorBody, UnknownTokenErrorData, WrongRoomKeysVersionErrorData,
    },
};
use serde_json::json;
use tracing::error;

/// An error as a client sees it. Client-Server API, "Standard error response".
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub struct MatrixError(Box<RumaError>);

impl MatrixError {
    /// An error of any kind, with a sentence that says what went wrong.
    pub fn new(status: StatusCode, kind: ErrorKind, message: impl Into<String>) -> Self {
        let body = ErrorBody::Standard(StandardErrorBody::new(kind, message.into()));
        Self(Box::new(RumaError::new(status, body)))
    }

    /// An answer with a body of its own shape, such as the 401 of user-interactive authentication.
    #[must_use]
    pub fn json(status: StatusCode, body: serde_json::Value) -> Self {
        Self(Box::new(RumaError::new(status, ErrorBody::Json(body))))
    }

    /// What another server refused, where that speaks of what the client wants; what it has against us is no business of the client.
    fn of_other_server(error: &RumaError, message: String) -> Self {
        match error.error_kind() {
            Some(kind) if error.status_code.is_client_error() && is_passed_on(kind) => {
                Self::new(error.status_code, kind.clone(), message)
            }
            _ => Self::new(StatusCode::BAD_GATEWAY, ErrorKind::Unknown, message),
        }
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status_code
    }

    /// The kind, unless the body is of its own shape.
    #[must_use]
    pub fn kind(&self) -> Option<&ErrorKind> {
        self.0.error_kind()
    }

    /// 403 `M_FORBIDDEN`.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorKind::Forbidden, message)
    }

    /// 403 `M_GUEST_ACCESS_FORBIDDEN`. Client-Server API, "Guest Access".
    #[must_use]
    pub fn guest_access_forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorKind::GuestAccessForbidden, "guests may not do this")
    }

    /// 404 `M_NOT_FOUND`.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, message)
    }

    /// 400 `M_BAD_JSON`: JSON of another shape than the endpoint's.
    pub fn bad_json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::BadJson, message)
    }

    /// 400 `M_NOT_JSON`.
    pub fn not_json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::NotJson, message)
    }

    /// 400 `M_MISSING_PARAM`.
    pub fn missing_param(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::MissingParam, message)
    }

    /// 400 `M_INVALID_PARAM`.
    pub fn invalid_param(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidParam, message)
    }

    /// 413 `M_TOO_LARGE`.
    #[must_use]
    pub fn too_large(bytes_max: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::TooLarge, format!("larger than {bytes_max} bytes"))
    }

    /// 401 `M_MISSING_TOKEN`. Client-Server API, "Client Authentication".
    #[must_use]
    pub fn missing_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorKind::MissingToken, "this needs an access token")
    }

    /// 401 `M_UNKNOWN_TOKEN`; with `soft_logout` the client keeps its session. Client-Server API, "Soft logout".
    #[must_use]
    pub fn unknown_token(soft_logout: bool) -> Self {
        let mut data = UnknownTokenErrorData::new();
        data.soft_logout = soft_logout;
        Self::new(StatusCode::UNAUTHORIZED, ErrorKind::UnknownToken(data), "the access token is unknown or has expired")
    }

    /// 404 `M_UNRECOGNIZED`: no such endpoint.
    #[must_use]
    pub fn unrecognized() -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorKind::Unrecognized, "unrecognized request")
    }

    /// 405 `M_UNRECOGNIZED`: the endpoint has other methods.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorKind::Unrecognized, "unrecognized method")
    }

    /// 429 `M_LIMIT_EXCEEDED`, with how long to wait. Client-Server API, "Rate limiting".
    #[must_use]
    pub fn limit_exceeded(wait: Duration) -> Self {
        let mut data = LimitExceededErrorData::new();
        data.retry_after = Some(RetryAfter::Delay(wait.max(Duration::from_millis(1))));
        Self::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::LimitExceeded(data), "too many requests")
    }

    /// What a policy server said of an event, verbatim as far as it speaks of the event. Server-Server API, "Validating Policy Server
    /// signatures".
    fn of_policy_server(refusal: RumaError) -> Self {
        match refusal.error_kind() {
            Some(ErrorKind::Forbidden | ErrorKind::LimitExceeded(_) | ErrorKind::BadJson) => Self(Box::new(refusal)),
            // It may speak of us, which is not what the client asked.
            _ => Self::new(StatusCode::BAD_GATEWAY, ErrorKind::Unknown, "the policy server of the room does not sign"),
        }
    }

    /// 500 `M_UNKNOWN` for a failure of ours: logged here, once, with its causes; the client learns nothing of them.
    #[must_use]
    pub fn internal(failure: &(dyn StdError + 'static)) -> Self {
        let mut causes = failure.to_string();
        let mut source = failure.source();
        while let Some(cause) = source {
            causes = format!("{causes}: {cause}");
            source = cause.source();
        }
        error!(error = causes, "a request failed for a reason of ours");
        Self::internal_answer()
    }

    /// 503 `M_UNKNOWN`: the server ends; another one, or this one later, will answer.
    #[must_use]
    pub fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Unknown, "the server is shutting down")
    }

    /// 503 `M_UNKNOWN`: too much is waiting; trying again in a moment helps.
    #[must_use]
    pub fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Unknown, "the server is busy; try again in a moment")
    }

    /// The answer of [`MatrixError::internal`], for what has been logged already.
    pub(crate) fn internal_answer() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Unknown, "internal server error")
    }
}

impl From<storage::Error> for MatrixError {
    fn from(error: storage::Error) -> Self {
        match error {
            storage::Error::Closed => Self::shutting_down(),
            other => Self::internal(&other),
        }
    }
}

impl From<accounts::Error> for MatrixError {
    fn from(error: accounts::Error) -> Self {
        use accounts::Error as E;
        let bad_request = |kind, message| Self::new(StatusCode::BAD_REQUEST, kind, message);
        let message = error.to_string();
        match error {
            E::UnknownToken { soft_logout } => Self::unknown_token(soft_logout),
            // Client-Server API, "Account locking": the client keeps its session.
            E::UserLocked => {
                let body = json!({"errcode": "M_USER_LOCKED", "error": message, "soft_logout": true});
                Self::json(StatusCode::UNAUTHORIZED, body)
            }
            E::UserDeactivated => Self::new(StatusCode::FORBIDDEN, ErrorKind::UserDeactivated, message),
            E::UnknownDevice => bad_request(ErrorKind::UnknownDevice, message),
            E::Forbidden(_) => Self::forbidden(message),
            E::GuestForbidden => Self::guest_access_forbidden(),
            E::AuthenticationNeeded(info) => match serde_json::to_value(&*info) {
                Ok(body) => Self::json(StatusCode::UNAUTHORIZED, body),
                Err(error) => Self::internal(&error),
            },
            E::UserInUse => bad_request(ErrorKind::UserInUse, message),
            E::InvalidUsername(_) => bad_request(ErrorKind::InvalidUsername, message),
            E::Exclusive(_) => bad_request(ErrorKind::Exclusive, message),
            E::WeakPassword(_) => bad_request(ErrorKind::WeakPassword, message),
            E::NotFound(_) => Self::not_found(message),
            E::InvalidParam(_) => Self::invalid_param(message),
            E::BadJson(_) => Self::bad_json(message),
            E::MissingParam(_) => Self::missing_param(message),
            E::InvalidSignature(_) => {
                Self::json(StatusCode::BAD_REQUEST, json!({"errcode": "M_INVALID_SIGNATURE", "error": message}))
            }
            E::WrongBackupVersion { current } => {
                let data = WrongRoomKeysVersionErrorData::new(current);
                Self::new(StatusCode::FORBIDDEN, ErrorKind::WrongRoomKeysVersion(data), message)
            }
            E::Unknown(_) => bad_request(ErrorKind::Unknown, message),
            E::TooLarge(bytes_max) => Self::too_large(bytes_max),
            E::TooMuch(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::TooLarge, message),
            E::ProfileTooLarge(_) => bad_request(ErrorKind::ProfileTooLarge, message),
            E::StatusTooLarge { .. } => bad_request(ErrorKind::TooLarge, message),
            E::KeyTooLarge(_) => bad_request(ErrorKind::KeyTooLarge, message),
            E::OwnEndpoint => Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorKind::BadJson, message),
            E::Remote(accounts::RemoteError::NotFederating) => Self::not_found(message),
            E::Remote(accounts::RemoteError::Refused { .. }) => Self::forbidden(message),
            E::Remote(accounts::RemoteError::Unavailable { .. }) => {
                Self::new(StatusCode::BAD_GATEWAY, ErrorKind::Unknown, message)
            }
            E::LimitExceeded(wait) => Self::limit_exceeded(wait),
            E::Busy => Self::busy(),
            E::Storage(error) => error.into(),
            E::Commit(_) | E::Hashing(_) => Self::internal(&error),
        }
    }
}

/// Whether an error of another server is about the room or the user, and not about us. Server-Server API, "PUT /invite/{roomId}/{eventId}":
/// what is wrong with our request is no fault of the client.
fn is_passed_on(kind: &ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Forbidden
            | ErrorKind::InviteBlocked
            | ErrorKind::UnsupportedRoomVersion
            | ErrorKind::UnableToAuthorizeJoin
            | ErrorKind::UnableToGrantJoin
            | ErrorKind::NotFound
    )
}

impl From<media::Error> for MatrixError {
    fn from(error: media::Error) -> Self {
        use media::{Error as E, RemoteError as R};
        let message = error.to_string();
        let (status, kind) = match error {
            E::NotFound | E::Remote(R::NotFound(_) | R::NotFederating) => (StatusCode::NOT_FOUND, ErrorKind::NotFound),
            E::NotYetUploaded | E::Remote(R::NotYetUploaded(_)) => {
                (StatusCode::GATEWAY_TIMEOUT, ErrorKind::NotYetUploaded)
            }
            E::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::TooLarge),
            E::NameTooLong(_) => (StatusCode::BAD_REQUEST, ErrorKind::InvalidParam),
            E::BrokenOff | E::NoThumbnail => (StatusCode::BAD_REQUEST, ErrorKind::Unknown),
            E::NotYours => (StatusCode::FORBIDDEN, ErrorKind::Forbidden),
            E::AlreadyUploaded => (StatusCode::CONFLICT, ErrorKind::CannotOverwriteMedia),
            E::TooManyUploads => {
                let kind = ErrorKind::LimitExceeded(LimitExceededErrorData::new());
                (StatusCode::TOO_MANY_REQUESTS, kind)
            }
            // Client-Server API, "Security considerations" of the content repository.
            E::Remote(R::TooLarge(_)) => (StatusCode::BAD_GATEWAY, ErrorKind::TooLarge),
            E::Remote(R::Unavailable { .. } | R::TooSlow(_)) => (StatusCode::BAD_GATEWAY, ErrorKind::Unknown),
            E::Busy | E::Remote(R::Busy) => return Self::busy(),
            E::Storage(ref cause) if matches!(**cause, storage::Error::Closed) => return Self::shutting_down(),
            E::Storage(_) | E::Store(_) => return Self::internal(&error),
        };
        Self::new(status, kind, message)
    }
}

impl From<sync::Error> for MatrixError {
    fn from(error: sync::Error) -> Self {
        match error {
            sync::Error::BadToken => Self::invalid_param(error.to_string()),
            sync::Error::PresenceHidden => Self::forbidden(error.to_string()),
            sync::Error::UnknownPos => Self::new(StatusCode::BAD_REQUEST, ErrorKind::UnknownPos, error.to_string()),
            sync::Error::Rooms(error) => error.into(),
            sync::Error::Storage(ref cause) if matches!(**cause, storage::Error::Closed) => Self::shutting_down(),
            sync::Error::Storage(_) => Self::internal(&error),
        }
    }
}

impl From<rooms::Error> for MatrixError {
    fn from(error: rooms::Error) -> Self {
        use rooms::Error as E;
        let message = error.to_string();
        match error {
            E::RoomUnknown | E::EventUnknown | E::StateUnknown | E::AliasUnknown | E::NotLocal => {
                Self::not_found(message)
            }
            E::NotMember | E::NotAllowed(_) => Self::forbidden(message),
            E::InviteBlocked(_) => Self::new(StatusCode::FORBIDDEN, ErrorKind::InviteBlocked, message),
            E::GuestsForbidden => Self::new(StatusCode::FORBIDDEN, ErrorKind::GuestAccessForbidden, message),
            E::BadEvent(_) => Self::bad_json(message),
            E::DuplicateAnnotation => Self::new(StatusCode::BAD_REQUEST, ErrorKind::DuplicateAnnotation, message),
            E::BadRelation(_) => Self::new(StatusCode::BAD_REQUEST, ErrorKind::Unknown, message),
            E::InvalidParam(_) => Self::invalid_param(message),
            E::TooLarge => Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::TooLarge, message),
            // MSC4306, "Unstable amendments".
            E::NotInThread => Self::json(
                StatusCode::BAD_REQUEST,
                json!({"errcode": "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD", "error": message}),
            ),
            E::ConflictingUnsubscription => Self::json(
                StatusCode::CONFLICT,
                json!({"errcode": "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION", "error": message}),
            ),
            E::AliasInUse => Self::new(StatusCode::CONFLICT, ErrorKind::Unknown, message),
            E::BadAlias(_) => Self::new(StatusCode::BAD_REQUEST, ErrorKind::BadAlias, message),
            E::UnsupportedVersion(_) => Self::new(StatusCode::BAD_REQUEST, ErrorKind::UnsupportedRoomVersion, message),
            E::IncompatibleVersion(version) => {
                let data = IncompatibleRoomVersionErrorData::new(version);
                Self::new(StatusCode::BAD_REQUEST, ErrorKind::IncompatibleRoomVersion(data), message)
            }
            E::UnableToAuthorize => Self::new(StatusCode::BAD_REQUEST, ErrorKind::UnableToAuthorizeJoin, message),
            E::UnableToGrant => Self::new(StatusCode::BAD_REQUEST, ErrorKind::UnableToGrantJoin, message),
            E::InvalidRoomState(_) => Self::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidRoomState, message),
            E::Remote(rooms::RemoteError::NotFederating) => Self::not_found(message),
            E::Remote(rooms::RemoteError::UnsupportedVersion(_)) => {
                Self::new(StatusCode::BAD_REQUEST, ErrorKind::UnsupportedRoomVersion, message)
            }
            E::Remote(rooms::RemoteError::Refused { error, .. }) => Self::of_other_server(&error, message),
            E::RefusedByPolicyServer(refusal) => Self::of_policy_server(*refusal),
            E::PolicyServerSilent(_) | E::Remote(_) => Self::new(StatusCode::BAD_GATEWAY, ErrorKind::Unknown, message),
            E::Busy => Self::busy(),
            E::Storage(ref cause) if matches!(**cause, storage::Error::Closed) => Self::shutting_down(),
            E::Storage(_) => Self::internal(&error),
        }
    }
}

impl IntoResponse for MatrixError {
    fn into_response(self) -> Response {
        let wait = match self.kind() {
            Some(ErrorKind::LimitExceeded(LimitExceededErrorData {
                retry_after: Some(RetryAfter::Delay(wait)),
                ..
            })) => Some(wait.as_millis().div_ceil(1000)),
            _ => None,
        };
        match (*self.0).try_into_http_response::<BytesMut>() {
            Ok(mut response) => {
                // Rounded up: who comes back at that time finds room. Ruma rounds down, to 0 even.
                if let Some(seconds) = wait.and_then(|seconds| HeaderValue::try_from(seconds.to_string()).ok()) {
                    response.headers_mut().insert(header::RETRY_AFTER, seconds);
                }
                response.map(|body| Body::from(body.freeze())).into_response()
            }
            Err(error) => {
                error!(%error, "an error could not be written as JSON");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}
