//! Rooms, what the next event of each builds upon, and their aliases.

use std::{collections::HashMap, sync::Arc};

use model::{EventNr, NodeNr, Position, RoomNr, UserNr};
use ruma::{OwnedRoomId, RoomId, RoomVersionId, ServerName};

use crate::{
    Error, RoomSummary, Storage,
    db::{Row, args},
    packed::unpack_events,
    statement::statements,
};

statements! {
    FIND_ROOM = ["
        SELECT r.room_nr, r.room_id, r.version, coalesce(h.state_node, 0)
          FROM rooms r LEFT JOIN room_heads h ON h.room_nr = r.room_nr WHERE r.room_id = $1"];
    FIND_ROOMS = ["
        SELECT r.room_nr, r.room_id, r.version, coalesce(h.state_node, 0)
          FROM rooms r LEFT JOIN room_heads h ON h.room_nr = r.room_nr WHERE r.room_id", (in_list 1)];
    GET_ROOMS = [(packed "r.room_nr, r.room_id, r.version, coalesce(h.state_node, 0)"), "
          FROM rooms r LEFT JOIN room_heads h ON h.room_nr = r.room_nr WHERE r.room_nr", (in_list 1)];
    /// Only of a room of which nothing is known but what somebody said.
    UPDATE_VERSION = ["
        UPDATE rooms SET version = $2
         WHERE room_nr = $1 AND EXISTS (SELECT 1 FROM room_heads WHERE room_nr = $1 AND state_node = 0)"];
    GET_HEAD = ["SELECT state_node, depth, position, extremities, is_partial FROM room_heads WHERE room_nr = $1"];
    LIST_ACTIVITY = [(packed "room_nr, position, bump"), " FROM room_heads WHERE room_nr", (in_list 1)];
    GET_SUMMARIES = ["
        SELECT room_nr, name, topic, avatar_url, canonical_alias, room_type, encryption, join_rule, history_visibility,
               guest_access, joined, invited
          FROM room_summary WHERE room_nr", (in_list 1)];
    FIND_ALIASES = ["SELECT alias, room_nr, creator_nr FROM aliases WHERE alias", (in_list 1)];
    LIST_ALIASES = ["SELECT alias, room_nr, creator_nr FROM aliases WHERE room_nr = $1 ORDER BY alias"];
    INSERT_ALIAS = ["
        INSERT INTO aliases (alias, room_nr, creator_nr, created_at_ms) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"];
    MOVE_ALIASES = ["UPDATE aliases SET room_nr = $2 WHERE room_nr = $1"];
    DELETE_ALIAS = ["DELETE FROM aliases WHERE alias = $1"];
    LIST_JOINED_GUESTS = ["
        SELECT m.user_nr FROM memberships m JOIN users u ON u.user_nr = m.user_nr
         WHERE m.room_nr = $1 AND m.membership = 3 AND u.is_guest ORDER BY m.user_nr"];
    HAS_JOINED_USER = ["SELECT 1 FROM room_servers WHERE room_nr = $1 AND server = $2 AND joined > 0"];
    LIST_SERVERS = ["SELECT server FROM room_servers WHERE room_nr = $1 ORDER BY joined DESC, server LIMIT $2"];
}

/// A room.
#[derive(Clone, Debug)]
pub struct RoomRow {
    /// Its number.
    pub nr: RoomNr,
    /// Its id.
    pub id: OwnedRoomId,
    /// Its version.
    pub version: RoomVersionId,
    /// Whether its state is known here. Until then the version is what somebody said first, and may be another one.
    pub has_state: bool,
}

/// What the next event of a room builds upon.
#[derive(Clone, Debug)]
pub struct RoomHead {
    /// The current state.
    pub state: NodeNr,
    /// The largest depth.
    pub depth: i64,
    /// The position of the newest event.
    pub position: Position,
    /// The events that no event follows yet.
    pub extremities: Vec<EventNr>,
    /// Whether the state lacks members who are not here yet.
    pub is_partial: bool,
}

/// When something last happened in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomActivity {
    /// The room.
    pub room_nr: RoomNr,
    /// The position of the newest event, or change of the state.
    pub last: Position,
    /// The position of the newest event that counts as activity, [`model::is_bump`]; zero when there is none.
    pub bump: Position,
}

/// An alias of a room on a local server.
#[derive(Clone, Debug)]
pub struct AliasRow {
    /// The alias.
    pub alias: String,
    /// The room.
    pub room_nr: RoomNr,
    /// Who made it.
    pub creator_nr: UserNr,
}

pub(crate) fn room_of(row: &Row) -> Result<RoomRow, Error> {
    room_of_columns((row.get(0)?, row.get(1)?, row.get(2)?, 1))
}

fn found_room_of(row: &Row) -> Result<RoomRow, Error> {
    room_of_columns((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
}

fn room_of_columns((nr, id, version, state): (i64, String, String, i64)) -> Result<RoomRow, Error> {
    let damaged = |_| Error::Damaged(format!("room {nr}"));
    let id = RoomId::parse(id).map_err(damaged)?;
    let version = RoomVersionId::try_from(version).map_err(damaged)?;
    Ok(RoomRow { nr: RoomNr(nr), id, version, has_state: state != 0 })
}

fn alias_of(row: &Row) -> Result<AliasRow, Error> {
    Ok(AliasRow { alias: row.get(0)?, room_nr: row.nr(1)?, creator_nr: row.nr(2)? })
}

impl Storage {
    /// The room of an id, if it is stored.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_room(&self, room_id: &RoomId) -> Result<Option<RoomRow>, Error> {
        self.db().read_one(&FIND_ROOM, args![room_id.as_str()]).await?.map(|row| found_room_of(&row)).transpose()
    }

    /// Gives a room another version, while nothing of its state is known here; whether it has it now.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn update_room_version(&self, room_nr: RoomNr, version: &RoomVersionId) -> Result<bool, Error> {
        Ok(self.db().write(&UPDATE_VERSION, args![room_nr, version.as_str()]).await? > 0)
    }

    /// The rooms of those ids, of those that are stored.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_rooms(&self, room_ids: &[&RoomId]) -> Result<Vec<RoomRow>, Error> {
        let ids: Vec<String> = room_ids.iter().map(|id| id.as_str().to_owned()).collect();
        self.db().read(&FIND_ROOMS, args![ids]).await?.iter().map(found_room_of).collect()
    }

    /// The rooms of those numbers. A room whose state is known never changes what it is: most are answered from memory.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_rooms(&self, rooms: &[RoomNr]) -> Result<HashMap<RoomNr, Arc<RoomRow>>, Error> {
        let cache = &self.0.room_rows;
        let mut found = HashMap::with_capacity(rooms.len());
        let mut missing = Vec::new();
        for nr in rooms {
            match cache.get(nr) {
                Some(room) => drop(found.insert(*nr, room)),
                None => missing.push(nr.0),
            }
        }
        if !missing.is_empty() {
            for columns in self.db().read_packed(&GET_ROOMS, args![missing]).await? {
                let room = Arc::new(room_of_columns(columns)?);
                if room.has_state {
                    cache.insert(room.nr, room.clone());
                }
                found.insert(room.nr, room);
            }
        }
        Ok(found)
    }

    /// What the next event of a room builds upon.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_head(&self, room_nr: RoomNr) -> Result<Option<RoomHead>, Error> {
        let Some(row) = self.db().read_one(&GET_HEAD, args![room_nr]).await? else { return Ok(None) };
        let extremities = unpack_events(&row.get::<Vec<u8>>(3)?)
            .ok_or_else(|| Error::Damaged(format!("extremities of room {room_nr}")))?;
        let (state, depth, position) = (row.nr(0)?, row.get(1)?, row.nr(2)?);
        let head = RoomHead { state, depth, position, extremities, is_partial: row.get(4)? };
        self.settle(head.position).await?;
        Ok(Some(head))
    }

    /// Whether a server has a joined user in a room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn has_joined_user(&self, room_nr: RoomNr, server: &ServerName) -> Result<bool, Error> {
        Ok(self.db().read_one(&HAS_JOINED_USER, args![room_nr, server.to_string()]).await?.is_some())
    }

    /// When something last happened in rooms.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_room_activity(&self, rooms: &[RoomNr]) -> Result<Vec<RoomActivity>, Error> {
        let numbers: Vec<i64> = rooms.iter().map(|nr| nr.0).collect();
        let rows: Vec<(i64, i64, i64)> = self.db().read_packed(&LIST_ACTIVITY, args![numbers]).await?;
        let activity = |(room_nr, last, bump)| RoomActivity {
            room_nr: RoomNr(room_nr),
            last: Position(last),
            bump: Position(bump),
        };
        Ok(rows.into_iter().map(activity).collect())
    }

    /// What rooms show of themselves, with how many members are joined and invited.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_summaries(&self, rooms: &[RoomNr]) -> Result<HashMap<RoomNr, (RoomSummary, u64, u64)>, Error> {
        let numbers: Vec<i64> = rooms.iter().map(|nr| nr.0).collect();
        let rows = self.db().read(&GET_SUMMARIES, args![numbers]).await?;
        rows.iter()
            .map(|row| {
                let summary = RoomSummary {
                    name: row.get(1)?,
                    topic: row.get(2)?,
                    avatar_url: row.get(3)?,
                    canonical_alias: row.get(4)?,
                    room_type: row.get(5)?,
                    encryption: row.get(6)?,
                    join_rule: row.get(7)?,
                    history_visibility: row.get(8)?,
                    guest_access: row.get(9)?,
                };
                let count = |index| row.get::<i64>(index).map(|count| u64::try_from(count).unwrap_or(0));
                Ok((row.nr(0)?, (summary, count(10)?, count(11)?)))
            })
            .collect()
    }

    /// The room that an alias of ours points to.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_alias(&self, alias: &str) -> Result<Option<AliasRow>, Error> {
        Ok(self.find_aliases(vec![alias.to_owned()]).await?.pop())
    }

    /// Those of some aliases that are ours.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_aliases(&self, aliases: Vec<String>) -> Result<Vec<AliasRow>, Error> {
        self.db().read(&FIND_ALIASES, args![aliases]).await?.iter().map(alias_of).collect()
    }

    /// The aliases that a room has here, sorted.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_aliases(&self, room_nr: RoomNr) -> Result<Vec<AliasRow>, Error> {
        self.db().read(&LIST_ALIASES, args![room_nr]).await?.iter().map(alias_of).collect()
    }

    /// Makes an alias; `false` when it exists already, whatever it points to.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_alias(&self, alias: &str, room_nr: RoomNr, creator_nr: UserNr) -> Result<bool, Error> {
        let now_ms = self.clock().now_ms();
        Ok(self.db().write(&INSERT_ALIAS, args![alias, room_nr, creator_nr, now_ms]).await? == 1)
    }

    /// Makes all aliases of a room point to another.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn move_aliases(&self, from: RoomNr, to: RoomNr) -> Result<(), Error> {
        self.db().write(&MOVE_ALIASES, args![from, to]).await.map(|_| ())
    }

    /// Removes an alias; `false` when there was none.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_alias(&self, alias: &str) -> Result<bool, Error> {
        Ok(self.db().write(&DELETE_ALIAS, args![alias]).await? == 1)
    }

    /// The joined members of a room who are guests of ours.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_joined_guests(&self, room_nr: RoomNr) -> Result<Vec<UserNr>, Error> {
        self.db().read(&LIST_JOINED_GUESTS, args![room_nr]).await?.iter().map(|row| row.nr(0)).collect()
    }

    /// The servers with joined members of a room, those with most first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_servers(&self, room_nr: RoomNr, limit: u32) -> Result<Vec<String>, Error> {
        let rows = self.db().read(&LIST_SERVERS, args![room_nr, i64::from(limit)]).await?;
        rows.iter().map(|row| row.get(0)).collect()
    }
}
