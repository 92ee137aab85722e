//! What is kept of users' presence: status messages, and who was there. The rest is in memory.

use model::UserNr;

use crate::{Error, Storage, db::args, rows::Rows, statement::statements};

statements! {
    GET_PRESENCE = ["SELECT status_msg, last_active_ms FROM presence WHERE user_nr = $1"];
    UPSERT_STATUS = ["
        INSERT INTO presence (user_nr, status_msg, is_there, last_active_ms) VALUES ($1, $2, FALSE, 0)
        ON CONFLICT (user_nr) DO UPDATE SET status_msg = excluded.status_msg"];
    UPSERT_THERE = ["
        INSERT INTO presence (user_nr, status_msg, is_there, last_active_ms)
        SELECT user_nr, NULL, is_there, last_active_ms
          FROM", (rows [1 user_nr bigint, 2 is_there boolean, 3 last_active_ms bigint]), "
         WHERE TRUE
        ON CONFLICT (user_nr) DO UPDATE SET is_there = excluded.is_there, last_active_ms = excluded.last_active_ms"];
    LIST_THERE = ["
        SELECT user_nr, status_msg, last_active_ms FROM presence WHERE is_there AND user_nr > $1 ORDER BY user_nr LIMIT $2"];
    LIST_NEIGHBORS = ["
        SELECT DISTINCT theirs.user_nr
          FROM memberships mine JOIN memberships theirs ON theirs.room_nr = mine.room_nr
         WHERE mine.user_nr = $1 AND mine.membership = 3 AND theirs.membership = 3
         ORDER BY theirs.user_nr"];
}

/// What is kept of a user's presence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceRow {
    /// The user.
    pub user_nr: UserNr,
    /// The status message.
    pub status_msg: Option<String>,
    /// When they last did something before they came or went, in milliseconds since 1970; zero when it is not known.
    pub last_active_ms: i64,
}

impl Storage {
    /// What is kept of a user's presence.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_presence(&self, user_nr: UserNr) -> Result<Option<PresenceRow>, Error> {
        let row = self.db().read_one(&GET_PRESENCE, args![user_nr]).await?;
        row.map(|row| Ok(PresenceRow { user_nr, status_msg: row.get(0)?, last_active_ms: row.get(1)? })).transpose()
    }

    /// Keeps a user's status message, or that there is none.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upsert_status_msg(&self, user_nr: UserNr, status_msg: Option<&str>) -> Result<(), Error> {
        self.db().write(&UPSERT_STATUS, args![user_nr, status_msg]).await.map(drop)
    }

    /// Keeps of users whether they are there, and when they last did something.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn upsert_there(&self, users: &[(UserNr, bool, i64)]) -> Result<(), Error> {
        let rows = Rows::new()
            .bigint(users.iter().map(|(user_nr, ..)| user_nr.0))
            .boolean(users.iter().map(|(_, is_there, _)| *is_there))
            .bigint(users.iter().map(|(.., last_active_ms)| *last_active_ms));
        self.db().write(&UPSERT_THERE, rows).await.map(drop)
    }

    /// Users who were there when it was last kept, by number after `after`, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_there(&self, after: UserNr, limit: u32) -> Result<Vec<PresenceRow>, Error> {
        let rows = self.db().read(&LIST_THERE, args![after, i64::from(limit)]).await?;
        rows.iter()
            .map(|row| Ok(PresenceRow { user_nr: row.nr(0)?, status_msg: row.get(1)?, last_active_ms: row.get(2)? }))
            .collect()
    }

    /// The users who share a room with a user, themselves included. Reads the members of all of the user's rooms.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_neighbors(&self, user_nr: UserNr) -> Result<Vec<UserNr>, Error> {
        self.db().read(&LIST_NEIGHBORS, args![user_nr]).await?.iter().map(|row| row.nr(0)).collect()
    }
}
