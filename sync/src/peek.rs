//! What happens in one room, for who looks into it without being in it. Client-Server API, "Room Previews".

use std::{sync::Arc, time::Duration};

use accounts::Requester;
use model::{Position, RoomNr};
use rooms::{Page, PageRequest, Reader, TimelineToken};
use ruma::RoomId;
use storage::{Item, StoredEvent, TimelineDirection};
use tokio::sync::watch;

use crate::{Error, Sync, v3::TIMEOUT_MAX};

/// Most events of one answer; the next answer has the others.
const EVENTS_MAX: u32 = 100;

/// What has happened in a room.
#[derive(Debug)]
pub struct RoomNews {
    /// Who reads.
    pub reader: Reader,
    /// The events, oldest first.
    pub events: Vec<Arc<StoredEvent>>,
    /// Where they start.
    pub start: TimelineToken,
    /// Where the next answer starts.
    pub end: TimelineToken,
}

impl Sync {
    /// The events of a room after a place in its timeline, or from now on; waits for them if there are none yet.
    ///
    /// Whether the requester may look into the room is asked again with each look.
    ///
    /// # Errors
    ///
    /// [`rooms::Error::NotMember`]; [`Error::BadToken`] for a token that is none, or from the future.
    pub async fn peek(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        from: Option<&str>,
        timeout: Duration,
    ) -> Result<RoomNews, Error> {
        self.reach(self.0.storage.published()).await;
        let mut newest = self.0.ring.watch();
        let timeout = tokio::time::sleep(timeout.min(TIMEOUT_MAX));
        tokio::pin!(timeout);
        let start = match from {
            Some(from) => from.parse::<TimelineToken>().map_err(|_| Error::BadToken)?,
            None => TimelineToken((self.position(), 0)),
        };
        self.catch_up(start.position()).await?;
        let start = start.to_string();
        let asked =
            PageRequest { direction: TimelineDirection::Forward, from: Some(&start), to: None, limit: EVENTS_MAX };
        loop {
            let looked_at = *newest.borrow_and_update();
            // What a timeline shows may be published a moment after it is in the ring.
            self.0.storage.published_for(looked_at).await?;
            let page = self.0.rooms.messages(requester, room_id, asked, |_| true).await?;
            let room_nr = page.reader.room.nr;
            // Of a page that was full of what is not for the requester they go on behind it.
            if !page.events.is_empty() || page.end.is_some() {
                return Ok(RoomNews::of(page, looked_at));
            }
            tokio::select! {
                () = self.may_have_news(room_nr, looked_at, &mut newest) => {}
                () = &mut timeout => return Ok(RoomNews::of(page, looked_at)),
                () = self.0.stopping.cancelled() => return Ok(RoomNews::of(page, looked_at)),
            }
        }
    }

    /// Waits until the stream tells of an event in a room after a position; what is in memory no more may do so.
    ///
    /// Looks at each item once, however often it wakes: all rooms of the server wake it.
    async fn may_have_news(&self, room_nr: RoomNr, after: Position, newest: &mut watch::Receiver<Position>) {
        let mut seen = after;
        while newest.changed().await.is_ok() {
            let now = *newest.borrow_and_update();
            let mut has_events = false;
            let is_here = self.0.ring.scan(seen, now, |_, item| {
                has_events |= matches!(item, Item::Event(event) if event.room_nr == room_nr);
            });
            if has_events || !is_here {
                return;
            }
            seen = now;
        }
    }
}

impl RoomNews {
    /// `upto` is what was shown when the page was read: the next answer starts there, or behind the last event.
    fn of(page: Page, upto: Position) -> Self {
        let last = page.events.last().and_then(|event| event.place);
        let end = page.end.unwrap_or(TimelineToken(last.unwrap_or_default().max((upto, 0)).max(page.start.0)));
        Self { reader: page.reader, events: page.events, start: page.start, end }
    }
}
