//! Transactions of other servers, and what they were answered. Server-Server API, "Transactions".

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
