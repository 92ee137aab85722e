//! Answers that are read piece by piece, because they may be large.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use url::Url;

use crate::{Error, Outbound, ServiceClient, check_host, unreachable};

/// An answer of which the body is still to come.
#[derive(Debug)]
pub struct Download {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    host: String,
    response: reqwest::Response,
}

impl Download {
    fn of(mut response: reqwest::Response, host: String) -> Self {
        let headers = std::mem::take(response.headers_mut());
        Self { status: response.status(), headers, host, response }
    }

    /// The next piece of the body, of some kilobytes; nothing at its end. How long it waits, and how much comes, is for the caller to bound.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] when the body breaks off.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.response.chunk().await.map_err(|error| unreachable(&self.host, error))
    }
}

impl ServiceClient {
    /// As [`ServiceClient::send`], but the body is left to be read; all of it has to come within `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`Error`].
    pub async fn open(
        &self,
        request: http::Request<Bytes>,
        by_service: bool,
        timeout: Duration,
    ) -> Result<Download, Error> {
        let (request, host) = self.request(request, timeout)?;
        let client = if by_service { &self.by_service } else { &self.by_address };
        let response = client.execute(request).await.map_err(|error| unreachable(&host, error))?;
        Ok(Download::of(response, host))
    }
}

impl Outbound {
    /// As [`Outbound::get`], but the body is left to be read; all of it has to come within `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`Error`].
    pub async fn open(&self, url: &Url, timeout: Duration) -> Result<Download, Error> {
        let host = check_host(&self.guard, url)?;
        let response = self.pages.get(url.clone()).timeout(timeout).send().await;
        Ok(Download::of(response.map_err(|error| unreachable(&host, error))?, host))
    }
}
