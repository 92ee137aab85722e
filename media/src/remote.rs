//! Files of other servers: fetched once for all who want them, and kept.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use moka::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::TaskTracker;

use crate::{
    Error, Media, MediaUri, description,
    receive::{Bounds, Failure, receive},
};

/// Most files that are fetched, or wait for their turn with [`RemoteMedia`], at once.
const FETCHES_MAX: usize = 2_000;

/// How long a server is not asked again for a file that it did not give, in milliseconds.
const FAILURE_KEPT_MS: i64 = 60_000;

/// Most of such files.
const FAILURES_MAX: u64 = 10_000;

/// How long nothing of a file may come, and how long it may take.
const PAUSE_MAX: Duration = Duration::from_secs(30);
const TIME_MAX: Duration = Duration::from_secs(600);

/// An answer that takes its time.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, RemoteError>> + Send + 'a>>;

/// Asks other servers for files, in the name of one of ours.
pub trait RemoteMedia: Send + Sync {
    /// A file of another server, which waits at most so long for one that is not uploaded yet. Server-Server API, "Content Repository".
    fn file<'a>(&'a self, as_server: &'a ServerName, uri: &'a MediaUri, wait: Duration) -> Asking<'a, RemoteFile>;
}

/// A file that another server begins to send.
pub struct RemoteFile {
    /// Its type, as that server says.
    pub content_type: Option<String>,
    /// Its name, as that server says.
    pub file_name: Option<String>,
    /// Its bytes; an error when they do not come to their end.
    pub body: BoxStream<'static, Result<Bytes, RemoteError>>,
}

/// Why another server does not give a file.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemoteError {
    /// It has no such file.
    #[error("{0} has no such media")]
    NotFound(OwnedServerName),
    /// It waits for the file itself.
    #[error("the media is not uploaded to {0} yet")]
    NotYetUploaded(OwnedServerName),
    /// The file is larger than it gives, or than we take.
    #[error("the media of {0} is too large")]
    TooLarge(OwnedServerName),
    /// It was not reached, or made no sense. Trying again later may help.
    #[error("{server} does not give the media")]
    Unavailable {
        /// The server.
        server: OwnedServerName,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// It did not send in time.
    #[error("{0} takes too long to send the media")]
    TooSlow(OwnedServerName),
    /// Too much is on its way from there. Trying again later helps.
    #[error("too many files are on their way")]
    Busy,
    /// This server asks no others.
    #[error("this server does not federate")]
    NotFederating,
}

impl RemoteError {
    /// Whether the same question gets the same answer for a while.
    const fn lasts(&self) -> bool {
        !matches!(self, Self::NotYetUploaded(_) | Self::Busy | Self::NotFederating)
    }
}

type Outcome = Result<(), Error>;

/// What is being fetched, and what was not to be had lately.
pub(crate) struct Fetches {
    /// Guards the files under way. Held for moments only; no lock inside.
    under_way: Mutex<HashMap<MediaUri, watch::Receiver<Option<Outcome>>>>,
    failed: Cache<MediaUri, (i64, RemoteError)>,
    pub(crate) tasks: TaskTracker,
}

/// Takes a file off the list when its fetch ends, however it does.
struct Entry {
    media: Media,
    uri: MediaUri,
}

impl Fetches {
    pub(crate) fn new() -> Self {
        Self { under_way: Mutex::default(), failed: Cache::new(FAILURES_MAX), tasks: TaskTracker::new() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MediaUri, watch::Receiver<Option<Outcome>>>> {
        // Nothing panics while it is held.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.media.fetches().lock().remove(&self.uri);
    }
}

impl Media {
    /// Waits until a file of another server is here. It is fetched unless it is under way already, and goes on without who waits for it.
    pub(crate) async fn fetch(&self, as_server: &ServerName, uri: &MediaUri, wait: Duration) -> Outcome {
        let fetches = self.fetches();
        if let Some((until_ms, error)) = fetches.failed.get(uri)
            && until_ms > self.storage().clock().now_ms()
        {
            return Err(error.into());
        }
        let mut outcome = {
            let mut under_way = fetches.lock();
            match under_way.get(uri) {
                Some(outcome) => outcome.clone(),
                None if under_way.len() >= FETCHES_MAX => return Err(Error::Busy),
                None => {
                    let (sender, outcome) = watch::channel(None);
                    under_way.insert(uri.clone(), outcome.clone());
                    let entry = Entry { media: self.clone(), uri: uri.clone() };
                    let as_server = as_server.to_owned();
                    fetches.tasks.spawn(async move {
                        let outcome = tokio::select! {
                            () = entry.media.stopping().cancelled() => Err(Error::Busy),
                            outcome = entry.media.fetch_now(&as_server, &entry.uri, wait) => outcome,
                        };
                        // First: who comes from here on finds what was fetched.
                        drop(entry);
                        let _ = sender.send(Some(outcome));
                    });
                    outcome
                }
            }
        };
        // It fails when the task panics, or the process ends.
        let outcome = outcome.wait_for(Option::is_some).await.map_err(|_| Error::Busy)?.clone();
        outcome.unwrap_or(Err(Error::Busy))
    }

    async fn fetch_now(&self, as_server: &ServerName, uri: &MediaUri, wait: Duration) -> Outcome {
        let fetched = timeout(TIME_MAX, self.fetch_once(as_server, uri, wait)).await;
        let fetched = fetched.unwrap_or_else(|_| Err(RemoteError::TooSlow(uri.server_name().to_owned()).into()));
        if let Err(Error::Remote(error)) = &fetched
            && error.lasts()
        {
            let until_ms = self.storage().clock().now_ms() + FAILURE_KEPT_MS;
            self.fetches().failed.insert(uri.clone(), (until_ms, error.clone()));
        }
        fetched
    }

    async fn fetch_once(&self, as_server: &ServerName, uri: &MediaUri, wait: Duration) -> Outcome {
        let remote = self.remote().ok_or(RemoteError::NotFederating)?;
        let server = || uri.server_name().to_owned();
        let file = remote.file(as_server, uri, wait).await?;
        let description = description::of_stranger(file.content_type.as_deref(), file.file_name.as_deref());
        let bounds = Bounds { bytes_max: self.options().remote_bytes_max, pause_max: PAUSE_MAX, time_max: TIME_MAX };
        let content = receive(self.store(), file.body, bounds).await.map_err(|failure| match failure {
            Failure::TooLarge => Error::from(RemoteError::TooLarge(server())),
            Failure::TooLate => RemoteError::TooSlow(server()).into(),
            Failure::Body(error) => error.into(),
            Failure::Store(error) => error.into(),
        })?;
        Ok(self.storage().upsert_media(uri.key(), content, &description, None).await?)
    }
}
