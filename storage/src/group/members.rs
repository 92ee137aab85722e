//! The rows of memberships, and what is counted of them.

use std::collections::HashMap;

use model::{Membership, RoomNr};

use super::GroupWriter;
use crate::{batch::Batch, db::args, rows::Rows, statement::statements};

statements! {
    UPSERT_MEMBERSHIPS = ["
        INSERT INTO memberships (room_nr, user_nr, membership, event_nr, position, is_local, forgotten)
        SELECT room_nr, user_nr, membership, event_nr, position, is_local, FALSE
          FROM", (rows [1 room_nr bigint, 2 user_nr bigint, 3 membership bigint, 4 event_nr bigint, 5 position bigint,
                        6 is_local boolean]), "
         WHERE TRUE
            ON CONFLICT (room_nr, user_nr) DO UPDATE
           SET membership = excluded.membership, event_nr = excluded.event_nr, position = excluded.position,
               forgotten = FALSE"];
    INSERT_MEMBERSHIP_LOG = ["
        INSERT INTO membership_log (user_nr, room_nr, position, membership)
        SELECT user_nr, room_nr, position, membership
          FROM", (rows [1 user_nr bigint, 2 room_nr bigint, 3 position bigint, 4 membership bigint])];
    UPSERT_ROOM_SERVERS = ["
        INSERT INTO room_servers (room_nr, server, joined)
        SELECT room_nr, server, joined FROM", (rows [1 room_nr bigint, 2 server text, 3 joined bigint]), "
         WHERE TRUE
            ON CONFLICT (room_nr, server) DO UPDATE SET joined = room_servers.joined + excluded.joined"];
    DELETE_ROOM_SERVERS = ["DELETE FROM room_servers WHERE joined <= 0 AND NOT told AND room_nr", (in_list 1)];
    ADD_COUNTS = ["
        UPDATE room_summary SET joined = room_summary.joined + r.joined, invited = room_summary.invited + r.invited
          FROM", (rows [1 room_nr bigint, 2 joined bigint, 3 invited bigint]), "
         WHERE room_summary.room_nr = r.room_nr"];
}

impl GroupWriter<'_> {
    pub(super) fn add_memberships(&self, batch: &mut Batch) {
        // A statement may touch a row once: the last membership of a user in the group counts.
        let mut last = HashMap::new();
        let mut counts: HashMap<RoomNr, (i64, i64)> = HashMap::new();
        let mut servers: HashMap<(RoomNr, &str), i64> = HashMap::new();
        for entry @ (_, room, _, change) in &self.memberships {
            last.insert((*room, change.user_nr), entry);
            let (joined, invited) = counts.entry(*room).or_default();
            let step =
                |membership| i64::from(change.after == membership) - i64::from(change.before == Some(membership));
            *joined += step(Membership::Join);
            *invited += step(Membership::Invite);
            *servers.entry((*room, change.server.as_str())).or_default() += step(Membership::Join);
        }
        let mut last: Vec<_> = last.into_values().collect();
        last.sort_unstable_by_key(|(position, ..)| *position);
        let rows = Rows::new()
            .bigint(last.iter().map(|(_, room, _, _)| room.0))
            .bigint(last.iter().map(|(_, _, _, change)| change.user_nr.0))
            .bigint(last.iter().map(|(_, _, _, change)| change.after.code()))
            .bigint(last.iter().map(|(_, _, event, _)| event.0))
            .bigint(last.iter().map(|(position, ..)| position.0))
            .boolean(last.iter().map(|(_, _, _, change)| change.is_local));
        batch.add(&UPSERT_MEMBERSHIPS, rows);
        let all = &self.memberships;
        let rows = Rows::new()
            .bigint(all.iter().map(|(_, _, _, change)| change.user_nr.0))
            .bigint(all.iter().map(|(_, room, _, _)| room.0))
            .bigint(all.iter().map(|(position, ..)| position.0))
            .bigint(all.iter().map(|(_, _, _, change)| change.after.code()));
        batch.add(&INSERT_MEMBERSHIP_LOG, rows);
        let mut counts: Vec<_> = counts.into_iter().filter(|(_, change)| *change != (0, 0)).collect();
        counts.sort_unstable();
        let rows = Rows::new()
            .bigint(counts.iter().map(|(room, _)| room.0))
            .bigint(counts.iter().map(|(_, (joined, _))| *joined))
            .bigint(counts.iter().map(|(_, (_, invited))| *invited));
        batch.then(&ADD_COUNTS, rows);
        let mut servers: Vec<_> = servers.into_iter().filter(|(_, joined)| *joined != 0).collect();
        servers.sort_unstable();
        let rows = Rows::new()
            .bigint(servers.iter().map(|((room, _), _)| room.0))
            .text(servers.iter().map(|((_, server), _)| (*server).to_owned()))
            .bigint(servers.iter().map(|(_, joined)| *joined));
        batch.add(&UPSERT_ROOM_SERVERS, rows);
        let left: Vec<i64> = servers.iter().filter(|(_, joined)| *joined < 0).map(|((room, _), _)| room.0).collect();
        if !left.is_empty() {
            batch.then_with(&DELETE_ROOM_SERVERS, args![left]);
        }
    }
}
