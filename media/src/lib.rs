//! Files: their contents, and what `mxc://` URIs stand for. Client-Server API, "Content repository".
//!
//! [`Media`] is the one handle. Contents are in a `store`, each once, whoever uploaded it; a row in the database says what a URI stands for.
//! Users of ours `upload`, everybody may `download`, and files of other servers are fetched first (`remote`).

mod description;
mod download;
mod error;
mod picture;
mod receive;
mod remote;
mod store;
mod upload;
mod uri;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use model::LocalServers;
use storage::Storage;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

pub use self::{
    description::{TYPE_UNKNOWN, is_inline},
    download::File,
    error::Error,
    remote::{Asking, RemoteError, RemoteFile, RemoteMedia},
    upload::Upload,
    uri::MediaUri,
};
use self::{
    remote::Fetches,
    store::{Disk, Store},
    upload::Uploaders,
};

/// Uploads that who waits for one may be behind before they look for themselves.
const UPLOADED_KEPT: usize = 64;

/// How long an unfinished file is left alone in a folder that other processes use too.
const LEFT_AFTER: Duration = Duration::from_secs(24 * 3_600);

/// What can be chosen about files.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where contents are kept.
    pub folder: PathBuf,
    /// Whether other processes use the folder too.
    pub is_shared: bool,
    /// Largest upload, in bytes.
    pub upload_bytes_max: u64,
    /// Largest file that is fetched from another server, in bytes.
    pub remote_bytes_max: u64,
}

/// Files. Cheap to clone.
#[derive(Clone)]
pub struct Media(Arc<Inner>);

struct Inner {
    storage: Storage,
    servers: LocalServers,
    options: Options,
    store: Store,
    remote: Option<Arc<dyn RemoteMedia>>,
    uploaders: Uploaders,
    /// URIs that were created and have got their content.
    uploaded: broadcast::Sender<MediaUri>,
    fetches: Fetches,
    stopping: CancellationToken,
}

impl Media {
    /// Files of `servers`, and with `remote` those of others too; what waits or is fetched ends with `stopping`.
    ///
    /// # Errors
    ///
    /// When the folder cannot be used.
    pub fn open_store(
        storage: Storage,
        servers: LocalServers,
        options: Options,
        remote: Option<Arc<dyn RemoteMedia>>,
        stopping: CancellationToken,
    ) -> io::Result<Self> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(storage.clock().now_ms().unsigned_abs());
        let left_before = options.is_shared.then(|| now - LEFT_AFTER);
        let store = Store::Disk(Arc::new(Disk::open(&options.folder, storage.random().clone(), left_before)?));
        let (uploaded, _) = broadcast::channel(UPLOADED_KEPT);
        Ok(Self(Arc::new(Inner {
            storage,
            servers,
            options,
            store,
            remote,
            uploaders: Uploaders::default(),
            uploaded,
            fetches: Fetches::new(),
            stopping,
        })))
    }

    /// Largest upload, in bytes.
    #[must_use]
    pub fn upload_bytes_max(&self) -> u64 {
        self.0.options.upload_bytes_max
    }

    /// Whether a file was uploaded to one of our servers.
    #[must_use]
    pub fn is_local(&self, uri: &MediaUri) -> bool {
        self.0.servers.is_local(uri.server_name())
    }

    /// Waits until nothing is fetched any more, which `stopping` has ended.
    pub async fn close(&self) {
        self.0.fetches.tasks.close();
        self.0.fetches.tasks.wait().await;
    }

    fn storage(&self) -> &Storage {
        &self.0.storage
    }

    fn options(&self) -> &Options {
        &self.0.options
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    fn remote(&self) -> Option<&dyn RemoteMedia> {
        self.0.remote.as_deref()
    }

    fn uploaders(&self) -> &Uploaders {
        &self.0.uploaders
    }

    fn uploaded(&self) -> &broadcast::Sender<MediaUri> {
        &self.0.uploaded
    }

    fn fetches(&self) -> &Fetches {
        &self.0.fetches
    }

    fn stopping(&self) -> &CancellationToken {
        &self.0.stopping
    }
}

impl std::fmt::Debug for Media {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Media").field("store", &self.0.store).finish_non_exhaustive()
    }
}
