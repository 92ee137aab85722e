//! Requests whose body or answer is a file, and goes by piece by piece.

use axum::{
    body::{Body, HttpBody as _},
    extract::{FromRef, FromRequest, Request},
};
use ruma::api::IncomingRequest;

use crate::{FileConditions, MatrixError, RateLimits, RumaArgument, path_arguments, rate_limits::Cost, request_of};

/// As an argument: the request of an endpoint that takes a file, which is left to be read. It must be the last one.
#[derive(Debug)]
pub struct Uploading<T> {
    /// The request, with nothing of the file in it.
    pub request: T,
    /// The length of the file, if it is announced.
    pub length: Option<u64>,
    /// The file.
    pub body: Body,
}

/// As an argument: the request of an endpoint that gives a file, and how the client wants it. It must be the last one.
///
/// With a token it has no limit: clients ask for many pictures at once.
#[derive(Debug)]
pub struct Downloading<T> {
    /// The request.
    pub request: T,
    /// Which part of the file is wanted, and which version is not.
    pub conditions: FileConditions,
}

impl<T: IncomingRequest> RumaArgument for Uploading<T> {
    type Request = T;
}

impl<T: IncomingRequest> RumaArgument for Downloading<T> {
    type Request = T;
}

impl<S, T> FromRequest<S> for Uploading<T>
where
    S: Send + Sync,
    T: IncomingRequest + 'static,
    RateLimits: FromRef<S>,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let (request, body, _) = head_of(request, state, Cost::Change).await?;
        Ok(Self { request, length: body.size_hint().exact(), body })
    }
}

impl<S, T> FromRequest<S> for Downloading<T>
where
    S: Send + Sync,
    T: IncomingRequest + 'static,
    RateLimits: FromRef<S>,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let (request, _, conditions) = head_of(request, state, Cost::Read).await?;
        Ok(Self { request, conditions })
    }
}

/// The request by its path, query and headers alone.
async fn head_of<S, T>(request: Request, state: &S, cost: Cost) -> Result<(T, Body, FileConditions), MatrixError>
where
    S: Send + Sync,
    T: IncomingRequest + 'static,
    RateLimits: FromRef<S>,
{
    let (mut parts, body) = request.into_parts();
    RateLimits::from_ref(state).check(&parts, cost)?;
    let arguments = path_arguments(&mut parts, state).await?;
    let arguments: Vec<&str> = arguments.iter().map(|(_, value)| value).collect();
    let conditions = FileConditions::of(&parts.headers);
    Ok((request_of(http::Request::from_parts(parts, b"".as_slice()), &arguments)?, body, conditions))
}
