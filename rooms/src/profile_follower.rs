//! Changes of name and picture on their way into all rooms of a user. Client-Server API, "Profiles": "Events on Change of Profile
//! Information".
//!
//! A change is answered when the profile is durable; until all rooms show it, it waits in the database. One process works at a time. When
//! it dies in the midst of the work, another begins again: a room that shows the profile already gets no second event.
//!
//! What is written is the profile of the moment in which the event is built ([`Draft::showing`]), and only if the user is still joined then
//! ([`Draft::while_joined`]). So a later change supersedes one that is under way, and who left or was banned stays out.

use std::{collections::VecDeque, future::Future, pin::pin, sync::Arc, time::Duration};

use model::{Membership, Position, RoomNr, UserNr};
use ruma::{OwnedUserId, events::TimelineEventType};
use serde_json::json;
use storage::{Item, Published, RoomRow};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, warn};

use crate::{Draft, Error, Rooms, create::object};

/// Most rooms that are written at the same time: many share a group of the committer, and leave most of it to what people send.
const ROOMS_AT_ONCE: usize = 32;
/// Most users whose rooms are under way; they take turns, so that nobody waits behind one who is in thousands of rooms.
const USERS_AT_ONCE: usize = 100;
/// Rooms of a user that are looked up with one question.
const ROWS_AT_ONCE: usize = 100;
/// The name under which the position of what rooms have followed is stored.
const CONSUMER: &str = "profiles";
/// How long a process that does not answer keeps the work from the others, in milliseconds.
const LEASE_MS: i64 = 10_000;
/// How often the lease is renewed, what failed is tried again, and each process looks for work that others left behind.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often rooms that could not be written are tried again.
const TRIES_MAX: u32 = 30;

/// What this process is doing.
#[derive(Default)]
struct Work {
    /// Up to where changes were taken up, while the work is ours.
    taken_upto: Option<Position>,
    /// Up to where all rooms have followed.
    done_upto: Position,
    /// Whether more changes may wait than there was place for.
    has_more: bool,
    /// The profiles that are under way, the next in turn first.
    ways: VecDeque<Way>,
    /// The rooms that are being written.
    writing: JoinSet<(UserNr, RoomNr, Result<(), Error>)>,
}

/// A profile on its way into the rooms of its user.
struct Way {
    user_nr: UserNr,
    user_id: OwnedUserId,
    /// The newest of the changes that it is about.
    position: Position,
    /// Whether that is newer than the list of rooms.
    is_news: bool,
    /// The rooms that the user was joined to when they were last listed, in order.
    listed: Vec<RoomNr>,
    /// The rooms that are still to be written, and the first of them with what is stored of them.
    ahead: VecDeque<RoomNr>,
    rows: VecDeque<Arc<RoomRow>>,
    /// The room that was begun last.
    last: RoomNr,
    /// How many are being written.
    writing: usize,
    /// Those that could not be, for a reason that passes.
    failed: Vec<RoomNr>,
    tries: u32,
    /// Whether all rooms have followed.
    is_over: bool,
}

impl Work {
    fn note(&mut self, written: Result<(UserNr, RoomNr, Result<(), Error>), JoinError>) {
        let (user_nr, room_nr, result) = match written {
            Ok(written) => written,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The process ends.
            Err(_) => return,
        };
        let Some(way) = self.ways.iter_mut().find(|way| way.user_nr == user_nr) else { return };
        way.writing -= 1;
        match result {
            // As long as rooms take it, none is given up.
            Ok(()) => way.tries = 0,
            Err(error) => {
                debug!(%error, "a room did not take a change of profile; it is tried again");
                way.failed.push(room_nr);
            }
        }
    }

    /// Up to where all rooms have followed now.
    fn upto(&self) -> Position {
        let behind = self.ways.iter().map(|way| Position(way.position.0 - 1)).min();
        behind.or(self.taken_upto).unwrap_or_default().max(self.done_upto)
    }

    fn try_again(&mut self) {
        for way in &mut self.ways {
            if way.failed.is_empty() {
                continue;
            }
            way.tries += 1;
            if way.tries > TRIES_MAX {
                // Others must not wait for ever behind one whose rooms cannot be written.
                warn!(rooms = way.failed.len(), "a profile did not reach all rooms, and is given up");
                way.failed.clear();
            }
            way.ahead.extend(way.failed.drain(..));
        }
    }
}

impl Way {
    fn new(user_nr: UserNr, user_id: OwnedUserId, position: Position) -> Self {
        Self {
            user_nr,
            user_id,
            position,
            is_news: true,
            listed: Vec::new(),
            ahead: VecDeque::new(),
            rows: VecDeque::new(),
            last: RoomNr(0),
            writing: 0,
            failed: Vec::new(),
            tries: 0,
            is_over: false,
        }
    }

    fn is_at_end(&self) -> bool {
        self.ahead.is_empty() && self.rows.is_empty() && self.failed.is_empty() && self.writing == 0
    }

    /// Takes up the rooms that the user is joined to: all of them after a change, else those that came meanwhile, until none did.
    fn take_rooms(&mut self, joined: Vec<RoomNr>) {
        if self.is_news {
            // On from where the change before was: else the last rooms of somebody who changes their name all the time would wait for ever.
            let next = joined.partition_point(|room_nr| *room_nr <= self.last);
            self.ahead = joined[next..].iter().chain(&joined[..next]).copied().collect();
            self.rows.clear();
            self.failed.clear();
            (self.is_news, self.tries) = (false, 0);
        } else {
            let is_new = |room_nr: &&RoomNr| self.listed.binary_search(room_nr).is_err();
            self.ahead = joined.iter().filter(is_new).copied().collect();
            self.is_over = self.ahead.is_empty();
        }
        self.listed = joined;
    }
}

impl Rooms {
    /// Brings changes of name and picture into all rooms, until `stop` ends. Run it as one task of each process.
    pub async fn follow_profiles(&self, stop: impl Future<Output = ()>) {
        let mut stream = self.storage().subscribe();
        let mut stop = pin!(stop);
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut work = Work::default();
        loop {
            let went_on = tokio::select! {
                () = &mut stop => break,
                Some(written) = work.writing.join_next() => {
                    work.note(written);
                    self.work_on(&mut work, false).await
                }
                has_more = next_change(&mut stream) => {
                    if !has_more {
                        break;
                    }
                    self.work_on(&mut work, true).await
                }
                _ = look.tick() => self.look(&mut work).await,
            };
            if let Err(error) = went_on {
                warn!(%error, "changes of profiles did not reach the rooms; it is tried again");
            }
        }
        if work.taken_upto.is_some() {
            // Not done to the end: the next one need not wait until our time is over.
            let _ = self.storage().advance_consumer(CONSUMER, work.upto(), 0).await;
        }
    }

    /// What is done every second.
    async fn look(&self, work: &mut Work) -> Result<(), Error> {
        if work.taken_upto.is_some() && !self.note_done(work, LEASE_MS).await? {
            // This process was away, and another one has begun again.
            *work = Work::default();
        }
        work.try_again();
        self.work_on(work, true).await
    }

    /// Does what can be done now, and gives the work back when there is none.
    async fn work_on(&self, work: &mut Work, has_news: bool) -> Result<(), Error> {
        let mut takes_up = has_news;
        loop {
            if takes_up {
                self.take_up(work).await?;
            }
            self.begin_rooms(work).await?;
            takes_up = work.has_more && work.ways.len() <= USERS_AT_ONCE / 2;
            if !takes_up {
                break;
            }
        }
        if work.ways.is_empty() && work.taken_upto.is_some() {
            self.note_done(work, 0).await?;
            *work = Work::default();
        }
        Ok(())
    }

    /// Takes up changes for which there is place, if the work is ours or nobody's.
    async fn take_up(&self, work: &mut Work) -> Result<(), Error> {
        let storage = self.storage();
        let after = match work.taken_upto {
            Some(after) => after,
            None => {
                if storage.list_profile_changes(Position(0), Position(i64::MAX), 1).await?.is_empty() {
                    return Ok(());
                }
                let Some(after) = storage.lease_consumer(CONSUMER, LEASE_MS).await? else { return Ok(()) };
                (work.taken_upto, work.done_upto) = (Some(after), after);
                after
            }
        };
        let place = USERS_AT_ONCE - work.ways.len();
        work.has_more = place == 0;
        if work.has_more {
            return Ok(());
        }
        let upto = storage.newest_durable().await?;
        let changes = storage.list_profile_changes(after, upto, u32::try_from(place).unwrap_or(1)).await?;
        work.has_more = changes.len() == place;
        let names = storage.user_ids(&changes.iter().map(|(_, user_nr)| *user_nr).collect::<Vec<_>>()).await?;
        for (position, user_nr) in changes {
            work.taken_upto = Some(position);
            if let Some(way) = work.ways.iter_mut().find(|way| way.user_nr == user_nr) {
                (way.position, way.is_news) = (position, true);
            } else if let Some(user_id) = names.get(&user_nr).filter(|user_id| self.servers().has_user(user_id)) {
                work.ways.push_back(Way::new(user_nr, user_id.clone(), position));
            }
        }
        Ok(())
    }

    /// Begins to write rooms, of each user in turn, as many as may be written at once.
    async fn begin_rooms(&self, work: &mut Work) -> Result<(), Error> {
        let mut passed_over = 0;
        while work.writing.len() < ROOMS_AT_ONCE && passed_over < work.ways.len() {
            let way = &mut work.ways[0];
            match self.next_room(way).await? {
                Some(room) => {
                    passed_over = 0;
                    (way.last, way.writing) = (room.nr, way.writing + 1);
                    let (rooms, user_nr, user_id) = (self.clone(), way.user_nr, way.user_id.clone());
                    work.writing.spawn(async move {
                        let written = rooms.show_profile(&room, user_nr, user_id).await;
                        (user_nr, room.nr, written)
                    });
                }
                None if way.is_over => {
                    work.ways.pop_front();
                    continue;
                }
                None => passed_over += 1,
            }
            work.ways.rotate_left(1);
        }
        Ok(())
    }

    /// The next room that is to show a profile; none when all do, or are about to.
    async fn next_room(&self, way: &mut Way) -> Result<Option<Arc<RoomRow>>, Error> {
        if way.is_news || way.is_at_end() {
            let memberships = self.storage().list_rooms_of_user(way.user_nr).await?;
            let joined = memberships.into_iter().filter(|row| row.membership == Membership::Join);
            way.take_rooms(joined.map(|row| row.room_nr).collect());
        }
        while way.rows.is_empty() && !way.ahead.is_empty() {
            let numbers: Vec<RoomNr> = way.ahead.iter().take(ROWS_AT_ONCE).copied().collect();
            let rooms = self.storage().get_rooms(&numbers).await?;
            way.ahead.drain(..numbers.len());
            way.rows.extend(numbers.iter().filter_map(|room_nr| rooms.get(room_nr).cloned()));
        }
        Ok(way.rows.pop_front())
    }

    /// Writes a user's name and picture into a room. Of no room that refuses it is more to be expected later.
    async fn show_profile(&self, room: &Arc<RoomRow>, user_nr: UserNr, user_id: OwnedUserId) -> Result<(), Error> {
        let content = object(json!({"membership": Membership::Join.as_str()}))?;
        let state_key = user_id.to_string();
        let draft = Draft::new(user_id, user_nr, TimelineEventType::RoomMember, content)
            .with_state_key(state_key)
            .showing(Some(user_nr))
            .while_joined();
        match self.submit(room, draft).await {
            Err(error @ (Error::Storage(_) | Error::Busy)) => Err(error),
            Err(error) => {
                debug!(room.id = %room.id, %error, "a room refused a change of profile");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Stores how far rooms have followed, and keeps the work for so many milliseconds; `false` when it is another's by now.
    async fn note_done(&self, work: &mut Work, for_ms: i64) -> Result<bool, Error> {
        let upto = work.upto();
        let is_ours = self.storage().advance_consumer(CONSUMER, upto, for_ms).await?;
        if is_ours && upto > work.done_upto {
            self.storage().delete_profile_changes(upto).await?;
            work.done_upto = upto;
        }
        Ok(is_ours)
    }
}

/// Waits until this process commits a change of a profile, or may have; `false` when it will never again.
async fn next_change(stream: &mut Receiver<Arc<Published>>) -> bool {
    loop {
        match stream.recv().await {
            Ok(published) if published.items.iter().any(|(_, item)| matches!(item, Item::Profile(_))) => return true,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return true,
            Err(RecvError::Closed) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    fn way(position: i64) -> Way {
        Way::new(UserNr(1), user_id!("@alice:hs").to_owned(), Position(position))
    }

    fn rooms(numbers: &[i64]) -> Vec<RoomNr> {
        numbers.iter().copied().map(RoomNr).collect()
    }

    /// Else the last rooms of somebody who changes their name all the time would never show it.
    #[test]
    fn a_later_change_goes_on_where_the_one_before_was() {
        let mut way = way(5);
        way.take_rooms(rooms(&[1, 2, 3, 4]));
        assert_eq!(way.ahead, rooms(&[1, 2, 3, 4]));
        (way.last, way.is_news) = (RoomNr(2), true);
        way.take_rooms(rooms(&[1, 3, 4]));
        assert_eq!(way.ahead, rooms(&[3, 4, 1]));
    }

    /// Who joins a room while the profile is on its way may have shown the one before.
    #[test]
    fn rooms_that_were_joined_meanwhile_are_looked_at() {
        let mut way = way(5);
        way.take_rooms(rooms(&[1, 3]));
        way.ahead.clear();
        way.take_rooms(rooms(&[1, 2, 3]));
        assert_eq!((way.ahead.make_contiguous() as &[_], way.is_over), (&*rooms(&[2]), false));
        way.ahead.clear();
        way.take_rooms(rooms(&[1, 2, 3]));
        assert!(way.is_over);
    }

    #[test]
    fn what_is_done_ends_before_the_oldest_that_is_not() {
        let mut work = Work { taken_upto: Some(Position(9)), done_upto: Position(2), ..Work::default() };
        assert_eq!(work.upto(), Position(9));
        work.ways.push_back(way(5));
        work.ways.push_back(way(8));
        assert_eq!(work.upto(), Position(4));
    }
}
