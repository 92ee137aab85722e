//! What readers ask of rooms: members, timelines, receipts.

use std::collections::HashMap;

use model::{EventNr, Membership, Position, RoomNr, Thread, UserNr};
use ruma::{OwnedUserId, UserId};

use crate::{
    Error, Storage,
    db::{Row, args},
    rows::Rows,
    statement::statements,
    unread::{of_column, to_column},
};

statements! {
    GET_MEMBERSHIP = ["
        SELECT room_nr, user_nr, membership, event_nr, position, forgotten FROM memberships
         WHERE room_nr = $1 AND user_nr = $2"];
    LIST_MEMBERS_OF_KINDS = ["
        SELECT room_nr, user_nr, membership, event_nr, position, forgotten FROM memberships
         WHERE room_nr = $1 AND membership", (in_list 2), " ORDER BY position, user_nr LIMIT $3"];
    LIST_LOCAL_JOINED = ["
        SELECT user_nr FROM memberships WHERE room_nr = $1 AND membership = 3 AND is_local ORDER BY user_nr LIMIT $2"];
    LIST_JOINED_OF = ["
        SELECT u.user_id FROM user_numbers u
          JOIN memberships m ON m.room_nr = $1 AND m.user_nr = u.user_nr AND m.membership = 3
         WHERE u.user_id", (in_list 2), " ORDER BY u.user_id"];
    LIST_JOINED = ["
        SELECT m.room_nr, m.user_nr FROM", (rows [1 room_nr bigint, 2 user_nr bigint]), "
          JOIN memberships m ON m.room_nr = r.room_nr AND m.user_nr = r.user_nr AND m.membership = 3"];
    LIST_ROOMS_OF_USER = [
        (packed "room_nr, user_nr, membership, event_nr, position, CAST(CASE WHEN forgotten THEN 1 ELSE 0 END AS bigint)"), "
           FROM memberships WHERE user_nr = $1"];
    LIST_MEMBERSHIPS_IN = ["
        SELECT room_nr, user_nr, membership, event_nr, position, forgotten FROM memberships
         WHERE user_nr = $1 AND room_nr", (in_list 2), " ORDER BY room_nr"];
    LIST_MUTUAL_ROOMS = ["
        SELECT mine.room_nr FROM memberships mine
          JOIN memberships theirs ON theirs.user_nr = $2 AND theirs.room_nr = mine.room_nr AND theirs.membership = 3
         WHERE mine.user_nr = $1 AND mine.membership = 3 AND mine.room_nr > $3
         ORDER BY mine.room_nr LIMIT $4"];
    COUNT_MUTUAL_ROOMS = ["
        SELECT count(*) FROM memberships mine
          JOIN memberships theirs ON theirs.user_nr = $2 AND theirs.room_nr = mine.room_nr AND theirs.membership = 3
         WHERE mine.user_nr = $1 AND mine.membership = 3"];
    /// Whoever declined an invitation or left by themselves sent the member event; who was never joined (3) was removed from nothing.
    LIST_REMOVED = ["
        SELECT m.room_nr
          FROM memberships m JOIN events e ON e.event_nr = m.event_nr
         WHERE m.user_nr = $1 AND m.membership IN (0, 4) AND NOT m.forgotten AND e.sender_nr <> $1
           AND EXISTS (SELECT 1 FROM membership_log l
                        WHERE l.user_nr = $1 AND l.room_nr = m.room_nr AND l.membership = 3)
         ORDER BY m.room_nr"];
    SET_FORGOTTEN = ["
        UPDATE memberships SET forgotten = TRUE WHERE room_nr = $1 AND user_nr = $2 AND membership IN (0, 4)"];
    LIST_MEMBERSHIP_LOG = ["
        SELECT position, membership FROM membership_log WHERE user_nr = $1 AND room_nr = $2 ORDER BY position"];

    TIMELINE_BACKWARD = ["
        SELECT event_nr, anchor, step FROM events
         WHERE room_nr = $1 AND anchor IS NOT NULL AND (anchor, step) < ($2, $3) AND (anchor, step) > ($4, $5)
         ORDER BY anchor DESC, step DESC LIMIT $6"];
    TIMELINE_FORWARD = ["
        SELECT event_nr, anchor, step FROM events
         WHERE room_nr = $1 AND anchor IS NOT NULL AND (anchor, step) > ($2, $3) AND (anchor, step) < ($4, $5)
         ORDER BY anchor, step LIMIT $6"];
    /// The newest events of each of many rooms.
    LIST_EVENTS_AFTER = ["
        SELECT event_nr FROM events WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3"];
    MADE_BACKWARD = ["
        SELECT event_nr, origin_server_ts FROM events
         WHERE room_nr = $1 AND anchor IS NOT NULL AND (origin_server_ts, event_nr) < ($2, $3) AND anchor <= $4
         ORDER BY origin_server_ts DESC, event_nr DESC LIMIT $5"];
    MADE_FORWARD = ["
        SELECT event_nr, origin_server_ts FROM events
         WHERE room_nr = $1 AND anchor IS NOT NULL AND (origin_server_ts, event_nr) > ($2, $3) AND anchor <= $4
         ORDER BY origin_server_ts, event_nr LIMIT $5"];
    STATE_AT = ["
        SELECT state_node FROM room_states WHERE room_nr = $1 AND position <= $2 ORDER BY position DESC LIMIT 1"];

    STATES_AT = ["
        SELECT r.room_nr, (SELECT s.state_node FROM room_states s WHERE s.room_nr = r.room_nr AND s.position <= $1
                            ORDER BY s.position DESC LIMIT 1)
          FROM rooms r WHERE r.room_nr", (in_list 2)];

    LIST_RECEIPTS = ["
        SELECT room_nr, user_nr, receipt_type, thread, event_id, at_ms, position FROM receipts
         WHERE position > $1 AND position <= $2 AND room_nr", (in_list 3), " ORDER BY position"];
    /// Of each room the newest ones.
    LIST_NEWEST_RECEIPTS = ["
        SELECT t.room_nr, t.user_nr, t.receipt_type, t.thread, t.event_id, t.at_ms, t.position
          FROM rooms m
          JOIN receipts t ON t.room_nr = m.room_nr AND t.position <= $1
               AND t.position >= coalesce((SELECT o.position FROM receipts o
                                            WHERE o.room_nr = m.room_nr AND o.position <= $1
                                            ORDER BY o.position DESC LIMIT 1 OFFSET $3), 0)
         WHERE m.room_nr", (in_list 2), " ORDER BY t.position"];
    LIST_RECEIPTS_OF_USER = ["
        SELECT room_nr, user_nr, receipt_type, thread, event_id, at_ms, position FROM receipts
         WHERE user_nr = $1 AND position <= $2 AND room_nr", (in_list 3), " ORDER BY position"];
    /// Receipts in many rooms, in each those after a position, of the newest thousand.
    LIST_RECEIPTS_AFTER = ["
        SELECT x.room_nr, x.user_nr, x.receipt_type, x.thread, x.event_id, x.at_ms, x.position
          FROM", (rows [1 room_nr bigint, 2 position bigint]), "
          JOIN receipts x ON x.room_nr = r.room_nr AND x.position > r.position
               AND x.position >= coalesce((SELECT o.position FROM receipts o WHERE o.room_nr = r.room_nr
                                            ORDER BY o.position DESC LIMIT 1 OFFSET 999), 0)
         ORDER BY x.position"];
    LIST_DEVICE_LIST_CHANGES = ["
        SELECT DISTINCT d.user_nr FROM device_list_changes d
         WHERE d.position > $2 AND d.position <= $3
           AND (d.user_nr = $1 OR EXISTS (
               SELECT 1 FROM memberships mine JOIN memberships theirs
                      ON theirs.room_nr = mine.room_nr AND theirs.user_nr = d.user_nr AND theirs.membership = 3
                WHERE mine.user_nr = $1 AND mine.membership = 3))
         UNION
        SELECT s.signed_nr FROM signed_users s WHERE s.user_nr = $1 AND s.position > $2 AND s.position <= $3
         ORDER BY user_nr"];
    GET_RECEIPT = ["
        SELECT room_nr, user_nr, receipt_type, thread, event_id, at_ms, position FROM receipts
         WHERE room_nr = $1 AND user_nr = $2 AND receipt_type = $3 AND thread = $4"];
}

/// What a user is to a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomMembership {
    /// The room.
    pub room_nr: RoomNr,
    /// The user.
    pub user_nr: UserNr,
    /// The membership.
    pub membership: Membership,
    /// The member event.
    pub event_nr: EventNr,
    /// When it became so.
    pub position: Position,
    /// Whether the user has forgotten the room. Client-Server API, "Leaving rooms".
    pub forgotten: bool,
}

/// A receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptRow {
    /// The room.
    pub room_nr: RoomNr,
    /// The reader.
    pub user_nr: UserNr,
    /// `m.read` or `m.read.private`.
    pub receipt_type: String,
    /// The thread; nothing for all of them.
    pub thread: Option<Thread>,
    /// The event.
    pub event_id: String,
    /// When it was read, in milliseconds since 1970.
    pub at_ms: i64,
    /// Its place in the stream.
    pub position: Position,
}

/// A place in a room's timeline.
pub type TimelinePlace = (Position, i64);

/// Which way to go through a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimelineDirection {
    /// From newer to older events.
    Backward,
    /// From older to newer events.
    Forward,
}

fn membership_of(row: &Row) -> Result<RoomMembership, Error> {
    let forgotten = row.get::<bool>(5)?.into();
    Ok(membership_of_columns((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, forgotten)))
}

fn membership_of_columns(
    (room_nr, user_nr, membership, event_nr, position, forgotten): (i64, i64, i64, i64, i64, i64),
) -> RoomMembership {
    RoomMembership {
        room_nr: RoomNr(room_nr),
        user_nr: UserNr(user_nr),
        membership: Membership::from_code(membership),
        event_nr: EventNr(event_nr),
        position: Position(position),
        forgotten: forgotten != 0,
    }
}

fn receipt_of(row: &Row) -> Result<ReceiptRow, Error> {
    Ok(ReceiptRow {
        room_nr: row.nr(0)?,
        user_nr: row.nr(1)?,
        receipt_type: row.get(2)?,
        thread: of_column(row.get(3)?)?,
        event_id: row.get(4)?,
        at_ms: row.get(5)?,
        position: row.nr(6)?,
    })
}

fn by_room(rows: &[Row]) -> Result<HashMap<RoomNr, Vec<ReceiptRow>>, Error> {
    let mut receipts: HashMap<RoomNr, Vec<ReceiptRow>> = HashMap::new();
    for row in rows {
        let receipt = receipt_of(row)?;
        receipts.entry(receipt.room_nr).or_default().push(receipt);
    }
    Ok(receipts)
}

impl Storage {
    /// What a user is to a room; nothing when they never were anything to it.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_membership(&self, room_nr: RoomNr, user_nr: UserNr) -> Result<Option<RoomMembership>, Error> {
        let Some(row) = self.db().read_one(&GET_MEMBERSHIP, args![room_nr, user_nr]).await? else { return Ok(None) };
        let membership = membership_of(&row)?;
        self.settle(membership.position).await?;
        Ok(Some(membership))
    }

    /// The members of some kinds, oldest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_members_of_kinds(
        &self,
        room_nr: RoomNr,
        kinds: &[Membership],
        limit: u32,
    ) -> Result<Vec<RoomMembership>, Error> {
        let kinds: Vec<i64> = kinds.iter().map(|kind| kind.code()).collect();
        let args = args![room_nr, kinds, i64::from(limit)];
        self.db().read(&LIST_MEMBERS_OF_KINDS, args).await?.iter().map(membership_of).collect()
    }

    /// Joined members of a room who are ours, by number, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_local_joined(&self, room_nr: RoomNr, limit: u32) -> Result<Vec<UserNr>, Error> {
        let rows = self.db().read(&LIST_LOCAL_JOINED, args![room_nr, i64::from(limit)]).await?;
        rows.iter().map(|row| row.nr(0)).collect()
    }

    /// Those of some users who are joined to a room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_joined_of(&self, room_nr: RoomNr, users: &[&UserId]) -> Result<Vec<OwnedUserId>, Error> {
        let users: Vec<String> = users.iter().map(|user_id| user_id.as_str().to_owned()).collect();
        let rows = self.db().read(&LIST_JOINED_OF, args![room_nr, users]).await?;
        let damaged = || Error::Damaged(format!("a member of room {room_nr}"));
        rows.iter().map(|row| UserId::parse(row.get::<String>(0)?).map_err(|_| damaged())).collect()
    }

    /// Of these pairs of a room and a user those where the user is joined to the room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_joined(&self, pairs: &[(RoomNr, UserNr)]) -> Result<Vec<(RoomNr, UserNr)>, Error> {
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let rows =
            Rows::new().bigint(pairs.iter().map(|(room, _)| room.0)).bigint(pairs.iter().map(|(_, user)| user.0));
        self.db().read(&LIST_JOINED, rows).await?.iter().map(|row| Ok((row.nr(0)?, row.nr(1)?))).collect()
    }

    /// All rooms that a user is or was something to, by number.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_rooms_of_user(&self, user_nr: UserNr) -> Result<Vec<RoomMembership>, Error> {
        let rows = self.db().read_packed(&LIST_ROOMS_OF_USER, args![user_nr]).await?;
        let mut rows: Vec<RoomMembership> = rows.into_iter().map(membership_of_columns).collect();
        rows.sort_unstable_by_key(|row| row.room_nr);
        Ok(rows)
    }

    /// What a user is to some rooms; those that they never were anything to are left out.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_memberships_in(
        &self,
        user_nr: UserNr,
        rooms: &[RoomNr],
    ) -> Result<HashMap<RoomNr, RoomMembership>, Error> {
        let rooms: Vec<i64> = rooms.iter().map(|room| room.0).collect();
        let rows = self.db().read(&LIST_MEMBERSHIPS_IN, args![user_nr, rooms]).await?;
        let found: HashMap<_, _> =
            rows.iter().map(|row| membership_of(row).map(|row| (row.room_nr, row))).collect::<Result<_, _>>()?;
        self.settle(found.values().map(|row| row.position).max().unwrap_or_default()).await?;
        Ok(found)
    }

    /// Rooms that both users are joined to, by number, after one of them, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_mutual_rooms(
        &self,
        mine: UserNr,
        theirs: UserNr,
        after: RoomNr,
        limit: u32,
    ) -> Result<Vec<RoomNr>, Error> {
        let rows = self.db().read(&LIST_MUTUAL_ROOMS, args![mine, theirs, after, i64::from(limit)]).await?;
        rows.iter().map(|row| row.nr(0)).collect()
    }

    /// How many rooms both users are joined to.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn count_mutual_rooms(&self, mine: UserNr, theirs: UserNr) -> Result<u64, Error> {
        let row = self.db().read_one(&COUNT_MUTUAL_ROOMS, args![mine, theirs]).await?;
        let count: i64 = row.map_or(Ok(0), |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// The rooms that a user was joined to until somebody else removed them, by a kick or a ban, and that they have not forgotten.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_rooms_removed_from(&self, user_nr: UserNr) -> Result<Vec<RoomNr>, Error> {
        self.db().read(&LIST_REMOVED, args![user_nr]).await?.iter().map(|row| row.nr(0)).collect()
    }

    /// Forgets a room for a user who has left it or is banned; `false` when the user is anything else to it.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn forget_room(&self, room_nr: RoomNr, user_nr: UserNr) -> Result<bool, Error> {
        Ok(self.db().write(&SET_FORGOTTEN, args![room_nr, user_nr]).await? == 1)
    }

    /// What a user was to a room since when, oldest first.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_membership_log(
        &self,
        room_nr: RoomNr,
        user_nr: UserNr,
    ) -> Result<Vec<(Position, Membership)>, Error> {
        let rows = self.db().read(&LIST_MEMBERSHIP_LOG, args![user_nr, room_nr]).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, Membership::from_code(row.get(1)?)))).collect()
    }

    /// Events of a room's timeline strictly between two places, from `from` towards `to`, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_timeline(
        &self,
        room_nr: RoomNr,
        direction: TimelineDirection,
        from: TimelinePlace,
        to: TimelinePlace,
        limit: u32,
    ) -> Result<Vec<(EventNr, TimelinePlace)>, Error> {
        let statement = match direction {
            TimelineDirection::Backward => &TIMELINE_BACKWARD,
            TimelineDirection::Forward => &TIMELINE_FORWARD,
        };
        let args = args![room_nr, from.0, from.1, to.0, to.1, i64::from(limit)];
        let rows = self.db().read(statement, args).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, (row.nr(1)?, row.get(2)?)))).collect()
    }

    /// Events of a room's timeline up to a position by when they were made, in milliseconds since 1970: those of the time `from` and those
    /// that lie beyond it in the direction, or only those beyond the event of that number.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_events_by_time(
        &self,
        room_nr: RoomNr,
        direction: TimelineDirection,
        from: (i64, Option<EventNr>),
        upto: Position,
        limit: u32,
    ) -> Result<Vec<(EventNr, i64)>, Error> {
        let (statement, before_all) = match direction {
            TimelineDirection::Backward => (&MADE_BACKWARD, i64::MAX),
            TimelineDirection::Forward => (&MADE_FORWARD, i64::MIN),
        };
        let event_nr = from.1.map_or(before_all, |nr| nr.0);
        let rows = self.db().read(statement, args![room_nr, from.0, event_nr, upto, i64::from(limit)]).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.get(1)?))).collect()
    }

    /// Live events of all rooms after a position up to another, oldest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_events_after(&self, after: Position, upto: Position, limit: u32) -> Result<Vec<EventNr>, Error> {
        let rows = self.db().read(&LIST_EVENTS_AFTER, args![after, upto, i64::from(limit)]).await?;
        rows.iter().map(|row| row.nr(0)).collect()
    }

    /// The room's state at a position: after the newest event at or below it; the empty state before the first.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_state_at(&self, room_nr: RoomNr, position: Position) -> Result<model::NodeNr, Error> {
        let row = self.db().read_one(&STATE_AT, args![room_nr, position]).await?;
        row.map_or(Ok(model::NodeNr(0)), |row| row.nr(0))
    }

    /// The same for many rooms; those that had no state yet are left out.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_states_at(
        &self,
        rooms: &[RoomNr],
        position: Position,
    ) -> Result<HashMap<RoomNr, model::NodeNr>, Error> {
        let rooms: Vec<i64> = rooms.iter().map(|room| room.0).collect();
        let rows = self.db().read(&STATES_AT, args![position, rooms]).await?;
        rows.iter()
            .filter_map(|row| Some(row.maybe_nr(1).transpose()?.and_then(|node| Ok((row.nr(0)?, node)))))
            .collect()
    }

    /// The receipts in rooms that changed after a position, up to another; those of one room together.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_receipts(
        &self,
        rooms: &[RoomNr],
        after: Position,
        upto: Position,
    ) -> Result<HashMap<RoomNr, Vec<ReceiptRow>>, Error> {
        let numbers: Vec<i64> = rooms.iter().map(|nr| nr.0).collect();
        by_room(&self.db().read(&LIST_RECEIPTS, args![after, upto, numbers]).await?)
    }

    /// The receipts in rooms that came after a position, another one for each room, of the newest thousand of each; those of one room
    /// together.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_receipts_after(
        &self,
        rooms: &[(RoomNr, Position)],
    ) -> Result<HashMap<RoomNr, Vec<ReceiptRow>>, Error> {
        let rows =
            Rows::new().bigint(rooms.iter().map(|(room, _)| room.0)).bigint(rooms.iter().map(|(_, after)| after.0));
        by_room(&self.db().read(&LIST_RECEIPTS_AFTER, rows).await?)
    }

    /// A user's own receipts in rooms, up to a position.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_own_receipts(
        &self,
        user_nr: UserNr,
        rooms: &[RoomNr],
        upto: Position,
    ) -> Result<HashMap<RoomNr, Vec<ReceiptRow>>, Error> {
        let numbers: Vec<i64> = rooms.iter().map(|nr| nr.0).collect();
        by_room(&self.db().read(&LIST_RECEIPTS_OF_USER, args![user_nr, upto, numbers]).await?)
    }

    /// The newest receipts of each of the rooms up to a position, at most `limit` a room, and all those of a user.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_newest_receipts(
        &self,
        user_nr: UserNr,
        rooms: &[RoomNr],
        upto: Position,
        limit: u32,
    ) -> Result<HashMap<RoomNr, Vec<ReceiptRow>>, Error> {
        let numbers: Vec<i64> = rooms.iter().map(|nr| nr.0).collect();
        let newest = args![upto, numbers.clone(), i64::from(limit) - 1];
        let mut rows = self.db().read(&LIST_RECEIPTS_OF_USER, args![user_nr, upto, numbers]).await?;
        rows.extend(self.db().read(&LIST_NEWEST_RECEIPTS, newest).await?);
        let mut receipts: HashMap<RoomNr, Vec<ReceiptRow>> = HashMap::new();
        for row in &rows {
            let receipt = receipt_of(row)?;
            let listed = receipts.entry(receipt.room_nr).or_default();
            // Those of the user come first, and may be among the newest once more.
            let is_again = receipt.user_nr == user_nr && listed.iter().any(|known| known.position == receipt.position);
            if !is_again {
                listed.push(receipt);
            }
        }
        Ok(receipts)
    }

    /// A user's receipt in a room, of a type and a thread; without one, for all threads.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_receipt(
        &self,
        room_nr: RoomNr,
        user_nr: UserNr,
        receipt_type: &str,
        thread: Option<&Thread>,
    ) -> Result<Option<ReceiptRow>, Error> {
        let args = args![room_nr, user_nr, receipt_type, to_column(thread)];
        let row = self.db().read_one(&GET_RECEIPT, args).await?;
        row.map(|row| receipt_of(&row)).transpose()
    }

    /// The users whose devices or keys changed after a position up to another, of those who share a room with a user, and those whose keys
    /// the user signed.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_device_list_changes(
        &self,
        user_nr: UserNr,
        after: Position,
        upto: Position,
    ) -> Result<Vec<UserNr>, Error> {
        let rows = self.db().read(&LIST_DEVICE_LIST_CHANGES, args![user_nr, after, upto]).await?;
        rows.iter().map(|row| row.nr(0)).collect()
    }
}
