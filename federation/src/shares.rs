//! Fair shares of something that all have in common: no single server, site or address can take all of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub(crate) use model::site_of;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// So much for all, and so much of it for each. Cheap to clone; clones share it.
#[derive(Clone)]
pub(crate) struct Shares {
    all: Arc<Semaphore>,
    each_max: usize,
    /// Those who have something or wait for it. Held for moments only; no lock inside.
    each: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
}

/// What one has of it. Dropping it gives it back.
pub(crate) struct Share {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
    // Last: it looks whether anybody else is there.
    _place: Place,
}

/// A place among those who have something or wait for it.
struct Place {
    key: String,
    own: Arc<Semaphore>,
    each: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
}

impl Shares {
    pub(crate) fn new(all_max: usize, each_max: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all_max)), each_max, each: Arc::default() }
    }

    /// Takes `amount` for `key`, at most what each may have, after waiting at most so long; nothing when it was not free by then.
    ///
    /// Who waits for their own share keeps nothing from others.
    pub(crate) async fn take(&self, key: &str, amount: usize, wait: Duration) -> Option<Share> {
        let amount = u32::try_from(amount.min(self.each_max)).unwrap_or(u32::MAX);
        let own =
            lock(&self.each).entry(key.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.each_max))).clone();
        let place = Place { key: key.to_owned(), own, each: self.each.clone() };
        let taking = async {
            let own = place.own.clone().acquire_many_owned(amount).await.ok()?;
            let of_all = self.all.clone().acquire_many_owned(amount).await.ok()?;
            Some((own, of_all))
        };
        let (own, of_all) = timeout(wait, taking).await.ok().flatten()?;
        Some(Share { _own: own, _of_all: of_all, _place: place })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut each = lock(&self.each);
        // The map has one, and this place.
        if Arc::strong_count(&self.own) == 2 {
            each.remove(&self.key);
        }
    }
}

fn lock(each: &Mutex<HashMap<String, Arc<Semaphore>>>) -> MutexGuard<'_, HashMap<String, Arc<Semaphore>>> {
    // Nothing panics while it is held.
    each.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_AT_ALL: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn each_has_a_share_and_leaves_the_rest_to_others() {
        let shares = Shares::new(3, 2);
        let (first, second) = (shares.take("a", 1, LONG).await, shares.take("a", 1, LONG).await);
        assert!(first.is_some() && second.is_some());
        assert!(shares.take("a", 1, NOT_AT_ALL).await.is_none());
        let third = shares.take("b", 1, LONG).await;
        assert!(third.is_some());
        assert!(shares.take("c", 1, NOT_AT_ALL).await.is_none(), "all have no more than there is");
        drop(first);
        assert!(shares.take("c", 1, NOT_AT_ALL).await.is_some());
        // More than a share is a share.
        drop((second, third));
        assert!(shares.take("a", 100, NOT_AT_ALL).await.is_some());
    }

    #[tokio::test]
    async fn nothing_is_kept_of_who_has_gone() {
        let shares = Shares::new(1, 1);
        let one = shares.take("a", 1, LONG).await;
        assert!(shares.take("a", 1, NOT_AT_ALL).await.is_none());
        assert!(shares.take("b", 1, NOT_AT_ALL).await.is_none());
        assert_eq!(lock(&shares.each).len(), 1);
        drop(one);
        assert!(lock(&shares.each).is_empty());
    }
}
