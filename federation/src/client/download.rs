//! Answers of other servers that are read piece by piece.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use outbound::Download;
use ruma::{
    ServerName,
    api::{EndpointError as _, error::Error as RumaError},
};
use tokio::time::timeout;

use super::{Client, SHORT};
use crate::Error;

impl Client {
    /// Sends a request of `origin`, one of our names, to `destination`, signed; or without it one that needs no signature. It has its path, and
    /// nothing of where it goes. The body of the
    /// answer is left to be read: all of it has to come within `whole`, its head within `head`.
    ///
    /// # Errors
    ///
    /// Those of [`Error`]; [`Error::Refused`] for every status but 200.
    pub(crate) async fn open(
        &self,
        origin: Option<&ServerName>,
        destination: &ServerName,
        mut request: http::Request<Bytes>,
        (head, whole): (Duration, Duration),
    ) -> Result<Download, Error> {
        self.outages.check(destination)?;
        self.check(destination)?;
        if let Some(origin) = origin {
            self.sign(origin, destination, &mut request)?;
        }
        let by_service = self.direct(destination, &mut request).await?;
        let asking = self.outages.asking(destination);
        let answer = timeout(head, self.http.open(request, by_service, whole)).await.unwrap_or_else(|late| {
            Err(outbound::Error::Unreachable { host: destination.to_string(), source: Box::new(late) })
        });
        let download = match answer {
            Ok(download) => {
                self.outages.answered(destination);
                download
            }
            Err(source) => {
                self.outages.unanswered(asking, &source);
                return Err(Error::Unreachable { server: destination.to_owned(), source });
            }
        };
        if download.status == StatusCode::OK {
            return Ok(download);
        }
        Err(Error::Refused { server: destination.to_owned(), error: Box::new(refusal(download).await) })
    }
}

/// What a server says of why it gives nothing, as far as it can be read.
async fn refusal(mut download: Download) -> RumaError {
    let mut body = BytesMut::new();
    let reading = async {
        while let Ok(Some(chunk)) = download.chunk().await
            && body.len() + chunk.len() <= SHORT.body_bytes_max
        {
            body.extend_from_slice(&chunk);
        }
    };
    // What came in time is what it says.
    let _ = timeout(SHORT.timeout, reading).await;
    let mut response = http::Response::new(&*body);
    *response.status_mut() = download.status;
    RumaError::from_http_response(response)
}
