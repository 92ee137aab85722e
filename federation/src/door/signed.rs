//! Who asks: from the signature of a request to the server that made it. Server-Server API, "Request Authentication".

use std::time::Duration;

use axum::{
    body::HttpBody as _,
    extract::{FromRef, FromRequest, Request},
};
use http::{StatusCode, request::Parts};
use model::network_of;
use rooms::Asker;
use ruma::{
    OwnedServerName,
    api::{IncomingRequest, error::ErrorKind, federation::authentication::XMatrix},
    signatures::{PublicKeyMap, PublicKeySet},
};
use web::{ClientAddress, MatrixError, RateLimits, RumaArgument, path_arguments, read_body, request_of};

use super::{request_signature, signed_text::Unsigned};
use crate::{
    Federation,
    keys::{KEY_ID_BYTES_MAX, Wanted},
    shares::{Share, site_of},
};

/// Largest request of another server, in bytes: 50 PDUs and 100 EDUs of the largest size, and room to spare.
const BODY_BYTES_MAX: usize = 200 * 65_536;

/// Most memory for bodies of requests whose signature is not verified yet, of all addresses and of one, in KiB. Small ones are not counted.
pub(crate) const BODIES_KIB: usize = 256 << 10;
pub(crate) const BODIES_KIB_OF_ADDRESS: usize = 64 << 10;
const SMALL_KIB: usize = 64;

/// How long a request waits for memory.
const MEMORY_WAIT: Duration = Duration::from_secs(10);

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
    RateLimits: FromRef<S>,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let (federation, limits) = (Federation::from_ref(state), RateLimits::from_ref(state));
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
        if !federation.options().lists.allow(&header.origin) {
            return Err(MatrixError::forbidden(format!("this server does not federate with {}", header.origin)));
        }
        // Before anything is read of it: whoever has no key gets no memory.
        let keys = key_of(&federation, &limits, &header, &parts).await?;
        let arguments = path_arguments(&mut parts, state).await?;
        let arguments: Vec<&str> = arguments.iter().map(|(_, value)| value).collect();
        let _memory = memory_for(&federation, &parts, body.size_hint().exact()).await?;
        let body = read_body(&parts.headers, body, BODY_BYTES_MAX).await?;
        let request = http::Request::from_parts(parts, &*body);
        if let Err(error) = request_signature::check(&header, &request, &destination, &keys) {
            let (parts, _) = request.into_parts();
            limits.check_stranger(&parts)?;
            return Err(match error {
                Unsigned::TooLarge => MatrixError::too_large(BODY_BYTES_MAX),
                Unsigned::Wrong(error) => unauthorized(error),
            });
        }
        limits.check_server(&site_of(&header.origin))?;
        federation.heard_from(&header.origin);
        Ok(Self { origin: header.origin, destination, request: request_of(request, &arguments)? })
    }
}

/// The key that a header names. Its server is asked for it unless it is known; how often strangers may cause that is limited.
async fn key_of(
    federation: &Federation,
    limits: &RateLimits,
    header: &XMatrix,
    parts: &Parts,
) -> Result<PublicKeyMap, MatrixError> {
    let now_ms = federation.now_ms();
    let wanted = Wanted { key_ids: [header.key.clone()].into(), valid_at_ms: now_ms };
    let failed = |error: crate::Error| MatrixError::internal(&error);
    let mut known = federation.keys().in_memory(&header.origin, &wanted).await;
    if known.is_none() {
        limits.check_stranger(parts)?;
        if header.key.as_str().len() > KEY_ID_BYTES_MAX {
            return Err(unauthorized("the id of the key is too long"));
        }
        known = federation.keys().stored(&header.origin, &wanted).await.map_err(failed)?;
    }
    let known = match known {
        Some(known) => known,
        None => {
            limits.check_strange_server(&site_of(&header.origin))?;
            federation.keys().get(&header.origin, wanted.clone()).await.map_err(failed)?
        }
    };
    let mut keys: PublicKeySet = known.current_at(now_ms);
    keys.retain(|id, _| id == header.key.as_str());
    if keys.is_empty() && !known.has(&wanted) && known.may_be_asked(now_ms) {
        // It was not its turn to be asked: that says nothing of the key.
        return Err(MatrixError::busy());
    }
    if keys.is_empty() {
        return Err(unauthorized(format!("{} has no valid key {}", header.origin, header.key)));
    }
    Ok(PublicKeyMap::from([(header.origin.to_string(), keys)]))
}

/// Waits for the memory that a body of so many bytes needs, in the share of its address; nothing is taken for a small one.
async fn memory_for(federation: &Federation, parts: &Parts, bytes: Option<u64>) -> Result<Option<Share>, MatrixError> {
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX);
    let kib = bytes.div_ceil(1_024);
    if kib <= SMALL_KIB {
        return Ok(None);
    }
    let address = match parts.extensions.get() {
        Some(ClientAddress(Some(address))) => network_of(*address).to_string(),
        _ => String::new(),
    };
    let share = federation.bodies().take(&address, kib, MEMORY_WAIT).await;
    Ok(Some(share.ok_or_else(MatrixError::busy)?))
}

fn unauthorized(message: impl Into<String>) -> MatrixError {
    MatrixError::new(StatusCode::UNAUTHORIZED, ErrorKind::Unauthorized, message)
}
