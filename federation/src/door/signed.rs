//! Who asks: from the signature of a request to the server that made it. Server-Server API, "Request Authentication".

use axum::extract::{FromRef, FromRequest, RawPathParams, Request};
use http::StatusCode;
use rooms::Asker;
use ruma::{
    OwnedServerName,
    api::{IncomingRequest, error::ErrorKind, federation::authentication::XMatrix},
    signatures::PublicKeyMap,
};
use web::{MatrixError, RumaArgument, read_body, request_of};

use crate::{Federation, keys::Wanted};

/// Largest request of another server, in bytes: 50 PDUs and 100 EDUs of the largest size, and room to spare.
const BODY_BYTES_MAX: usize = 200 * 65_536;

/// As an argument: a request that another server has signed, complete and of the right shape. It must be the last one.
#[derive(Clone, Debug)]
pub(crate) struct Signed<T> {
    /// Who asks.
    pub(crate) origin: OwnedServerName,
    /// Which of our names it asks.
    pub(crate) destination: OwnedServerName,
    /// What it asks.
    pub(crate) request: T,
}

impl<T> Signed<T> {
    /// Who asks whom, as `rooms` wants to know it.
    pub(crate) fn asker(&self) -> Asker<'_> {
        Asker { origin: &self.origin, destination: &self.destination }
    }
}

impl<T: IncomingRequest> RumaArgument for Signed<T> {
    type Request = T;
}

impl<S, T> FromRequest<S> for Signed<T>
where
    S: Send + Sync,
    T: IncomingRequest + 'static,
    Federation: FromRef<S>,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let federation = Federation::from_ref(state);
        let (mut parts, body) = request.into_parts();
        let header =
            XMatrix::extract_from_http_headers(&parts.headers).map_err(|error| unauthorized(error.to_string()))?;
        let destination = match &header.destination {
            Some(name) if !federation.servers().is_local(name) => {
                return Err(unauthorized(format!("{name} is not this server")));
            }
            Some(name) => name.clone(),
            None => super::meant(&federation, &parts.headers, &parts.uri).name.clone(),
        };
        if federation.servers().is_local(&header.origin) {
            return Err(unauthorized(format!("{} is this server itself", header.origin)));
        }
        let arguments = <RawPathParams as axum::extract::FromRequestParts<S>>::from_request_parts(&mut parts, state)
            .await
            .map_err(|_| MatrixError::invalid_param("the path is not UTF-8 in percent-encoding"))?;
        let arguments: Vec<&str> = arguments.iter().map(|(_, value)| value).collect();
        let body = read_body(&parts.headers, body, BODY_BYTES_MAX).await?;
        let request = http::Request::from_parts(parts, &*body);
        check_signature(&federation, &header, &request, &destination).await?;
        federation.heard_from(&header.origin);
        Ok(Self { origin: header.origin, destination, request: request_of(request, &arguments)? })
    }
}

async fn check_signature(
    federation: &Federation,
    header: &XMatrix,
    request: &http::Request<&[u8]>,
    destination: &ruma::ServerName,
) -> Result<(), MatrixError> {
    let now_ms = federation.now_ms();
    let wanted = Wanted { key_ids: [header.key.clone()].into(), valid_at_ms: now_ms };
    let known = federation.keys().get(&header.origin, wanted).await.map_err(|error| MatrixError::internal(&error))?;
    let mut keys = known.current_at(now_ms);
    keys.retain(|id, _| id == header.key.as_str());
    if keys.is_empty() {
        return Err(unauthorized(format!("{} has no valid key {}", header.origin, header.key)));
    }
    let keys = PublicKeyMap::from([(header.origin.to_string(), keys)]);
    header.verify_http_request(request, destination, &keys).map_err(|error| unauthorized(error.to_string()))
}

fn unauthorized(message: impl Into<String>) -> MatrixError {
    MatrixError::new(StatusCode::UNAUTHORIZED, ErrorKind::Unauthorized, message)
}
