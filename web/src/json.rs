//! Answers that are JSON already.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, header};

/// A successful answer whose body is JSON text already, as the shared bytes of a sync are.
#[derive(Clone, Debug)]
pub struct ReadyJson(pub Bytes);

impl IntoResponse for ReadyJson {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], self.0).into_response()
    }
}
