//! JSON that is not in ruma's types.

use axum::{
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, header};
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::{
    MatrixError,
    body::{not_json_of_this_shape, read_body},
};

/// A request's body of at most `BYTES_MAX`, for endpoints that ruma does not know. As an argument it must be the last one.
///
/// What is wrong is answered as [`Ruma`](crate::Ruma) does it.
#[derive(Clone, Debug)]
pub struct JsonBody<T, const BYTES_MAX: usize>(pub T);

impl<S: Sync, T: DeserializeOwned, const BYTES_MAX: usize> FromRequest<S> for JsonBody<T, BYTES_MAX> {
    type Rejection = MatrixError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, MatrixError> {
        let (parts, body) = request.into_parts();
        let body = read_body(&parts.headers, body, BYTES_MAX).await?;
        serde_json::from_slice(&body).map(Self).map_err(|error| match serde_json::from_slice::<IgnoredAny>(&body) {
            // Also where a list is too long, which counts as a mistake in the JSON otherwise.
            Ok(_) => MatrixError::bad_json(error.to_string()),
            Err(_) => not_json_of_this_shape(&error),
        })
    }
}

/// A successful answer whose body is JSON text already, as the shared bytes of a sync are.
#[derive(Clone, Debug)]
pub struct ReadyJson(pub Bytes);

impl IntoResponse for ReadyJson {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], self.0).into_response()
    }
}
