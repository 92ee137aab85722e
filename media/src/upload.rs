//! Uploads of our users. Client-Server API, "Content repository".

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use accounts::Requester;
use bytes::Bytes;
use futures_util::Stream;
use model::UserNr;
use storage::{MediaContent, MediaDescription, MediaRow};

use crate::{
    Error, Media, MediaUri, description,
    receive::{Bounds, Failure, receive},
};

/// Letters and digits of a media id.
const ID_LENGTH: usize = 24;

/// How long a URI waits for its content, in milliseconds. Client-Server API, "POST /_matrix/media/v1/create": 24 hours are recommended.
const PENDING_MS: i64 = 24 * 3_600_000;

/// Most URIs of one user that wait for their content.
const PENDING_MAX: i64 = 50;

/// Most uploads of one user that are under way at once.
const UNDER_WAY_MAX: usize = 20;

/// How long nothing of an upload may come, and how long it may take.
const PAUSE_MAX: Duration = Duration::from_secs(30);
const TIME_MAX: Duration = Duration::from_secs(3_600);

/// A file that somebody uploads.
#[derive(Debug)]
pub struct Upload<'a, B> {
    /// Its type, as the uploader says.
    pub content_type: Option<&'a str>,
    /// Its name, as the uploader says.
    pub file_name: Option<&'a str>,
    /// Its length, if it is announced.
    pub length: Option<u64>,
    /// Its bytes.
    pub body: B,
}

impl Media {
    /// Keeps a file of a user; gives its URI, on the user's server.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], [`Error::NameTooLong`], [`Error::BrokenOff`], [`Error::TooManyUploads`]; nothing is kept then.
    pub async fn upload<E>(
        &self,
        requester: &Requester,
        upload: Upload<'_, impl Stream<Item = Result<Bytes, E>>>,
    ) -> Result<MediaUri, Error> {
        let (content, description) = self.take(requester, upload).await?;
        let uri = self.new_uri(requester);
        self.storage().upsert_media(uri.key(), content, &description, Some(requester.user_nr)).await?;
        Ok(uri)
    }

    /// Creates a URI of a user to which they upload later; gives it and its end in milliseconds since 1970.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyUploads`] when many wait already.
    pub async fn create(&self, requester: &Requester) -> Result<(MediaUri, i64), Error> {
        let (uri, end_ms) = (self.new_uri(requester), self.storage().clock().now_ms() + PENDING_MS);
        let created = self.storage().insert_pending_media(uri.key(), requester.user_nr, end_ms, PENDING_MAX).await?;
        if created { Ok((uri, end_ms)) } else { Err(Error::TooManyUploads) }
    }

    /// Keeps a file under a URI that its user has created.
    ///
    /// # Errors
    ///
    /// Those of [`Media::upload`]; [`Error::NotFound`] when it was not created or has ended, [`Error::NotYours`],
    /// [`Error::AlreadyUploaded`].
    pub async fn fill<E>(
        &self,
        requester: &Requester,
        uri: &MediaUri,
        upload: Upload<'_, impl Stream<Item = Result<Bytes, E>>>,
    ) -> Result<(), Error> {
        self.check_pending(requester, uri).await?;
        let (content, description) = self.take(requester, upload).await?;
        if !self.storage().fill_pending_media(uri.key(), content, &description).await? {
            // Somebody was faster, or its time is over: it says which.
            self.check_pending(requester, uri).await?;
            return Err(Error::NotFound);
        }
        // Nobody may wait for it.
        let _ = self.uploaded().send(uri.clone());
        Ok(())
    }

    async fn check_pending(&self, requester: &Requester, uri: &MediaUri) -> Result<(), Error> {
        let row = self.storage().get_media(uri.server_name(), uri.media_id()).await?;
        let MediaRow { content, uploader, expires_at_ms, .. } = row.ok_or(Error::NotFound)?;
        if uploader != Some(requester.user_nr) {
            return Err(Error::NotYours);
        }
        match (content, expires_at_ms) {
            (Some(_), _) => Err(Error::AlreadyUploaded),
            (None, Some(end_ms)) if end_ms > self.storage().clock().now_ms() => Ok(()),
            (None, _) => Err(Error::NotFound),
        }
    }

    /// Takes the bytes of an upload into the store.
    async fn take<E>(
        &self,
        requester: &Requester,
        upload: Upload<'_, impl Stream<Item = Result<Bytes, E>>>,
    ) -> Result<(MediaContent, MediaDescription), Error> {
        let bytes_max = self.options().upload_bytes_max;
        let description = description::of_uploader(upload.content_type, upload.file_name)?;
        if upload.length.is_some_and(|length| length > bytes_max) {
            return Err(Error::TooLarge(bytes_max));
        }
        let _place = self.uploaders().enter(requester.user_nr).ok_or(Error::TooManyUploads)?;
        let bounds = Bounds { bytes_max, pause_max: PAUSE_MAX, time_max: TIME_MAX };
        let content = receive(self.store(), upload.body, bounds).await.map_err(|failure| match failure {
            Failure::TooLarge => Error::TooLarge(bytes_max),
            Failure::TooLate | Failure::Body(_) => Error::BrokenOff,
            Failure::Store(error) => error.into(),
        })?;
        Ok((content, description))
    }

    fn new_uri(&self, requester: &Requester) -> MediaUri {
        let id = self.storage().random().alphanumeric(ID_LENGTH);
        MediaUri::new(requester.user_id.server_name().to_owned(), id).expect("letters and digits are an id")
    }
}

/// Who uploads, and how many files at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Uploaders(Arc<Mutex<HashMap<UserNr, usize>>>);

/// One upload of a user.
pub(crate) struct Place {
    uploaders: Uploaders,
    user: UserNr,
}

impl Uploaders {
    fn enter(&self, user: UserNr) -> Option<Place> {
        let mut under_way = self.lock();
        let count = under_way.entry(user).or_default();
        if *count >= UNDER_WAY_MAX {
            return None;
        }
        *count += 1;
        drop(under_way);
        Some(Place { uploaders: self.clone(), user })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UserNr, usize>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = self.uploaders.lock();
        match under_way.get_mut(&self.user) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(under_way.remove(&self.user)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_so_many_uploads_at_once() {
        let uploaders = Uploaders::default();
        let mut places: Vec<Place> = (0..UNDER_WAY_MAX).map(|_| uploaders.enter(UserNr(1)).unwrap()).collect();
        assert!(uploaders.enter(UserNr(1)).is_none());
        assert!(uploaders.enter(UserNr(2)).is_some());
        places.pop();
        assert!(uploaders.enter(UserNr(1)).is_some());
        drop(places);
        assert!(uploaders.lock().is_empty());
    }
}
