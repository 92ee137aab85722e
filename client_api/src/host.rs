//! The server name that a request is meant for.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::{header, request::Parts};

/// The host that the client asked for, if it says one.
pub(crate) struct Host(pub(crate) Option<String>);

impl<S: Sync> FromRequestParts<S> for Host {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let header = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
        Ok(Self(header.or_else(|| parts.uri.authority().map(ToString::to_string))))
    }
}
