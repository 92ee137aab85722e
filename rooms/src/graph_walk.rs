//! Walks from events of a room towards its beginning. Server-Server API, "Backfilling and retrieving missing events".

use std::collections::{HashMap, HashSet};

use model::{EventNr, RoomNr};
use storage::{EventNode, Storage};

use crate::Error;

/// Events of the timeline that are read ahead: most rooms are one line, which is walked in one query.
const READ_AHEAD: u32 = 100;
/// Most events that one walk looks at.
const LOOKED_AT_MAX: usize = 2_000;

/// Which events a walk finds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Most events.
    pub(crate) limit: usize,
    /// The least depth; nothing before an event of a lesser one is looked at.
    pub(crate) min_depth: i64,
    /// Whether those that it starts from are among them.
    pub(crate) with_first: bool,
}

/// The graph of a room, as far as it was looked at.
pub(crate) struct Graph<'a> {
    storage: &'a Storage,
    room_nr: RoomNr,
    nodes: HashMap<EventNr, EventNode>,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(storage: &'a Storage, room_nr: RoomNr) -> Self {
        Self { storage, room_nr, nodes: HashMap::new() }
    }

    /// The events before those of `first`, breadth-first: the nearest ones first, those of one distance by depth. Not those of `known`, nor
    /// what only leads to them. What was rejected is walked through and left out.
    pub(crate) async fn before(
        &mut self,
        first: &[EventNr],
        known: &[EventNr],
        wanted: Wanted,
    ) -> Result<Vec<EventNr>, Error> {
        let mut seen: HashSet<EventNr> = known.iter().copied().collect();
        let seen_max = seen.len() + LOOKED_AT_MAX;
        let mut level: Vec<EventNr> = first.iter().copied().filter(|nr| seen.insert(*nr)).collect();
        let (mut found, mut is_first) = (Vec::new(), true);
        while !level.is_empty() && found.len() < wanted.limit && seen.len() <= seen_max {
            self.load(&level).await?;
            let mut nodes: Vec<&EventNode> = level.iter().filter_map(|nr| self.nodes.get(nr)).collect();
            // Whatever `first` names: only this room's events are found. Of an outlier it is not known what came before it.
            nodes.retain(|node| node.room_nr == self.room_nr && !node.outlier && node.depth >= wanted.min_depth);
            nodes.sort_by_key(|node| std::cmp::Reverse((node.depth, node.nr)));
            if !is_first || wanted.with_first {
                found.extend(nodes.iter().filter(|node| !node.rejected).map(|node| node.nr));
            }
            level = nodes.iter().flat_map(|node| &node.prev).copied().filter(|nr| seen.insert(*nr)).collect();
            is_first = false;
        }
        found.truncate(wanted.limit);
        Ok(found)
    }

    /// Reads events and, when any was not read yet, what lies before them in the timeline: two queries at most.
    async fn load(&mut self, events: &[EventNr]) -> Result<(), Error> {
        let missing: Vec<EventNr> = events.iter().copied().filter(|nr| !self.nodes.contains_key(nr)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let read = self.storage.list_event_nodes(&missing).await?;
        let newest = read.iter().filter(|node| node.room_nr == self.room_nr).filter_map(|node| node.place).max();
        self.nodes.extend(read.into_iter().map(|node| (node.nr, node)));
        if let Some(place) = newest {
            let before = self.storage.list_event_nodes_before(self.room_nr, place, READ_AHEAD).await?;
            self.nodes.extend(before.into_iter().map(|node| (node.nr, node)));
        }
        Ok(())
    }
}
