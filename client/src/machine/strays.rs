//! What strangers can make us keep: sessions with devices that nobody knows, keys of rooms that we are not in. Of too many the oldest go.

use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};

use super::{Machine, Work};
use crate::{Error, Kind};

/// [`Strays`] by what they are.
const STRAYS: Kind = Kind("strays");
/// Most of one sender, and of all.
const OF_SENDER_MAX: usize = 20;
const STRAYS_MAX: usize = 1_000;

/// Who made us keep something, and its key in the store; the oldest in front.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Strays(Vec<(OwnedUserId, String)>);

impl Strays {
    /// Notes one; returns what has to go for it.
    fn add(&mut self, sender: &UserId, key: &str) -> Vec<String> {
        if self.0.iter().any(|(_, known)| known == key) {
            return Vec::new();
        }
        self.0.push((sender.to_owned(), key.to_owned()));
        let mut gone = Vec::new();
        if self.0.iter().filter(|(user_id, _)| user_id == sender).count() > OF_SENDER_MAX {
            let oldest = self.0.iter().position(|(user_id, _)| user_id == sender);
            gone.push(self.0.remove(oldest.expect("there are several")).1);
        }
        if self.0.len() > STRAYS_MAX {
            gone.push(self.0.remove(0).1);
        }
        gone
    }
}

impl Machine {
    /// Notes that `sender` made us keep `key`, which is of no use to us yet. Returns the keys that have to go for it, if they are still of none.
    pub(super) async fn note_stray(
        &self,
        work: &mut Work,
        kind: Kind,
        sender: &UserId,
        key: &str,
    ) -> Result<Vec<String>, Error> {
        let mut strays: Strays = self.store.get_with(&work.batch, STRAYS, kind.0).await?.unwrap_or_default();
        let gone = strays.add(sender, key);
        work.batch.put(STRAYS, kind.0, &strays);
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stranger makes room for the next thing of their own, and all strangers together for the next stranger's.
    #[test]
    fn of_too_many_the_oldest_of_the_same_sender_goes_first() {
        let user = |index: usize| UserId::parse(format!("@{index}:x")).unwrap();
        let mut strays = Strays::default();
        assert!(strays.add(&user(0), "other").is_empty());
        for index in 0..OF_SENDER_MAX {
            assert!(strays.add(&user(1), &format!("1 {index}")).is_empty());
        }
        assert!(strays.add(&user(1), "1 0").is_empty(), "it is known");
        assert_eq!(strays.add(&user(1), "1 more"), ["1 0"]);
        for index in 2..STRAYS_MAX - OF_SENDER_MAX + 1 {
            assert!(strays.add(&user(index), &index.to_string()).is_empty());
        }
        assert_eq!(strays.add(&user(0), "last"), ["other"]);
    }
}
