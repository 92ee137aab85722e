//! What is known of a server's keys, and when to ask again.

use std::collections::BTreeMap;

use model::LocalServer;
use ruma::{ServerName, serde::Base64, signatures::PublicKeySet};
use storage::{ServerKeyAnswer, ServerKeyRow, ServerKeysRow};

use super::{
    Wanted,
    answer::{Answer, KEYS_MAX, SaidKey, is_signed_by},
};

/// The longest that a key is valid after it was fetched, in milliseconds, whatever its server says. Server-Server API, "Publishing Keys".
const VALID_MAX_MS: i64 = 7 * 24 * 3_600_000;

/// How long a server is left alone that has answered, in milliseconds: it may have got a new key meanwhile.
const ASKED_AGAIN_MS: i64 = 60_000;

/// How long one is left alone that has not, after the first time; it doubles, up to [`FAILURE_MAX_MS`].
const FAILURE_MS: i64 = 30_000;
const FAILURE_MAX_MS: i64 = 3_600_000;

/// What is known of a server's keys.
///
/// What the server said itself over TLS is *direct*. A notary only adds to it: it changes nothing of that, and what it added is gone when the
/// server answers and does not say the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    keys: BTreeMap<String, Key>,
    answer: Option<ServerKeyAnswer>,
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
    is_direct: bool,
}

impl Known {
    /// The keys of one of our own names: the one that signs, and those that did before.
    pub(crate) fn of_local(server: &LocalServer) -> Self {
        let key = |public: &str, until_ms, is_old| {
            let public = Base64::parse(public).expect("our own keys are in base64");
            Key { public, until_ms, is_old, is_direct: true }
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
            let (until_ms, is_old, is_direct) = (key.valid_until_ms, key.is_old, key.is_direct);
            Some((key.key_id, Key { public, until_ms, is_old, is_direct }))
        });
        Self { keys: keys.collect(), answer: row.answer, ..Self::default() }
    }

    pub(crate) fn to_row(&self) -> ServerKeysRow {
        let keys = self.keys.iter().map(|(id, key)| ServerKeyRow {
            key_id: id.clone(),
            public_key: key.public.encode(),
            valid_until_ms: key.until_ms,
            is_old: key.is_old,
            is_direct: key.is_direct,
        });
        ServerKeysRow { keys: keys.collect(), answer: self.answer.clone() }
    }

    /// The ids of keys that are here, and not in `after`.
    pub(crate) fn without(&self, after: &Self) -> Vec<String> {
        self.keys.keys().filter(|id| !after.keys.contains_key(*id)).cloned().collect()
    }

    /// The memory that it takes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let keys = self.keys.keys().map(|id| 150 + id.len()).sum::<usize>();
        200 + keys + self.answer.as_ref().map_or(0, |answer| answer.json.len())
    }

    /// With what the server itself says at `now_ms`. A key does not change under its id, and an old one does not come back.
    pub(crate) fn with(&self, answer: &Answer, now_ms: i64) -> Self {
        let mut keys = self.keys.clone();
        keys.retain(|_, key| key.is_direct);
        for said in &answer.keys {
            let key = Key { is_direct: true, ..key_of(said, now_ms) };
            let standing = keys.entry(said.id.clone()).or_insert_with(|| key.clone());
            let is_newer = key.is_old || (!standing.is_old && key.until_ms > standing.until_ms);
            if standing.public == key.public && is_newer {
                *standing = key;
            }
        }
        // More than anybody needs: those that it names no more go, the first that ended first.
        let mut gone: Vec<(i64, String)> = keys
            .iter()
            .filter(|(id, _)| !answer.keys.iter().any(|said| said.id == **id))
            .map(|(id, key)| (key.until_ms, id.clone()))
            .collect();
        gone.sort_unstable();
        for (_, id) in gone.into_iter().take(keys.len().saturating_sub(KEYS_MAX)) {
            keys.remove(&id);
        }
        let answer = Some(ServerKeyAnswer { json: answer.json.clone(), at_ms: now_ms, is_direct: true });
        Self { keys, answer, asked_ms: now_ms, failures: 0 }
    }

    /// With what a notary says of it at `now_ms`. That the server was asked is not said by it.
    pub(crate) fn with_notary(&self, server: &ServerName, answer: &Answer, now_ms: i64) -> Self {
        let mut known = self.clone();
        // It may be longer valid than the server said itself, if the server has signed that.
        let is_of_server = is_signed_by(&answer.json, server, &self.direct_at(i64::MIN));
        for said in &answer.keys {
            let (key, is_full) = (key_of(said, now_ms), known.keys.len() >= KEYS_MAX);
            match known.keys.get_mut(&said.id) {
                Some(standing) => {
                    let may_be_longer = !standing.is_old && !key.is_old && key.until_ms > standing.until_ms;
                    let is_believed =
                        if standing.is_direct { is_of_server && may_be_longer } else { key.is_old || may_be_longer };
                    if standing.public == key.public && is_believed {
                        *standing = Key { is_direct: standing.is_direct, ..key };
                    }
                }
                None if is_full => {}
                None => drop(known.keys.insert(said.id.clone(), key)),
            }
        }
        if self.answer.as_ref().is_none_or(|answer| !answer.is_direct) {
            known.answer = Some(ServerKeyAnswer { json: answer.json.clone(), at_ms: now_ms, is_direct: false });
        }
        known
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

    /// The same by what the server said itself.
    pub(crate) fn has_directly(&self, wanted: &Wanted) -> bool {
        self.has(wanted) && wanted.key_ids.iter().all(|id| self.keys.get(id.as_str()).is_some_and(|key| key.is_direct))
    }

    /// Whether there is a key that signs now.
    fn has_current(&self, now_ms: i64) -> bool {
        self.keys.values().any(|key| !key.is_old && key.until_ms >= now_ms)
    }

    /// The keys that sign at a time and that the server said itself.
    pub(crate) fn direct_at(&self, at_ms: i64) -> PublicKeySet {
        let current = self.keys.iter().filter(|(_, key)| key.is_direct && !key.is_old && key.until_ms >= at_ms);
        current.map(|(id, key)| (id.clone(), key.public.clone())).collect()
    }

    /// Whether it is not too early to ask again.
    pub(crate) fn may_be_asked(&self, now_ms: i64) -> bool {
        let wait_ms = match self.failures {
            0 => ASKED_AGAIN_MS,
            failures => (FAILURE_MS << failures.min(7)).min(FAILURE_MAX_MS),
        };
        now_ms - self.asked_ms >= wait_ms
    }

    /// Its newest answer as it was signed.
    pub(crate) fn answer(&self) -> Option<&str> {
        self.answer.as_ref().map(|answer| answer.json.as_str())
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

/// A key as it is said. It counts for a bounded time, and cannot end in the future.
fn key_of(said: &SaidKey, now_ms: i64) -> Key {
    let until_max_ms = if said.is_old { now_ms } else { now_ms + VALID_MAX_MS };
    Key {
        public: said.public.clone(),
        until_ms: said.until_ms.min(until_max_ms),
        is_old: said.is_old,
        is_direct: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// A notary that was taken over could have us believe what it likes.
    #[test]
    fn a_notary_is_not_believed_over_the_server_itself() {
        let (now, server) = (100 * DAY_MS, ruma::server_name!("a.test"));
        let notary = answer(vec![
            said("ed25519:a", b"1", now - DAY_MS, true),
            said("ed25519:b", b"of the notary", now + DAY_MS, false),
            said("ed25519:c", b"3", now + DAY_MS, false),
        ]);
        let itself = answer(vec![
            said("ed25519:a", b"1", now + DAY_MS, false),
            said("ed25519:b", b"of the server", now + DAY_MS, false),
        ]);
        // Whether the server speaks first or last.
        let first = Known::default().with(&itself, now).with_notary(server, &notary, now);
        let last = Known::default().with_notary(server, &notary, now).with(&itself, now);
        for known in [&first, &last] {
            let keys = known.current_at(now);
            assert_eq!(keys["ed25519:a"], Base64::new(b"1".to_vec()));
            assert_eq!(keys["ed25519:b"], Base64::new(b"of the server".to_vec()));
        }
        // What the notary alone says is gone once the server has answered without it.
        assert!(first.current_at(now).contains_key("ed25519:c") && !last.current_at(now).contains_key("ed25519:c"));
        let again = first.with(&itself, now);
        assert_eq!(first.without(&again), ["ed25519:c"]);
        // What the notary gave us does not keep us from asking the server, nor from having failed to.
        let failed = Known::default().without_answer(now);
        assert!(Known::default().with_notary(server, &notary, now).may_be_asked(now));
        assert!(!failed.with_notary(server, &notary, now).may_be_asked(now + 1));
        let wanted = Wanted { key_ids: ["ed25519:c".try_into().unwrap()].into(), valid_at_ms: now };
        assert!(first.has(&wanted) && !first.has_directly(&wanted));
    }

    #[test]
    fn an_old_key_cannot_end_in_the_future() {
        let now = 100 * DAY_MS;
        let known = Known::default().with(&answer(vec![said("ed25519:a", b"1", 1_000 * DAY_MS, true)]), now);
        assert!(known.valid_at(now).contains_key("ed25519:a") && known.valid_at(now + 1).is_empty());
    }

    #[test]
    fn a_server_with_ever_new_keys_has_a_bounded_number_of_them() {
        let mut known = Known::default();
        for day in 0..1_000 {
            known = known
                .with(&answer(vec![said(&format!("ed25519:{day}"), b"1", (day + 1) * DAY_MS, false)]), day * DAY_MS);
        }
        assert_eq!(known.keys.len(), KEYS_MAX);
        assert!(known.keys.contains_key("ed25519:999"));
    }
}
