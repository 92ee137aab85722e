//! Files for whoever may have them: ours from the store, those of other servers once they are there.

use std::{io, ops::Range, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use ruma::ServerName;
use storage::MediaContent;
use tokio::{
    sync::broadcast::error::RecvError,
    time::{sleep, timeout},
};
use tracing::error;

use crate::{Error, Media, MediaUri, description::TYPE_UNKNOWN, store::Reader};

/// Longest wait for an upload that was announced. Client-Server API, `timeout_ms`: "The content repository SHOULD impose a maximum value".
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How often somebody who waits looks whether another process has taken the upload.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A file that can be read, also when it is removed meanwhile.
#[derive(Clone, Debug)]
pub struct File {
    /// Its type.
    pub content_type: String,
    /// Its name, if its uploader gave it one.
    pub file_name: Option<String>,
    /// The hash and length of its bytes.
    pub content: MediaContent,
    reader: Reader,
}

/// What is here of a URI.
enum Known {
    Whole(File),
    Pending,
    Nothing,
}

impl File {
    /// The bytes of a range, which lies within its length.
    pub fn read(&self, range: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        self.reader.read(range)
    }
}

impl Media {
    /// Opens a file, which is fetched from its server if it is of another one; waits at most so long for one that is not uploaded yet.
    /// `as_server` is the one of our names that asks.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::NotYetUploaded`], [`Error::Remote`], [`Error::Busy`].
    pub async fn open(&self, as_server: &ServerName, uri: &MediaUri, wait: Duration) -> Result<File, Error> {
        if self.is_local(uri) {
            return self.open_local(uri, wait).await;
        }
        if let Known::Whole(file) = self.known(uri).await? {
            return Ok(file);
        }
        self.fetch(as_server, uri, wait.min(WAIT_MAX)).await?;
        match self.known(uri).await? {
            Known::Whole(file) => Ok(file),
            Known::Pending | Known::Nothing => Err(Error::NotFound),
        }
    }

    /// Opens a file that was uploaded to one of our servers.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::NotYetUploaded`].
    pub async fn open_local(&self, uri: &MediaUri, wait: Duration) -> Result<File, Error> {
        if !self.is_local(uri) {
            return Err(Error::NotFound);
        }
        // Before the first look: nothing passes between that and the wait.
        let mut uploaded = self.uploaded().subscribe();
        let first = self.known(uri).await?;
        let waiting = async {
            let mut known = first;
            loop {
                match known {
                    Known::Whole(file) => return Ok(file),
                    Known::Nothing => return Err(Error::NotFound),
                    Known::Pending => {}
                }
                tokio::select! {
                    () = self.stopping().cancelled() => return Err(Error::NotYetUploaded),
                    () = sleep(LOOK_EVERY) => {}
                    found = async { loop { match uploaded.recv().await { Ok(other) if other != *uri => {} found => break found } } } => {
                        if matches!(found, Err(RecvError::Closed)) {
                            return Err(Error::NotYetUploaded);
                        }
                    }
                }
                known = self.known(uri).await?;
            }
        };
        timeout(wait.min(WAIT_MAX), waiting).await.unwrap_or(Err(Error::NotYetUploaded))
    }

    async fn known(&self, uri: &MediaUri) -> Result<Known, Error> {
        let Some(row) = self.storage().get_media(uri.server_name(), uri.media_id()).await? else {
            return Ok(Known::Nothing);
        };
        let Some(content) = row.content else {
            let is_over = row.expires_at_ms.is_none_or(|end_ms| end_ms <= self.storage().clock().now_ms());
            return Ok(if is_over { Known::Nothing } else { Known::Pending });
        };
        let Some(reader) = self.store().open(content).await? else {
            error!(media.uri = %uri, "the content of {uri} is not in the media store, or damaged");
            return Ok(Known::Nothing);
        };
        let content_type = row.description.content_type.unwrap_or_else(|| TYPE_UNKNOWN.to_owned());
        Ok(Known::Whole(File { content_type, file_name: row.description.file_name, content, reader }))
    }
}
