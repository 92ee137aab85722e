//! Single events, pages of a timeline, and what lies around an event. Client-Server API, "Getting events for a room",
//! "Event context".

use std::{collections::BTreeSet, sync::Arc};

use ::rooms::{PageRequest, Reader, Rooms};
use axum::{Router, extract::State};
use model::{NodeNr, limits::TIMELINE_EVENTS_MAX};
use ruma::{
    OwnedUserId, UInt,
    api::{
        Direction,
        client::{
            context::get_context,
            filter::{LazyLoadOptions, RoomEventFilter},
            message::get_message_events,
            room::{get_event_by_timestamp, get_room_event},
        },
    },
    serde::Raw,
};
use serde_json::value::RawValue;
use storage::{StoredEvent, TimelineDirection};
use sync::v3::matches_filter;
use web::{MatrixError, RequesterOrGuest, Ruma, RumaRoutes as _};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(get_room_event)
        .ruma_route(get_message_events)
        .ruma_route(get_context)
        .ruma_route(get_event_by_timestamp)
}

/// `GET /rooms/{roomId}/event/{eventId}`.
async fn get_room_event(
    State(rooms): State<Rooms>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_room_event::v3::Request>,
) -> Result<Ruma<get_room_event::v3::Response>, MatrixError> {
    let (reader, event) = rooms.event(&requester, &request.room_id, &request.event_id).await.map_err(hide_room)?;
    Ok(Ruma(get_room_event::v3::Response::new(Raw::from_json(render_one(&rooms, &reader, event).await?))))
}

/// `GET /rooms/{roomId}/messages`.
async fn get_message_events(
    State(rooms): State<Rooms>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_message_events::v3::Request>,
) -> Result<Ruma<get_message_events::v3::Response>, MatrixError> {
    let (filter, room_id) = (&request.filter, &*request.room_id);
    accounts::check_room_event_filter(filter)?;
    let direction = direction_of(&request.dir);
    let limit = limit_of(filter.limit.map_or(request.limit, |limit| limit.min(request.limit)));
    let asked = PageRequest { direction, from: request.from.as_deref(), to: request.to.as_deref(), limit };
    let wanted = |event: &StoredEvent| matches_filter(filter, event);
    let page = rooms.messages(&requester, room_id, asked, wanted).await?;
    let mut response = get_message_events::v3::Response::new();
    // The client's own token as it gave it, so that it knows the page by it.
    response.start = request.from.clone().unwrap_or_else(|| page.start.to_string());
    response.end = page.end.map(|end| end.to_string());
    if is_lazy(filter)
        && let Some(newest) = page.events.iter().max_by_key(|event| event.place)
    {
        let senders = senders_of(&page.events);
        let members = rooms.member_events(&page.reader.room, newest.state, &senders).await?;
        response.state = raw(rooms.render(&page.reader, &members, true).await?);
    }
    response.chunk = raw(rooms.render_with_relations(&page.reader, &page.events, true).await?);
    Ok(Ruma(response))
}

/// `GET /rooms/{roomId}/context/{eventId}`.
async fn get_context(
    State(rooms): State<Rooms>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_context::v3::Request>,
) -> Result<Ruma<get_context::v3::Response>, MatrixError> {
    let (filter, room_id) = (&request.filter, &*request.room_id);
    accounts::check_room_event_filter(filter)?;
    // None around it may be asked for: then only the event and the state are wanted.
    let limit = filter.limit.map_or(request.limit, |limit| limit.min(request.limit));
    let limit = if limit == UInt::MIN { 0 } else { limit_of(limit) };
    let wanted = |event: &StoredEvent| matches_filter(filter, event);
    let context = rooms.context(&requester, room_id, &request.event_id, limit, wanted).await?;
    let reader = &context.reader;
    let mut response = get_context::v3::Response::new();
    response.start = Some(context.start.to_string());
    response.end = Some(context.end.to_string());
    let lazily = is_lazy(filter).then(|| {
        let around = context.before.iter().chain(&context.after).chain([&context.event]);
        senders_of(around)
    });
    let mut state = state_of(&rooms, reader, context.state, lazily).await?;
    state.retain(|event| matches_filter(filter, event));
    response.state = raw(rooms.render(reader, &state, true).await?);
    // All together, so that what relates to them is looked up once.
    let events = [std::slice::from_ref(&context.event), &*context.before, &*context.after].concat();
    let mut events = rooms.render_with_relations(reader, &events, true).await?.into_iter();
    response.event = events.next().map(Raw::from_json);
    response.events_before = raw(events.by_ref().take(context.before.len()).collect());
    response.events_after = raw(events.collect());
    Ok(Ruma(response))
}

/// `GET /rooms/{roomId}/timestamp_to_event`.
async fn get_event_by_timestamp(
    State(rooms): State<Rooms>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_event_by_timestamp::v1::Request>,
) -> Result<Ruma<get_event_by_timestamp::v1::Response>, MatrixError> {
    let direction = direction_of(&request.dir);
    let (event_id, made) = rooms.event_by_timestamp(&requester, &request.room_id, request.ts, direction).await?;
    Ok(Ruma(get_event_by_timestamp::v1::Response::new(event_id, made)))
}

/// The state; of its members only those that are named, when they are loaded lazily.
async fn state_of(
    rooms: &Rooms,
    reader: &Reader,
    state: NodeNr,
    members: Option<BTreeSet<OwnedUserId>>,
) -> Result<Vec<Arc<StoredEvent>>, MatrixError> {
    let Some(members) = members else { return Ok(rooms.events_of_state(&reader.room, state).await?) };
    let mut events = rooms.events_of_state_without_members(&reader.room, state).await?;
    events.extend(rooms.member_events(&reader.room, state, &members).await?);
    Ok(events)
}

/// Whether the members are loaded as they are needed. Client-Server API, "Lazy-loading room members".
fn is_lazy(filter: &RoomEventFilter) -> bool {
    matches!(filter.lazy_load_options, LazyLoadOptions::Enabled { .. })
}

fn senders_of<'a>(events: impl IntoIterator<Item = &'a Arc<StoredEvent>>) -> BTreeSet<OwnedUserId> {
    events.into_iter().map(|event| event.pdu.sender.clone()).collect()
}

async fn render_one(rooms: &Rooms, reader: &Reader, event: Arc<StoredEvent>) -> Result<Box<RawValue>, MatrixError> {
    let rendered = rooms.render_with_relations(reader, &[event], true).await?.pop();
    rendered.ok_or_else(|| ::rooms::Error::EventUnknown.into())
}

/// Who is nothing to the room learns no more than that there is no such event for them.
pub(super) fn hide_room(error: ::rooms::Error) -> ::rooms::Error {
    match error {
        ::rooms::Error::NotMember => ::rooms::Error::EventUnknown,
        other => other,
    }
}

pub(super) fn direction_of(direction: &Direction) -> TimelineDirection {
    match direction {
        Direction::Backward => TimelineDirection::Backward,
        Direction::Forward => TimelineDirection::Forward,
    }
}

pub(super) fn raw<T>(events: Vec<Box<RawValue>>) -> Vec<Raw<T>> {
    events.into_iter().map(Raw::from_json).collect()
}

/// A page has at least one event, so that who pages gets on.
fn limit_of(limit: UInt) -> u32 {
    u32::try_from(u64::from(limit).clamp(1, TIMELINE_EVENTS_MAX as u64)).unwrap_or(1)
}
