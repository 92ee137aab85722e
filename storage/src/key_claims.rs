//! Claims of one-time keys: each key is given once, whoever asks where.
//!
//! Claims that come while others are being written make up the next group, which is one transaction: each transaction has to be flushed to
//! disk before the keys leave the machine. A group has one claim of a device at most. PostgreSQL keeps processes apart by locks on the keys.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use model::UserNr;
use tokio::sync::oneshot;

use crate::{Error, KeyRow, Storage, db::Row, rows::Rows, statement::statements};

/// Keys that are claimed in one transaction.
const CLAIMED_AT_ONCE: usize = 500;

statements! {
    /// The oldest of each; another claim that is under way is passed by.
    CLAIM_ONE_TIME_KEYS = ["
        WITH picked AS MATERIALIZED (
            SELECT r.user_nr, r.device_id, r.algorithm, r.now_ms,
                   (SELECT k.key_id FROM one_time_keys k
                     WHERE k.user_nr = r.user_nr AND k.device_id = r.device_id AND k.algorithm = r.algorithm
                       AND k.claimed_at_ms IS NULL
                     ORDER BY k.uploaded_at_ms, k.key_id LIMIT 1", (either "" " FOR UPDATE SKIP LOCKED"), ") AS key_id
              FROM", (rows [1 user_nr bigint, 2 device_id text, 3 algorithm text, 4 now_ms bigint]), ")
        UPDATE one_time_keys SET claimed_at_ms = p.now_ms
          FROM picked p
         WHERE one_time_keys.user_nr = p.user_nr AND one_time_keys.device_id = p.device_id
           AND one_time_keys.algorithm = p.algorithm AND one_time_keys.key_id = p.key_id
        RETURNING one_time_keys.user_nr, one_time_keys.device_id, one_time_keys.algorithm, one_time_keys.key_id,
                  one_time_keys.key"];
    USE_FALLBACK_KEYS = ["
        UPDATE fallback_keys SET used = TRUE
          FROM", (rows [1 user_nr bigint, 2 device_id text, 3 algorithm text]), "
         WHERE fallback_keys.user_nr = r.user_nr AND fallback_keys.device_id = r.device_id
           AND fallback_keys.algorithm = r.algorithm
        RETURNING fallback_keys.user_nr, fallback_keys.device_id, fallback_keys.algorithm, fallback_keys.key_id,
                  fallback_keys.key"];
}

/// Whose device, which, and the algorithm of the key that is wanted.
pub type KeyClaim = (UserNr, String, String);

/// A key with what it was claimed for.
type Claimed = Vec<(KeyClaim, KeyRow)>;

/// Claims that wait to be written.
#[derive(Default)]
pub(crate) struct ClaimQueue {
    /// Held for moments only; no other lock is taken inside.
    waiting: Mutex<VecDeque<Waiting>>,
    /// Whoever holds it works off what waits, of anybody; no lock inside but those of the database.
    turn: tokio::sync::Mutex<()>,
}

struct Waiting {
    wanted: Vec<KeyClaim>,
    answer: oneshot::Sender<Result<Claimed, Error>>,
}

impl ClaimQueue {
    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The claims that come next: no two of one key, and more than fit into a transaction only of one who asks for so many.
    fn next_group(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting();
        let (mut group, mut taken): (Vec<Waiting>, HashSet<KeyClaim>) = Default::default();
        while let Some(next) = waiting.front() {
            // Nobody waits for it any more.
            if next.answer.is_closed() {
                waiting.pop_front();
                continue;
            }
            let fits = taken.len() + next.wanted.len() <= CLAIMED_AT_ONCE;
            if !group.is_empty() && (!fits || next.wanted.iter().any(|claim| taken.contains(claim))) {
                break;
            }
            taken.extend(next.wanted.iter().cloned());
            group.extend(waiting.pop_front());
        }
        group
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
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let (answer, answered) = oneshot::channel();
        self.0.claims.waiting().push_back(Waiting { wanted, answer });
        // A task of its own: who gives up must not take others with them. As many tasks come as claims, and each works off one or more.
        let storage = self.clone();
        tokio::spawn(async move {
            let _turn = storage.0.claims.turn.lock().await;
            storage.claim_group(storage.0.claims.next_group()).await;
        });
        answered.await.unwrap_or(Err(Error::Closed))
    }

    async fn claim_group(&self, group: Vec<Waiting>) {
        let all = group.iter().flat_map(|waiting| waiting.wanted.iter().cloned()).collect();
        match self.claim(all).await {
            Ok(claimed) => {
                let mut claimed: HashMap<KeyClaim, KeyRow> = claimed.into_iter().collect();
                for Waiting { wanted, answer } in group {
                    let own = wanted.into_iter().filter_map(|claim| claimed.remove_entry(&claim)).collect();
                    // Who has given up meanwhile does not get the keys, and nobody else either.
                    let _ = answer.send(Ok(own));
                }
            }
            // What the database refuses fails alone.
            Err(_) if group.len() > 1 => {
                for Waiting { wanted, answer } in group {
                    let _ = answer.send(self.claim(wanted).await);
                }
            }
            Err(error) => {
                if let Some(alone) = group.into_iter().next() {
                    let _ = alone.answer.send(Err(error));
                }
            }
        }
    }

    async fn claim(&self, mut wanted: Vec<KeyClaim>) -> Result<Claimed, Error> {
        // In one order, so that two claims do not wait for each other.
        wanted.sort_unstable();
        let now_ms = self.clock().now_ms();
        let mut claimed = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(CLAIMED_AT_ONCE) {
            let mut tx = self.db().begin().await?;
            let first = claimed.len();
            let all: Vec<&KeyClaim> = wanted.iter().collect();
            let with_time = columns(&all).bigint(all.iter().map(|_| now_ms));
            take(&mut claimed, tx.fetch(&CLAIM_ONE_TIME_KEYS, with_time).await?)?;
            let got: HashSet<&KeyClaim> = claimed[first..].iter().map(|(claim, _)| claim).collect();
            let missing: Vec<&KeyClaim> = wanted.iter().filter(|claim| !got.contains(claim)).collect();
            if !missing.is_empty() {
                take(&mut claimed, tx.fetch(&USE_FALLBACK_KEYS, columns(&missing)).await?)?;
            }
            tx.commit().await?;
            for (user_nr, device_id, _) in wanted {
                self.0.key_counts.forget(*user_nr, device_id);
            }
        }
        Ok(claimed)
    }
}

fn columns(claims: &[&KeyClaim]) -> Rows {
    Rows::new()
        .bigint(claims.iter().map(|(user_nr, ..)| user_nr.0))
        .text(claims.iter().map(|(_, device_id, _)| device_id.clone()))
        .text(claims.iter().map(|(.., algorithm)| algorithm.clone()))
}

fn take(claimed: &mut Vec<(KeyClaim, KeyRow)>, rows: Vec<Row>) -> Result<(), Error> {
    for row in rows {
        let claim: KeyClaim = (row.nr(0)?, row.get(1)?, row.get(2)?);
        let key = KeyRow { algorithm: claim.2.clone(), key_id: row.get(3)?, key: row.get(4)? };
        claimed.push((claim, key));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(device: &str) -> KeyClaim {
        (UserNr(1), device.to_owned(), "signed_curve25519".to_owned())
    }

    /// Two of a group would get the same key.
    #[tokio::test]
    async fn a_group_has_one_claim_of_a_key_and_nothing_that_nobody_waits_for() {
        let queue = ClaimQueue::default();
        let mut answers = Vec::new();
        let mut ask = |devices: &[&str]| {
            let (answer, answered) = oneshot::channel();
            queue.waiting().push_back(Waiting { wanted: devices.iter().map(|device| claim(device)).collect(), answer });
            answers.push(Some(answered));
            answers.len() - 1
        };
        for devices in [&["A"][..], &["B", "C"], &["D"], &["C"], &["E"]] {
            ask(devices);
        }
        let many: Vec<String> = (0..=CLAIMED_AT_ONCE).map(|n| format!("M{n}")).collect();
        ask(&many.iter().map(String::as_str).collect::<Vec<_>>());
        ask(&["F"]);
        answers[2] = None;
        let mut groups = Vec::new();
        loop {
            let group: Vec<usize> = queue.next_group().iter().map(|waiting| waiting.wanted.len()).collect();
            if group.is_empty() {
                break;
            }
            groups.push(group);
        }
        assert_eq!(groups, [vec![1, 2], vec![1, 1], vec![CLAIMED_AT_ONCE + 1], vec![1]]);
    }
}
