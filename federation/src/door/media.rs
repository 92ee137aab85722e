//! Files that were uploaded here, for other servers. Server-Server API, "Content Repository".

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::header;
use media::{Media, MediaUri};
use ruma::api::federation::authenticated_media::get_content;
use web::{MatrixError, RumaRoutes as _, disposition_of};

use super::{FederationApi, Signed};
use crate::Federation;

/// Characters of a boundary: so many that no file has it in it.
const BOUNDARY_LENGTH: usize = 40;

pub(super) fn routes() -> Router<FederationApi> {
    Router::new().ruma_route(get_content_v1)
}

/// A file of the name that is asked, as a body of two parts: metadata, of which there is none, and the file.
async fn get_content_v1(
    State(federation): State<Federation>,
    State(media): State<Media>,
    Signed { destination, request, .. }: Signed<get_content::v1::Request>,
) -> Result<Response, MatrixError> {
    let uri = MediaUri::new(destination, request.media_id).ok_or(media::Error::NotFound)?;
    let file = media.open_local(&uri, request.timeout_ms).await?;
    let boundary = federation.random().alphanumeric(BOUNDARY_LENGTH);
    let disposition = disposition_of(&file.content_type, file.file_name.clone());
    let head = format!(
        "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n\
         --{boundary}\r\nContent-Type: {}\r\nContent-Disposition: {disposition}\r\n\r\n",
        file.content_type
    );
    let end = format!("\r\n--{boundary}--\r\n");
    let length = head.len() as u64 + file.content.length + end.len() as u64;
    let piece = |text: String| stream::iter([Ok(Bytes::from(text))]);
    let body = piece(head).chain(file.read(0..file.content.length)).chain(piece(end));
    let headers = [
        (header::CONTENT_TYPE, format!("multipart/mixed; boundary={boundary}")),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}
