//! The rows of what is told beside events: receipts, account data, EDUs, threads that are followed.

use std::collections::HashMap;

use super::GroupWriter;
use crate::{
    batch::Batch,
    received_transactions::{INSERT_RECEIVED, answer_rows},
    rows::Rows,
    statement::statements,
    unread::to_column,
};

statements! {
    INSERT_TRANSACTIONS = ["
        INSERT INTO transaction_ids (user_nr, device_id, scope, transaction_id, event_nr, at_ms)
        SELECT user_nr, device_id, scope, transaction_id, event_nr, at_ms
          FROM", (rows [1 user_nr bigint, 2 device_id text, 3 scope text, 4 transaction_id text, 5 event_nr bigint,
                        6 at_ms bigint])];
    /// A receipt never goes back to an event that lies before the one that it is at.
    UPSERT_RECEIPTS = ["
        INSERT INTO receipts (room_nr, user_nr, receipt_type, thread, event_id, at_ms, position)
        SELECT room_nr, user_nr, receipt_type, thread, event_id, at_ms, position
          FROM", (rows [1 room_nr bigint, 2 user_nr bigint, 3 receipt_type text, 4 thread text, 5 event_id text,
                        6 at_ms bigint, 7 position bigint]), "
         WHERE TRUE
            ON CONFLICT (room_nr, user_nr, receipt_type, thread) DO UPDATE
           SET event_id = excluded.event_id, at_ms = excluded.at_ms, position = excluded.position
         WHERE NOT EXISTS (
               SELECT 1 FROM events standing JOIN events wanted ON wanted.event_id = excluded.event_id
                WHERE standing.event_id = receipts.event_id
                  AND (standing.anchor, standing.step) > (wanted.anchor, wanted.step))"];
    UPSERT_ACCOUNT_DATA = ["
        INSERT INTO account_data (user_nr, room_nr, type, content, position)
        SELECT user_nr, room_nr, type, content, position
          FROM", (rows [1 user_nr bigint, 2 room_nr bigint, 3 type text, 4 content text, 5 position bigint]), "
         WHERE TRUE
            ON CONFLICT (user_nr, room_nr, type) DO UPDATE
           SET content = excluded.content, position = excluded.position"];
    /// Each with how many messages of its device there were with it, and their bytes, since nothing waited: what waits is told by the first
    /// and the last.
    INSERT_TO_DEVICE = ["
        INSERT INTO to_device (position, user_nr, device_id, message, number, bytes)
        SELECT r.position, r.user_nr, r.device_id, r.message,
               row_number() OVER device + coalesce((
                   SELECT t.number FROM to_device t WHERE t.user_nr = r.user_nr AND t.device_id = r.device_id
                    ORDER BY t.position DESC LIMIT 1), 0),
               sum(octet_length(r.message)) OVER device + coalesce((
                   SELECT t.bytes FROM to_device t WHERE t.user_nr = r.user_nr AND t.device_id = r.device_id
                    ORDER BY t.position DESC LIMIT 1), 0)
          FROM", (rows [1 position bigint, 2 user_nr bigint, 3 device_id text, 4 message text]), "
        WINDOW device AS (PARTITION BY r.user_nr, r.device_id ORDER BY r.position)"];
    INSERT_OUTGOING_EDUS = ["
        INSERT INTO outgoing_edus (position, origin, destination, edu)
        SELECT position, origin, destination, edu
          FROM", (rows [1 position bigint, 2 origin text, 3 destination text, 4 edu text])];
    /// A client does not make a manual subscription (2) automatic (1).
    UPSERT_THREAD_SUBSCRIPTIONS = ["
        INSERT INTO thread_subscriptions (user_nr, root_nr, room_nr, state, position)
        SELECT user_nr, root_nr, room_nr, state, position
          FROM", (rows [1 user_nr bigint, 2 root_nr bigint, 3 room_nr bigint, 4 state bigint, 5 position bigint]), "
         WHERE TRUE
            ON CONFLICT (user_nr, root_nr) DO UPDATE
           SET state = excluded.state, position = excluded.position
         WHERE excluded.state <> 1 OR thread_subscriptions.state = 0"];
    INSERT_PROFILES = ["
        INSERT INTO profile_changes (position, user_nr)
        SELECT position, user_nr FROM", (rows [1 position bigint, 2 user_nr bigint])];
}

impl GroupWriter<'_> {
    pub(super) fn add_streams(&self, batch: &mut Batch) {
        // A statement may touch a row once: of two for the same key, the later counts.
        let mut receipts = HashMap::new();
        for (receipt, position) in self.commits.iter().flat_map(|commit| &commit.receipts).zip(&self.receipts) {
            let key = (receipt.room_nr, receipt.user_nr, &receipt.receipt_type, &receipt.thread);
            receipts.insert(key, (receipt, *position));
        }
        let receipts: Vec<_> = receipts.into_values().collect();
        let rows = Rows::new()
            .bigint(receipts.iter().map(|(receipt, _)| receipt.room_nr.0))
            .bigint(receipts.iter().map(|(receipt, _)| receipt.user_nr.0))
            .text(receipts.iter().map(|(receipt, _)| receipt.receipt_type.clone()))
            .text(receipts.iter().map(|(receipt, _)| to_column(receipt.thread.as_ref()).to_owned()))
            .text(receipts.iter().map(|(receipt, _)| receipt.event_id.to_string()))
            .bigint(receipts.iter().map(|(receipt, _)| receipt.at_ms))
            .bigint(receipts.iter().map(|(_, position)| position.0));
        batch.add(&UPSERT_RECEIPTS, rows);
        let mut data = HashMap::new();
        for (new, position) in self.commits.iter().flat_map(|commit| &commit.account_data).zip(&self.account_data) {
            data.insert((new.user_nr, new.room_nr, &new.event_type), (new, *position));
        }
        let data: Vec<_> = data.into_values().collect();
        let rows = Rows::new()
            .bigint(data.iter().map(|(new, _)| new.user_nr.0))
            .bigint(data.iter().map(|(new, _)| new.room_nr.0))
            .text(data.iter().map(|(new, _)| new.event_type.clone()))
            .text(data.iter().map(|(new, _)| new.content.clone()))
            .bigint(data.iter().map(|(_, position)| position.0));
        batch.add(&UPSERT_ACCOUNT_DATA, rows);
        let messages: Vec<_> = self.commits.iter().flat_map(|commit| &commit.to_device).collect();
        let rows = Rows::new()
            .bigint(self.to_device.iter().map(|position| position.0))
            .bigint(messages.iter().map(|message| message.user_nr.0))
            .text(messages.iter().map(|message| message.device_id.clone()))
            .text(messages.iter().map(|message| message.message.to_string()));
        batch.add(&INSERT_TO_DEVICE, rows);
        let edus = || self.commits.iter().flat_map(|commit| &commit.outgoing_edus);
        let rows = Rows::new()
            .bigint(self.outgoing_edus.iter().map(|position| position.0))
            .text(edus().map(|edu| edu.origin.to_string()))
            .text(edus().map(|edu| edu.destination.to_string()))
            .text(edus().map(|edu| edu.edu.to_string()));
        batch.add(&INSERT_OUTGOING_EDUS, rows);
        self.add_keys(batch);
        let rows = Rows::new()
            .bigint(self.profiles.iter().map(|(position, _)| position.0))
            .bigint(self.profiles.iter().map(|(_, user_nr)| user_nr.0));
        batch.add(&INSERT_PROFILES, rows);
        let new = self.commits.iter().flat_map(|commit| &commit.thread_subscriptions).zip(&self.thread_subscriptions);
        // A statement may touch a row once: of two for the same thread, the later counts.
        let new: HashMap<_, _> = new.map(|(new, position)| ((new.user_nr, new.root_nr), (new, *position))).collect();
        let rows = Rows::new()
            .bigint(new.values().map(|(new, _)| new.user_nr.0))
            .bigint(new.values().map(|(new, _)| new.root_nr.0))
            .bigint(new.values().map(|(new, _)| new.room_nr.0))
            .bigint(new.values().map(|(new, _)| new.state.code()))
            .bigint(new.values().map(|(_, position)| position.0));
        batch.add(&UPSERT_THREAD_SUBSCRIPTIONS, rows);
    }

    pub(super) fn add_transactions(&self, batch: &mut Batch) {
        let transactions: Vec<_> = self.commits.iter().flat_map(|commit| &commit.transactions).collect();
        let rows = Rows::new()
            .bigint(transactions.iter().map(|transaction| transaction.key.user_nr.0))
            .text(transactions.iter().map(|transaction| transaction.key.device_id.clone()))
            .text(transactions.iter().map(|transaction| transaction.key.scope.clone()))
            .text(transactions.iter().map(|transaction| transaction.key.transaction_id.clone()))
            .bigint(transactions.iter().map(|transaction| transaction.event_nr.map(|nr| nr.0)))
            .bigint(transactions.iter().map(|_| self.now_ms));
        batch.add(&INSERT_TRANSACTIONS, rows);
        let received: Vec<_> = self.commits.iter().flat_map(|commit| &commit.received_transactions).collect();
        batch.add(INSERT_RECEIVED, answer_rows(&received, self.now_ms));
    }
}
