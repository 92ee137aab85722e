//! Who sends to a destination: one task at a time, as long as this process has the destination's share.
//!
//! A process that was stopped for a while finds that another one has its shares. What it had under way arrives twice at most, which the other
//! side knows by the ids of events and messages; nothing else follows: a task looks whether the lease holds before each transaction, and a
//! destination that was given back and taken again has another run.

use super::{
    PAUSE_MS, Sender, State,
    destination::{Destination, Route, RunNr},
};

/// A task that sends to a destination.
pub(super) struct Run {
    sender: Sender,
    pub(super) route: Route,
    nr: RunNr,
}

impl State {
    /// Begins to send to a destination to which nobody sends.
    pub(super) fn begin_run(&mut self, sender: &Sender, route: &Route) -> Option<Run> {
        let destination = self.destinations.get_mut(route).filter(|destination| destination.run.is_none())?;
        self.runs.0 += 1;
        destination.run = Some(self.runs);
        Some(Run { sender: sender.clone(), route: route.clone(), nr: self.runs })
    }

    /// The destination of a run, while the run has it.
    pub(super) fn of(&mut self, run: &Run) -> Option<&mut Destination> {
        self.destinations.get_mut(&run.route).filter(|destination| destination.run == Some(run.nr))
    }

    /// Ends a run; its destination is looked at again at a time.
    pub(super) fn end_run(&mut self, run: &Run, again_ms: i64) {
        if let Some(destination) = self.of(run) {
            destination.run = None;
            self.wheel.insert((again_ms, run.route.clone()));
        }
    }
}

impl Run {
    /// Ends it, however its task does, by a panic too, when this is dropped: the destination is free for another one.
    pub(super) fn end_on_drop(&self) -> EndOnDrop<'_> {
        EndOnDrop(self)
    }
}

/// See [`Run::end_on_drop`]. Dropped without the lock of the state.
pub(super) struct EndOnDrop<'a>(&'a Run);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        let Self(run) = self;
        let again_ms = run.sender.now_ms() + PAUSE_MS;
        run.sender.lock().end_run(run, again_ms);
    }
}
