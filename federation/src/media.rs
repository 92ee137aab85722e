//! Files of other servers. Server-Server API, "Content Repository".
//!
//! An answer is a body of two parts, of which the second is the file or says where it is; it is read as it comes. Servers that do not know
//! the endpoint are asked in the way of before.

mod multipart;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderMap, StatusCode, header};
use media::{Asking, MediaUri, RemoteError, RemoteFile, RemoteMedia};
use outbound::Download;
use ruma::{
    OwnedServerName, ServerName,
    api::{error::ErrorKind, federation::authenticated_media::get_content},
    http_headers::ContentDisposition,
};
use tokio::time::timeout;
use url::Url;

use self::multipart::Multipart;
use crate::{
    Error, Federation,
    client::to_http,
    shares::{Share, site_of},
};

/// Most files that are on their way from one site, and from all. Names below one that somebody has cost nothing: they are one site.
pub(crate) const DOWNLOADS_OF_SITE_MAX: usize = 10;
pub(crate) const DOWNLOADS_MAX: usize = 200;

/// How long a server may take until it begins to answer, beside what it was told to wait.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a file may take: longer than who keeps it waits, so that it is they who say so.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(900);

impl RemoteMedia for Federation {
    fn file<'a>(&'a self, as_server: &'a ServerName, uri: &'a MediaUri, wait: Duration) -> Asking<'a, RemoteFile> {
        Box::pin(async move {
            let server = uri.server_name();
            let patience = (HEAD_TIMEOUT + wait, WHOLE_TIMEOUT);
            let share = self.downloads().take(&site_of(server), 1, HEAD_TIMEOUT).await;
            let share = share.ok_or(RemoteError::Busy)?;
            let mut request = get_content::v1::Request::new(uri.media_id().to_owned());
            request.timeout_ms = wait;
            let request = to_http(request).map_err(|error| unavailable(server, error))?;
            match self.client().open(Some(as_server), server, request, patience).await {
                Ok(download) => self.of_two_parts(server, download, share).await,
                Err(Error::Refused { error, .. }) if is_unknown_endpoint(&error) => {
                    let request = in_the_old_way(uri, wait).map_err(|error| unavailable(server, error))?;
                    let download = self.client().open(None, server, request, patience).await;
                    Ok(whole(server, download.map_err(|error| refused(server, error))?, share))
                }
                Err(error) => Err(refused(server, error)),
            }
        })
    }
}

impl Federation {
    /// Reads up to where the file begins, or goes where it is.
    async fn of_two_parts(
        &self,
        server: &ServerName,
        download: Download,
        share: Share,
    ) -> Result<RemoteFile, RemoteError> {
        let content_type = text(&download.headers, &header::CONTENT_TYPE);
        let parts = Multipart::begin(content_type.as_deref(), Box::pin(chunks(server.to_owned(), download)));
        let (part, body) = match timeout(HEAD_TIMEOUT, parts).await {
            Ok(begun) => begun.map_err(|error| error.of(server))?,
            Err(_) => return Err(RemoteError::TooSlow(server.to_owned())),
        };
        let Some(location) = part.location else {
            let disposition = part.content_disposition.as_deref();
            return Ok(RemoteFile {
                content_type: part.content_type,
                file_name: disposition.and_then(file_name),
                body: holding(share, body.content(server.to_owned())).boxed(),
            });
        };
        let misbehaved = |what: String| unavailable(server, Error::Misbehaved { server: server.to_owned(), what });
        let url = Url::parse(&location).map_err(|error| misbehaved(error.to_string()))?;
        if url.scheme() != "https" {
            return Err(misbehaved("a file that is not at an https URL".to_owned()));
        }
        // Neither signed nor with anything else that is ours: it may be anybody's.
        let opened = timeout(HEAD_TIMEOUT, self.outbound().open(&url, WHOLE_TIMEOUT)).await;
        let opened = opened.map_err(|_| RemoteError::TooSlow(server.to_owned()))?;
        let download = opened.map_err(|error| unavailable(server, error))?;
        match download.status {
            StatusCode::OK => Ok(whole(server, download, share)),
            status => Err(misbehaved(format!("a file at a URL that answers {status}"))),
        }
    }
}

/// The request of before Matrix 1.11. That server must not look for the file elsewhere.
fn in_the_old_way(uri: &MediaUri, wait: Duration) -> Result<http::Request<Bytes>, http::Error> {
    let (server, id, wait_ms) = (uri.server_name(), uri.media_id(), wait.as_millis());
    let path = format!("/_matrix/media/v3/download/{server}/{id}?allow_remote=false&timeout_ms={wait_ms}");
    http::Request::get(format!("https://server{path}")).body(Bytes::new())
}

/// An answer whose body is the file.
fn whole(server: &ServerName, download: Download, share: Share) -> RemoteFile {
    let disposition = text(&download.headers, &header::CONTENT_DISPOSITION);
    RemoteFile {
        content_type: text(&download.headers, &header::CONTENT_TYPE),
        file_name: disposition.as_deref().and_then(file_name),
        body: holding(share, chunks(server.to_owned(), download)).boxed(),
    }
}

/// The body of an answer, as it comes.
fn chunks(
    server: OwnedServerName,
    download: Download,
) -> impl Stream<Item = Result<Bytes, RemoteError>> + Send + 'static {
    stream::try_unfold((server, download), async |(server, mut download)| match download.chunk().await {
        Ok(chunk) => Ok(chunk.map(|chunk| (chunk, (server, download)))),
        Err(error) => Err(unavailable(&server, error)),
    })
}

/// A body that keeps its place among the downloads until its end.
fn holding<S: Stream + Send + 'static>(share: Share, body: S) -> impl Stream<Item = S::Item> + Send + 'static {
    body.map(move |item| {
        let _ = &share;
        item
    })
}

fn text(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    Some(String::from_utf8_lossy(headers.get(name)?.as_bytes()).into_owned())
}

fn file_name(disposition: &str) -> Option<String> {
    disposition.parse::<ContentDisposition>().ok()?.filename
}

/// Whether a server says that it has no such endpoint. Server-Server API, "Content Repository": then the old one is tried. Some say so in
/// no words of Matrix.
fn is_unknown_endpoint(error: &ruma::api::error::Error) -> bool {
    matches!(error.status_code, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
        && matches!(error.error_kind(), None | Some(ErrorKind::Unrecognized))
}

fn refused(server: &ServerName, error: Error) -> RemoteError {
    let Error::Refused { error: refusal, .. } = &error else { return unavailable(server, error) };
    match (refusal.status_code, refusal.error_kind()) {
        (_, Some(ErrorKind::NotYetUploaded)) => RemoteError::NotYetUploaded(server.to_owned()),
        (_, Some(ErrorKind::TooLarge)) => RemoteError::TooLarge(server.to_owned()),
        (StatusCode::NOT_FOUND, _) => RemoteError::NotFound(server.to_owned()),
        _ => unavailable(server, error),
    }
}

fn unavailable(server: &ServerName, error: impl std::error::Error + Send + Sync + 'static) -> RemoteError {
    RemoteError::Unavailable { server: server.to_owned(), source: Arc::new(error) }
}
