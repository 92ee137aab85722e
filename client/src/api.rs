//! Requests to the server: the types of `ruma` over HTTP, with an access token, time limits and patience.

use std::{borrow::Cow, sync::RwLock, time::Duration};

use rand::RngExt as _;
use ruma::{
    ServerName,
    api::{
        IncomingResponseExt as _, MatrixVersion, OutgoingRequest, OutgoingRequestExt as _, SupportedVersions,
        auth_scheme::{
            AccessToken, AccessTokenOptional, AppserviceTokenOptional, AuthScheme, NoAccessToken, NoAuthentication,
            SendAccessToken,
        },
        client::discovery::discover_homeserver,
        error::FromHttpResponseError,
        path_builder::{PathBuilder, SinglePath, VersionHistory},
    },
};
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroizing;

use crate::Error;

/// Longest wait for one answer, where the request does not wait by itself.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// How long a request that may be repeated is tried.
const PATIENCE: Duration = Duration::from_secs(60);
/// First wait after a failure; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Largest answer that is read, in bytes: an initial sync of a large account is the largest there is.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Asks one server, as one device once there is a token.
#[derive(Debug)]
pub struct Api {
    http: reqwest::Client,
    homeserver: Url,
    token: RwLock<Option<Token>>,
    versions: SupportedVersions,
}

/// An access token, which no log shows.
struct Token(Zeroizing<String>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// How long a request is tried.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Longest wait for one answer.
    pub answer: Duration,
    /// How long it is repeated while no answer comes or the server has a fault of its own.
    pub repeat: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { answer: ANSWER_WAIT, repeat: PATIENCE }
    }
}

impl Patience {
    /// For what must not happen twice: sent again only if the server said that it did nothing (status 429).
    pub const ONCE: Self = Self { answer: ANSWER_WAIT, repeat: Duration::ZERO };
}

/// What the two kinds of paths that `ruma` knows want to be told.
pub trait Path: PathBuilder {
    /// Which paths the server has.
    fn input(versions: &SupportedVersions) -> Self::Input<'_>;
}

impl Path for VersionHistory {
    fn input(versions: &SupportedVersions) -> Cow<'_, SupportedVersions> {
        Cow::Borrowed(versions)
    }
}

impl Path for SinglePath {
    fn input(_: &SupportedVersions) {}
}

/// What the kinds of authentication that `ruma` knows want to be told.
pub trait Authentication: AuthScheme {
    /// With which token, if with any.
    fn input(token: Option<&str>) -> Self::Input<'_>;
}

macro_rules! with_token {
    ($($scheme:ty),+) => {$(
        impl Authentication for $scheme {
            fn input(token: Option<&str>) -> SendAccessToken<'_> {
                token.map_or(SendAccessToken::None, SendAccessToken::IfRequired)
            }
        }
    )+};
}

with_token!(NoAccessToken, AccessToken, AccessTokenOptional, AppserviceTokenOptional);

impl Authentication for NoAuthentication {
    fn input(_: Option<&str>) {}
}

/// A request that this client can send.
pub trait Request: OutgoingRequest<EndpointError: Into<Error>, PathBuilder: Path> + Send {
    /// The request as HTTP.
    ///
    /// # Errors
    ///
    /// [`Error::Unreadable`] when it cannot be written.
    fn write(self, api: &Api, token: Option<&str>) -> Result<http::Request<Vec<u8>>, Error>;
}

impl<R> Request for R
where
    R: OutgoingRequest<EndpointError: Into<Error>, PathBuilder: Path> + Send,
    R::Authentication: Authentication,
{
    fn write(self, api: &Api, token: Option<&str>) -> Result<http::Request<Vec<u8>>, Error> {
        let token = R::Authentication::input(token);
        let base = api.homeserver.as_str().trim_end_matches('/');
        self.try_into_http_request(base, token, R::PathBuilder::input(&api.versions))
            .map_err(|error| Error::Unreadable(error.into()))
    }
}

impl Api {
    /// For the server at this URL.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] when this machine has no certificates to trust.
    pub fn new(homeserver: Url) -> Result<Self, Error> {
        let http = reqwest::Client::builder().build().map_err(|error| Error::Unreachable(error.into()))?;
        // All that this client asks is there since 1.11, which is the first with media behind a token.
        let versions = [MatrixVersion::V1_1, MatrixVersion::V1_11].into();
        let versions = SupportedVersions { versions, features: Default::default() };
        Ok(Self { http, homeserver, token: RwLock::new(None), versions })
    }

    /// Finds the server of a server name, such as `example.org`. Client-Server API, "Server discovery".
    ///
    /// # Errors
    ///
    /// [`Error::NotAServer`] when the name says of no server where it is; [`Error::Unreachable`].
    pub async fn discover(server_name: &ServerName) -> Result<Url, Error> {
        let not_a_server = || Error::NotAServer(server_name.to_string());
        let base = Url::parse(&format!("https://{server_name}")).map_err(|_| not_a_server())?;
        // Who mistyped the name is told at once.
        match Self::new(base.clone())?.send_once(discover_homeserver::Request::new()).await {
            Ok(found) => {
                let url = Url::parse(&found.homeserver.base_url).map_err(|_| not_a_server())?;
                if matches!(url.scheme(), "https" | "http") { Ok(url) } else { Err(not_a_server()) }
            }
            // It is where its name says.
            Err(Error::Refused { status: 404, .. }) => Ok(base),
            Err(Error::Refused { .. } | Error::Unreadable(_)) => Err(not_a_server()),
            Err(error) => Err(error),
        }
    }

    /// Where the server is.
    #[must_use]
    pub fn homeserver(&self) -> &Url {
        &self.homeserver
    }

    /// The connections to the server, for what is not a request of `ruma`, such as streamed files.
    #[must_use]
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Acts for the device of this token from now on; nothing to act for nobody.
    pub fn set_token(&self, token: Option<&str>) {
        *self.token.write().expect("nobody panics with the token in hand") =
            token.map(|token| Token(Zeroizing::new(token.to_owned())));
    }

    /// The token of the device that it acts for.
    #[must_use]
    pub fn token(&self) -> Option<Zeroizing<String>> {
        self.token.read().expect("nobody panics with the token in hand").as_ref().map(|token| token.0.clone())
    }

    /// Sends a request that may arrive twice without harm, again and again for a minute.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] when no answer came; else what the server says.
    pub async fn send<R: Request>(&self, request: R) -> Result<R::IncomingResponse, Error> {
        self.send_with(request, Patience::default()).await
    }

    /// Sends a request that must not happen twice.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn send_once<R: Request>(&self, request: R) -> Result<R::IncomingResponse, Error> {
        self.send_with(request, Patience::ONCE).await
    }

    /// Sends a request with this much patience. What the server wants to be asked later is asked later, within a minute.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn send_with<R: Request>(&self, request: R, patience: Patience) -> Result<R::IncomingResponse, Error> {
        let begin = Instant::now();
        let mut backoff = BACKOFF_MIN;
        loop {
            let error = match self.attempt(request.clone(), patience.answer).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let (limit, wait) = match &error {
                Error::Refused { status: 429, retry_after, .. } => (PATIENCE, retry_after.unwrap_or(backoff)),
                error if error.is_temporary() => (patience.repeat, backoff),
                _ => return Err(error),
            };
            // A little chance keeps the clients of a server that comes back from asking all at once.
            let wait = wait + backoff.mul_f64(rand::rng().random_range(0.0..0.5));
            if begin.elapsed() + wait > limit {
                return Err(error);
            }
            tracing::debug!(%error, "asking again");
            tokio::time::sleep(wait).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn attempt<R: Request>(&self, request: R, wait: Duration) -> Result<R::IncomingResponse, Error> {
        let token = self.token();
        let request = request.write(self, token.as_deref().map(String::as_str))?;
        let request = reqwest::Request::try_from(request).map_err(|error| Error::Unreadable(error.into()))?;
        let answer = tokio::time::timeout(wait, self.exchange(request)).await;
        let answer = answer.map_err(|elapsed| Error::Unreachable(elapsed.into()))??;
        let (parts, body) = answer.into_parts();
        R::IncomingResponse::try_from_http_response(http::Response::from_parts(parts, body.as_slice())).map_err(failed)
    }

    async fn exchange(&self, request: reqwest::Request) -> Result<http::Response<Vec<u8>>, Error> {
        // The address has identifiers in it, the rest of the error does not.
        let unreachable = |error: reqwest::Error| Error::Unreachable(error.without_url().into());
        let mut answer = self.http.execute(request).await.map_err(unreachable)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(Error::ServerMisbehaved("the size of an answer"));
            }
            body.extend_from_slice(&chunk);
        }
        let mut response = http::Response::new(body);
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        Ok(response)
    }
}

/// What an answer says that is no success.
pub(crate) fn failed<E: Into<Error> + std::fmt::Display>(error: FromHttpResponseError<E>) -> Error {
    match error {
        FromHttpResponseError::Server(error) => error.into(),
        error => Error::Unreadable(Box::new(Readable(error.to_string()))),
    }
}

/// Why an answer could not be read, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Readable(String);
