//! What users have not read: read up to where, and how many countable events lie after that. It is written by commits only.

use std::collections::HashMap;

use model::{EventNr, Position, RoomNr, Thread, UserNr};
use ruma::{EventId, OwnedEventId};

use crate::{Error, Storage, db::args, rows::Rows, statement::statements};

/// What stands in the column `thread` for all threads.
pub(crate) const ALL_THREADS: &str = "";

/// Most events of a room that [`Storage::list_unread_of_class`] lists of the main timeline, and of threads.
pub const LISTED_OF_ROOM_MAX: usize = 2_000;

statements! {
    LIST_READ_POSITIONS = ["
        SELECT room_nr, thread, position FROM read_positions
         WHERE user_nr = $1 AND room_nr", (in_list 2), " AND thread IN ('', 'main')"];
    LIST_ALL_READ_POSITIONS = ["
        SELECT thread, position FROM read_positions WHERE user_nr = $1 AND room_nr = $2"];
    /// The main timeline is counted from where that was read.
    COUNT_MAIN = ["
        SELECT c.room_nr, c.thread, c.class, CAST(CASE WHEN c.user_nr = 0 THEN 0 ELSE 1 END AS BIGINT),
               CAST(CASE WHEN r.by_sender = 1 THEN c.sender_nr ELSE 0 END AS BIGINT), count(*)
          FROM", (rows [1 room_nr bigint, 2 main bigint, 3 all_threads bigint, 4 upto bigint, 5 reader_nr bigint,
                        6 by_sender bigint]), "
          JOIN countable_events c ON c.room_nr = r.room_nr AND c.position > r.main AND c.position <= r.upto
         WHERE c.thread = 'main' AND (c.user_nr = 0 OR c.user_nr = r.reader_nr) AND c.sender_nr <> r.reader_nr
         GROUP BY 1, 2, 3, 4, 5"];
    /// Threads are counted from where all of them were read, but for what was read of each. SQLite does not see by itself that the index
    /// of threads has far less to go through than that of all events.
    COUNT_THREADS = ["
        SELECT c.room_nr, c.thread, c.class, CAST(CASE WHEN c.user_nr = 0 THEN 0 ELSE 1 END AS BIGINT),
               CAST(CASE WHEN r.by_sender = 1 THEN c.sender_nr ELSE 0 END AS BIGINT), count(*)
          FROM", (rows [1 room_nr bigint, 2 main bigint, 3 all_threads bigint, 4 upto bigint, 5 reader_nr bigint,
                        6 by_sender bigint]), "
          JOIN countable_events c", (either " INDEXED BY countable_events_threads" ""), "
            ON c.room_nr = r.room_nr AND c.position > r.all_threads AND c.position <= r.upto
         WHERE c.thread <> 'main' AND (c.user_nr = 0 OR c.user_nr = r.reader_nr) AND c.sender_nr <> r.reader_nr
           AND NOT EXISTS (SELECT 1 FROM read_positions p
                            WHERE p.user_nr = r.reader_nr AND p.room_nr = c.room_nr AND p.thread = c.thread
                              AND p.position >= c.position)
         GROUP BY 1, 2, 3, 4, 5"];
    LIST_COUNTABLE_IN_THREADS = ["
        SELECT e.event_nr
          FROM countable_events c", (either " INDEXED BY countable_events_threads" ""), "
          JOIN events e ON e.position = c.position
         WHERE c.room_nr = $1 AND c.position > $2 AND c.position <= $3 AND c.thread <> 'main' AND c.user_nr = 0
         ORDER BY c.position DESC LIMIT $4"];
    /// Of each room the newest ones. PostgreSQL joins each room with them; SQLite has no such join.
    LIST_OF_CLASS_IN_MAIN = ["
        SELECT e.event_nr
          FROM", (rows [1 room_nr bigint, 2 main bigint, 3 all_threads bigint, 4 upto bigint, 5 reader_nr bigint,
                        6 mask bigint]), (either "
         CROSS JOIN events e WHERE e.position IN (" "
         CROSS JOIN LATERAL ("), "
               SELECT c.position FROM countable_events c
                WHERE c.room_nr = r.room_nr AND c.position > r.main AND c.position <= r.upto AND c.thread = 'main'
                  AND c.user_nr = 0 AND c.sender_nr <> r.reader_nr AND (c.class & r.mask) <> 0
                ORDER BY c.position DESC LIMIT 2000)", (either "
         " " newest JOIN events e ON e.position = newest.position
         "), "ORDER BY e.position"];
    LIST_OF_CLASS_IN_THREADS = ["
        SELECT e.event_nr
          FROM", (rows [1 room_nr bigint, 2 main bigint, 3 all_threads bigint, 4 upto bigint, 5 reader_nr bigint,
                        6 mask bigint]), (either "
         CROSS JOIN events e WHERE e.position IN (" "
         CROSS JOIN LATERAL ("), "
               SELECT c.position
                 FROM countable_events c", (either " INDEXED BY countable_events_threads" ""), "
                WHERE c.room_nr = r.room_nr AND c.position > r.all_threads AND c.position <= r.upto AND c.thread <> 'main'
                  AND c.user_nr = 0 AND c.sender_nr <> r.reader_nr AND (c.class & r.mask) <> 0
                  AND NOT EXISTS (SELECT 1 FROM read_positions p
                                   WHERE p.user_nr = r.reader_nr AND p.room_nr = c.room_nr AND p.thread = c.thread
                                     AND p.position >= c.position)
                ORDER BY c.position DESC LIMIT 2000)", (either "
         " " newest JOIN events e ON e.position = newest.position
         "), "ORDER BY e.position"];
}

/// Up to where a user has read a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadPositions {
    /// All threads.
    pub all_threads: Position,
    /// The main timeline, at or beyond `all_threads`.
    pub main: Position,
    /// Threads by their root, where that was asked for.
    pub threads: HashMap<OwnedEventId, Position>,
}

/// What to count of a room.
#[derive(Clone, Copy, Debug)]
pub struct UnreadRange {
    /// The room.
    pub room_nr: RoomNr,
    /// Events of the main timeline after this position.
    pub main: Position,
    /// Events of threads after this position.
    pub all_threads: Position,
    /// Whether the senders are told apart.
    pub by_sender: bool,
}

/// How many unread events there are of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadRow {
    /// The room.
    pub room_nr: RoomNr,
    /// Their thread.
    pub thread: Thread,
    /// Their class.
    pub class: i64,
    /// Whether these are the events that mention the reader, which are also among those of the class.
    pub is_mention: bool,
    /// Their sender, where senders are told apart.
    pub sender_nr: Option<UserNr>,
    /// How many.
    pub count: u64,
}

impl Storage {
    /// Up to where a user has read rooms, but for the single threads.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_read_positions(
        &self,
        user_nr: UserNr,
        rooms: &[RoomNr],
    ) -> Result<HashMap<RoomNr, ReadPositions>, Error> {
        let numbers: Vec<i64> = rooms.iter().map(|room| room.0).collect();
        let mut found: HashMap<RoomNr, ReadPositions> = HashMap::with_capacity(rooms.len());
        for row in self.db().read(&LIST_READ_POSITIONS, args![user_nr, numbers]).await? {
            found.entry(row.nr(0)?).or_default().add(of_column(row.get(1)?)?, row.nr(2)?);
        }
        Ok(found)
    }

    /// Up to where a user has read a room and each of its threads.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_all_read_positions(&self, user_nr: UserNr, room_nr: RoomNr) -> Result<ReadPositions, Error> {
        let mut found = ReadPositions::default();
        for row in self.db().read(&LIST_ALL_READ_POSITIONS, args![user_nr, room_nr]).await? {
            found.add(of_column(row.get(0)?)?, row.nr(1)?);
        }
        Ok(found)
    }

    /// The newest countable events of a room's threads after a position, up to another.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_countable_in_threads(
        &self,
        room_nr: RoomNr,
        (after, upto): (Position, Position),
        limit: usize,
    ) -> Result<Vec<EventNr>, Error> {
        let args = args![room_nr, after, upto, limit as i64];
        self.db().read(&LIST_COUNTABLE_IN_THREADS, args).await?.iter().map(|row| row.nr(0)).collect()
    }

    /// How many events of others lie in those ranges, up to a position, by class and thread; those that mention the reader once more.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn count_unread(
        &self,
        user_nr: UserNr,
        ranges: &[UnreadRange],
        upto: Position,
    ) -> Result<Vec<UnreadRow>, Error> {
        let ranges: Vec<_> = ranges.iter().map(|range| (*range, i64::from(range.by_sender))).collect();
        let mut counted = Vec::new();
        for statement in [&COUNT_MAIN, &COUNT_THREADS] {
            for row in self.db().read(statement, rows_of(user_nr, &ranges, upto)).await? {
                let sender: i64 = row.get(4)?;
                counted.push(UnreadRow {
                    room_nr: row.nr(0)?,
                    thread: thread_of_event(row.get(1)?)?,
                    class: row.get(2)?,
                    is_mention: row.get::<i64>(3)? == 1,
                    sender_nr: (sender != 0).then_some(UserNr(sender)),
                    count: row.get::<i64>(5)?.unsigned_abs(),
                });
            }
        }
        Ok(counted)
    }

    /// The events of others in those ranges, up to a position, whose class has one of the bits beside the range: of each room the newest
    /// [`LISTED_OF_ROOM_MAX`] of the main timeline, and as many of threads.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_unread_of_class(
        &self,
        user_nr: UserNr,
        ranges: &[(UnreadRange, i64)],
        upto: Position,
    ) -> Result<Vec<EventNr>, Error> {
        let mut listed = Vec::new();
        for statement in [&LIST_OF_CLASS_IN_MAIN, &LIST_OF_CLASS_IN_THREADS] {
            for row in self.db().read(statement, rows_of(user_nr, ranges, upto)).await? {
                listed.push(row.nr(0)?);
            }
        }
        Ok(listed)
    }
}

/// The ranges, each with a number of the statement's own.
fn rows_of(user_nr: UserNr, ranges: &[(UnreadRange, i64)], upto: Position) -> Rows {
    Rows::new()
        .bigint(ranges.iter().map(|(range, _)| range.room_nr.0))
        .bigint(ranges.iter().map(|(range, _)| range.main.0))
        .bigint(ranges.iter().map(|(range, _)| range.all_threads.0))
        .bigint(ranges.iter().map(|_| upto.0))
        .bigint(ranges.iter().map(|_| user_nr.0))
        .bigint(ranges.iter().map(|(_, number)| *number))
}

impl ReadPositions {
    fn add(&mut self, thread: Option<Thread>, position: Position) {
        match thread {
            Some(Thread::Root(root)) => {
                self.threads.insert(root, position);
                return;
            }
            Some(Thread::Main) => {}
            None => self.all_threads = position,
        }
        self.main = self.main.max(position);
    }

    /// Whether an event of a thread at a position was read.
    #[must_use]
    pub fn covers(&self, thread: &Thread, position: Position) -> bool {
        let read = match thread {
            Thread::Main => self.main,
            Thread::Root(root) => self.of_thread(root),
        };
        position <= read
    }

    fn of_thread(&self, root: &EventId) -> Position {
        self.threads.get(root).copied().unwrap_or_default().max(self.all_threads)
    }
}

/// The thread of a receipt as its column has it: nothing is all threads.
pub(crate) fn to_column(thread: Option<&Thread>) -> &str {
    thread.map_or(ALL_THREADS, Thread::as_str)
}

/// The thread that the column of a receipt has.
pub(crate) fn of_column(column: String) -> Result<Option<Thread>, Error> {
    if column == ALL_THREADS {
        return Ok(None);
    }
    let thread = Thread::parse(&column).ok_or_else(|| Error::Damaged(format!("thread `{column}`")))?;
    Ok(Some(thread))
}

/// The thread that the column of an event has. An older program, which may still run beside this one, leaves it empty in the main timeline.
pub(crate) fn thread_of_event(column: String) -> Result<Thread, Error> {
    Ok(of_column(column)?.unwrap_or_default())
}
