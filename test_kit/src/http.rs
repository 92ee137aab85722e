//! A plain HTTP client that sends what it is told, well-formed or not.

use std::{fmt, time::Duration};

use ::http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// Longest wait for an answer, usually: far beyond what any request may take, so that running into it means a hang.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Sends requests to one server.
#[derive(Clone, Debug)]
pub struct Http {
    base: String,
    host: Option<String>,
    wait_max: Duration,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The `Content-Type`, or nothing.
    pub content_type: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub bytes: Bytes,
}

/// No answer came.
#[derive(Debug)]
pub enum Failure {
    /// The request cannot be written as HTTP at all; it was not sent.
    NotHttp(String),
    /// The connection ended first.
    Connection(String),
    /// It took too long.
    Hang,
}

impl Http {
    /// A client for the server at `base`, such as `http://127.0.0.1:8008`.
    #[must_use]
    pub fn new(base: &str) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            host: None,
            wait_max: WAIT_MAX,
            // A connection each: a server that refuses a large body without reading it closes the connection, and the next request on
            // it would fail.
            client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(HttpConnector::new()),
        }
    }

    /// The same, but it waits for an answer for so long.
    #[must_use]
    pub fn waiting(self, wait_max: Duration) -> Self {
        Self { wait_max, ..self }
    }

    /// The same, but it asks under this name, which is the `Host` of its requests.
    #[must_use]
    pub fn for_host(&self, host: &str) -> Self {
        Self { host: Some(host.to_owned()), ..self.clone() }
    }

    /// The URL in front of every path.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends `body` as it is; `path` includes the query. A `token` that begins with `X-Matrix` is the whole `Authorization` header.
    ///
    /// # Errors
    ///
    /// [`Failure`] when no answer came.
    pub async fn send(
        &self,
        method: &str,
        path: &[u8],
        token: Option<&str>,
        content_type: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Result<Answer, Failure> {
        let not_http = |error: &dyn fmt::Display| Failure::NotHttp(error.to_string());
        let uri = [self.base.as_bytes(), path].concat();
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).map_err(|error| not_http(&error))?)
            .uri(Uri::from_maybe_shared(uri).map_err(|error| not_http(&error))?);
        if let Some(host) = &self.host {
            request = request.header(header::HOST, host);
        }
        if let Some(token) = token {
            // What has a scheme of its own is sent as it is.
            let value = if token.starts_with("X-Matrix") { token.to_owned() } else { format!("Bearer {token}") };
            request = request.header(header::AUTHORIZATION, value);
        }
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        self.answer(request.body(Full::new(body.into())).map_err(|error| not_http(&error))?).await
    }

    /// Asks with these headers, without a body.
    ///
    /// # Panics
    ///
    /// When no answer came.
    pub async fn request_with(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        match self.answer(request.body(Full::default()).expect("a test's request can be written")).await {
            Ok(answer) => answer,
            Err(failure) => panic!("{method} {path}: {failure:?}"),
        }
    }

    async fn answer(&self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let answer = async {
            let answer = self.client.request(request).await.map_err(|error| Failure::Connection(chain(&error)))?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            let content_type = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let content_type = content_type.unwrap_or_default().to_owned();
            let bytes = answer.into_body().collect().await.map_err(|error| Failure::Connection(chain(&error)))?;
            Ok(Answer { status, content_type, headers, bytes: bytes.to_bytes() })
        };
        tokio::time::timeout(self.wait_max, answer).await.unwrap_or(Err(Failure::Hang))
    }

    /// Sends `body` as JSON; null sends none.
    ///
    /// # Panics
    ///
    /// When no answer came.
    pub async fn request(&self, method: &str, path: &str, token: Option<&str>, body: &Value) -> Answer {
        let (content_type, bytes) = match body {
            Value::Null => (None, Vec::new()),
            body => (Some("application/json"), body.to_string().into_bytes()),
        };
        match self.send(method, path.as_bytes(), token, content_type, bytes).await {
            Ok(answer) => answer,
            Err(failure) => panic!("{method} {path}: {failure:?}"),
        }
    }
}

impl Answer {
    /// The body as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// A header, or nothing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The `errcode`, or nothing.
    #[must_use]
    pub fn errcode(&self) -> String {
        self.json()["errcode"].as_str().unwrap_or_default().to_owned()
    }

    /// The body of a success.
    ///
    /// # Panics
    ///
    /// When it is none.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert!(self.status.is_success(), "expected success, got {self}");
        self.json()
    }

    /// Checks that this is the error `errcode` with `status`.
    ///
    /// # Panics
    ///
    /// When it is something else.
    #[track_caller]
    pub fn is_error(&self, status: u16, errcode: &str) {
        assert_eq!((self.status.as_u16(), self.errcode().as_str()), (status, errcode), "got {self}");
    }

    /// Whether the server does not know the path, or not with this method. Client-Server API, "Common error codes".
    /// So it is when it does not even say that in the words of Matrix.
    #[must_use]
    pub fn is_unrecognized(&self) -> bool {
        matches!(self.status.as_u16(), 404 | 405) && matches!(self.errcode().as_str(), "M_UNRECOGNIZED" | "")
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(&self.bytes);
        write!(f, "{} {}", self.status, text.chars().take(500).collect::<String>())
    }
}

/// Encodes one segment of a path, or one value of a query.
#[must_use]
pub fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// The text that was percent-encoded.
pub(crate) fn decode(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend_from_slice(&part.as_bytes()[2..]);
            }
            None => bytes.extend_from_slice(format!("%{part}").as_bytes()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
