//! What can go wrong with a sync.

use std::sync::Arc;

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The token is none of ours, or from the future; 400 `M_INVALID_PARAM`.
    #[error("this is not a sync token that this server gave out")]
    BadToken,
    /// The `pos` is none of the connection, or was given up; 400 `M_UNKNOWN_POS`. MSC4186, "Connections".
    #[error("this connection has no such `pos` any more: start anew")]
    UnknownPos,
    /// The requester may not see somebody's presence; 403 `M_FORBIDDEN`.
    #[error("you may see the presence of those only with whom you share a room")]
    PresenceHidden,
    /// Ours, from the rooms.
    #[error("reading rooms failed")]
    Rooms(#[from] rooms::Error),
    /// Ours; 500, logged at the door.
    #[error("storage failed")]
    Storage(#[source] Arc<storage::Error>),
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        Self::Storage(Arc::new(error))
    }
}
