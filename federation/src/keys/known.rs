//! What is known of a server's keys, and when to ask again.

use std::collections::BTreeMap;

use model::LocalServer;
use ruma::{serde::Base64, signatures::PublicKeySet};
use storage::{ServerKeyRow, ServerKeysRow};

use super::{Wanted, answer::Answer};

/// The longest that a key is valid after it was fetched, in milliseconds, whatever its server says. Server-Server API, "Publishing Keys".
const VALID_MAX_MS: i64 = 7 * 24 * 3_600_000;

/// How long a server is left alone that has answered, in milliseconds: it may have got a new key meanwhile.
const ASKED_AGAIN_MS: i64 = 60_000;

/// How long one is left alone that has not, after the first time; it doubles, up to [`FAILURE_MAX_MS`].
const FAILURE_MS: i64 = 30_000;
const FAILURE_MAX_MS: i64 = 3_600_000;

/// What is known of a server's keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    keys: BTreeMap<String, Key>,
    /// Its newest answer, as it was signed, and when it came.
    answer: Option<(String, i64)>,
    /// When it was asked by this process, and how often it has failed since it last answered.
    asked_ms: i64,
    failures: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    public: Base64,
    /// Until when it signs, or when it ended, in milliseconds since 1970.
    until_ms: i64,
    is_old: bool,
}

impl Known {
    /// The keys of one of our own names: the one that signs, and those that did before.
    pub(crate) fn of_local(server: &LocalServer) -> Self {
        let key = |public: &str, until_ms, is_old| {
            let public = Base64::parse(public).expect("our own keys are in base64");
            Key { public, until_ms, is_old }
        };
        let old = server.old_keys.iter();
        let mut keys: BTreeMap<_, _> =
            old.map(|old| (old.id.to_string(), key(&old.public_key, old.expired_ms, true))).collect();
        keys.insert(server.key.id().to_string(), key(&server.key.public_key(), i64::MAX, false));
        Self { keys, ..Self::default() }
    }

    pub(crate) fn of_row(row: ServerKeysRow) -> Self {
        let keys = row.keys.into_iter().filter_map(|key| {
            let public = Base64::parse(&key.public_key).ok()?;
            Some((key.key_id, Key { public, until_ms: key.valid_until_ms, is_old: key.is_old }))
        });
        Self { keys: keys.collect(), answer: row.answer, ..Self::default() }
    }

    pub(crate) fn to_row(&self) -> ServerKeysRow {
        let keys = self.keys.iter().map(|(id, key)| ServerKeyRow {
            key_id: id.clone(),
            public_key: key.public.encode(),
            valid_until_ms: key.until_ms,
            is_old: key.is_old,
        });
        ServerKeysRow { keys: keys.collect(), answer: self.answer.clone() }
    }

    /// With what an answer of `now_ms` says. A key does not change under its id, and an old one does not come back.
    pub(crate) fn with(&self, answer: &Answer, now_ms: i64) -> Self {
        let mut keys = self.keys.clone();
        for said in &answer.keys {
            let until_ms = if said.is_old { said.until_ms } else { said.until_ms.min(now_ms + VALID_MAX_MS) };
            let key = Key { public: said.public.clone(), until_ms, is_old: said.is_old };
            let standing = keys.entry(said.id.clone()).or_insert_with(|| key.clone());
            let is_newer = key.is_old || (!standing.is_old && key.until_ms > standing.until_ms);
            if standing.public == key.public && is_newer {
                *standing = key;
            }
        }
        Self { keys, answer: Some((answer.json.clone(), now_ms)), asked_ms: now_ms, failures: 0 }
    }

    /// The same, after it gave no answer at `now_ms`.
    pub(crate) fn without_answer(&self, now_ms: i64) -> Self {
        Self { asked_ms: now_ms, failures: self.failures.saturating_add(1), ..self.clone() }
    }

    /// Whether the wanted keys are known, and valid when they must be; who wants none by its id wants one that signs then.
    pub(crate) fn has(&self, wanted: &Wanted) -> bool {
        if wanted.key_ids.is_empty() {
            return self.has_current(wanted.valid_at_ms);
        }
        let is_there = |id: &str| self.keys.get(id).is_some_and(|key| key.is_old || key.until_ms >= wanted.valid_at_ms);
        wanted.key_ids.iter().all(|id| is_there(id.as_str()))
    }

    /// Whether there is a key that signs now.
    pub(crate) fn has_current(&self, now_ms: i64) -> bool {
        self.keys.values().any(|key| !key.is_old && key.until_ms >= now_ms)
    }

    /// Whether it is not too early to ask again.
    pub(crate) fn may_be_asked(&self, now_ms: i64) -> bool {
        let wait_ms = match self.failures {
            0 => ASKED_AGAIN_MS,
            failures => (FAILURE_MS << failures.min(7)).min(FAILURE_MAX_MS),
        };
        now_ms - self.asked_ms >= wait_ms
    }

    pub(crate) fn has_answer_of_now(&self) -> bool {
        self.failures == 0 && self.answer.as_ref().is_some_and(|(_, at_ms)| *at_ms == self.asked_ms)
    }

    /// Its newest answer as it was signed, and when it came, in milliseconds since 1970.
    pub(crate) fn answer(&self) -> Option<(&str, i64)> {
        self.answer.as_ref().map(|(json, at_ms)| (json.as_str(), *at_ms))
    }

    /// The keys that were valid at a time.
    pub(crate) fn valid_at(&self, at_ms: i64) -> PublicKeySet {
        let valid = self.keys.iter().filter(|(_, key)| key.until_ms >= at_ms);
        valid.map(|(id, key)| (id.clone(), key.public.clone())).collect()
    }

    /// The keys that sign requests at a time: no old ones.
    pub(crate) fn current_at(&self, at_ms: i64) -> PublicKeySet {
        let current = self.keys.iter().filter(|(_, key)| !key.is_old && key.until_ms >= at_ms);
        current.map(|(id, key)| (id.clone(), key.public.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::answer::SaidKey;

    const DAY_MS: i64 = 24 * 3_600_000;

    fn said(id: &str, public: &[u8], until_ms: i64, is_old: bool) -> SaidKey {
        SaidKey { id: id.to_owned(), public: Base64::new(public.to_vec()), until_ms, is_old }
    }

    fn answer(keys: Vec<SaidKey>) -> Answer {
        Answer { keys, json: "{}".to_owned() }
    }

    #[test]
    fn a_key_counts_seven_days_at_most_and_never_changes() {
        let now = 100 * DAY_MS;
        let known = Known::default().with(&answer(vec![said("ed25519:a", b"1", 1_000 * DAY_MS, false)]), now);
        assert_eq!(known.valid_at(now + 7 * DAY_MS).len(), 1);
        assert!(known.valid_at(now + 7 * DAY_MS + 1).is_empty());
        // Under its id another text does not count, in no later answer.
        let other = known.with(&answer(vec![said("ed25519:a", b"2", 1_000 * DAY_MS, false)]), now + DAY_MS);
        assert_eq!(other.valid_at(0)["ed25519:a"], Base64::new(b"1".to_vec()));
        assert!(other.valid_at(now + 8 * DAY_MS).is_empty());
        // An old key is valid for what was signed before its end, signs no requests, and does not come back.
        let old = known.with(&answer(vec![said("ed25519:a", b"1", now - DAY_MS, true)]), now);
        let back = old.with(&answer(vec![said("ed25519:a", b"1", 1_000 * DAY_MS, false)]), now);
        for known in [old, back] {
            assert_eq!(known.valid_at(now - DAY_MS).len(), 1);
            assert!(known.valid_at(now).is_empty());
            assert!(known.current_at(0).is_empty());
        }
    }

    #[test]
    fn a_server_is_asked_less_and_less_while_it_gives_no_answer() {
        let mut known = Known::default();
        assert!(known.may_be_asked(DAY_MS));
        let mut now_ms = DAY_MS;
        let mut last = 0;
        for _ in 0..12 {
            known = known.without_answer(now_ms);
            let wait = (1..).find(|minutes| known.may_be_asked(now_ms + minutes * 60_000)).unwrap();
            assert!(wait >= last && wait <= 60);
            (last, now_ms) = (wait, now_ms + wait * 60_000);
        }
        assert_eq!(last, 60);
        let known = known.with(&answer(Vec::new()), now_ms);
        assert!(!known.may_be_asked(now_ms + 59_000) && known.may_be_asked(now_ms + 60_000));
    }
}
