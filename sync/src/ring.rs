//! The newest part of the stream, in memory, shared by all who read it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use model::{Position, RoomNr};
use storage::{Item, StoredEvent};
use tokio::sync::watch;

/// Most items that are kept; who is further behind reads the database.
const ITEMS_MAX: usize = 20_000;

/// A live event that was redacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Redacted {
    pub(crate) room_nr: RoomNr,
    /// Where it stands.
    pub(crate) position: Position,
    /// Whether it was in a thread, if it might count as unread.
    pub(crate) counted_in_thread: Option<bool>,
}

/// Items of the stream after a position up to the newest, in order.
pub(crate) struct Ring {
    /// Guards the items. Held for moments only; no other lock is taken inside.
    items: Mutex<Items>,
    newest: watch::Sender<Position>,
}

struct Items {
    /// Everything after this position is here.
    after: Position,
    items: VecDeque<(Position, Item)>,
    /// What was redacted, with the end of the group that did it.
    redacted: VecDeque<(Position, Redacted)>,
}

impl Items {
    fn new(after: Position) -> Self {
        Self { after, items: VecDeque::new(), redacted: VecDeque::new() }
    }
}

impl Ring {
    pub(crate) fn new(newest: Position) -> Self {
        let items = Mutex::new(Items::new(newest));
        Self { items, newest: watch::channel(newest).0 }
    }

    pub(crate) fn newest(&self) -> Position {
        *self.newest.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Position> {
        self.newest.subscribe()
    }

    /// Adds a group that follows directly on what is here, and redacted this.
    pub(crate) fn push(&self, new: &[(Position, Item)], position: Position, redacted: &[Redacted]) {
        let mut guard = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        guard.items.extend(new.iter().cloned());
        guard.redacted.extend(redacted.iter().map(|redacted| (position, *redacted)));
        while guard.redacted.len() > ITEMS_MAX {
            if let Some((dropped, _)) = guard.redacted.pop_front() {
                guard.after = guard.after.max(dropped);
            }
        }
        while guard.items.len() > ITEMS_MAX {
            if let Some((dropped, _)) = guard.items.pop_front() {
                guard.after = guard.after.max(dropped);
            }
        }
        self.newest.send_replace(position);
    }

    /// Puts what is left of a redacted event in its place, if it is here.
    pub(crate) fn replace(&self, event: Arc<StoredEvent>) {
        let mut guard = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(position) = event.position else { return };
        let index = guard.items.partition_point(|(at, _)| *at < position);
        if let Some((at, item @ Item::Event(_))) = guard.items.get_mut(index)
            && *at == position
        {
            *item = Item::Event(event);
        }
    }

    /// Starts anew at a position: what came before it is in the database only.
    pub(crate) fn restart(&self, position: Position) {
        let mut guard = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        *guard = Items::new(position);
        self.newest.send_replace(position);
    }

    /// What was redacted after `since` up to `upto`. For positions of which all is here.
    pub(crate) fn redacted(&self, since: Position, upto: Position) -> Vec<Redacted> {
        let guard = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let start = guard.redacted.partition_point(|(position, _)| *position <= since);
        let found = guard.redacted.range(start..).take_while(|(position, _)| *position <= upto);
        found.map(|(_, redacted)| *redacted).collect()
    }

    /// Looks at all items after `since` up to `upto`, oldest first; `false` when they are not all here.
    pub(crate) fn scan(&self, since: Position, upto: Position, mut look: impl FnMut(Position, &Item)) -> bool {
        let guard = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        if since < guard.after {
            return false;
        }
        let start = guard.items.partition_point(|(position, _)| *position <= since);
        for (position, item) in guard.items.range(start..).take_while(|(position, _)| *position <= upto) {
            look(*position, item);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use model::UserNr;

    use super::*;

    fn seen(ring: &Ring, since: i64) -> Option<Vec<i64>> {
        let mut seen = Vec::new();
        ring.scan(Position(since), ring.newest(), |position, _| seen.push(position.0)).then_some(seen)
    }

    #[test]
    fn a_reader_sees_each_item_once_or_is_sent_to_the_database() {
        let ring = Ring::new(Position(10));
        let items: Vec<_> = (11..=13).map(|p| (Position(p), Item::DeviceList(UserNr(1)))).collect();
        let redacted = Redacted { room_nr: RoomNr(5), position: Position(7), counted_in_thread: None };
        ring.push(&items, Position(13), &[redacted]);
        assert_eq!(seen(&ring, 10), Some(vec![11, 12, 13]));
        assert_eq!(seen(&ring, 12), Some(vec![13]));
        assert_eq!(seen(&ring, 9), None, "older than what is kept");
        assert_eq!(ring.redacted(Position(10), Position(13)), [redacted]);
        assert_eq!(ring.redacted(Position(10), Position(12)), []);
        assert_eq!(ring.redacted(Position(13), Position(13)), []);
        ring.restart(Position(20));
        assert_eq!(seen(&ring, 13), None);
        assert_eq!(seen(&ring, 20), Some(vec![]));
    }
}
