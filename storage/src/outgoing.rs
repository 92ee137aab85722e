//! What other servers are still to be sent.
//!
//! A send writes nothing here: what a destination is to get is what its rooms have after the position up to which everything is sent. Rows
//! have destinations that are behind, events for those that a room no longer shows, and EDUs that must arrive.

use std::collections::HashSet;

use model::{EventNr, Position, RoomNr, Thread, UserNr};
use ruma::{OwnedServerName, ServerName};

use crate::{
    Error, SenderShare, Storage,
    db::{Row, args},
    rows::Rows,
    statement::statements,
    unread::of_column,
};

statements! {
    UPSERT_ARREARS = ["
        INSERT INTO arrears (origin, destination, share, sent_upto)
        SELECT r.origin, r.destination, r.share, r.sent_upto
          FROM", (rows [1 origin text, 2 destination text, 3 share bigint, 4 fence bigint, 5 sent_upto bigint]), "
          JOIN sender_shares s ON s.share = r.share AND s.fence = r.fence
         WHERE TRUE
            ON CONFLICT (origin, destination) DO UPDATE SET sent_upto = excluded.sent_upto"];
    DELETE_ARREARS = ["
        DELETE FROM arrears
         WHERE origin = $1 AND destination = $2 AND EXISTS (
               SELECT 1 FROM sender_shares s WHERE s.share = arrears.share AND s.fence = $3)"];
    LIST_ARREARS = ["
        SELECT origin, destination, sent_upto FROM arrears WHERE share = $1 ORDER BY origin, destination"];
    LIST_BEHIND_ROOMS = ["
        SELECT h.room_nr, h.position FROM room_servers s JOIN room_heads h ON h.room_nr = s.room_nr
         WHERE s.server = $1 AND s.room_nr > $2 AND h.position > $3 ORDER BY s.room_nr LIMIT $4"];
    /// The flag is that of events that another server sends than their sender's: we for others, and others for us.
    LIST_OURS = ["
        SELECT e.event_nr, e.anchor FROM events e
          JOIN memberships m ON m.room_nr = e.room_nr AND m.user_nr = e.sender_nr
         WHERE e.room_nr = $1 AND e.anchor > $2 AND e.anchor <= $3 AND e.position IS NOT NULL
           AND m.is_local <> (e.flags & 16 <> 0)
         ORDER BY e.anchor LIMIT $4"];
    /// Of the newest thousand: in a room where others talk, ours may lie far back, and are old news then.
    LIST_NEWEST_OURS = ["
        SELECT e.event_nr, e.anchor
          FROM (SELECT event_nr, anchor, sender_nr, flags FROM events
                 WHERE room_nr = $1 AND anchor > $2 AND anchor <= $3 AND position IS NOT NULL
                 ORDER BY anchor DESC LIMIT 1000) AS e
          JOIN memberships m ON m.room_nr = $1 AND m.user_nr = e.sender_nr
         WHERE m.is_local <> (e.flags & 16 <> 0)
         ORDER BY e.anchor DESC LIMIT $4"];
    INSERT_OUTGOING_EVENTS = ["
        INSERT INTO outgoing_events (destination, origin, event_nr)
        SELECT destination, origin, event_nr FROM", (rows [1 destination text, 2 origin text, 3 event_nr bigint]), "
         WHERE TRUE ON CONFLICT DO NOTHING"];
    LIST_OUTGOING_EVENTS = ["
        SELECT event_nr FROM outgoing_events WHERE destination = $1 AND origin = $2 ORDER BY event_nr LIMIT $3"];
    DELETE_OUTGOING_EVENTS = ["
        DELETE FROM outgoing_events WHERE destination = $1 AND origin = $2 AND event_nr", (in_list 3)];
    LIST_OUTGOING_EDUS = ["
        SELECT position, edu FROM outgoing_edus
         WHERE destination = $1 AND origin = $2 AND position <= $3 ORDER BY position LIMIT $4"];
    DELETE_OUTGOING_EDUS = ["DELETE FROM outgoing_edus WHERE destination = $1 AND origin = $2 AND position <= $3"];
    LIST_FULL_DESTINATIONS = ["
        SELECT destination FROM outgoing_edus WHERE origin = $1 AND destination", (in_list 2), "
         GROUP BY destination HAVING count(*) >= $3 ORDER BY destination"];
    LIST_ALL_SERVERS = ["SELECT DISTINCT server FROM room_servers WHERE server > $1 ORDER BY server LIMIT $2"];
    /// The servers of a room that shared no other one with a user when they came into it.
    LIST_NEW_SERVERS = ["
        SELECT s.server FROM room_servers s
         WHERE s.room_nr = $1 AND NOT EXISTS (
               SELECT 1 FROM memberships m JOIN room_servers o ON o.room_nr = m.room_nr AND o.server = s.server
                WHERE m.user_nr = $2 AND m.membership = 3 AND m.room_nr <> $1 AND m.position < $3)
         ORDER BY s.server"];
    LIST_SERVERS_OF_USERS = ["
        SELECT DISTINCT m.user_nr, s.server FROM memberships m JOIN room_servers s ON s.room_nr = m.room_nr
         WHERE m.user_nr", (in_list 1), " AND m.membership = 3 ORDER BY m.user_nr, s.server"];
    FIND_COMMIT_UPTO = ["SELECT position FROM commits WHERE position <= $1 ORDER BY position DESC LIMIT 1"];
    FIND_COMMIT_TIME = ["SELECT at_ms FROM commits WHERE position > $1 ORDER BY position LIMIT 1"];
    /// The changes of the devices of users who share a room with a server.
    LIST_DEVICE_CHANGES = ["
        SELECT c.user_nr, max(c.position) FROM device_list_changes c
         WHERE c.position > $2 AND c.position <= $3 AND EXISTS (
               SELECT 1 FROM memberships m JOIN room_servers s ON s.room_nr = m.room_nr AND s.server = $1
                WHERE m.user_nr = c.user_nr AND m.membership = 3 AND m.is_local)
         GROUP BY c.user_nr ORDER BY c.user_nr LIMIT $4"];
    /// What users of ours have read in the rooms of a server (membership 3 is joined).
    LIST_READ_IN_ROOMS_OF = ["
        SELECT c.room_nr, c.user_nr, c.thread, c.event_id, c.at_ms, c.position
          FROM room_servers s
          JOIN receipts c ON c.room_nr = s.room_nr AND c.position > $2 AND c.position <= $3 AND c.receipt_type = 'm.read'
          JOIN memberships m ON m.room_nr = c.room_nr AND m.user_nr = c.user_nr AND m.membership = 3 AND m.is_local
         WHERE s.server = $1 ORDER BY c.position LIMIT $4"];
    LIST_READ = ["
        SELECT c.room_nr, c.user_nr, c.thread, c.event_id, c.at_ms, c.position
          FROM", (rows [1 room_nr bigint, 2 user_nr bigint, 3 beyond bigint]), "
          JOIN receipts c ON c.room_nr = r.room_nr AND c.user_nr = r.user_nr AND c.receipt_type = 'm.read'
         WHERE c.position > r.beyond
         ORDER BY c.position"];
}

/// A destination that is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrearsRow {
    /// Which of our names sends.
    pub origin: OwnedServerName,
    /// To whom.
    pub destination: OwnedServerName,
    /// All up to here is sent.
    pub sent_upto: Position,
}

/// How far somebody has read, for others to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRow {
    /// The room.
    pub room_nr: RoomNr,
    /// The reader.
    pub user_nr: UserNr,
    /// The thread; nothing for all of them.
    pub thread: Option<Thread>,
    /// The event.
    pub event_id: String,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// Where it is in the stream.
    pub position: Position,
}

impl Storage {
    /// Notes that destinations are behind, of shares that are this process's still.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upsert_arrears(&self, arrears: &[(ArrearsRow, SenderShare)]) -> Result<(), Error> {
        let rows = Rows::new()
            .text(arrears.iter().map(|(row, _)| row.origin.to_string()))
            .text(arrears.iter().map(|(row, _)| row.destination.to_string()))
            .bigint(arrears.iter().map(|(_, share)| i64::from(share.share)))
            .bigint(arrears.iter().map(|(_, share)| share.fence))
            .bigint(arrears.iter().map(|(row, _)| row.sent_upto.0));
        self.db().write(&UPSERT_ARREARS, rows).await.map(|_| ())
    }

    /// Notes that a destination is not behind any more, if its share is still this process's.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_arrears(
        &self,
        origin: &ServerName,
        destination: &ServerName,
        share: SenderShare,
    ) -> Result<(), Error> {
        let args = args![origin.as_str(), destination.as_str(), share.fence];
        self.db().write(&DELETE_ARREARS, args).await.map(|_| ())
    }

    /// The destinations of a share that are behind.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_arrears(&self, share: u32) -> Result<Vec<ArrearsRow>, Error> {
        self.db().read(&LIST_ARREARS, args![i64::from(share)]).await?.iter().map(arrears_of).collect()
    }

    /// The rooms of a server that have something after a position, after a room, by number, at most `limit`, each with the position of
    /// the newest.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_rooms_behind(
        &self,
        server: &ServerName,
        after_room: RoomNr,
        sent_upto: Position,
        limit: u32,
    ) -> Result<Vec<(RoomNr, Position)>, Error> {
        let args = args![server.as_str(), after_room, sent_upto, i64::from(limit)];
        let rows = self.db().read(&LIST_BEHIND_ROOMS, args).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.nr(1)?))).collect()
    }

    /// Live events of a room that we send to other servers, made after a position up to another: the oldest, or with `newest` the newest;
    /// at most `limit`, oldest first.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_ours(
        &self,
        room_nr: RoomNr,
        (after, upto): (Position, Position),
        newest: bool,
        limit: u32,
    ) -> Result<Vec<(EventNr, Position)>, Error> {
        let statement = if newest { &LIST_NEWEST_OURS } else { &LIST_OURS };
        let rows = self.db().read(statement, args![room_nr, after, upto, i64::from(limit)]).await?;
        let mut found: Vec<_> = rows.iter().map(|row| Ok((row.nr(0)?, row.nr(1)?))).collect::<Result<_, Error>>()?;
        found.sort_unstable_by_key(|(_, position): &(EventNr, Position)| *position);
        Ok(found)
    }

    /// Notes events for destinations that their rooms no longer show.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_outgoing_events(
        &self,
        events: &[(OwnedServerName, OwnedServerName, EventNr)],
    ) -> Result<(), Error> {
        let rows = Rows::new()
            .text(events.iter().map(|(_, destination, _)| destination.to_string()))
            .text(events.iter().map(|(origin, ..)| origin.to_string()))
            .bigint(events.iter().map(|(.., nr)| nr.0));
        self.db().write(&INSERT_OUTGOING_EVENTS, rows).await.map(|_| ())
    }

    /// Events for a destination that their rooms no longer show, oldest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_outgoing_events(
        &self,
        origin: &ServerName,
        destination: &ServerName,
        limit: u32,
    ) -> Result<Vec<EventNr>, Error> {
        let args = args![destination.as_str(), origin.as_str(), i64::from(limit)];
        self.db().read(&LIST_OUTGOING_EVENTS, args).await?.iter().map(|row| row.nr(0)).collect()
    }

    /// Such events have arrived.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_outgoing_events(
        &self,
        origin: &ServerName,
        destination: &ServerName,
        events: &[EventNr],
    ) -> Result<(), Error> {
        let events: Vec<i64> = events.iter().map(|nr| nr.0).collect();
        let args = args![destination.as_str(), origin.as_str(), events];
        self.db().write(&DELETE_OUTGOING_EVENTS, args).await.map(|_| ())
    }

    /// EDUs that must arrive at a destination, oldest first, up to a position, at most `limit`, with their positions.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_outgoing_edus(
        &self,
        origin: &ServerName,
        destination: &ServerName,
        upto: Position,
        limit: u32,
    ) -> Result<Vec<(Position, String)>, Error> {
        let args = args![destination.as_str(), origin.as_str(), upto, i64::from(limit)];
        let rows = self.db().read(&LIST_OUTGOING_EDUS, args).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.get(1)?))).collect()
    }

    /// Those up to a position have arrived.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_outgoing_edus(
        &self,
        origin: &ServerName,
        destination: &ServerName,
        upto: Position,
    ) -> Result<(), Error> {
        let args = args![destination.as_str(), origin.as_str(), upto];
        self.db().write(&DELETE_OUTGOING_EDUS, args).await.map(|_| ())
    }

    /// Of some destinations those for which at least `count` EDUs that must arrive wait.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_full_destinations(
        &self,
        origin: &ServerName,
        destinations: impl Iterator<Item = &OwnedServerName>,
        count: u32,
    ) -> Result<HashSet<OwnedServerName>, Error> {
        let destinations: Vec<String> = destinations.map(ToString::to_string).collect();
        let args = args![origin.as_str(), destinations, i64::from(count)];
        self.db().read(&LIST_FULL_DESTINATIONS, args).await?.iter().map(|row| server_of(row, 0)).collect()
    }

    /// The servers that are in any room, after one of them, by name, at most `limit`; ours among them.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_all_servers(&self, after: &str, limit: u32) -> Result<Vec<OwnedServerName>, Error> {
        let rows = self.db().read(&LIST_ALL_SERVERS, args![after, i64::from(limit)]).await?;
        rows.iter().map(|row| server_of(row, 0)).collect()
    }

    /// The servers with which users share rooms; ours among them.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_servers_of_users(&self, users: &[UserNr]) -> Result<Vec<(UserNr, OwnedServerName)>, Error> {
        let users: Vec<i64> = users.iter().map(|user| user.0).collect();
        let rows = self.db().read(&LIST_SERVERS_OF_USERS, args![users]).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, server_of(row, 1)?))).collect()
    }

    /// The position of the newest group up to a position; nothing when its row is gone.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_commit_upto(&self, position: Position) -> Result<Option<Position>, Error> {
        if position == Position(0) {
            return Ok(Some(position));
        }
        self.db().read_one(&FIND_COMMIT_UPTO, args![position]).await?.map(|row| row.nr(0)).transpose()
    }

    /// When the first group after a position was written that is known still, in milliseconds since 1970.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_commit_time_after(&self, position: Position) -> Result<Option<i64>, Error> {
        self.db().read_one(&FIND_COMMIT_TIME, args![position]).await?.map(|row| row.get(0)).transpose()
    }

    /// The users of ours who share a room with a server and whose devices changed after a position up to another, each with the position
    /// of the newest change, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_device_changes_for(
        &self,
        server: &ServerName,
        (after, upto): (Position, Position),
        limit: u32,
    ) -> Result<Vec<(UserNr, Position)>, Error> {
        let args = args![server.as_str(), after, upto, i64::from(limit)];
        let rows = self.db().read(&LIST_DEVICE_CHANGES, args).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.nr(1)?))).collect()
    }

    /// Up to where users of ours have read the rooms that a server is in, of what they marked after a position up to another, for others to
    /// see: the oldest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_read_in_rooms_of(
        &self,
        server: &ServerName,
        (after, upto): (Position, Position),
        limit: u32,
    ) -> Result<Vec<ReadRow>, Error> {
        let args = args![server.as_str(), after, upto, i64::from(limit)];
        self.db().read(&LIST_READ_IN_ROOMS_OF, args).await?.iter().map(read_of).collect()
    }

    /// The servers of a room that shared no other one with a user who came into it at a position; ours among them.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_new_servers(
        &self,
        room_nr: RoomNr,
        user_nr: UserNr,
        at: Position,
    ) -> Result<Vec<OwnedServerName>, Error> {
        let rows = self.db().read(&LIST_NEW_SERVERS, args![room_nr, user_nr, at]).await?;
        rows.iter().map(|row| server_of(row, 0)).collect()
    }

    /// Up to where users have read rooms, of what they marked after a position, for others to see.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_read(&self, readers: &[(RoomNr, UserNr)], after: Position) -> Result<Vec<ReadRow>, Error> {
        let rows = Rows::new()
            .bigint(readers.iter().map(|(room_nr, _)| room_nr.0))
            .bigint(readers.iter().map(|(_, user_nr)| user_nr.0))
            .bigint(readers.iter().map(|_| after.0));
        self.db().read(&LIST_READ, rows).await?.iter().map(read_of).collect()
    }
}

fn server_of(row: &Row, column: usize) -> Result<OwnedServerName, Error> {
    let name: String = row.get(column)?;
    name.try_into().map_err(|_| Error::Damaged("the name of a server".to_owned()))
}

fn arrears_of(row: &Row) -> Result<ArrearsRow, Error> {
    Ok(ArrearsRow { origin: server_of(row, 0)?, destination: server_of(row, 1)?, sent_upto: row.nr(2)? })
}

fn read_of(row: &Row) -> Result<ReadRow, Error> {
    Ok(ReadRow {
        room_nr: row.nr(0)?,
        user_nr: row.nr(1)?,
        thread: of_column(row.get(2)?)?,
        event_id: row.get(3)?,
        at_ms: row.get(4)?,
        position: row.nr(5)?,
    })
}
