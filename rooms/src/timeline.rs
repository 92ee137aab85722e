//! Paging through a room, and what lies around an event.

use std::{fmt, str::FromStr, sync::Arc};

use accounts::Requester;
use model::{NodeNr, Position, SlidingToken, StreamToken};
use ruma::{EventId, RoomId};
use storage::{ChildrenQuery, StoredEvent, TimelineDirection, TimelinePlace};

use crate::{Error, Reader, Rooms};

/// How many rows are read to fill a page of visible events, as a multiple of the page.
const READ_FACTOR: u32 = 4;

/// A place between two events of a timeline, as clients hold it: `t1_<anchor>_<step>`, right after that place.
///
/// A token of `/sync`, of either kind, is one too: the place after everything at its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineToken(pub TimelinePlace);

impl TimelineToken {
    /// The position up to which the stream is before this place, and so the state.
    #[must_use]
    pub fn position(self) -> Position {
        let (anchor, step) = self.0;
        // The event at the anchor is step 0: what is before that is before the anchor.
        if step < 0 { Position(anchor.0.saturating_sub(1)) } else { anchor }
    }
}

impl fmt::Display for TimelineToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t1_{:x}_{}", self.0.0.0, self.0.1)
    }
}

impl FromStr for TimelineToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::InvalidParam("this is not a token that this server gave out".to_owned());
        if let Some(rest) = text.strip_prefix("t1_") {
            let (anchor, step) = rest.split_once('_').ok_or_else(bad)?;
            // These would be read, but are never written.
            if anchor.starts_with(['+', '-']) || step.starts_with('+') {
                return Err(bad());
            }
            let anchor = i64::from_str_radix(anchor, 16).map_err(|_| bad())?;
            return Ok(Self((Position(anchor), step.parse().map_err(|_| bad())?)));
        }
        let token: Result<StreamToken, _> = text.parse();
        // MSC4186, "Connections": a `pos` is one, too.
        let token = token.or_else(|_| text.parse::<SlidingToken>().map(|token| token.stream)).map_err(|_| bad())?;
        Ok(Self((token.position, 0)))
    }
}

/// Which page of a timeline is asked for.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest<'a> {
    /// The way to read.
    pub direction: TimelineDirection,
    /// The token to start at; without, the end that lies that way.
    pub from: Option<&'a str>,
    /// The token to stop at.
    pub to: Option<&'a str>,
    /// Most events of the page.
    pub limit: u32,
}

/// Which events are read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// All of the room's timeline.
    Timeline,
    /// Those that relate to an event.
    Children(ChildrenQuery<'a>),
}

/// A page of a timeline.
#[derive(Clone, Debug)]
pub struct Page {
    /// Who reads.
    pub reader: Reader,
    /// The events, in the direction of the reading.
    pub events: Vec<Arc<StoredEvent>>,
    /// Where the page begins.
    pub start: TimelineToken,
    /// Where the next page begins; nothing at the end of what there is.
    pub end: Option<TimelineToken>,
}

/// What lies around an event.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who reads.
    pub reader: Reader,
    /// The event.
    pub event: Arc<StoredEvent>,
    /// The events before it, newest first.
    pub before: Vec<Arc<StoredEvent>>,
    /// The events after it, oldest first.
    pub after: Vec<Arc<StoredEvent>>,
    /// Where the events before begin.
    pub start: TimelineToken,
    /// Where the events after end.
    pub end: TimelineToken,
    /// The state after the last event.
    pub state: NodeNr,
}

impl Rooms {
    /// A page of a room's timeline. Client-Server API, "GET /rooms/{roomId}/messages".
    ///
    /// `wanted` filters; rows are read until the page is full, the end is reached, or enough was looked at (the page is
    /// short then, but has an `end`).
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`], [`Error::InvalidParam`] for a token of another kind.
    pub async fn messages(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        asked: PageRequest<'_>,
        wanted: impl Fn(&StoredEvent) -> bool,
    ) -> Result<Page, Error> {
        let reader = self.reader(requester, room_id).await?;
        let page = self.page(reader.clone(), Source::Timeline, asked, &wanted).await?;
        // Where something is missing, servers of the room are asked for it.
        if asked.direction == TimelineDirection::Backward && reader.left_at().is_none() {
            let oldest = page.end.map_or((Position(i64::MIN), i64::MIN), |end| end.0);
            let as_server = requester.user_id.server_name();
            // Boxed: seldom needed, and large.
            if Box::pin(self.backfill(as_server, &reader.room, page.start.0, oldest)).await? {
                return self.page(reader, Source::Timeline, asked, &wanted).await;
            }
        }
        Ok(page)
    }

    /// A page of the events of a room, or of some of them.
    pub(crate) async fn page(
        &self,
        reader: Reader,
        source: Source<'_>,
        asked: PageRequest<'_>,
        wanted: impl Fn(&StoredEvent) -> bool,
    ) -> Result<Page, Error> {
        let PageRequest { direction, from, to, limit } = asked;
        let from = from.map(TimelineToken::from_str).transpose()?;
        let to = to.map(TimelineToken::from_str).transpose()?;
        let known = from.iter().chain(&to).map(|token| token.0.0).max().unwrap_or(Position(0));
        let newest = match reader.left_at() {
            Some(left) => left,
            None => self.storage().published_for(known).await?,
        };
        let end_of_timeline = (newest, i64::MAX);
        let start = match (from, direction) {
            (Some(from), _) => from,
            (None, TimelineDirection::Backward) => TimelineToken((newest, 0)),
            (None, TimelineDirection::Forward) => TimelineToken((Position(0), 0)),
        };
        let (events, end) = match direction {
            TimelineDirection::Backward => {
                // The token is right after its place, so that place itself is the first one read.
                let from = (start.0.0.min(newest), start.0.1.saturating_add(1));
                let stop = to.map_or((Position(i64::MIN), 0), |to| to.0);
                self.fill(&reader, source, direction, from, stop, limit, wanted).await?
            }
            TimelineDirection::Forward => {
                let stop = to.map_or(end_of_timeline, |to| (to.0.0, to.0.1.saturating_add(1))).min(end_of_timeline);
                self.fill(&reader, source, direction, start.0, stop, limit, wanted).await?
            }
        };
        Ok(Page { reader, events, start, end })
    }

    /// Reads visible events until there are `limit`, and says where to go on.
    #[expect(clippy::too_many_arguments, reason = "what is read, from where to where, and what of it")]
    async fn fill(
        &self,
        reader: &Reader,
        source: Source<'_>,
        direction: TimelineDirection,
        from: TimelinePlace,
        stop: TimelinePlace,
        limit: u32,
        wanted: impl Fn(&StoredEvent) -> bool,
    ) -> Result<(Vec<Arc<StoredEvent>>, Option<TimelineToken>), Error> {
        let storage = self.storage();
        let mut events = Vec::new();
        let mut place = from;
        for _ in 0..READ_FACTOR {
            let read = limit.max(10);
            let rows = match source {
                Source::Timeline => storage.list_timeline(reader.room.nr, direction, place, stop, read).await?,
                Source::Children(query) => storage.list_children(query, direction, place, stop, read).await?,
            };
            let at_end = rows.len() < read as usize;
            let numbers: Vec<_> = rows.iter().map(|(nr, _)| *nr).collect();
            let found = storage.get_events(&numbers).await?;
            let page = numbers.iter().filter_map(|nr| found.get(nr).cloned()).filter(|event| wanted(event)).collect();
            for event in self.visible(reader, page).await? {
                events.push(event);
                if events.len() == limit as usize {
                    let last = events.last().and_then(|event| event.place).unwrap_or(place);
                    return Ok((events, Some(token_after(direction, last))));
                }
            }
            if at_end {
                return Ok((events, None));
            }
            place = rows.last().map_or(place, |(_, place)| *place);
        }
        Ok((events, Some(token_after(direction, place))))
    }

    /// What lies around an event. Client-Server API, "GET /rooms/{roomId}/context/{eventId}".
    ///
    /// # Errors
    ///
    /// [`Error::EventUnknown`], also for what the requester may not see.
    pub async fn context(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        event_id: &EventId,
        limit: u32,
        wanted: impl Fn(&StoredEvent) -> bool + Copy,
    ) -> Result<Context, Error> {
        let (reader, event) = self.event(requester, room_id, event_id).await?;
        let place = event.place.ok_or(Error::EventUnknown)?;
        let newest = reader.left_at().unwrap_or_else(|| self.storage().published());
        let (half_before, half_after) = (limit / 2, limit - limit / 2);
        let (source, backward) = (Source::Timeline, TimelineDirection::Backward);
        let mut before = (Vec::new(), None);
        if half_before > 0 {
            before = self.fill(&reader, source, backward, place, (Position(i64::MIN), 0), half_before, wanted).await?;
        }
        let mut after = (Vec::new(), None);
        if half_after > 0 {
            let stop = (newest, i64::MAX);
            after = self.fill(&reader, source, TimelineDirection::Forward, place, stop, half_after, wanted).await?;
        }
        let oldest = before.0.last().and_then(|event| event.place).unwrap_or(place);
        let last = after.0.last().unwrap_or(&event);
        Ok(Context {
            start: token_after(backward, oldest),
            end: TimelineToken(last.place.unwrap_or(place)),
            state: last.state,
            before: before.0,
            after: after.0,
            reader,
            event,
        })
    }
}

/// Where to go on after an event: tokens are right after their place, so going back means the place before it.
pub(crate) fn token_after(direction: TimelineDirection, place: TimelinePlace) -> TimelineToken {
    match direction {
        TimelineDirection::Forward => TimelineToken(place),
        TimelineDirection::Backward => TimelineToken((place.0, place.1.saturating_sub(1))),
    }
}
