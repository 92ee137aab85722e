//! A value of the database in memory that is forgotten when the stream says that it changed.

use std::sync::{Arc, Mutex, PoisonError};

/// A value, or nothing while nobody has read it since it changed.
#[derive(Debug)]
pub(crate) struct Remembered<T> {
    /// Guards the value and how often it was forgotten. Held for moments only; no other lock is taken inside.
    inner: Mutex<(u64, Option<Arc<T>>)>,
}

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self { inner: Mutex::new((0, None)) }
    }
}

impl<T> Remembered<T> {
    /// The value, or how often it was forgotten: whoever reads it from the database says so when keeping it.
    pub(crate) fn get(&self) -> Result<Arc<T>, u64> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1.clone().ok_or(inner.0)
    }

    /// Keeps a value, unless it was forgotten while it was read.
    pub(crate) fn keep(&self, forgotten: u64, value: &Arc<T>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.0 == forgotten {
            inner.1 = Some(value.clone());
        }
    }

    /// Forgets the value.
    pub(crate) fn forget(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0 += 1;
        inner.1 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_changed_while_it_was_read_is_not_kept() {
        let remembered = Remembered::default();
        let forgotten = remembered.get().unwrap_err();
        remembered.forget();
        remembered.keep(forgotten, &Arc::new(1));
        let forgotten = remembered.get().expect_err("what was read may be old");
        remembered.keep(forgotten, &Arc::new(2));
        assert_eq!(remembered.get().as_deref(), Ok(&2));
    }
}
