//! What users have not read: read up to where, and how many countable events lie after that. It is written by commits only.

use std::collections::HashMap;

use model::{EventNr, Position, RoomNr, UserNr};

use crate::{Error, Storage, db::args, rows::Rows, statement::statements};

/// The thread of receipts for the events that are in none.
pub const MAIN_THREAD: &str = "main";

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
         WHERE c.thread = '' AND (c.user_nr = 0 OR c.user_nr = r.reader_nr) AND c.sender_nr <> r.reader_nr
         GROUP BY 1, 2, 3, 4, 5"];
    /// Threads are counted from where all of them were read, but for what was read of each.
    COUNT_THREADS = ["
        SELECT c.room_nr, c.thread, c.class, CAST(CASE WHEN c.user_nr = 0 THEN 0 ELSE 1 END AS BIGINT),
               CAST(CASE WHEN r.by_sender = 1 THEN c.sender_nr ELSE 0 END AS BIGINT), count(*)
          FROM", (rows [1 room_nr bigint, 2 main bigint, 3 all_threads bigint, 4 upto bigint, 5 reader_nr bigint,
                        6 by_sender bigint]), "
          JOIN countable_events c ON c.room_nr = r.room_nr AND c.position > r.all_threads AND c.position <= r.upto
         WHERE c.thread <> '' AND (c.user_nr = 0 OR c.user_nr = r.reader_nr) AND c.sender_nr <> r.reader_nr
           AND NOT EXISTS (SELECT 1 FROM read_positions p
                            WHERE p.user_nr = r.reader_nr AND p.room_nr = c.room_nr AND p.thread = c.thread
                              AND p.position >= c.position)
         GROUP BY 1, 2, 3, 4, 5"];
    LIST_COUNTABLE_IN_THREADS = ["
        SELECT e.event_nr FROM countable_events c JOIN events e ON e.position = c.position
         WHERE c.room_nr = $1 AND c.position > $2 AND c.position <= $3 AND c.thread <> '' AND c.user_nr = 0
         ORDER BY c.position DESC LIMIT $4"];
}

/// Up to where a user has read a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadPositions {
    /// All threads.
    pub all_threads: Position,
    /// The main timeline, at or beyond `all_threads`.
    pub main: Position,
    /// Threads by their root, where that was asked for.
    pub threads: HashMap<String, Position>,
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
    /// The root of their thread; empty for the main timeline.
    pub thread: String,
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
            found.entry(row.nr(0)?).or_default().add(row.get(1)?, row.nr(2)?);
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
            found.add(row.get(0)?, row.nr(1)?);
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
        let rows = || {
            Rows::new()
                .bigint(ranges.iter().map(|range| range.room_nr.0))
                .bigint(ranges.iter().map(|range| range.main.0))
                .bigint(ranges.iter().map(|range| range.all_threads.0))
                .bigint(ranges.iter().map(|_| upto.0))
                .bigint(ranges.iter().map(|_| user_nr.0))
                .bigint(ranges.iter().map(|range| i64::from(range.by_sender)))
        };
        let mut counted = Vec::new();
        for statement in [&COUNT_MAIN, &COUNT_THREADS] {
            for row in self.db().read(statement, rows()).await? {
                let sender: i64 = row.get(4)?;
                counted.push(UnreadRow {
                    room_nr: row.nr(0)?,
                    thread: row.get(1)?,
                    class: row.get(2)?,
                    is_mention: row.get::<i64>(3)? == 1,
                    sender_nr: (sender != 0).then_some(UserNr(sender)),
                    count: row.get::<i64>(5)?.unsigned_abs(),
                });
            }
        }
        Ok(counted)
    }
}

impl ReadPositions {
    fn add(&mut self, thread: String, position: Position) {
        match thread.as_str() {
            "" => self.all_threads = position,
            MAIN_THREAD => {}
            _ => {
                self.threads.insert(thread, position);
                return;
            }
        }
        self.main = self.main.max(position);
    }

    /// Whether an event of a thread (empty for the main timeline) at a position was read.
    #[must_use]
    pub fn covers(&self, thread: &str, position: Position) -> bool {
        let read = match thread {
            "" => self.main,
            _ => self.threads.get(thread).copied().unwrap_or_default().max(self.all_threads),
        };
        position <= read
    }
}
