//! What happened in a room while the client was away for longer than one answer of `/sync` tells.
//! Client-Server API, "Syncing": a timeline may be *limited*.

use std::{collections::BTreeMap, time::Duration};

use ruma::{
    OwnedRoomId, RoomId,
    api::{
        Direction,
        client::{message::get_message_events, sync::sync_events::v3::Response},
    },
};

use super::Client;
use crate::{Error, Membership, Patience, machine::Gap};

/// Most events of one gap that are fetched; what is older is in the room's history.
const EVENTS_MAX: usize = 1_000;
/// How often in a row an answer with a gap is asked for again before the gap stays: what else it holds must not wait for ever.
pub(super) const TRIES_MAX: u32 = 3;
/// How long a page is tried. Many rooms may have gaps.
const PATIENCE: Patience = Patience { answer: Duration::from_secs(60), repeat: Duration::from_secs(2) };
/// Events of one request.
const PAGE_EVENTS: u32 = 100;

impl Client {
    /// Fetches what happened between `since` and the timelines of an answer, oldest first.
    ///
    /// # Errors
    ///
    /// Fatal ones; temporary ones, unless this `is_last_try`: the answer is to be asked for again. Else the gap stays.
    pub(super) async fn fill_gaps(
        &self,
        since: Option<&str>,
        answer: &Response,
        is_last_try: bool,
    ) -> Result<BTreeMap<OwnedRoomId, Gap>, Error> {
        let mut gaps = BTreeMap::new();
        let Some(since) = since else { return Ok(gaps) };
        for (room_id, joined) in &answer.rooms.join {
            let (true, Some(begin)) = (joined.timeline.limited, &joined.timeline.prev_batch) else { continue };
            // What was said before the user came is history.
            if self.room(room_id).await.is_ok_and(|room| room.membership == Membership::Join) {
                match self.between(room_id, since, begin).await {
                    Ok(gap) => drop(gaps.insert(room_id.clone(), gap)),
                    Err(error) if error.is_fatal() || (error.is_temporary() && !is_last_try) => return Err(error),
                    Err(error) => tracing::warn!(room.id = %room_id, %error, "a gap stays"),
                }
            }
        }
        Ok(gaps)
    }

    async fn between(&self, room_id: &RoomId, since: &str, before: &str) -> Result<Gap, Error> {
        let (mut events, mut is_complete) = (Vec::new(), false);
        let mut from = Some(before.to_owned());
        while let Some(token) = from.take()
            && events.len() < EVENTS_MAX
        {
            let mut request = get_message_events::v3::Request::new(room_id.to_owned(), Direction::Backward);
            request.from = Some(token.clone());
            request.to = Some(since.to_owned());
            request.limit = PAGE_EVENTS.into();
            let page = self.0.api.send_with(request, PATIENCE).await?;
            events.extend(page.chunk.iter().filter_map(|event| serde_json::from_str(event.json().get()).ok()));
            is_complete = page.end.as_ref().is_none_or(|end| *end == since || *end == token);
            from = page.end.filter(|end| !page.chunk.is_empty() && *end != token);
        }
        is_complete &= events.len() <= EVENTS_MAX;
        events.truncate(EVENTS_MAX);
        events.reverse();
        Ok(Gap { events, is_complete })
    }
}
