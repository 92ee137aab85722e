//! Transactions of other servers, and what they were answered. Server-Server API, "Transactions".

use std::collections::HashMap;

use model::{NodeNr, RoomNr};
use ruma::OwnedServerName;

use crate::{
    Error, Storage,
    db::args,
    rows::Rows,
    statement::{Statement, statements},
};

/// How long an answer is remembered, in milliseconds: a server that asks again does so within hours, and later under another id.
pub(crate) const KEPT_MS: i64 = 24 * 3_600_000;

statements! {
    /// The state of each of the rooms that one of some servers is in.
    LIST_STATES_OF_ROOMS_WITH = ["
        SELECT h.room_nr, h.state_node FROM room_heads h
         WHERE h.room_nr", (in_list 1), "
           AND EXISTS (SELECT 1 FROM room_servers s WHERE s.room_nr = h.room_nr AND s.joined > 0 AND s.server", (in_list 2), ")
         ORDER BY h.room_nr"];
    FIND_ANSWER = ["
        SELECT answer FROM received_transactions WHERE destination = $1 AND origin = $2 AND transaction_id = $3"];
    /// What was answered first stays.
    INSERT_ANSWERS = ["
        INSERT INTO received_transactions (destination, origin, transaction_id, answer, at_ms)
        SELECT destination, origin, transaction_id, answer, at_ms
          FROM", (rows [1 destination text, 2 origin text, 3 transaction_id text, 4 answer text, 5 at_ms bigint]), "
         WHERE TRUE
            ON CONFLICT (destination, origin, transaction_id) DO NOTHING"];
    DELETE_OLD_ANSWERS = ["
        DELETE FROM received_transactions WHERE (destination, origin, transaction_id) IN
               (SELECT destination, origin, transaction_id FROM received_transactions WHERE at_ms < $1 LIMIT $2)"];
}

/// How a transaction is known: by who sent it to which of our names, under which id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReceivedTransactionKey {
    /// Which of our names it was sent to.
    pub destination: OwnedServerName,
    /// Who sent it.
    pub origin: OwnedServerName,
    /// What its sender calls it.
    pub transaction_id: String,
}

/// A transaction that was worked off.
#[derive(Clone, Debug)]
pub struct NewReceivedTransaction {
    /// Which one.
    pub key: ReceivedTransactionKey,
    /// The answer, in JSON.
    pub answer: String,
}

pub(crate) const DELETE_OLD_RECEIVED: &Statement = &DELETE_OLD_ANSWERS;
pub(crate) const INSERT_RECEIVED: &Statement = &INSERT_ANSWERS;

/// The rows of answers, for [`INSERT_RECEIVED`].
pub(crate) fn answer_rows(answers: &[&NewReceivedTransaction], now_ms: i64) -> Rows {
    Rows::new()
        .text(answers.iter().map(|new| new.key.destination.to_string()))
        .text(answers.iter().map(|new| new.key.origin.to_string()))
        .text(answers.iter().map(|new| new.key.transaction_id.clone()))
        .text(answers.iter().map(|new| new.answer.clone()))
        .bigint(answers.iter().map(|_| now_ms))
}

impl Storage {
    /// The current states of rooms, of those that somebody of some servers is in.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_states_of_rooms_with(
        &self,
        rooms: &[RoomNr],
        servers: impl Iterator<Item = String>,
    ) -> Result<HashMap<RoomNr, NodeNr>, Error> {
        let args = args![rooms.iter().map(|nr| nr.0).collect::<Vec<_>>(), servers.collect::<Vec<_>>()];
        let rows = self.db().read(&LIST_STATES_OF_ROOMS_WITH, args).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.nr(1)?))).collect()
    }

    /// What a transaction was answered, if it was worked off.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_received_transaction(&self, key: &ReceivedTransactionKey) -> Result<Option<String>, Error> {
        let args = args![key.destination.as_str(), key.origin.as_str(), &key.transaction_id];
        self.db().read_one(&FIND_ANSWER, args).await?.map(|row| row.get(0)).transpose()
    }
}
