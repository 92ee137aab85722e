//! What relates to an event, and the threads of a room. Client-Server API, "Relationships API" and "Querying threads in a room".

use ::rooms::{PageRequest, RECURSION_LEVELS, RelationsRequest, Rooms};
use accounts::Requester;
use axum::{Router, extract::State};
use ruma::{
    EventId, RoomId, UInt,
    api::{
        Direction,
        client::{
            relations::{
                get_relating_events, get_relating_events_with_rel_type,
                get_relating_events_with_rel_type_and_event_type,
            },
            threads::get_threads,
        },
    },
};
use web::{MatrixError, RequesterOrGuest, Ruma, RumaRoutes as _};

use super::timeline::{direction_of, hide_room, raw};
use crate::ClientApi;

/// Events of a page when the client names no number.
const PAGE_DEFAULT: u32 = 20;
/// Most events of a page.
const PAGE_MAX: u32 = 100;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(get_relating_events)
        .ruma_route(get_relating_events_with_rel_type)
        .ruma_route(get_relating_events_with_rel_type_and_event_type)
        .ruma_route(get_threads)
}

/// `GET /rooms/{roomId}/relations/{eventId}`.
async fn get_relating_events(
    State(rooms): State<Rooms>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_relating_events::v1::Request>,
) -> Result<Ruma<get_relating_events::v1::Response>, MatrixError> {
    let (from, to) = (request.from.as_deref(), request.to.as_deref());
    let page = page_request(from, to, request.limit, &request.dir);
    let asked = RelationsRequest { page, rel_type: None, event_type: None, recurse: request.recurse };
    let page = relations(&rooms, &requester, &request.room_id, &request.event_id, asked).await?;
    let mut response = get_relating_events::v1::Response::new(raw(page.events));
    (response.next_batch, response.prev_batch) = (page.next, request.from);
    response.recursion_depth = request.recurse.then(|| RECURSION_LEVELS.into());
    Ok(Ruma(response))
}

/// `GET /rooms/{roomId}/relations/{eventId}/{relType}`.
async fn get_relating_events_with_rel_type(
    State(rooms): State<Rooms>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_relating_events_with_rel_type::v1::Request>,
) -> Result<Ruma<get_relating_events_with_rel_type::v1::Response>, MatrixError> {
    let (from, to) = (request.from.as_deref(), request.to.as_deref());
    let page = page_request(from, to, request.limit, &request.dir);
    let rel_type = request.rel_type.to_string();
    let asked = RelationsRequest { page, rel_type: Some(&rel_type), event_type: None, recurse: request.recurse };
    let page = relations(&rooms, &requester, &request.room_id, &request.event_id, asked).await?;
    let mut response = get_relating_events_with_rel_type::v1::Response::new(raw(page.events));
    (response.next_batch, response.prev_batch) = (page.next, request.from);
    response.recursion_depth = request.recurse.then(|| RECURSION_LEVELS.into());
    Ok(Ruma(response))
}

/// `GET /rooms/{roomId}/relations/{eventId}/{relType}/{eventType}`.
async fn get_relating_events_with_rel_type_and_event_type(
    State(rooms): State<Rooms>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_relating_events_with_rel_type_and_event_type::v1::Request>,
) -> Result<Ruma<get_relating_events_with_rel_type_and_event_type::v1::Response>, MatrixError> {
    let (from, to) = (request.from.as_deref(), request.to.as_deref());
    let page = page_request(from, to, request.limit, &request.dir);
    let (rel_type, event_type) = (request.rel_type.to_string(), request.event_type.to_string());
    let asked =
        RelationsRequest { page, rel_type: Some(&rel_type), event_type: Some(&event_type), recurse: request.recurse };
    let page = relations(&rooms, &requester, &request.room_id, &request.event_id, asked).await?;
    let mut response = get_relating_events_with_rel_type_and_event_type::v1::Response::new(raw(page.events));
    (response.next_batch, response.prev_batch) = (page.next, request.from);
    response.recursion_depth = request.recurse.then(|| RECURSION_LEVELS.into());
    Ok(Ruma(response))
}

/// `GET /rooms/{roomId}/threads`.
async fn get_threads(
    State(rooms): State<Rooms>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_threads::v1::Request>,
) -> Result<Ruma<get_threads::v1::Response>, MatrixError> {
    use get_threads::v1::IncludeThreads;
    let only_participated = match &request.include {
        IncludeThreads::All => false,
        IncludeThreads::Participated => true,
        other => {
            return Err(MatrixError::invalid_param(format!("`include` is `all` or `participated`, not `{other}`")));
        }
    };
    if request.limit == Some(UInt::MIN) {
        return Err(MatrixError::invalid_param("`limit` is greater than zero"));
    }
    let limit = limit_of(request.limit);
    let page = rooms.threads(&requester, &request.room_id, request.from.as_deref(), only_participated, limit).await?;
    let mut response = get_threads::v1::Response::new(raw(page.roots));
    response.next_batch = page.end.map(|end| end.to_string());
    Ok(Ruma(response))
}

/// A page of what relates to an event, as clients see it.
struct RelationsPage {
    events: Vec<Box<serde_json::value::RawValue>>,
    next: Option<String>,
}

async fn relations(
    rooms: &Rooms,
    requester: &Requester,
    room_id: &RoomId,
    event_id: &EventId,
    asked: RelationsRequest<'_>,
) -> Result<RelationsPage, MatrixError> {
    let page = rooms.relations(requester, room_id, event_id, asked).await.map_err(hide_room)?;
    let events = rooms.render_with_relations(&page.reader, &page.events, true).await?;
    Ok(RelationsPage { events, next: page.end.map(|end| end.to_string()) })
}

fn page_request<'a>(
    from: Option<&'a str>,
    to: Option<&'a str>,
    limit: Option<UInt>,
    direction: &Direction,
) -> PageRequest<'a> {
    PageRequest { direction: direction_of(direction), from, to, limit: limit_of(limit) }
}

/// A page has at least one event, so that who pages gets on.
fn limit_of(limit: Option<UInt>) -> u32 {
    limit.map_or(PAGE_DEFAULT, |limit| u32::try_from(limit).unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX))
}
