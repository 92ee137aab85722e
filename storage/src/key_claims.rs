//! Claims of one-time keys: each key is given once, whoever asks where.
//!
//! Claims are gathered into transactions: each has to be flushed to disk before the keys leave the machine. PostgreSQL keeps processes apart
//! by locks on the keys.

use std::collections::{HashMap, HashSet};

use model::UserNr;

use crate::{
    Error, KeyRow, Storage,
    db::{Row, Tx},
    gathered::{Gather, Gathered},
    rows::Rows,
    statement::{Statement, statements},
};

/// Keys that are claimed in one transaction.
const CLAIMED_AT_ONCE: usize = 500;

statements! {
    /// The oldest of each; another claim that is under way is passed by.
    CLAIM_ONE_TIME_KEYS = ["
        WITH picked AS MATERIALIZED (
            SELECT r.user_nr, r.device_id, r.algorithm,
                   (SELECT k.key_id FROM one_time_keys k
                     WHERE k.user_nr = r.user_nr AND k.device_id = r.device_id AND k.algorithm = r.algorithm
                     ORDER BY k.uploaded_at_ms, k.key_id LIMIT 1", (either "" " FOR UPDATE SKIP LOCKED"), ") AS key_id
              FROM", (rows [1 user_nr bigint, 2 device_id text, 3 algorithm text]), ")
        DELETE FROM one_time_keys WHERE (user_nr, device_id, algorithm, key_id) IN
               (SELECT user_nr, device_id, algorithm, key_id FROM picked)
        RETURNING user_nr, device_id, algorithm, key_id, key"];
    INSERT_CLAIMED = ["
        INSERT INTO claimed_one_time_keys (user_nr, device_id, algorithm, key_id, key, claimed_at_ms)
        SELECT user_nr, device_id, algorithm, key_id, key, claimed_at_ms
          FROM", (rows [1 user_nr bigint, 2 device_id text, 3 algorithm text, 4 key_id text, 5 key text,
                        6 claimed_at_ms bigint]), "
         WHERE TRUE ON CONFLICT DO NOTHING"];
    DELETE_OLD_CLAIMED = ["
        DELETE FROM claimed_one_time_keys WHERE (user_nr, device_id, algorithm, key_id) IN
               (SELECT user_nr, device_id, algorithm, key_id FROM claimed_one_time_keys WHERE claimed_at_ms <= $1 LIMIT $2)"];
    LIST_FALLBACK_KEYS = ["
        SELECT f.user_nr, f.device_id, f.algorithm, f.key_id, f.key, f.used
          FROM", (rows [1 user_nr bigint, 2 device_id text, 3 algorithm text]), "
          JOIN fallback_keys f ON f.user_nr = r.user_nr AND f.device_id = r.device_id AND f.algorithm = r.algorithm
         ORDER BY f.user_nr, f.device_id, f.algorithm"];
    /// The same, held in their order, so that no two claims of different processes wait for each other.
    LOCK_FALLBACK_KEYS = ["
        SELECT f.user_nr, f.device_id, f.algorithm, f.key_id, f.key
          FROM", (rows [1 user_nr bigint, 2 device_id text, 3 algorithm text]), "
          JOIN fallback_keys f ON f.user_nr = r.user_nr AND f.device_id = r.device_id AND f.algorithm = r.algorithm
         ORDER BY f.user_nr, f.device_id, f.algorithm", (either "" " FOR UPDATE OF f")];
    USE_FALLBACK_KEYS = ["
        UPDATE fallback_keys SET used = TRUE
          FROM", (rows [1 user_nr bigint, 2 device_id text, 3 algorithm text]), "
         WHERE fallback_keys.user_nr = r.user_nr AND fallback_keys.device_id = r.device_id
           AND fallback_keys.algorithm = r.algorithm"];
}

/// How long a one-time key is known that was claimed, in milliseconds: whoever uploads it again within that time does no harm.
pub(crate) const CLAIMED_KEPT_MS: i64 = 90 * 24 * 3_600_000;
/// Forgets such keys.
pub(crate) const DELETE_OLD_CLAIMED_KEYS: &Statement = &DELETE_OLD_CLAIMED;

/// Whose device, which, and the algorithm of the key that is wanted.
pub type KeyClaim = (UserNr, String, String);

/// A key with what it was claimed for.
type Claimed = Vec<(KeyClaim, KeyRow)>;

/// Keys that somebody claims at once, of at least one device.
pub(crate) struct KeyClaims(Vec<KeyClaim>);

impl Gather for KeyClaims {
    type Answer = Claimed;
    type Group = HashSet<KeyClaim>;

    fn queue(storage: &Storage) -> &Gathered<Self> {
        &storage.0.claims
    }

    /// Two of a group would get the same key.
    fn join(&self, group: &mut HashSet<KeyClaim>, is_first: bool) -> bool {
        let fits = group.len() + self.0.len() <= CLAIMED_AT_ONCE && !self.0.iter().any(|claim| group.contains(claim));
        if is_first || fits {
            group.extend(self.0.iter().cloned());
        }
        is_first || fits
    }

    async fn perform(storage: &Storage, group: &[Self]) -> Result<Vec<Claimed>, Error> {
        let claimed = storage.claim(group.iter().flat_map(|claims| claims.0.iter().cloned()).collect()).await?;
        let mut claimed: HashMap<KeyClaim, KeyRow> = claimed.into_iter().collect();
        let own = |claims: &Self| claims.0.iter().filter_map(|claim| claimed.remove_entry(claim)).collect();
        Ok(group.iter().map(own).collect())
    }
}

impl Storage {
    /// Claims a one-time key of each device, for an algorithm: nobody gets it again. Where there is none left, the fallback key, which
    /// stays. Devices without any are left out.
    ///
    /// # Errors
    ///
    /// When the database fails; what was claimed before is lost then.
    pub async fn claim_one_time_keys(&self, wanted: Vec<KeyClaim>) -> Result<Vec<(KeyClaim, KeyRow)>, Error> {
        if wanted.is_empty() { Ok(Vec::new()) } else { self.gather(KeyClaims(wanted)).await }
    }

    async fn claim(&self, mut wanted: Vec<KeyClaim>) -> Result<Claimed, Error> {
        // In one order, so that two claims do not wait for each other.
        wanted.sort_unstable();
        let now_ms = self.clock().now_ms();
        let mut claimed = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(CLAIMED_AT_ONCE) {
            let mut tx = self.db().begin().await?;
            let mut given = keys_of(&tx.fetch(&CLAIM_ONE_TIME_KEYS, columns(wanted)).await?)?;
            if !given.is_empty() {
                tx.execute(&INSERT_CLAIMED, claimed_rows(&given, now_ms)).await?;
            }
            let got: HashSet<&KeyClaim> = given.iter().map(|(claim, _)| claim).collect();
            let missing: Vec<KeyClaim> = wanted.iter().filter(|claim| !got.contains(claim)).cloned().collect();
            if !missing.is_empty() {
                given.extend(use_fallback_keys(&mut tx, &missing).await?);
            }
            tx.commit().await?;
            for (user_nr, device_id, _) in wanted {
                self.0.key_counts.forget(*user_nr, device_id);
            }
            claimed.extend(given);
        }
        Ok(claimed)
    }
}

/// Gives fallback keys. Those that were given before are only read: of a device that stays away every claim comes here.
async fn use_fallback_keys(tx: &mut Tx, wanted: &[KeyClaim]) -> Result<Claimed, Error> {
    let found = tx.fetch(&LIST_FALLBACK_KEYS, columns(wanted)).await?;
    let (mut given, mut unused) = (Vec::new(), Vec::new());
    for (row, key) in found.iter().zip(keys_of(&found)?) {
        if row.get(5)? { given.push(key) } else { unused.push(key.0) }
    }
    if !unused.is_empty() {
        // Read again: it may have been replaced before it was held.
        given.extend(keys_of(&tx.fetch(&LOCK_FALLBACK_KEYS, columns(&unused)).await?)?);
        tx.execute(&USE_FALLBACK_KEYS, columns(&unused)).await?;
    }
    Ok(given)
}

fn columns(claims: &[KeyClaim]) -> Rows {
    Rows::new()
        .bigint(claims.iter().map(|(user_nr, ..)| user_nr.0))
        .text(claims.iter().map(|(_, device_id, _)| device_id.clone()))
        .text(claims.iter().map(|(.., algorithm)| algorithm.clone()))
}

fn claimed_rows(claimed: &Claimed, now_ms: i64) -> Rows {
    Rows::new()
        .bigint(claimed.iter().map(|((user_nr, ..), _)| user_nr.0))
        .text(claimed.iter().map(|((_, device_id, _), _)| device_id.clone()))
        .text(claimed.iter().map(|(_, key)| key.algorithm.clone()))
        .text(claimed.iter().map(|(_, key)| key.key_id.clone()))
        .text(claimed.iter().map(|(_, key)| key.key.clone()))
        .bigint(claimed.iter().map(|_| now_ms))
}

fn keys_of(rows: &[Row]) -> Result<Claimed, Error> {
    let key = |row: &Row| {
        let claim: KeyClaim = (row.nr(0)?, row.get(1)?, row.get(2)?);
        let key = KeyRow { algorithm: claim.2.clone(), key_id: row.get(3)?, key: row.get(4)? };
        Ok((claim, key))
    };
    rows.iter().map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(devices: &[&str]) -> KeyClaims {
        let claim = |device: &&str| (UserNr(1), (*device).to_owned(), "signed_curve25519".to_owned());
        KeyClaims(devices.iter().map(claim).collect())
    }

    #[test]
    fn a_group_has_one_claim_of_a_key_and_many_only_of_one_who_asks_for_so_many() {
        let names: Vec<String> = (0..=CLAIMED_AT_ONCE).map(|n| format!("M{n}")).collect();
        let many: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut group = HashSet::new();
        assert!(claims(&["A"]).join(&mut group, true));
        assert!(claims(&["B", "C"]).join(&mut group, false));
        assert!(!claims(&["D", "C"]).join(&mut group, false));
        assert!(!claims(&many).join(&mut group, false));
        assert!(claims(&["D"]).join(&mut group, false), "what does not fit is not noted");
        assert!(claims(&many).join(&mut HashSet::new(), true));
    }
}
