//! The rows of device lists, and of signatures on keys.

use std::collections::HashMap;

use model::{Position, UserNr};

use super::GroupWriter;
use crate::{batch::Batch, commit::ChangedKeys, rows::Rows, statement::statements};

statements! {
    /// What came before it in the same group is given, and what came before the group is looked up.
    INSERT_DEVICE_LISTS = ["
        INSERT INTO device_list_changes (position, user_nr, device_id, follows)
        SELECT r.position, r.user_nr, r.device_id, coalesce(r.follows, (
               SELECT CASE WHEN d.device_id = '' THEN d.follows ELSE d.position END FROM device_list_changes d
                WHERE d.user_nr = r.user_nr ORDER BY d.position DESC LIMIT 1))
          FROM", (rows [1 position bigint, 2 user_nr bigint, 3 device_id text, 4 follows bigint])];
    UPSERT_KEY_SIGNATURES = ["
        INSERT INTO key_signatures (user_nr, target, signer_nr, key_id, signature)
        SELECT user_nr, target, signer_nr, key_id, signature
          FROM", (rows [1 user_nr bigint, 2 target text, 3 signer_nr bigint, 4 key_id text, 5 signature text]), "
         WHERE TRUE
            ON CONFLICT (user_nr, target, signer_nr, key_id) DO UPDATE SET signature = excluded.signature"];
    UPSERT_SIGNED_USERS = ["
        INSERT INTO signed_users (user_nr, signed_nr, position)
        SELECT user_nr, signed_nr, position FROM", (rows [1 user_nr bigint, 2 signed_nr bigint, 3 position bigint]), "
         WHERE TRUE ON CONFLICT (user_nr, signed_nr) DO UPDATE SET position = excluded.position"];
}

impl GroupWriter<'_> {
    pub(super) fn add_keys(&self, batch: &mut Batch) {
        let changes = || self.commits.iter().flat_map(|commit| &commit.device_lists);
        let mut newest: HashMap<UserNr, Position> = HashMap::new();
        let mut follows = Vec::with_capacity(self.device_lists.len());
        for (change, position) in changes().zip(&self.device_lists) {
            follows.push(newest.get(&change.user_nr).map(|position| position.0));
            if change.what != ChangedKeys::CrossSigning {
                newest.insert(change.user_nr, *position);
            }
        }
        let rows = Rows::new()
            .bigint(self.device_lists.iter().map(|position| position.0))
            .bigint(changes().map(|change| change.user_nr.0))
            .text(changes().map(|change| change.what.column()))
            .bigint(follows);
        batch.add(&INSERT_DEVICE_LISTS, rows);
        // A statement may touch a row once: of two, the later counts.
        let signatures = self.commits.iter().flat_map(|commit| &commit.key_signatures);
        let signatures: HashMap<_, _> =
            signatures.map(|one| ((one.user_nr, &one.target, one.signer_nr, &one.key_id), &one.signature)).collect();
        let rows = Rows::new()
            .bigint(signatures.keys().map(|(user_nr, ..)| user_nr.0))
            .text(signatures.keys().map(|(_, target, ..)| (*target).clone()))
            .bigint(signatures.keys().map(|(_, _, signer_nr, _)| signer_nr.0))
            .text(signatures.keys().map(|(.., key_id)| (*key_id).clone()))
            .text(signatures.values().map(|signature| (*signature).clone()));
        batch.add(&UPSERT_KEY_SIGNATURES, rows);
        let signed: HashMap<_, _> = self.signed.iter().map(|(signer, of, position)| ((signer, of), position)).collect();
        let rows = Rows::new()
            .bigint(signed.keys().map(|(signer, _)| signer.0))
            .bigint(signed.keys().map(|(_, of)| of.0))
            .bigint(signed.values().map(|position| position.0));
        batch.add(&UPSERT_SIGNED_USERS, rows);
    }
}
