//! One keep-alive HTTP/1.1 connection, with as little overhead as possible.

use std::{str::FromStr, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest wait for one answer.
pub(crate) const ANSWER_WAIT_MAX: Duration = Duration::from_secs(120);
/// Largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Where a server listens: `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    authority: String,
    host: HeaderValue,
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let uri: Uri = text.parse().context("not a URL")?;
        if uri.scheme_str() != Some("http") {
            bail!("only plain http is supported: http://host:port");
        }
        if uri.path() != "/" || uri.query().is_some() {
            bail!("the URL has no path: http://host:port");
        }
        let host = uri.host().context("the URL has no host")?;
        let port = uri.port_u16().unwrap_or(80);
        let authority = format!("{host}:{port}");
        Ok(Self { host: HeaderValue::from_str(&authority)?, authority })
    }
}

/// The `Authorization` header of a user.
pub(crate) fn bearer(token: &str) -> Result<HeaderValue> {
    Ok(HeaderValue::from_str(&format!("Bearer {token}"))?)
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body of a successful answer.
    ///
    /// # Errors
    ///
    /// When the status is not 200; the text shows the status and the beginning of the body.
    pub(crate) fn ok(self) -> Result<Bytes> {
        if self.status == StatusCode::OK {
            return Ok(self.body);
        }
        let shown = String::from_utf8_lossy(&self.body[..self.body.len().min(300)]).into_owned();
        Err(anyhow!("{}: {shown}", self.status))
    }
}

/// One connection, opened at the first request and again after it broke.
#[derive(Debug)]
pub(crate) struct Connection {
    address: Address,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    pub(crate) fn new(address: Address) -> Self {
        Self { address, sender: None }
    }

    /// Opens the connection now, so that the first request is as fast as the others.
    pub(crate) async fn open(&mut self) -> Result<&mut SendRequest<Full<Bytes>>> {
        if self.sender.as_ref().is_none_or(SendRequest::is_closed) {
            let stream = TcpStream::connect(&self.address.authority)
                .await
                .with_context(|| format!("cannot connect to {}", self.address.authority))?;
            stream.set_nodelay(true)?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            // Ends when the sender is dropped or the server closes.
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        self.sender.as_mut().context("no connection")
    }

    /// Sends one request and reads the whole answer.
    pub(crate) async fn request(
        &mut self,
        method: Method,
        path: &str,
        authorization: Option<&HeaderValue>,
        body: Option<Bytes>,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.address.host);
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default()))?;
        let answer = tokio::time::timeout(ANSWER_WAIT_MAX, self.exchange(request)).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.sender = None;
                Err(error)
            }
            Err(_) => {
                self.sender = None;
                bail!("no answer within {} seconds", ANSWER_WAIT_MAX.as_secs())
            }
        }
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let sender = self.open().await?;
        sender.ready().await?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| anyhow!(error))?.to_bytes();
        Ok(Answer { status: parts.status, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_plain_http_url_without_path() {
        let address: Address = "http://127.0.0.1:8008".parse().unwrap();
        assert_eq!(address.authority, "127.0.0.1:8008");
        assert_eq!("http://example.org/".parse::<Address>().unwrap().authority, "example.org:80");
        assert!("https://example.org".parse::<Address>().is_err());
        assert!("http://example.org/_matrix".parse::<Address>().is_err());
        assert!("example.org:8008".parse::<Address>().is_err());
    }

    #[test]
    fn an_answer_that_is_not_200_shows_status_and_body() {
        let answer =
            Answer { status: StatusCode::FORBIDDEN, body: Bytes::from_static(b"{\"errcode\":\"M_FORBIDDEN\"}") };
        assert_eq!(answer.ok().unwrap_err().to_string(), "403 Forbidden: {\"errcode\":\"M_FORBIDDEN\"}");
    }
}
