//! Events of rooms, as other servers tell of them. Server-Server API, "Backfilling and retrieving missing events", "Retrieving events".

use std::time::Duration;

use outbound::Bounds;
use rooms::{Asking, RemoteEvents, Source, StateIds};
use ruma::{
    EventId, OwnedEventId, RoomId, UInt,
    api::federation::{
        authorization::get_event_authorization,
        backfill::get_backfill,
        event::{get_event, get_missing_events, get_room_state, get_room_state_ids},
    },
};
use serde_json::value::RawValue;

use super::membership::remote_error;
use crate::Federation;

/// What an answer with some events may be: 100 of the largest, and room to spare.
const EVENTS: Bounds = Bounds { timeout: Duration::from_secs(15), body_bytes_max: 8 << 20 };

/// What an answer with all ids of a large room's state may be. Some servers need a minute to find them; who has somebody waiting does not
/// wait that long.
const IDS: Bounds = Bounds { timeout: Duration::from_secs(90), body_bytes_max: 16 << 20 };

/// What an answer with the state of a large room may be.
const STATE: Bounds = Bounds { timeout: Duration::from_secs(180), body_bytes_max: 128 << 20 };

impl RemoteEvents for Federation {
    fn get_missing_events<'a>(
        &'a self,
        source: Source<'a>,
        room_id: &'a RoomId,
        earliest: Vec<OwnedEventId>,
        latest: Vec<OwnedEventId>,
        limit: u32,
    ) -> Asking<'a, Vec<Box<RawValue>>> {
        Box::pin(async move {
            let mut request = get_missing_events::v1::Request::new(room_id.to_owned(), earliest, latest);
            request.limit = limit.into();
            let answer = self.client().send(source.as_server, source.server, request, EVENTS).await;
            Ok(answer.map_err(|error| remote_error(source.server, error))?.events)
        })
    }

    fn get_event<'a>(&'a self, source: Source<'a>, event_id: &'a EventId) -> Asking<'a, Box<RawValue>> {
        Box::pin(async move {
            let request = get_event::v1::Request::new(event_id.to_owned());
            let answer = self.client().send(source.as_server, source.server, request, EVENTS).await;
            Ok(answer.map_err(|error| remote_error(source.server, error))?.pdu)
        })
    }

    fn get_event_auth<'a>(
        &'a self,
        source: Source<'a>,
        room_id: &'a RoomId,
        event_id: &'a EventId,
    ) -> Asking<'a, Vec<Box<RawValue>>> {
        Box::pin(async move {
            let request = get_event_authorization::v1::Request::new(room_id.to_owned(), event_id.to_owned());
            let answer = self.client().send(source.as_server, source.server, request, STATE).await;
            Ok(answer.map_err(|error| remote_error(source.server, error))?.auth_chain)
        })
    }

    fn get_state_ids<'a>(
        &'a self,
        source: Source<'a>,
        room_id: &'a RoomId,
        event_id: &'a EventId,
    ) -> Asking<'a, StateIds> {
        Box::pin(async move {
            let request = get_room_state_ids::v1::Request::new(event_id.to_owned(), room_id.to_owned());
            let answer = self.client().send(source.as_server, source.server, request, IDS).await;
            let answer = answer.map_err(|error| remote_error(source.server, error))?;
            Ok(StateIds { state: answer.pdu_ids, auth_chain: answer.auth_chain_ids })
        })
    }

    fn get_state<'a>(
        &'a self,
        source: Source<'a>,
        room_id: &'a RoomId,
        event_id: &'a EventId,
    ) -> Asking<'a, Vec<Box<RawValue>>> {
        Box::pin(async move {
            let request = get_room_state::v1::Request::new(event_id.to_owned(), room_id.to_owned());
            let answer = self.client().send(source.as_server, source.server, request, STATE).await;
            let answer = answer.map_err(|error| remote_error(source.server, error))?;
            Ok(answer.auth_chain.into_iter().chain(answer.pdus).collect())
        })
    }

    fn backfill<'a>(
        &'a self,
        source: Source<'a>,
        room_id: &'a RoomId,
        from: Vec<OwnedEventId>,
        limit: u32,
    ) -> Asking<'a, Vec<Box<RawValue>>> {
        Box::pin(async move {
            let request = get_backfill::v1::Request::new(room_id.to_owned(), from, UInt::from(limit));
            let answer = self.client().send(source.as_server, source.server, request, EVENTS).await;
            Ok(answer.map_err(|error| remote_error(source.server, error))?.pdus)
        })
    }
}
