//! The published directories of rooms.

use model::RoomNr;
use ruma::ServerName;

use crate::{Error, RoomRow, RoomSummary, Storage, db::args, rooms::room_of, statement::statements};

statements! {
    INSERT_LISTED = ["INSERT INTO directory (server, room_nr) VALUES ($1, $2) ON CONFLICT DO NOTHING"];
    DELETE_LISTED = ["DELETE FROM directory WHERE server = $1 AND room_nr = $2"];
    FIND_LISTED = ["SELECT room_nr FROM directory WHERE server = $1 AND room_nr = $2"];
    MOVE_LISTED = ["UPDATE directory SET room_nr = $2 WHERE room_nr = $1"];
    MOVE_LISTED_ON_NETWORKS = ["UPDATE network_directory SET room_nr = $2 WHERE room_nr = $1"];
    INSERT_LISTED_ON_NETWORK = ["
        INSERT INTO network_directory (server, service, network, room_nr) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"];
    DELETE_LISTED_ON_NETWORK = ["
        DELETE FROM network_directory WHERE server = $1 AND service = $2 AND network = $3 AND room_nr = $4"];
    // A room without members is shown to nobody: nobody can come in.
    LIST_LISTED_FORWARD = ["
        SELECT r.room_nr, r.room_id, r.version, s.name, s.topic, s.avatar_url, s.canonical_alias, s.room_type,
               s.encryption, s.join_rule, s.history_visibility, s.guest_access, s.joined
          FROM (SELECT room_nr FROM directory WHERE server = $1 AND $2
                UNION SELECT room_nr FROM network_directory WHERE server = $1 AND ($3 OR (service = $4 AND network = $5))) AS d
          JOIN rooms r ON r.room_nr = d.room_nr JOIN room_summary s ON s.room_nr = d.room_nr
         WHERE s.joined > 0 AND ($6 OR coalesce(s.room_type, '')", (in_list 7), ")
           AND (lower(coalesce(s.name, '')) LIKE $8 ESCAPE '!' OR lower(coalesce(s.topic, '')) LIKE $8 ESCAPE '!'
                OR lower(coalesce(s.canonical_alias, '')) LIKE $8 ESCAPE '!')
           AND (s.joined < $9 OR (s.joined = $9 AND d.room_nr > $10))
         ORDER BY s.joined DESC, d.room_nr LIMIT $11"];
    LIST_LISTED_BACKWARD = ["
        SELECT r.room_nr, r.room_id, r.version, s.name, s.topic, s.avatar_url, s.canonical_alias, s.room_type,
               s.encryption, s.join_rule, s.history_visibility, s.guest_access, s.joined
          FROM (SELECT room_nr FROM directory WHERE server = $1 AND $2
                UNION SELECT room_nr FROM network_directory WHERE server = $1 AND ($3 OR (service = $4 AND network = $5))) AS d
          JOIN rooms r ON r.room_nr = d.room_nr JOIN room_summary s ON s.room_nr = d.room_nr
         WHERE s.joined > 0 AND ($6 OR coalesce(s.room_type, '')", (in_list 7), ")
           AND (lower(coalesce(s.name, '')) LIKE $8 ESCAPE '!' OR lower(coalesce(s.topic, '')) LIKE $8 ESCAPE '!'
                OR lower(coalesce(s.canonical_alias, '')) LIKE $8 ESCAPE '!')
           AND (s.joined > $9 OR (s.joined = $9 AND d.room_nr < $10))
         ORDER BY s.joined, d.room_nr DESC LIMIT $11"];
    COUNT_LISTED = ["
        SELECT count(*)
          FROM (SELECT room_nr FROM directory WHERE server = $1 AND $2
                UNION SELECT room_nr FROM network_directory WHERE server = $1 AND ($3 OR (service = $4 AND network = $5))) AS d
          JOIN room_summary s ON s.room_nr = d.room_nr
         WHERE s.joined > 0 AND ($6 OR coalesce(s.room_type, '')", (in_list 7), ")
           AND (lower(coalesce(s.name, '')) LIKE $8 ESCAPE '!' OR lower(coalesce(s.topic, '')) LIKE $8 ESCAPE '!'
                OR lower(coalesce(s.canonical_alias, '')) LIKE $8 ESCAPE '!')"];
}

/// Which rooms a directory shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedOn<'a> {
    /// Those that people have published.
    Matrix,
    /// Those that an application service has published on a network of its own.
    Network {
        /// The application service.
        service: &'a str,
        /// The network.
        network: &'a str,
    },
    /// All of them.
    All,
}

/// What is asked of the directory of a local server.
#[derive(Clone, Debug)]
pub struct ListedRooms<'a> {
    /// The server name.
    pub server: &'a ServerName,
    /// Which rooms are asked for.
    pub on: ListedOn<'a>,
    /// Whether the list goes from rooms with more members to those with fewer.
    pub forward: bool,
    /// The members and number of the room that the list goes on after; without, it starts at the most members.
    pub from: Option<(i64, RoomNr)>,
    /// A text in the name, the topic or the canonical alias, in any case.
    pub search: Option<&'a str>,
    /// The types of room to list; the empty text stands for none.
    pub room_types: Option<Vec<String>>,
    /// Most rooms to list.
    pub limit: u32,
}

/// A room in the directory.
#[derive(Clone, Debug)]
pub struct ListedRoom {
    /// The room.
    pub room: RoomRow,
    /// What it shows of itself.
    pub summary: RoomSummary,
    /// How many are in it.
    pub joined: i64,
}

impl ListedRooms<'_> {
    fn args(&self) -> Vec<crate::db::Arg> {
        let (service, network) = match self.on {
            ListedOn::Network { service, network } => (service, network),
            ListedOn::Matrix | ListedOn::All => ("", ""),
        };
        let (is_all, of_people) = (self.on == ListedOn::All, matches!(self.on, ListedOn::Matrix | ListedOn::All));
        let types = self.room_types.clone();
        args![
            self.server.as_str(),
            of_people,
            is_all,
            service,
            network,
            types.is_none(),
            types.unwrap_or_default(),
            like_pattern(self.search.unwrap_or(""))
        ]
    }
}

/// A `LIKE` pattern, with `!` as the escape, for a text that is found anywhere in a lower-case one.
pub(crate) fn like_pattern(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.chars().flat_map(char::to_lowercase) {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

impl Storage {
    /// Whether the directory of a local server shows a room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn is_listed(&self, server: &str, room_nr: RoomNr) -> Result<bool, Error> {
        Ok(self.db().read_one(&FIND_LISTED, args![server, room_nr]).await?.is_some())
    }

    /// Shows or hides a room in the directory of a local server.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn set_listed(&self, server: &str, room_nr: RoomNr, listed: bool) -> Result<(), Error> {
        let statement = if listed { &INSERT_LISTED } else { &DELETE_LISTED };
        self.db().write(statement, args![server, room_nr]).await.map(|_| ())
    }

    /// Shows or hides a room in the directory that an application service has for one of its networks.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn set_listed_on_network(
        &self,
        server: &str,
        (service, network): (&str, &str),
        room_nr: RoomNr,
        listed: bool,
    ) -> Result<(), Error> {
        let statement = if listed { &INSERT_LISTED_ON_NETWORK } else { &DELETE_LISTED_ON_NETWORK };
        self.db().write(statement, args![server, service, network, room_nr]).await.map(|_| ())
    }

    /// Shows, in all directories that show a room, another one in its place; that one is not shown yet.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn move_listed(&self, from: RoomNr, to: RoomNr) -> Result<(), Error> {
        self.db().write(&MOVE_LISTED, args![from, to]).await?;
        self.db().write(&MOVE_LISTED_ON_NETWORKS, args![from, to]).await.map(|_| ())
    }

    /// Rooms in the directory of a local server, by their joined members.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_listed(&self, query: &ListedRooms<'_>) -> Result<Vec<ListedRoom>, Error> {
        let statement = if query.forward { &LIST_LISTED_FORWARD } else { &LIST_LISTED_BACKWARD };
        let (joined, room_nr) = query.from.unwrap_or((i64::MAX, RoomNr(0)));
        let mut args = query.args();
        args.extend(args![joined, room_nr, i64::from(query.limit)]);
        let rows = self.db().read(statement, args).await?;
        rows.iter()
            .map(|row| {
                let summary = RoomSummary {
                    name: row.get(3)?,
                    topic: row.get(4)?,
                    avatar_url: row.get(5)?,
                    canonical_alias: row.get(6)?,
                    room_type: row.get(7)?,
                    encryption: row.get(8)?,
                    join_rule: row.get(9)?,
                    history_visibility: row.get(10)?,
                    guest_access: row.get(11)?,
                };
                Ok(ListedRoom { room: room_of(row)?, summary, joined: row.get(12)? })
            })
            .collect()
    }

    /// How many rooms the directory of a local server has, wherever the list starts.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn count_listed(&self, query: &ListedRooms<'_>) -> Result<u64, Error> {
        let row = self.db().read_one(&COUNT_LISTED, query.args()).await?;
        let count: i64 = row.map_or(Ok(0), |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}
