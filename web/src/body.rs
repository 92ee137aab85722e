//! Bodies of requests, read within bounds of size and time.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::error::Category;

use crate::MatrixError;

/// Longest that a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads a body whole.
///
/// # Errors
///
/// `M_TOO_LARGE` when it has more than `bytes_max`, `M_NOT_JSON` when it does not come to its end, or not in time.
pub async fn read_body(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, MatrixError> {
    read_within(BODY_TIMEOUT, headers, body, bytes_max).await
}

async fn read_within(
    timeout: Duration,
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<Bytes, MatrixError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > bytes_max as u64) {
        return Err(MatrixError::too_large(bytes_max));
    }
    match tokio::time::timeout(timeout, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(MatrixError::too_large(bytes_max)),
        Ok(Err(_)) => Err(MatrixError::not_json("the body ended before it was complete")),
        Err(_) => Err(MatrixError::not_json("the body did not arrive in time")),
    }
}

/// What is wrong with a body that is no JSON, or JSON of another shape.
pub(crate) fn not_json_of_this_shape(json: &serde_json::Error) -> MatrixError {
    match json.classify() {
        Category::Data => MatrixError::bad_json(json.to_string()),
        Category::Io | Category::Syntax | Category::Eof => MatrixError::not_json(json.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use ruma::api::error::ErrorKind;

    use super::*;

    /// A body of which these parts come, and then nothing more.
    struct Unfinished(Vec<&'static str>);

    impl http_body::Body for Unfinished {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            match self.0.pop() {
                Some(part) => std::task::Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from(part))))),
                None => std::task::Poll::Pending,
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_is_given_up() {
        let read = async |parts: &[&'static str]| {
            let body = Body::new(Unfinished(parts.to_vec()));
            let headers = HeaderMap::new();
            let reading = read_within(Duration::from_millis(10), &headers, body, 6);
            let ended = tokio::time::timeout(Duration::from_secs(60), reading).await.expect("it ends");
            ended.unwrap_err().kind().cloned()
        };
        assert!(matches!(read(&["{\"a\""]).await, Some(ErrorKind::NotJson)));
        assert!(matches!(read(&["{\"a\"", "{\"a\""]).await, Some(ErrorKind::TooLarge)));
    }
}
