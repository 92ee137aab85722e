//! The threads of a room. Client-Server API, "Querying threads in a room".

use std::{str::FromStr as _, sync::Arc};

use accounts::Requester;
use model::Position;
use ruma::RoomId;
use serde_json::value::RawValue;
use storage::{StoredEvent, TimelineDirection};

use crate::{Error, Rooms, TimelineToken, erasure::redacted_copy, timeline::token_after};

/// How often threads are looked at to fill a page with those that the reader sees.
const LOOKS_MAX: usize = 4;
/// How many threads are looked at together: there are those whose root is not here, and those in which the reader has no part.
const THREADS_AT_ONCE: u32 = 200;

/// A page of a room's threads.
#[derive(Debug)]
pub struct Threads {
    /// Their roots with their aggregations; the thread with the newest event first.
    pub roots: Vec<Box<RawValue>>,
    /// Where the next page begins; nothing at the end.
    pub end: Option<TimelineToken>,
}

impl Rooms {
    /// A page of the threads of a room. Client-Server API, "GET /rooms/{roomId}/threads".
    ///
    /// The page may be short, but has an `end` then.
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`], [`Error::InvalidParam`] for a token of another kind.
    pub async fn threads(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        from: Option<&str>,
        only_participated: bool,
        limit: u32,
    ) -> Result<Threads, Error> {
        let reader = self.reader(requester, room_id).await?;
        let participant = only_participated.then_some(reader.user_nr);
        // Tokens are right after their place.
        let mut before = match from.map(TimelineToken::from_str).transpose()? {
            Some(TimelineToken((anchor, step))) => (anchor, step.saturating_add(1)),
            None => (Position(i64::MAX), 0),
        };
        let (mut roots, mut end) = (Vec::new(), None);
        for _ in 0..LOOKS_MAX {
            let looked_at = THREADS_AT_ONCE.max(limit);
            let rows = self.storage().list_threads(reader.room.nr, before, participant, looked_at).await?;
            let at_end = rows.len() < looked_at as usize;
            let wanted = limit as usize - roots.len();
            let numbers: Vec<_> = rows.iter().filter_map(|(nr, _)| *nr).take(wanted).collect();
            // What comes after the last of them is looked at with the next ones.
            let mut left = wanted;
            let until = rows.iter().position(|(nr, _)| {
                left = left.saturating_sub(usize::from(nr.is_some()));
                left == 0
            });
            let rows = &rows[..until.map_or(rows.len(), |last| last + 1)];
            let at_end = at_end && until.is_none();
            let found = self.storage().get_events(&numbers).await?;
            let found = numbers.iter().filter_map(|nr| found.get(nr).cloned()).collect();
            let visible = self.visible_of_anyone(&reader, found).await?;
            let aggregations = self.aggregations(&reader, &visible, true).await?;
            let mut shown: Vec<Arc<StoredEvent>> = Vec::new();
            for (nr, place) in rows {
                before = *place;
                // A thread of which the reader sees no event is none for them.
                let root = visible.iter().find(|root| Some(root.nr) == *nr && aggregations.has_thread(root.nr));
                let Some(root) = root else { continue };
                // As if the client had put the thread together itself.
                shown.push(match reader.ignores(root) {
                    true => Arc::new(redacted_copy(&reader.room, root)?),
                    false => root.clone(),
                });
            }
            roots.extend(self.render_with(&reader, &shown, true, &aggregations).await?);
            end = (!at_end).then(|| token_after(TimelineDirection::Backward, before));
            if at_end || roots.len() == limit as usize {
                break;
            }
        }
        Ok(Threads { roots, end })
    }
}
