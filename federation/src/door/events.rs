//! What servers read of the rooms that they are in. Server-Server API, "Retrieving events", "Backfilling and retrieving missing events".

use axum::{Router, extract::State, response::Response};
use rooms::{MissingEvents, Rooms, ServedState};
use ruma::{
    MilliSecondsSinceUnixEpoch,
    api::{
        Direction,
        federation::{
            authorization::get_event_authorization,
            backfill::get_backfill,
            event::{get_event, get_event_by_timestamp, get_missing_events, get_room_state, get_room_state_ids},
        },
    },
};
use storage::TimelineDirection;
use web::{MatrixError, Ruma, RumaRoutes as _};

use super::{FederationApi, Signed, event_lists, wholes};
use crate::Federation;

pub(super) fn routes() -> Router<FederationApi> {
    Router::new()
        .ruma_route(get_event)
        .ruma_route(get_room_state)
        .ruma_route(get_room_state_ids)
        .ruma_route(get_event_authorization)
        .ruma_route(get_backfill)
        .ruma_route(get_missing_events)
        .ruma_route(get_event_by_timestamp)
}

/// `GET /_matrix/federation/v1/event/{eventId}`.
async fn get_event(
    State(rooms): State<Rooms>,
    State(federation): State<Federation>,
    Signed { origin, destination, request }: Signed<get_event::v1::Request>,
) -> Result<Ruma<get_event::v1::Response>, MatrixError> {
    let event = rooms.event_for_server(&origin, &request.event_id).await?;
    Ok(Ruma(get_event::v1::Response::new(destination, now(&federation), event)))
}

/// `GET /_matrix/federation/v1/state/{roomId}`.
async fn get_room_state(
    State(rooms): State<Rooms>,
    State(federation): State<Federation>,
    Signed { origin, request, .. }: Signed<get_room_state::v1::Request>,
) -> Result<Response, MatrixError> {
    let _turn = wholes::turn(&federation, &origin).await?;
    let served = rooms.state_for_server(&origin, &request.room_id, &request.event_id).await?;
    let ServedState { state, auth_chain } = served;
    Ok(event_lists::answer(&rooms, [("pdus", state), ("auth_chain", auth_chain)]))
}

/// `GET /_matrix/federation/v1/state_ids/{roomId}`.
async fn get_room_state_ids(
    State(rooms): State<Rooms>,
    State(federation): State<Federation>,
    Signed { origin, request, .. }: Signed<get_room_state_ids::v1::Request>,
) -> Result<Ruma<get_room_state_ids::v1::Response>, MatrixError> {
    let _turn = wholes::turn(&federation, &origin).await?;
    let ids = rooms.state_ids_for_server(&origin, &request.room_id, &request.event_id).await?;
    let (pdu_ids, auth_chain_ids) = ids;
    Ok(Ruma(get_room_state_ids::v1::Response::new(auth_chain_ids, pdu_ids)))
}

/// `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}`.
async fn get_event_authorization(
    State(rooms): State<Rooms>,
    State(federation): State<Federation>,
    Signed { origin, request, .. }: Signed<get_event_authorization::v1::Request>,
) -> Result<Response, MatrixError> {
    let _turn = wholes::turn(&federation, &origin).await?;
    let auth_chain = rooms.auth_chain_for_server(&origin, &request.room_id, &request.event_id).await?;
    Ok(event_lists::answer(&rooms, [("auth_chain", auth_chain)]))
}

/// `GET /_matrix/federation/v1/backfill/{roomId}`.
async fn get_backfill(
    State(rooms): State<Rooms>,
    State(federation): State<Federation>,
    Signed { origin, destination, request }: Signed<get_backfill::v1::Request>,
) -> Result<Ruma<get_backfill::v1::Response>, MatrixError> {
    let events = rooms.backfill_for_server(&origin, &request.room_id, &request.v, request.limit.into()).await?;
    Ok(Ruma(get_backfill::v1::Response::new(destination, now(&federation), events)))
}

/// `POST /_matrix/federation/v1/get_missing_events/{roomId}`.
async fn get_missing_events(
    State(rooms): State<Rooms>,
    Signed { origin, request, .. }: Signed<get_missing_events::v1::Request>,
) -> Result<Ruma<get_missing_events::v1::Response>, MatrixError> {
    let asked = MissingEvents {
        earliest: &request.earliest_events,
        latest: &request.latest_events,
        limit: request.limit.into(),
        min_depth: request.min_depth.into(),
    };
    let events = rooms.missing_events_for_server(&origin, &request.room_id, asked).await?;
    Ok(Ruma(get_missing_events::v1::Response::new(events)))
}

/// `GET /_matrix/federation/v1/timestamp_to_event/{roomId}`.
async fn get_event_by_timestamp(
    State(rooms): State<Rooms>,
    Signed { origin, request, .. }: Signed<get_event_by_timestamp::v1::Request>,
) -> Result<Ruma<get_event_by_timestamp::v1::Response>, MatrixError> {
    let direction = match request.dir {
        Direction::Backward => TimelineDirection::Backward,
        Direction::Forward => TimelineDirection::Forward,
    };
    let event = rooms.event_by_timestamp_for_server(&origin, &request.room_id, request.ts, direction).await?;
    let (event_id, made) = (event.pdu.event_id.clone(), event.pdu.origin_server_ts);
    Ok(Ruma(get_event_by_timestamp::v1::Response::new(event_id, made)))
}

fn now(federation: &Federation) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(federation.now_ms().try_into().unwrap_or_default())
}
