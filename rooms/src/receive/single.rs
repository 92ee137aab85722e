//! One event of the past that somebody asks for, far from what is here. Client-Server API, "GET /rooms/{roomId}/timestamp_to_event".

use std::{sync::Arc, time::Duration};

use model::Position;
use ruma::{OwnedEventId, events::TimelineEventType};
use storage::{RoomRow, StoredEvent};
use tokio::time::timeout;

use super::{Received, Source};
use crate::{Error, RemoteError, Rooms};

/// Most gaps of a room that are looked at to find the one in which an event lies.
const GAPS_MAX: u32 = 50;

/// How many places are left free between such an event and what is here: for what lies between them, when somebody reads that far.
const PLACES_BETWEEN: i64 = 1_000_000;

/// How long a server has to tell the event and the state at it.
const WAIT: Duration = Duration::from_secs(10);

impl Rooms {
    /// Gets an event of a room from one of its servers, and puts it into the timeline: into the gap in which it lies, or, where there is
    /// none, as if the server had sent it; whether it is here now.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] when the server does not tell; [`Error::Storage`], [`Error::Busy`].
    pub(crate) async fn fetch_single(
        &self,
        source: Source<'_>,
        room: &Arc<RoomRow>,
        event_id: &OwnedEventId,
    ) -> Result<bool, Error> {
        let late =
            |_| RemoteError::Misbehaved { server: source.server.to_owned(), what: "it takes too long".to_owned() };
        timeout(WAIT, self.fetch_single_from(source, room, event_id)).await.map_err(late)?
    }

    async fn fetch_single_from(
        &self,
        source: Source<'_>,
        room: &Arc<RoomRow>,
        event_id: &OwnedEventId,
    ) -> Result<bool, Error> {
        let turn = self.0.asking.get_with((room.nr, source.server.to_owned()), Arc::default);
        let turn_held = turn.lock().await;
        if !self.find_placed(std::slice::from_ref(event_id)).await?.is_empty() {
            return Ok(true);
        }
        let told = self.remote().get_event(source, event_id).await?;
        let pdu = self.verified(room, vec![told.clone()]).await?.pop().filter(|pdu| pdu.event_id == *event_id);
        let Some(pdu) = pdu.filter(|pdu| pdu.event_type != TimelineEventType::RoomCreate) else { return Ok(false) };
        let gap = self.gap_around(room, pdu.depth).await?;
        let Some((gap, (anchor, _))) = gap.and_then(|gap| gap.place.map(|place| (gap, place))) else {
            drop(turn_held);
            let received = self.receive(source, vec![told]).await?.remove(event_id);
            return Ok(matches!(received, Some(Ok(Received::Accepted | Received::Known))));
        };
        let step = self.storage().farthest_step(room.nr, anchor).await?.saturating_sub(PLACES_BETWEEN);
        Box::pin(self.fetch_senders(source, room, std::slice::from_ref(&pdu))).await?;
        let received = self.receive_behind(source, room, &gap, pdu, true, (anchor, step)).await?;
        Ok(received == Received::Accepted)
    }

    /// The event before which others are missing, among which one of this depth is.
    async fn gap_around(&self, room: &RoomRow, depth: i64) -> Result<Option<Arc<StoredEvent>>, Error> {
        let (newest, oldest) = ((self.storage().published(), i64::MAX), (Position(i64::MIN), i64::MIN));
        let gaps = self.storage().list_gaps_between(room.nr, newest, oldest, GAPS_MAX).await?;
        let events = self.storage().get_events(&gaps.iter().map(|(nr, _)| *nr).collect::<Vec<_>>()).await?;
        let gaps = || gaps.iter().filter_map(|(nr, _)| events.get(nr).cloned());
        Ok(gaps().rfind(|gap| gap.pdu.depth > depth).or_else(|| gaps().next()))
    }
}
