//! The event of a time.

use std::sync::Arc;

use accounts::Requester;
use model::{Position, RoomNr};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, RoomId, ServerName};
use storage::{RoomRow, StoredEvent, TimelineDirection};
use tracing::debug;

use crate::{Error, Reader, Rooms, Source};

/// Events that are read at once.
const EVENTS_AT_ONCE: u32 = 50;
/// How many times, to find one that the reader sees.
const PAGES_MAX: usize = 20;

/// Most servers of a room that are looked at to find some that are not ours.
const SERVERS_LOOKED_AT_MAX: u32 = 20;
/// Most servers that are asked.
const SERVERS_ASKED_MAX: usize = 3;

/// Who asks for the event of a time.
#[derive(Clone, Copy)]
pub(crate) enum Viewer<'a> {
    Reader(&'a Reader),
    /// A server that is in the room.
    Server(&'a RoomRow, &'a ServerName),
}

impl Rooms {
    /// The event of a room that was made closest to a time, at or after it (forward) or at or before it, as far as the requester sees.
    /// Client-Server API, "GET /rooms/{roomId}/timestamp_to_event".
    ///
    /// Where we have none, or a gap lies between the time and ours, some of the other servers in the room are asked, until one has a closer
    /// one, which is taken in.
    ///
    /// # Errors
    ///
    /// [`Error::EventUnknown`] when there is none, [`Error::NotMember`].
    pub async fn event_by_timestamp(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        time: MilliSecondsSinceUnixEpoch,
        direction: TimelineDirection,
    ) -> Result<(OwnedEventId, MilliSecondsSinceUnixEpoch), Error> {
        let reader = self.reader(requester, room_id).await?;
        let (viewer, room) = (Viewer::Reader(&reader), &reader.room);
        let ours = self.closest_event(viewer, room.nr, (time, direction), reader.upto()).await?;
        let is_asked = reader.is_joined() && self.is_beside_gap(room, ours.as_deref(), direction).await?;
        let mut closest = ours;
        if is_asked {
            let bound = closest.as_ref().map(|event| event.pdu.origin_server_ts);
            let as_server = requester.user_id.server_name();
            // Boxed: seldom needed, and large.
            if Box::pin(self.fetch_closer_event(as_server, room, (time, direction), bound)).await? {
                closest = self.closest_event(viewer, room.nr, (time, direction), reader.upto()).await?;
            }
        }
        let closest = closest.ok_or(Error::EventUnknown)?;
        Ok((closest.pdu.event_id.clone(), closest.pdu.origin_server_ts))
    }

    /// Whether events may be missing between a time and the event that was found in that direction from it.
    async fn is_beside_gap(
        &self,
        room: &RoomRow,
        found: Option<&StoredEvent>,
        direction: TimelineDirection,
    ) -> Result<bool, Error> {
        let storage = self.storage();
        // What lies on the side of the time, where that is the later one: the event that it was looked for from.
        let from = match (found, direction) {
            (Some(event), TimelineDirection::Forward) => return self.is_after_gap(event).await,
            (None, TimelineDirection::Forward) => return Ok(true),
            (Some(event), TimelineDirection::Backward) => event.place.unwrap_or((Position(0), 0)),
            (None, TimelineDirection::Backward) => (Position(i64::MIN), 0),
        };
        let upto = (storage.published(), i64::MAX);
        let next = storage.list_timeline(room.nr, TimelineDirection::Forward, from, upto, 1).await?;
        match next.first() {
            Some((nr, _)) => match storage.get_event(*nr).await? {
                Some(event) => self.is_after_gap(&event).await,
                None => Ok(false),
            },
            None => Ok(false),
        }
    }

    /// Whether some of the events right before one are not here.
    async fn is_after_gap(&self, event: &StoredEvent) -> Result<bool, Error> {
        let before = self.storage().find_event_nrs(&event.pdu.prev_events).await?;
        let nodes = self.storage().list_event_nodes(&before.into_values().collect::<Vec<_>>()).await?;
        Ok(nodes.iter().filter(|node| !node.outlier).count() < event.pdu.prev_events.len())
    }

    /// Gets an event that another server in the room knows, closer to a time than what we have, which was made at `ours`: who asked for it
    /// wants to read on from there. Whether there was one.
    async fn fetch_closer_event(
        &self,
        as_server: &ServerName,
        room: &Arc<RoomRow>,
        (time, direction): (MilliSecondsSinceUnixEpoch, TimelineDirection),
        ours: Option<MilliSecondsSinceUnixEpoch>,
    ) -> Result<bool, Error> {
        let servers = self.storage().list_servers(room.nr, SERVERS_LOOKED_AT_MAX).await?;
        let servers = servers.into_iter().filter_map(|server| OwnedServerName::try_from(server).ok());
        let is_closer = |made: MilliSecondsSinceUnixEpoch| match direction {
            TimelineDirection::Forward => made >= time && ours.is_none_or(|ours| made < ours),
            TimelineDirection::Backward => made <= time && ours.is_none_or(|ours| made > ours),
        };
        for server in servers.filter(|server| !self.servers().is_local(server)).take(SERVERS_ASKED_MAX) {
            let source = Source { as_server, server: &server };
            match self.remote().event_by_timestamp(as_server, &server, &room.id, time, direction).await {
                Ok(Some((event_id, made))) if is_closer(made) => match self.fetch_single(source, room, &event_id).await
                {
                    Ok(true) => return Ok(true),
                    Ok(false) => {}
                    Err(error @ (Error::Storage(_) | Error::Busy)) => return Err(error),
                    Err(error) => {
                        debug!(room.id = %room.id, %server, event.id = %event_id, %error, "the event of a time could not be had")
                    }
                },
                Ok(_) => {}
                Err(error) => {
                    debug!(room.id = %room.id, %server, %error, "a server did not tell of the event of a time")
                }
            }
        }
        Ok(false)
    }

    /// The same for any viewer, up to a position.
    pub(crate) async fn closest_event(
        &self,
        viewer: Viewer<'_>,
        room_nr: RoomNr,
        (time, direction): (MilliSecondsSinceUnixEpoch, TimelineDirection),
        upto: Position,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let storage = self.storage();
        let mut from = (time.get().into(), None);
        for _ in 0..PAGES_MAX {
            let rows = storage.list_events_by_time(room_nr, direction, from, upto, EVENTS_AT_ONCE).await?;
            let numbers: Vec<_> = rows.iter().map(|(nr, _)| *nr).collect();
            let events = storage.get_events(&numbers).await?;
            let events: Vec<_> = numbers.iter().filter_map(|nr| events.get(nr).cloned()).collect();
            let visible = match viewer {
                Viewer::Reader(reader) => self.visible(reader, events).await?,
                Viewer::Server(room, server) => self.visible_to_server(room, server, events).await?,
            };
            if let Some(event) = visible.into_iter().next() {
                return Ok(Some(event));
            }
            if rows.len() < EVENTS_AT_ONCE as usize {
                break;
            }
            from = rows.last().map_or(from, |(nr, made)| (*made, Some(*nr)));
        }
        Ok(None)
    }
}
