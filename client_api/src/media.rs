//! Files. Client-Server API, "Content repository".

use axum::{Json, Router, body::Body, extract::State, response::Response};
use media::{Media, MediaUri, Upload};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName, UInt,
    api::client::{
        authenticated_media::{get_content, get_content_as_filename, get_content_thumbnail, get_media_config},
        media::{
            create_content, create_content_async, create_mxc_uri, get_content as frozen_content,
            get_content_as_filename as frozen_content_as_filename, get_content_thumbnail as frozen_content_thumbnail,
            get_media_config as deprecated_media_config,
        },
    },
};
use serde_json::{Value, json};
use web::{Downloading, MatrixError, Requester, RequesterOrGuest, Ruma, RumaRoutes as _, Uploading};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(create_content_v3)
        .ruma_route(create_mxc_uri_v1)
        .ruma_route(create_content_async_v3)
        .ruma_route(get_content_v1)
        .ruma_route(get_content_as_filename_v1)
        .ruma_route(get_content_thumbnail_v1)
        .ruma_route(get_media_config_v1)
        .ruma_route(get_media_config_v3)
        .ruma_route(get_content_v3)
        .ruma_route(get_content_as_filename_v3)
        .ruma_route(get_content_thumbnail_v3)
}

/// Keeps a file.
async fn create_content_v3(
    State(media): State<Media>,
    requester: Requester,
    Uploading { request, length, body }: Uploading<create_content::v3::Request>,
) -> Result<Ruma<create_content::v3::Response>, MatrixError> {
    let upload = upload(request.content_type.as_deref(), request.filename.as_deref(), length, body);
    let uri = media.upload(&requester, upload).await?;
    Ok(Ruma(create_content::v3::Response::new((&uri).into())))
}

/// Makes a URI for a file that comes later.
async fn create_mxc_uri_v1(
    State(media): State<Media>,
    requester: Requester,
    Ruma(_): Ruma<create_mxc_uri::v1::Request>,
) -> Result<Ruma<create_mxc_uri::v1::Response>, MatrixError> {
    let (uri, end_ms) = media.create(&requester).await?;
    let mut response = create_mxc_uri::v1::Response::new((&uri).into());
    response.unused_expires_at = UInt::try_from(end_ms).ok().map(MilliSecondsSinceUnixEpoch);
    Ok(Ruma(response))
}

/// Keeps a file under a URI that was made before.
async fn create_content_async_v3(
    State(media): State<Media>,
    requester: Requester,
    Uploading { request, length, body }: Uploading<create_content_async::v3::Request>,
) -> Result<Json<Value>, MatrixError> {
    let uri = uri(request.server_name, request.media_id)?;
    let upload = upload(request.content_type.as_deref(), request.filename.as_deref(), length, body);
    media.fill(&requester, &uri, upload).await?;
    Ok(Json(json!({})))
}

/// Gives a file, of whatever server.
async fn get_content_v1(
    State(media): State<Media>,
    requester: RequesterOrGuest,
    Downloading { request, conditions }: Downloading<get_content::v1::Request>,
) -> Result<Response, MatrixError> {
    let uri = uri(request.server_name, request.media_id)?;
    let file = media.open(requester.user_id.server_name(), &uri, request.timeout_ms).await?;
    Ok(conditions.answer(&file))
}

/// The same under another name.
async fn get_content_as_filename_v1(
    State(media): State<Media>,
    requester: RequesterOrGuest,
    Downloading { request, conditions }: Downloading<get_content_as_filename::v1::Request>,
) -> Result<Response, MatrixError> {
    let uri = uri(request.server_name, request.media_id)?;
    let mut file = media.open(requester.user_id.server_name(), &uri, request.timeout_ms).await?;
    file.file_name = Some(request.filename);
    Ok(conditions.answer(&file))
}

/// Gives a picture in place of its thumbnail.
async fn get_content_thumbnail_v1(
    State(media): State<Media>,
    requester: RequesterOrGuest,
    Downloading { request, conditions }: Downloading<get_content_thumbnail::v1::Request>,
) -> Result<Response, MatrixError> {
    let uri = uri(request.server_name, request.media_id)?;
    let server = requester.user_id.server_name();
    let file = media.open_thumbnail(server, &uri, request.timeout_ms, request.animated).await?;
    Ok(conditions.answer(&file))
}

/// How large an upload may be.
async fn get_media_config_v1(
    State(media): State<Media>,
    _: Requester,
    Ruma(_): Ruma<get_media_config::v1::Request>,
) -> Ruma<get_media_config::v1::Response> {
    Ruma(get_media_config::v1::Response::new(upload_size(&media)))
}

/// The same where it was before Matrix 1.11.
#[expect(deprecated, reason = "clients in use ask for it")]
async fn get_media_config_v3(
    State(media): State<Media>,
    _: Requester,
    Ruma(_): Ruma<deprecated_media_config::v3::Request>,
) -> Ruma<deprecated_media_config::v3::Response> {
    Ruma(deprecated_media_config::v3::Response::new(upload_size(&media)))
}

/// Gives nothing to who shows no token: all media here are newer than the freeze. Client-Server API, "Content repository", the warning of the
/// freeze.
#[expect(deprecated, reason = "they are answered as the specification says")]
async fn get_content_v3(Ruma(_): Ruma<frozen_content::v3::Request>) -> MatrixError {
    frozen()
}

/// The same under another name.
#[expect(deprecated, reason = "they are answered as the specification says")]
async fn get_content_as_filename_v3(Ruma(_): Ruma<frozen_content_as_filename::v3::Request>) -> MatrixError {
    frozen()
}

/// The same of thumbnails.
#[expect(deprecated, reason = "they are answered as the specification says")]
async fn get_content_thumbnail_v3(Ruma(_): Ruma<frozen_content_thumbnail::v3::Request>) -> MatrixError {
    frozen()
}

fn frozen() -> MatrixError {
    MatrixError::not_found("media need an access token: ask below /_matrix/client/v1/media")
}

fn uri(server_name: OwnedServerName, media_id: String) -> Result<MediaUri, MatrixError> {
    MediaUri::new(server_name, media_id).ok_or_else(|| media::Error::NotFound.into())
}

fn upload<'a>(
    content_type: Option<&'a str>,
    file_name: Option<&'a str>,
    length: Option<u64>,
    body: Body,
) -> Upload<'a, axum::body::BodyDataStream> {
    Upload { content_type, file_name, length, body: body.into_data_stream() }
}

fn upload_size(media: &Media) -> UInt {
    UInt::try_from(media.upload_bytes_max()).unwrap_or(UInt::MAX)
}
