//! Events of which it was found that nothing relates to them: most, so that most pages need not ask.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;
use ruma::{EventId, OwnedEventId};

/// Most events that are remembered.
const EVENTS_CACHED: u64 = 50_000;

/// How long they are: what processes of an older program write, the stream does not tell of.
const KEPT: Duration = Duration::from_secs(600);

/// Events to which nothing relates. An event leaves when something does, in the process that writes it, and in the others as they
/// follow the stream.
#[derive(Clone)]
pub(crate) struct Childless {
    events: Cache<OwnedEventId, ()>,
    /// Counts what left: what was read from the database while something did may be as it was before.
    left: Arc<AtomicU64>,
}

impl Childless {
    pub(crate) fn new() -> Self {
        let events = Cache::builder().max_capacity(EVENTS_CACHED).time_to_live(KEPT).build();
        Self { events, left: Arc::default() }
    }

    pub(crate) fn contains(&self, event_id: &EventId) -> bool {
        self.events.contains_key(event_id)
    }

    /// To be asked before the database is.
    pub(crate) fn version(&self) -> u64 {
        self.left.load(Ordering::SeqCst)
    }

    /// Remembers events of which the database, asked after `version` was, said that nothing relates to them.
    pub(crate) fn insert<'a>(&self, events: impl Iterator<Item = &'a EventId>, version: u64) {
        for event_id in events {
            self.events.insert(event_id.to_owned(), ());
            // Looked at last: who forgets counts first.
            if self.version() != version {
                self.events.invalidate(event_id);
            }
        }
    }

    /// Something relates to the event.
    pub(crate) fn forget(&self, event_id: &EventId) {
        self.left.fetch_add(1, Ordering::SeqCst);
        self.events.invalidate(event_id);
    }

    pub(crate) fn forget_all(&self) {
        self.left.fetch_add(1, Ordering::SeqCst);
        self.events.invalidate_all();
    }
}
