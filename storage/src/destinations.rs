//! The other servers as an administrator sees them: which there are, and how it stands with each.

use std::collections::HashMap;

use model::Position;
use ruma::{OwnedServerName, ServerName};

use crate::{Error, OutageRow, Storage, db::args, statement::statements};

statements! {
    LIST_NAMES = ["
        SELECT server FROM room_servers WHERE server > $1
         UNION SELECT server FROM server_outages WHERE server > $1 AND tries > 0
         UNION SELECT destination FROM arrears WHERE destination > $1
         ORDER BY server LIMIT $2"];
    FIND_OUTAGES = ["
        SELECT server, since_ms, tries, next_try_ms, is_unreachable, last_error, changed_ms
          FROM server_outages WHERE tries > 0 AND server", (in_list 1)];
    COUNT_ROOMS = ["SELECT server, count(*) FROM room_servers WHERE server", (in_list 1), " GROUP BY server"];
    FIND_ARREARS = ["
        SELECT a.destination, a.sent_upto, (
               SELECT count(*) FROM room_servers s JOIN room_heads h ON h.room_nr = s.room_nr
                WHERE s.server = a.destination AND h.position > a.sent_upto)
          FROM (SELECT destination, min(sent_upto) AS sent_upto
                  FROM arrears WHERE destination", (in_list 1), " GROUP BY destination) AS a"];
    COUNT_EDUS = ["
        SELECT destination, count(*) FROM outgoing_edus WHERE destination", (in_list 1), " GROUP BY destination"];
}

/// How it stands with another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRow {
    /// Its name.
    pub server: OwnedServerName,
    /// How many rooms we share with it.
    pub rooms: u64,
    /// Since when it gives no answer, if it gives none.
    pub outage: Option<OutageRow>,
    /// When it is behind: the position up to which it was sent everything, and how many rooms have something after it.
    pub behind: Option<(Position, u64)>,
    /// How many messages to devices wait for it.
    pub waiting_edus: u64,
}

impl Storage {
    /// The servers that share rooms with us, give no answer, or are behind, after one of them, by name, at most `limit`; our own names
    /// are among them.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_destinations(&self, after: &str, limit: u32) -> Result<Vec<DestinationRow>, Error> {
        let rows = self.db().read(&LIST_NAMES, args![after, i64::from(limit)]).await?;
        let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
        self.get_destinations(names).await
    }

    /// The same for one server, if it is one of them.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_destination(&self, server: &ServerName) -> Result<Option<DestinationRow>, Error> {
        let found = self.get_destinations(vec![server.to_string()]).await?.into_iter().next();
        Ok(found.filter(|row| row.rooms > 0 || row.outage.is_some() || row.behind.is_some()))
    }

    async fn get_destinations(&self, names: Vec<String>) -> Result<Vec<DestinationRow>, Error> {
        let mut outages = HashMap::new();
        for row in self.db().read(&FIND_OUTAGES, args![names.clone()]).await? {
            let outage = crate::server_outages::outage_of(&row)?;
            outages.insert(outage.server.to_string(), outage);
        }
        let mut behind = HashMap::new();
        for row in self.db().read(&FIND_ARREARS, args![names.clone()]).await? {
            behind.insert(row.get::<String>(0)?, (row.nr(1)?, row.get::<i64>(2)?.unsigned_abs()));
        }
        let (mut rooms, mut edus) = (HashMap::new(), HashMap::new());
        for (statement, counts) in [(&COUNT_ROOMS, &mut rooms), (&COUNT_EDUS, &mut edus)] {
            for row in self.db().read(statement, args![names.clone()]).await? {
                counts.insert(row.get::<String>(0)?, row.get::<i64>(1)?.unsigned_abs());
            }
        }
        let damaged = || Error::Damaged("the name of a server".to_owned());
        names
            .into_iter()
            .map(|name| {
                Ok(DestinationRow {
                    rooms: rooms.get(&name).copied().unwrap_or_default(),
                    outage: outages.remove(&name),
                    behind: behind.get(&name).copied(),
                    waiting_edus: edus.get(&name).copied().unwrap_or_default(),
                    server: name.try_into().map_err(|_| damaged())?,
                })
            })
            .collect()
    }
}
