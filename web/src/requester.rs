//! Who asks: from the token of a request to a [`Requester`].

use std::ops::Deref;

use accounts::Accounts;
use axum::extract::{FromRef, FromRequestParts, Query};
use http::{StatusCode, header, request::Parts};
use ruma::{OwnedDeviceId, OwnedUserId};
use serde::Deserialize;

use crate::{ClientAddress, MatrixError, RateLimits, rate_limits::RateLimitedUser};

/// Longest token that is looked at, in bytes. Ours are shorter.
const TOKEN_BYTES_MAX: usize = 4_096;

/// Somebody with an account who has shown a valid access token. Guests are refused with `M_GUEST_ACCESS_FORBIDDEN`.
#[derive(Clone, Debug)]
pub struct Requester(pub accounts::Requester);

/// The same, or a guest: for the endpoints that Client-Server API, "Guest Access" opens to them.
#[derive(Clone, Debug)]
pub struct RequesterOrGuest(pub accounts::Requester);

/// Somebody who may have shown a valid access token: for endpoints that answer without one too. A bad token is still refused.
#[derive(Clone, Debug)]
pub struct OptionalRequester(pub Option<accounts::Requester>);

/// The access token of a request as it was sent, unchecked: for endpoints that take an application service's in their own way.
#[derive(Clone)]
pub struct AccessToken(pub Option<String>);

impl Deref for Requester {
    type Target = accounts::Requester;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Deref for RequesterOrGuest {
    type Target = accounts::Requester;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// The token, where it used to be sent. Client-Server API, "Using access tokens": deprecated, but it works.
#[derive(Deserialize)]
struct TokenInQuery {
    access_token: Option<String>,
}

/// What the query says about who an application service is.
#[derive(Deserialize)]
struct Identity {
    /// In whose name an application service asks. Application Service API, "Identity assertion".
    user_id: Option<OwnedUserId>,
    /// With which device it does.
    device_id: Option<OwnedDeviceId>,
}

impl<S: Send + Sync> FromRequestParts<S> for AccessToken {
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, MatrixError> {
        if let Some(value) = parts.headers.get(header::AUTHORIZATION) {
            let value = value.to_str().map_err(|_| MatrixError::missing_token())?;
            let (scheme, token) = value.split_once(' ').ok_or_else(MatrixError::missing_token)?;
            if !scheme.eq_ignore_ascii_case("bearer") {
                return Err(MatrixError::missing_token());
            }
            return Ok(Self(Some(token.trim().to_owned())));
        }
        // Parsed only if it may be there: most requests have neither.
        if !parts.uri.query().is_some_and(|query| query.contains("access_token=")) {
            return Ok(Self(None));
        }
        let Query(found) = Query::<TokenInQuery>::try_from_uri(&parts.uri)
            .map_err(|error| MatrixError::invalid_param(error.body_text()))?;
        Ok(Self(found.access_token))
    }
}

impl<S> FromRequestParts<S> for OptionalRequester
where
    S: Send + Sync,
    Accounts: FromRef<S>,
    RateLimits: FromRef<S>,
{
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, MatrixError> {
        // Boxed, so that the database's part in it is not in the memory of a request that waits.
        let found = Box::pin(authenticate(parts, state)).await;
        match &found {
            Err(error) if error.status() == StatusCode::UNAUTHORIZED => {
                RateLimits::from_ref(state).check_refused(parts)?;
            }
            _ => {}
        }
        found.map(Self)
    }
}

/// Who asks, if the request has a token; a bad one is refused.
async fn authenticate<S>(parts: &mut Parts, state: &S) -> Result<Option<accounts::Requester>, MatrixError>
where
    S: Send + Sync,
    Accounts: FromRef<S>,
{
    let AccessToken(token) = AccessToken::from_request_parts(parts, state).await?;
    let Some(token) = token.filter(|token| !token.is_empty()) else { return Ok(None) };
    if token.len() > TOKEN_BYTES_MAX {
        return Err(MatrixError::unknown_token(false));
    }
    let accounts = Accounts::from_ref(state);
    let requester = match accounts.app_service_of(&token) {
        Some(service) => {
            let Query(identity) = Query::<Identity>::try_from_uri(&parts.uri)
                .map_err(|error| MatrixError::invalid_param(error.body_text()))?;
            accounts
                .authenticate_app_service(service, identity.user_id.as_deref(), identity.device_id.as_deref())
                .await?
        }
        None => {
            let ClientAddress(address) = parts.extensions.get().copied().unwrap_or(ClientAddress(None));
            accounts.authenticate(&token, address).await?
        }
    };
    let service = requester.app_service.as_ref();
    let is_limited = service.is_none_or(|service| service.is_limited_as(&requester.user_id));
    let limited = is_limited.then(|| requester.user_id.clone());
    parts.extensions.insert(RateLimitedUser(limited));
    Ok(Some(requester))
}

impl<S> FromRequestParts<S> for RequesterOrGuest
where
    S: Send + Sync,
    Accounts: FromRef<S>,
    RateLimits: FromRef<S>,
{
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, MatrixError> {
        let OptionalRequester(requester) = OptionalRequester::from_request_parts(parts, state).await?;
        match requester {
            Some(requester) => Ok(Self(requester)),
            None => {
                RateLimits::from_ref(state).check_refused(parts)?;
                Err(MatrixError::missing_token())
            }
        }
    }
}

impl<S> FromRequestParts<S> for Requester
where
    S: Send + Sync,
    Accounts: FromRef<S>,
    RateLimits: FromRef<S>,
{
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, MatrixError> {
        let RequesterOrGuest(requester) = RequesterOrGuest::from_request_parts(parts, state).await?;
        if requester.is_guest {
            return Err(MatrixError::guest_access_forbidden());
        }
        Ok(Self(requester))
    }
}
