//! Who may see which event. Client-Server API, "Room history visibility".

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use accounts::{Requester, UserSettings};
use model::{EventNr, Membership, NodeNr, Position, RoomNr, UserNr};
use ruma::{UserId, events::TimelineEventType};
use serde::Deserialize;
use storage::{RoomMembership, RoomRow, StateKey, StoredEvent};

use crate::{Error, Rooms, head::membership_of};

pub(crate) const HISTORY_VISIBILITY: &str = "m.room.history_visibility";
/// Most changes of a room's history visibility that are looked at for what a reader does not see of it, the newest ones.
const CHANGES_MAX: usize = 20;

/// Somebody who reads a room: what they are to it, and how far they see. [`Rooms::reader`] and [`Rooms::reader_of`] make one.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The room.
    pub room: Arc<RoomRow>,
    /// Who reads.
    pub user_nr: UserNr,
    /// The device, for the transaction ids of its own events.
    pub device: String,
    /// What they are to the room; nothing for a stranger who peeks.
    pub membership: Option<RoomMembership>,
    /// What is known of how their device named its own events.
    pub(crate) transactions: OwnTransactions,
    /// How long they were joined.
    joined: Joined,
    /// What they chose: whom they ignore.
    settings: Arc<UserSettings>,
    /// What decides in the states that were looked at. Guards the map, for moments only; shared by the copies of a reader.
    looked_at: Arc<Mutex<HashMap<NodeNr, AtEvent>>>,
}

/// How long a reader was joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joined {
    Never,
    /// Once; they last stopped at that position.
    Until(Position),
    Now,
}

/// What decides, in the state at an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AtEvent {
    visibility: Visibility,
    membership: Option<Membership>,
}

/// How a device named its own events, of those for which the database was asked; nothing where it gave no name.
pub type OwnTransactions = Arc<HashMap<EventNr, Option<String>>>;

impl Reader {
    /// The same reader, who need not be asked for again how their device named events.
    #[must_use]
    pub fn with_transactions(mut self, transactions: OwnTransactions) -> Self {
        self.transactions = transactions;
        self
    }

    /// Whether the reader is joined.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.joined == Joined::Now
    }

    /// Whether the reader is joined, or was.
    #[must_use]
    pub fn was_joined(&self) -> bool {
        self.joined != Joined::Never
    }

    /// For somebody who was joined and is not any more: the position of the end of the last join, and so of what they see.
    #[must_use]
    pub fn left_at(&self) -> Option<Position> {
        match self.joined {
            Joined::Until(position) => Some(position),
            Joined::Never | Joined::Now => None,
        }
    }

    /// Whether the reader ignores who sent the event, and is not shown it. Client-Server API, "Ignoring Users".
    #[must_use]
    pub fn ignores(&self, event: &StoredEvent) -> bool {
        self.settings.hides(&event.pdu.sender, event.is_state())
    }

    /// Whom the reader ignores.
    pub(crate) fn ignored(&self) -> impl Iterator<Item = &UserId> {
        self.settings.ignored.iter().map(|user_id| &**user_id)
    }

    /// The position up to which the reader sees the room, as far as their history allows.
    pub(crate) fn upto(&self) -> Position {
        self.left_at().unwrap_or(Position(i64::MAX))
    }

    /// Whether the reader was joined at some time after the event.
    fn joined_after(&self, event: &StoredEvent) -> bool {
        match self.joined {
            Joined::Now => true,
            Joined::Until(end) => event.place.is_some_and(|(anchor, _)| anchor <= end),
            Joined::Never => false,
        }
    }

    /// The reader's membership at an event, its own change included, by the state after it and its place in the stream, where that is
    /// known without asking the database. Client-Server API, "UnsignedData".
    pub(crate) fn membership_in_state(&self, state: NodeNr, position: Option<Position>) -> Option<Membership> {
        if let Some(at_event) = self.looked_at().get(&state) {
            return Some(at_event.membership.unwrap_or(Membership::Leave));
        }
        // Since their newest member event they are what it says.
        let row = self.membership.as_ref()?;
        position.is_some_and(|position| position >= row.position).then_some(row.membership)
    }

    fn looked_at(&self) -> MutexGuard<'_, HashMap<NodeNr, AtEvent>> {
        self.looked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visibility {
    WorldReadable,
    Shared,
    Invited,
    Joined,
}

/// The state keys that decide.
struct Keys {
    visibility: Option<StateKey>,
    member: Option<StateKey>,
}

impl Rooms {
    /// A reader of a room: a member, somebody who was one, or anyone if the room is readable for the world.
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`] for everybody else, and for a room that does not exist: they learn nothing of it.
    pub async fn reader(&self, requester: &Requester, room_id: &ruma::RoomId) -> Result<Reader, Error> {
        let room = self.room(room_id).await.map_err(|error| match error {
            Error::RoomUnknown => Error::NotMember,
            other => other,
        })?;
        let membership = self.storage().get_membership(room.nr, requester.user_nr).await?;
        let reader = self.reader_of(requester, membership.filter(|row| !row.forgotten), room).await?;
        if reader.was_joined() || self.is_world_readable(reader.room.nr).await? {
            Ok(reader)
        } else {
            Err(Error::NotMember)
        }
    }

    /// The room, for somebody who is or was anything to it, or may look into it: what they note about it is theirs alone.
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`] for everybody else, and for a room that does not exist: they learn nothing of it.
    pub async fn noted_room(&self, requester: &Requester, room_id: &ruma::RoomId) -> Result<Arc<RoomRow>, Error> {
        let room = self.room(room_id).await.map_err(|error| match error {
            Error::RoomUnknown => Error::NotMember,
            other => other,
        })?;
        let membership = self.storage().get_membership(room.nr, requester.user_nr).await?;
        if membership.is_some() || self.is_world_readable(room.nr).await? { Ok(room) } else { Err(Error::NotMember) }
    }

    /// A reader of a room with the membership that they have there. Asks the database only about who is not joined.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn reader_of(
        &self,
        requester: &Requester,
        membership: Option<RoomMembership>,
        room: Arc<RoomRow>,
    ) -> Result<Reader, Error> {
        let joined = match &membership {
            None => Joined::Never,
            Some(row) if row.membership == Membership::Join => Joined::Now,
            Some(row) => end_of_last_join(&self.storage().list_membership_log(row.room_nr, row.user_nr).await?),
        };
        Ok(Reader {
            room,
            user_nr: requester.user_nr,
            device: requester.device().to_owned(),
            membership,
            transactions: Arc::default(),
            joined,
            settings: self.settings(requester).await?,
            looked_at: Arc::default(),
        })
    }

    pub(crate) async fn is_world_readable(&self, room_nr: RoomNr) -> Result<bool, Error> {
        let summary = self.storage().get_summaries(&[room_nr]).await?.remove(&room_nr);
        Ok(summary.is_some_and(|(summary, ..)| summary.history_visibility == "world_readable"))
    }

    /// Which of the events of one room the reader may see, in their order; not those of users whom they ignore.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn visible(
        &self,
        reader: &Reader,
        mut events: Vec<Arc<StoredEvent>>,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        events.retain(|event| !reader.ignores(event));
        self.visible_of_anyone(reader, events).await
    }

    /// The same with those of users whom they ignore.
    pub(crate) async fn visible_of_anyone(
        &self,
        reader: &Reader,
        events: Vec<Arc<StoredEvent>>,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let user_id = self.storage().user_ids(&[reader.user_nr]).await?.remove(&reader.user_nr);
        let user_id = user_id.map(|id| id.to_string()).unwrap_or_default();
        let storage = self.storage();
        let keys = Keys {
            visibility: storage.find_state_key(HISTORY_VISIBILITY, "").await?,
            member: storage.find_state_key("m.room.member", &user_id).await?,
        };
        let mut visible = Vec::with_capacity(events.len());
        for event in events {
            if event.outlier || event.soft_failed || event.held || event.pdu.rejected {
                continue;
            }
            // Most events of a page have the same state: each state is looked at once.
            let known = reader.looked_at().get(&event.state).copied();
            let at_event = match known {
                Some(at_event) => at_event,
                None => {
                    let at_event = self.at_event(reader.room.nr, event.state, &keys).await?;
                    reader.looked_at().insert(event.state, at_event);
                    at_event
                }
            };
            // What somebody is to a room is their own affair, also where they see nothing else of it.
            let is_own = event.pdu.is_state(&TimelineEventType::RoomMember, &user_id);
            // A change of the visibility is seen by who sees the room before it or after it.
            let before = AtEvent { visibility: self.visibility_before(&event, at_event.visibility).await?, ..at_event };
            if is_own || may_see(reader, &event, at_event) || may_see(reader, &event, before) {
                visible.push(event);
            }
        }
        Ok(visible)
    }

    /// Whether the reader may see the room as it was right after an event, whoever sent that.
    pub(crate) async fn may_see_state_after(&self, reader: &Reader, event: &StoredEvent) -> Result<bool, Error> {
        let storage = self.storage();
        let user_id = storage.user_ids(&[reader.user_nr]).await?.remove(&reader.user_nr);
        let user_id = user_id.map(|id| id.to_string()).unwrap_or_default();
        let keys = Keys {
            visibility: storage.find_state_key(HISTORY_VISIBILITY, "").await?,
            member: storage.find_state_key("m.room.member", &user_id).await?,
        };
        Ok(may_see(reader, event, self.at_event(reader.room.nr, event.state, &keys).await?))
    }

    /// The parts of the timeline up to where the reader sees the room of which they see nothing, oldest first: from a position up to before
    /// another. Touches no table where the history is shared with all members and always was.
    pub(crate) async fn hidden_parts(&self, reader: &Reader) -> Result<Vec<(Position, Position)>, Error> {
        let state = self.state_for(reader).await?;
        let mut event = self.find_state_at(&reader.room, state, HISTORY_VISIBILITY, "").await?;
        let mut changes: Vec<(Position, Visibility)> = Vec::new();
        while let Some(change) = event.take_if(|_| changes.len() < CHANGES_MAX) {
            let at = change.place.map_or(Position(0), |(anchor, _)| anchor);
            changes.push((at, visibility_of(&change)));
            event = match change.replaces {
                Some(old) => self.storage().get_event(old).await?,
                None => None,
            };
        }
        changes.reverse();
        let is_open = |visibility| match visibility {
            Visibility::WorldReadable => true,
            Visibility::Shared => reader.was_joined(),
            Visibility::Invited | Visibility::Joined => false,
        };
        if changes.iter().all(|(_, visibility)| is_open(*visibility)) && reader.was_joined() {
            return Ok(Vec::new());
        }
        let log = self.storage().list_membership_log(reader.room.nr, reader.user_nr).await?;
        Ok(hidden_between(&changes, &log, is_open, reader.upto()))
    }

    async fn at_event(&self, room_nr: RoomNr, state: NodeNr, keys: &Keys) -> Result<AtEvent, Error> {
        let visibility = self.deciding_event(room_nr, state, keys.visibility).await?;
        let member = self.deciding_event(room_nr, state, keys.member).await?;
        Ok(AtEvent {
            visibility: visibility.map_or(Visibility::Shared, |event| visibility_of(&event)),
            membership: member.and_then(|event| membership_of(&event.pdu)),
        })
    }

    async fn deciding_event(
        &self,
        room_nr: RoomNr,
        state: NodeNr,
        key: Option<StateKey>,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let Some(key) = key else { return Ok(None) };
        match self.storage().get_state_event(room_nr, state, key).await? {
            Some(nr) => Ok(self.storage().get_event(nr).await?),
            None => Ok(None),
        }
    }

    /// The visibility before an event, given the one after it.
    async fn visibility_before(&self, event: &StoredEvent, after: Visibility) -> Result<Visibility, Error> {
        if !event.pdu.is_state(&TimelineEventType::RoomHistoryVisibility, "") {
            return Ok(after);
        }
        let old = match event.replaces {
            Some(old) => self.storage().get_event(old).await?,
            None => None,
        };
        // Without the event, a room's history is shared.
        Ok(old.map_or(Visibility::Shared, |old| visibility_of(&old)))
    }
}

/// Client-Server API, "Room history visibility", "Server behaviour".
fn may_see(reader: &Reader, event: &StoredEvent, at_event: AtEvent) -> bool {
    match (at_event.visibility, at_event.membership) {
        (Visibility::WorldReadable, _) | (_, Some(Membership::Join)) => true,
        (Visibility::Shared, _) | (Visibility::Invited, Some(Membership::Invite)) => reader.joined_after(event),
        (Visibility::Invited | Visibility::Joined, _) => false,
    }
}

/// The parts up to `end` in which neither the visibility is open nor the reader is what it asks for, given what changed both, oldest first.
fn hidden_between(
    changes: &[(Position, Visibility)],
    log: &[(Position, Membership)],
    is_open: impl Fn(Visibility) -> bool,
    end: Position,
) -> Vec<(Position, Position)> {
    let mut borders: Vec<Position> = [Position(0)].into_iter().chain(changes.iter().map(|(at, _)| *at)).collect();
    borders.extend(log.iter().map(|(at, _)| *at));
    borders.retain(|at| *at < end);
    borders.sort_unstable();
    borders.dedup();
    let mut hidden: Vec<(Position, Position)> = Vec::new();
    for (index, from) in borders.iter().enumerate() {
        let visibility = changes.iter().rev().find(|(at, _)| at <= from).map_or(Visibility::Shared, |change| change.1);
        let membership = log.iter().rev().find(|(at, _)| at <= from).map(|entry| entry.1);
        let is_invited = visibility == Visibility::Invited && membership == Some(Membership::Invite);
        if is_open(visibility) || membership == Some(Membership::Join) || is_invited {
            continue;
        }
        let upto = borders.get(index + 1).copied().unwrap_or(end);
        match hidden.last_mut().filter(|last| last.1 == *from) {
            Some(last) => last.1 = upto,
            None => hidden.push((*from, upto)),
        }
    }
    hidden
}

/// How long somebody was joined who is not joined now, from what they were to the room, oldest first.
fn end_of_last_join(log: &[(Position, Membership)]) -> Joined {
    let mut ends = log.windows(2).filter(|pair| pair[0].1 == Membership::Join && pair[1].1 != Membership::Join);
    ends.next_back().map_or(Joined::Never, |pair| Joined::Until(pair[1].0))
}

pub(crate) fn visibility_of(event: &StoredEvent) -> Visibility {
    #[derive(Deserialize)]
    struct Content {
        history_visibility: String,
    }
    let content = serde_json::from_str::<Content>(event.pdu.content.get());
    match content.as_ref().map(|content| content.history_visibility.as_str()) {
        Ok("world_readable") => Visibility::WorldReadable,
        Ok("invited") => Visibility::Invited,
        Ok("joined") => Visibility::Joined,
        // A value that nobody knows counts as shared.
        _ => Visibility::Shared,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_former_member_sees_up_to_the_end_of_the_last_join() {
        use Membership::{Ban, Invite, Join, Knock, Leave};
        let end = |log: &[(i64, Membership)]| {
            end_of_last_join(&log.iter().map(|(at, membership)| (Position(*at), *membership)).collect::<Vec<_>>())
        };
        assert_eq!(end(&[]), Joined::Never);
        assert_eq!(end(&[(1, Invite), (2, Leave), (3, Knock), (4, Ban)]), Joined::Never);
        assert_eq!(end(&[(1, Join), (2, Join), (5, Leave)]), Joined::Until(Position(5)));
        assert_eq!(end(&[(1, Join), (5, Leave), (9, Ban), (12, Leave)]), Joined::Until(Position(5)));
        assert_eq!(end(&[(1, Join), (5, Leave), (7, Join), (9, Ban)]), Joined::Until(Position(9)));
    }

    #[test]
    fn what_is_hidden_lies_between_changes_of_the_visibility_and_of_the_reader() {
        use Membership::{Invite, Join, Leave};
        let at = |from: i64, upto: i64| (Position(from), Position(upto));
        let hidden = |changes: &[(i64, Visibility)], log: &[(i64, Membership)]| {
            let changes: Vec<_> = changes.iter().map(|(at, visibility)| (Position(*at), *visibility)).collect();
            let log: Vec<_> = log.iter().map(|(at, membership)| (Position(*at), *membership)).collect();
            let is_open = |visibility| matches!(visibility, Visibility::WorldReadable | Visibility::Shared);
            hidden_between(&changes, &log, is_open, Position(100))
        };
        let joined = (5, Visibility::Joined);
        assert_eq!(hidden(&[], &[(50, Join)]), []);
        assert_eq!(hidden(&[joined], &[(50, Join)]), [at(5, 50)]);
        assert_eq!(hidden(&[joined], &[(10, Join), (20, Leave), (30, Invite), (40, Join)]), [at(5, 10), at(20, 40)]);
        assert_eq!(hidden(&[(5, Visibility::Invited)], &[(30, Invite), (40, Join)]), [at(5, 30)]);
        assert_eq!(hidden(&[joined, (60, Visibility::Shared)], &[]), [at(5, 60)]);
        assert_eq!(hidden(&[joined], &[]), [at(5, 100)]);
    }
}
