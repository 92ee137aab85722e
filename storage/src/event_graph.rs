//! The graph of a room's events, and their bodies as they are: what other servers ask for, many at once.

use std::collections::{HashMap, HashSet};

use model::{EventNr, Position, RoomNr};
use ruma::{EventId, OwnedEventId, OwnedUserId, ServerName, UserId};

use crate::{
    Error, Storage, TimelinePlace,
    db::{Row, args},
    events::{FLAG_OUTLIER, FLAG_REJECTED, decode_body},
    packed::unpack_events,
    statement::statements,
};

statements! {
    LIST_NODES = ["
        SELECT event_nr, room_nr, depth, flags, prev, anchor, step FROM events WHERE event_nr", (in_list 1)];
    LIST_NODES_BEFORE = ["
        SELECT event_nr, room_nr, depth, flags, prev, anchor, step FROM events
         WHERE room_nr = $1 AND anchor IS NOT NULL AND (anchor, step) < ($2, $3)
         ORDER BY anchor DESC, step DESC LIMIT $4"];
    LIST_IDS = [(packed "event_nr, event_id"), " FROM events WHERE event_nr", (in_list 1)];
    LIST_BODIES = ["
        SELECT e.event_nr, e.position, b.body
          FROM events e JOIN event_bodies b ON b.month = e.body_month AND b.event_nr = e.event_nr
         WHERE e.event_nr", (in_list 1)];
    LIST_ROOMS_OF_SERVERS = ["
        SELECT DISTINCT room_nr FROM room_servers WHERE room_nr", (in_list 1), " AND server", (in_list 2), " AND joined > 0"];
    LIST_ROOMS_INVITING_SERVER = ["
        SELECT DISTINCT m.room_nr FROM memberships m JOIN user_numbers u ON u.user_nr = m.user_nr
         WHERE m.room_nr", (in_list 1), " AND m.membership = 2 AND u.user_id LIKE $2 ESCAPE '!'"];
    LIST_USERS_OF_SERVER = ["
        SELECT u.user_id FROM memberships m JOIN user_numbers u ON u.user_nr = m.user_nr
         WHERE m.room_nr = $1 AND m.membership", (in_list 2), " AND u.user_id LIKE $3 ESCAPE '!'
         ORDER BY m.position, m.user_nr LIMIT $4"];
}

/// An event in the graph of its room.
#[derive(Clone, Debug)]
pub struct EventNode {
    /// The event.
    pub nr: EventNr,
    /// Its room.
    pub room_nr: RoomNr,
    /// Its depth, as it says itself.
    pub depth: i64,
    /// Known, but not where it belongs in the graph.
    pub outlier: bool,
    /// Forbidden by its own past.
    pub rejected: bool,
    /// The events right before it, of those that are stored.
    pub prev: Vec<EventNr>,
    /// Its place in the timeline, if it has one.
    pub place: Option<TimelinePlace>,
}

impl EventNode {
    fn of_row(row: &Row) -> Result<Self, Error> {
        let nr: EventNr = row.nr(0)?;
        let flags: i64 = row.get(3)?;
        let prev = unpack_events(&row.get::<Vec<u8>>(4)?);
        Ok(Self {
            nr,
            room_nr: row.nr(1)?,
            depth: row.get(2)?,
            outlier: flags & FLAG_OUTLIER != 0,
            rejected: flags & FLAG_REJECTED != 0,
            prev: prev.ok_or_else(|| Error::Damaged(format!("events before event {nr}")))?,
            place: row.maybe_nr(5)?.zip(row.get::<Option<i64>>(6)?),
        })
    }
}

/// A `LIKE` pattern, with `!` as the escape, for what ends with a text. SQLite does not tell upper from lower case in it.
fn like_ending(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.chars() {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern
}

impl Storage {
    /// Events in the graph of their rooms, in no order.
    ///
    /// # Errors
    ///
    /// When the database fails or a list is damaged.
    pub async fn list_event_nodes(&self, events: &[EventNr]) -> Result<Vec<EventNode>, Error> {
        let numbers: Vec<i64> = events.iter().map(|nr| nr.0).collect();
        self.db().read(&LIST_NODES, args![numbers]).await?.iter().map(EventNode::of_row).collect()
    }

    /// The events of a timeline before a place, newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails or a list is damaged.
    pub async fn list_event_nodes_before(
        &self,
        room_nr: RoomNr,
        (anchor, step): TimelinePlace,
        limit: u32,
    ) -> Result<Vec<EventNode>, Error> {
        let args = args![room_nr, anchor, step, i64::from(limit)];
        self.db().read(&LIST_NODES_BEFORE, args).await?.iter().map(EventNode::of_row).collect()
    }

    /// The ids of events.
    ///
    /// # Errors
    ///
    /// When the database fails or an id is damaged.
    pub async fn list_event_ids(&self, events: &[EventNr]) -> Result<HashMap<EventNr, OwnedEventId>, Error> {
        let numbers: Vec<i64> = events.iter().map(|nr| nr.0).collect();
        let rows: Vec<(i64, String)> = self.db().read_packed(&LIST_IDS, args![numbers]).await?;
        let read = |(nr, id): (i64, String)| {
            Ok((EventNr(nr), EventId::parse(id).map_err(|_| Error::Damaged(format!("id of event {nr}")))?))
        };
        rows.into_iter().map(read).collect()
    }

    /// The JSON of events, in no order; what is in memory of events stays as it is. For many: nothing is parsed.
    ///
    /// # Errors
    ///
    /// When the database fails or a body is damaged.
    pub async fn list_event_bodies(&self, events: &[EventNr]) -> Result<Vec<std::sync::Arc<str>>, Error> {
        let numbers: Vec<i64> = events.iter().map(|nr| nr.0).collect();
        let rows = self.db().read(&LIST_BODIES, args![numbers]).await?;
        let (mut bodies, mut newest) = (Vec::with_capacity(rows.len()), Position(0));
        for row in rows {
            let nr: EventNr = row.nr(0)?;
            newest = newest.max(row.maybe_nr(1)?.unwrap_or_default());
            let body = decode_body(&row.get::<Vec<u8>>(2)?);
            bodies.push(body.ok_or_else(|| Error::Damaged(format!("body of event {nr}")))?);
        }
        self.settle(newest).await?;
        Ok(bodies)
    }

    /// Those of the rooms that users of one of the servers are joined to.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_rooms_of_servers(
        &self,
        rooms: &[RoomNr],
        servers: &[&ServerName],
    ) -> Result<HashSet<RoomNr>, Error> {
        let rooms: Vec<i64> = rooms.iter().map(|room| room.0).collect();
        let servers: Vec<String> = servers.iter().map(|server| server.as_str().to_owned()).collect();
        let rows = self.db().read(&LIST_ROOMS_OF_SERVERS, args![rooms, servers]).await?;
        rows.iter().map(|row| row.nr(0)).collect()
    }

    /// Those of the rooms that users of a server are invited to. Looks at all who are invited.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_rooms_inviting_server(
        &self,
        rooms: &[RoomNr],
        server: &ServerName,
    ) -> Result<HashSet<RoomNr>, Error> {
        let rooms: Vec<i64> = rooms.iter().map(|room| room.0).collect();
        let args = args![rooms, like_ending(&format!(":{server}"))];
        let rows = self.db().read(&LIST_ROOMS_INVITING_SERVER, args).await?;
        rows.iter().map(|row| row.nr(0)).collect()
    }

    /// Users of a server who have one of these memberships of a room, those who have had it longest first, at most `limit`.
    ///
    /// Looks at all members of the room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_users_of_server(
        &self,
        room_nr: RoomNr,
        server: &ServerName,
        kinds: &[model::Membership],
        limit: u32,
    ) -> Result<Vec<OwnedUserId>, Error> {
        let kinds: Vec<i64> = kinds.iter().map(|kind| kind.code()).collect();
        let args = args![room_nr, kinds, like_ending(&format!(":{server}")), i64::from(limit)];
        let rows = self.db().read(&LIST_USERS_OF_SERVER, args).await?;
        let users = rows.iter().map(|row| {
            let user_id = row.get::<String>(0)?;
            UserId::parse(&*user_id).map_err(|_| Error::Damaged(format!("user {user_id}")))
        });
        Ok(users
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .filter(|user_id| user_id.server_name() == server)
            .collect())
    }
}
