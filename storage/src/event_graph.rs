//! The graph of a room's events, and their bodies as they are: what other servers ask for, many at once.

use std::collections::HashSet;

use model::{EventNr, Position, RoomNr};
use ruma::ServerName;

use crate::{Error, Storage, db::args, events::decode_body, statement::statements};

statements! {
    LIST_BODIES = ["
        SELECT e.event_nr, e.position, b.body
          FROM events e JOIN event_bodies b ON b.month = e.body_month AND b.event_nr = e.event_nr
         WHERE e.event_nr", (in_list 1)];
    LIST_ROOMS_OF_SERVERS = ["
        SELECT DISTINCT room_nr FROM room_servers WHERE room_nr", (in_list 1), " AND server", (in_list 2), " AND joined > 0"];
}

impl Storage {
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
}
