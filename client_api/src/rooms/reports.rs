//! Reporting events, rooms and users. Client-Server API, "Reporting Content".

use ::rooms::Rooms;
use axum::{Router, extract::State};
use ruma::api::client::{
    reporting::report_user,
    room::{report_content, report_room},
};
use web::{MatrixError, Requester, Ruma, RumaRoutes as _};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(report_content).ruma_route(report_room).ruma_route(report_user)
}

/// `POST /rooms/{roomId}/report/{eventId}`.
async fn report_content(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<report_content::v3::Request>,
) -> Result<Ruma<report_content::v3::Response>, MatrixError> {
    let reason = request.reason.unwrap_or_default();
    rooms.report_event(&requester, &request.room_id, &request.event_id, &reason).await?;
    Ok(Ruma(report_content::v3::Response::new()))
}

/// `POST /rooms/{roomId}/report`.
async fn report_room(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<report_room::v3::Request>,
) -> Result<Ruma<report_room::v3::Response>, MatrixError> {
    rooms.report_room(&requester, &request.room_id, &request.reason).await?;
    Ok(Ruma(report_room::v3::Response::new()))
}

/// `POST /users/{userId}/report`.
async fn report_user(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<report_user::v3::Request>,
) -> Result<Ruma<report_user::v3::Response>, MatrixError> {
    rooms.report_user(&requester, &request.user_id, &request.reason).await?;
    Ok(Ruma(report_user::v3::Response::new()))
}
