//! How often a password may be wrong.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ruma::UserId;

use crate::{Error, secrets};

/// How many wrong passwords of one account are taken at once, after a pause.
const GUESSES_AT_ONCE: i64 = 10;
/// How long it takes until one more is taken, in milliseconds: 2,880 a day.
const GUESS_EVERY_MS: i64 = 30_000;
/// Most accounts that are counted at once, some 10 MiB; beyond it new names are not counted. A single guess is counted for
/// [`GUESS_EVERY_MS`]: to fill it takes thousands of guesses a second, each of which costs us a hash.
const ACCOUNTS_MAX: usize = 100_000;

/// Counts wrong passwords by account, whoever shows them: a guesser has many addresses. Belongs to this process.
///
/// Nobody is locked out for longer than [`GUESS_EVERY_MS`], and who is logged in confirms by password all the same, whatever strangers
/// do: that is counted apart. Names that do not exist are counted too, so that the answer does not tell.
pub(crate) struct Guesses {
    /// When the last of the guesses of an account is forgotten, by the hash of the account. Guards itself; no lock inside.
    counted: Option<Mutex<HashMap<Key, i64>>>,
}

type Key = [u8; 16];

/// Whose password is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guesser<'a> {
    /// By whoever says to be this user.
    Anyone(&'a UserId),
    /// By somebody who has shown a token of this user.
    LoggedIn(&'a UserId),
}

impl<'a> Guesser<'a> {
    /// Whose password it is.
    pub(crate) fn user_id(self) -> &'a UserId {
        match self {
            Self::Anyone(user_id) | Self::LoggedIn(user_id) => user_id,
        }
    }

    fn key(self) -> Key {
        let prefix = if matches!(self, Self::Anyone(_)) { "" } else { "logged in " };
        let hash = secrets::hash(&format!("{prefix}{}", self.user_id().as_str().to_ascii_lowercase()));
        let mut key = Key::default();
        key.copy_from_slice(&hash[..16]);
        key
    }
}

impl Guesses {
    /// A count that is off takes any number of guesses.
    pub(crate) fn new(is_on: bool) -> Self {
        Self { counted: is_on.then(Mutex::default) }
    }

    /// Counts a guess before it is known whether it is right, so that many at once do not pass: [`Guesses::take_back`] the right one.
    ///
    /// # Errors
    ///
    /// [`Error::LimitExceeded`] when there were too many.
    pub(crate) fn count(&self, guesser: Guesser<'_>, now_ms: i64) -> Result<(), Error> {
        let Some(counted) = &self.counted else { return Ok(()) };
        let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
        let key = guesser.key();
        if counted.len() >= ACCOUNTS_MAX && !counted.contains_key(&key) {
            counted.retain(|_, forgotten_ms| *forgotten_ms > now_ms);
            if counted.len() >= ACCOUNTS_MAX {
                return Ok(());
            }
        }
        let forgotten_ms = counted.entry(key).or_insert(now_ms);
        let with_this_ms = (*forgotten_ms).max(now_ms) + GUESS_EVERY_MS;
        let wait_ms = with_this_ms - now_ms - GUESSES_AT_ONCE * GUESS_EVERY_MS;
        if wait_ms > 0 {
            return Err(Error::LimitExceeded(Duration::from_millis(wait_ms.unsigned_abs())));
        }
        *forgotten_ms = with_this_ms;
        Ok(())
    }

    /// The guess was right, or nobody knows: it does not count.
    pub(crate) fn take_back(&self, guesser: Guesser<'_>) {
        let Some(counted) = &self.counted else { return };
        let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(forgotten_ms) = counted.get_mut(&guesser.key()) {
            *forgotten_ms -= GUESS_EVERY_MS;
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn what_is_forgotten_makes_room_and_what_is_not_counts_on() {
        let guesses = Guesses::new(true);
        let count = |name: usize, now_ms| {
            let user_id = UserId::parse(format!("@u{name}:a.test")).unwrap();
            guesses.count(Guesser::Anyone(&user_id), now_ms)
        };
        for name in 0..ACCOUNTS_MAX {
            count(name, 0).unwrap();
        }
        count(ACCOUNTS_MAX, 0).unwrap();
        assert_eq!(guesses.counted.as_ref().unwrap().lock().unwrap().len(), ACCOUNTS_MAX, "there is no place");
        for _ in 1..GUESSES_AT_ONCE {
            count(0, 0).unwrap();
        }
        assert!(count(0, 0).is_err(), "those that are there still count");
        count(ACCOUNTS_MAX, GUESS_EVERY_MS).unwrap();
        assert_eq!(guesses.counted.as_ref().unwrap().lock().unwrap().len(), 2);
    }

    #[test]
    fn a_count_comes_back_with_time_and_by_right_guesses() {
        let guesses = Guesses::new(true);
        let alice = user_id!("@alice:a.test");
        let count = |now_ms| guesses.count(Guesser::Anyone(alice), now_ms);
        for _ in 0..GUESSES_AT_ONCE {
            count(0).unwrap();
        }
        let Err(Error::LimitExceeded(wait)) = count(1_000) else { panic!("one too many") };
        assert_eq!(wait, Duration::from_secs(29));
        guesses.count(Guesser::LoggedIn(alice), 1_000).expect("who is logged in is counted apart");
        count(30_000).unwrap();
        count(30_000).unwrap_err();
        guesses.take_back(Guesser::Anyone(alice));
        count(30_000).unwrap();
        count(30_000).unwrap_err();
        for _ in 0..1_000 {
            Guesses::new(false).count(Guesser::Anyone(alice), 0).unwrap();
        }
    }
}
