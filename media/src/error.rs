//! What can go wrong with files.

use std::{io, sync::Arc};

use crate::RemoteError;

/// Why a file is not kept or not given.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file; becomes 404 `M_NOT_FOUND`.
    #[error("no such media")]
    NotFound,
    /// There is nothing that could stand for its thumbnail; becomes 400 `M_UNKNOWN`.
    #[error("no thumbnail can be given of this")]
    NoThumbnail,
    /// Its uploader has not uploaded it yet; becomes 504 `M_NOT_YET_UPLOADED`.
    #[error("the media is not uploaded yet")]
    NotYetUploaded,
    /// The upload is larger than the configuration allows; becomes 413 `M_TOO_LARGE`.
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    /// The name of the file cannot be kept; becomes 400 `M_INVALID_PARAM`.
    #[error("the name of the file is longer than {0} bytes")]
    NameTooLong(usize),
    /// The upload ended before its end; becomes 400 `M_UNKNOWN`.
    #[error("the upload did not come to its end")]
    BrokenOff,
    /// Somebody else created the URI; becomes 403 `M_FORBIDDEN`.
    #[error("the media id belongs to another user")]
    NotYours,
    /// The URI has its content; becomes 409 `M_CANNOT_OVERWRITE_MEDIA`.
    #[error("the media is uploaded already")]
    AlreadyUploaded,
    /// The user has too many uploads open or under way; becomes 429 `M_LIMIT_EXCEEDED`.
    #[error("too many uploads at once")]
    TooManyUploads,
    /// Too much is being fetched from other servers; becomes 503.
    #[error("too much is under way")]
    Busy,
    /// Another server does not give it.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Ours: the store of contents failed.
    #[error("the media store failed")]
    Store(#[source] Arc<io::Error>),
    /// Ours.
    #[error("storage failed")]
    Storage(#[source] Arc<storage::Error>),
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        Self::Storage(Arc::new(error))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}
