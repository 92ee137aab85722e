//! Files on the server, sent and taken in pieces. Client-Server API, "Content repository".

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use ruma::{
    MxcUri, OwnedMxcUri,
    api::{
        IncomingResponseExt as _,
        client::{authenticated_media::get_content, media::create_content},
    },
};

use crate::{Api, Error, api::Request};

/// How long the server may take to give the next piece, or to answer when it has them all.
const PIECE_WAIT: Duration = Duration::from_secs(60);
/// Longest answer that explains why there is no file, in bytes.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

impl Api {
    /// Sends a file of `bytes` bytes. It is not repeated when it fails: the pieces are gone.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] when no answer came, also when `pieces` fail; else what the server says.
    pub async fn upload(
        &self,
        content_type: &str,
        bytes: u64,
        pieces: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<OwnedMxcUri, Error> {
        let mut request = create_content::v3::Request::new(Vec::new());
        request.content_type = Some(content_type.to_owned());
        let (parts, _) = self.written(request)?.into_parts();
        let mut request =
            reqwest::Request::try_from(http::Request::from_parts(parts, reqwest::Body::wrap_stream(pieces)))
                .map_err(|error| Error::Unreadable(error.into()))?;
        request.headers_mut().insert(http::header::CONTENT_LENGTH, bytes.into());
        let answer = self.http().execute(request).await.map_err(unreachable)?;
        let (parts, body) = read(answer).await?.into_parts();
        let answer = http::Response::from_parts(parts, body.as_slice());
        let answer = create_content::v3::Response::try_from_http_response(answer);
        Ok(answer.map_err(crate::api::failed)?.content_uri)
    }

    /// Takes a file in pieces, as the server gives them.
    ///
    /// # Errors
    ///
    /// [`Error::Forged`] when `uri` names no file, [`Error::Unreachable`] when no answer or no next piece came; else what the server says.
    pub async fn download(
        &self,
        uri: &MxcUri,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let request = get_content::v1::Request::from_uri(uri).map_err(|_| Error::Malformed("address of a file"))?;
        let request =
            reqwest::Request::try_from(self.written(request)?).map_err(|error| Error::Unreadable(error.into()))?;
        let answer = tokio::time::timeout(PIECE_WAIT, self.http().execute(request)).await;
        let answer = answer.map_err(|elapsed| Error::Unreachable(elapsed.into()))?.map_err(unreachable)?;
        if !answer.status().is_success() {
            let (parts, body) = read(answer).await?.into_parts();
            let refusal =
                get_content::v1::Response::try_from_http_response(http::Response::from_parts(parts, body.as_slice()));
            return Err(refusal.map_or_else(crate::api::failed, |_| Error::ServerMisbehaved("the status of an answer")));
        }
        Ok(futures_util::stream::unfold(Some(answer), async |answer| {
            let mut answer = answer?;
            match tokio::time::timeout(PIECE_WAIT, answer.chunk()).await {
                Ok(Ok(Some(piece))) => Some((Ok(piece), Some(answer))),
                Ok(Ok(None)) => None,
                Ok(Err(error)) => Some((Err(unreachable(error)), None)),
                Err(elapsed) => Some((Err(Error::Unreachable(elapsed.into())), None)),
            }
        }))
    }

    fn written(&self, request: impl Request) -> Result<http::Request<Vec<u8>>, Error> {
        request.write(self, self.token().as_deref().map(String::as_str))
    }
}

/// The address has identifiers in it, the rest of the error does not.
fn unreachable(error: reqwest::Error) -> Error {
    Error::Unreachable(error.without_url().into())
}

/// Reads a short answer.
async fn read(answer: reqwest::Response) -> Result<http::Response<Vec<u8>>, Error> {
    let mut response = http::Response::new(Vec::new());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.next().await {
        response.body_mut().extend_from_slice(&piece.map_err(unreachable)?);
        if response.body().len() > REFUSAL_BYTES_MAX {
            return Err(Error::ServerMisbehaved("the size of an answer"));
        }
    }
    Ok(response)
}
