//! A room's turn: what waits is built together, in order, one group at a time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use ruma::OwnedEventId;
use storage::{Commit, CommitError, NewTransaction, RoomCommit, RoomRow};
use tokio::{sync::oneshot, task::JoinSet};

use crate::{
    Draft, Error, Rooms,
    head::{Built, Head},
    race::Race,
};

/// Most events that are built in one turn.
const BUILT_AT_ONCE: usize = 100;
/// Most events that wait for one room; more are refused with [`Error::Busy`].
const WAITING_MAX: usize = 2_000;

/// The queue of a room, and its head.
#[derive(Default)]
pub(crate) struct Turn {
    /// What waits. Held for moments only; no other lock is taken inside.
    queue: Mutex<Queue>,
    /// The room's head; whoever holds it has the turn, across the commit: that is what a turn is.
    head: tokio::sync::Mutex<Option<Head>>,
    /// Whoever holds it upgrades the room. Comes before the turns of rooms.
    upgrade: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Whether a task works the queue off.
    is_worked: bool,
}

struct Waiting {
    draft: Draft,
    answer: oneshot::Sender<Result<OwnedEventId, Error>>,
}

impl Turn {
    /// Waits for the turn and holds it; no other event is built meanwhile.
    pub(crate) async fn take_head(&self) -> tokio::sync::MutexGuard<'_, Option<Head>> {
        self.head.lock().await
    }

    /// Waits until nobody else in this process upgrades the room; whether somebody did.
    pub(crate) async fn take_upgrade(&self) -> (tokio::sync::MutexGuard<'_, ()>, bool) {
        match self.upgrade.try_lock() {
            Ok(guard) => (guard, false),
            Err(_) => (self.upgrade.lock().await, true),
        }
    }

    /// Puts an event into the queue; whether somebody must start to work it off.
    fn push(&self, waiting: Waiting) -> Result<bool, Error> {
        let mut queue = self.queue();
        if queue.waiting.len() >= WAITING_MAX {
            return Err(Error::Busy);
        }
        queue.waiting.push_back(waiting);
        Ok(!std::mem::replace(&mut queue.is_worked, true))
    }

    /// What is built together next; nothing, and the work is over, when nothing waits.
    fn next_group(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue();
        let count = queue.waiting.len().min(BUILT_AT_ONCE);
        queue.is_worked = count > 0;
        (count > 0).then(|| queue.waiting.drain(..count).collect())
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Frees the queue of a task that panics: who waits is told to try again, and the next one starts a new task.
struct Work<'a>(&'a Turn);

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.queue() = Queue::default();
        }
    }
}

impl Rooms {
    /// Sends an event; durable when it returns. The same transaction gives the same event again.
    pub(crate) async fn submit(&self, room: &Arc<RoomRow>, draft: Draft) -> Result<OwnedEventId, Error> {
        let turn = self.turn(room.nr);
        let (answer, answered) = oneshot::channel();
        if turn.push(Waiting { draft, answer })? {
            // A task of its own, so that a client who hangs up does not stop the others' events half-way.
            let (rooms, room) = (self.clone(), room.clone());
            tokio::spawn(async move { rooms.work_off(&turn, &room).await });
        }
        answered.await.unwrap_or(Err(Error::Busy))
    }

    /// Sends many events of one room, as many together as one turn builds; one result each.
    pub(crate) async fn submit_all(&self, room: &Arc<RoomRow>, drafts: Vec<Draft>) -> Vec<Result<OwnedEventId, Error>> {
        let mut results = Vec::with_capacity(drafts.len());
        let mut drafts = drafts.into_iter().peekable();
        while drafts.peek().is_some() {
            let mut sent = JoinSet::new();
            for draft in drafts.by_ref().take(BUILT_AT_ONCE) {
                let (rooms, room) = (self.clone(), room.clone());
                sent.spawn(async move { rooms.submit(&room, draft).await });
            }
            results.extend(sent.join_all().await);
        }
        results
    }

    /// Builds and commits what waits for a room, until nothing does.
    async fn work_off(&self, turn: &Turn, room: &Arc<RoomRow>) {
        let _work = Work(turn);
        loop {
            // Given back after each group: others wait for the turn, too.
            let mut head = turn.take_head().await;
            let Some(group) = turn.next_group() else { return };
            self.send_group(&mut head, room, group).await;
        }
    }

    async fn send_group(&self, head: &mut Option<Head>, room: &Arc<RoomRow>, mut group: Vec<Waiting>) {
        let mut race = Race::default();
        while !group.is_empty() {
            match self.build_and_commit(head, room, &group, race.wants_lease()).await {
                Ok(results) => {
                    for (waiting, result) in group.into_iter().zip(results) {
                        let _ = waiting.answer.send(result);
                    }
                    return;
                }
                Err(CommitError::Replayed(known)) => {
                    // Done before: those get the event of then, the others are built again.
                    *head = None;
                    let (done, rest): (Vec<_>, Vec<_>) = group.into_iter().partition(|waiting| {
                        known.iter().any(|(key, _)| waiting.draft.transaction.as_ref() == Some(key))
                    });
                    for waiting in done {
                        let event_id = known
                            .iter()
                            .find(|(key, _)| waiting.draft.transaction.as_ref() == Some(key))
                            .and_then(|(_, event_id)| event_id.clone());
                        let _ = waiting.answer.send(event_id.ok_or(Error::EventUnknown));
                    }
                    group = rest;
                }
                Err(error) => {
                    *head = None;
                    if race.goes_on(&error).await {
                        continue;
                    }
                    let error = Error::from(error);
                    for waiting in group {
                        let _ = waiting.answer.send(Err(error.clone()));
                    }
                    return;
                }
            }
        }
    }

    /// Builds a group of events upon the head and commits them together; one result each.
    async fn build_and_commit(
        &self,
        head: &mut Option<Head>,
        room: &Arc<RoomRow>,
        group: &[Waiting],
        lease: bool,
    ) -> Result<Vec<Result<OwnedEventId, Error>>, CommitError> {
        let all = |error: Error| Ok(group.iter().map(|_| Err(error.clone())).collect());
        let mut current = match head.take() {
            Some(head) => head,
            None => match Head::load(self.storage(), room.clone()).await {
                Ok(head) => head,
                Err(error) => return all(error),
            },
        };
        let numbers = self.storage().take_event_nrs(group.len()).await?;
        let mut built = Built::default();
        let mut results: Vec<Result<OwnedEventId, Error>> = Vec::with_capacity(group.len());
        let mut transactions: Vec<NewTransaction> = Vec::new();
        for (waiting, nr) in group.iter().zip(numbers) {
            let draft = &waiting.draft;
            // The same request twice in one turn: the second gets the first one's event.
            if let Some(key) = &draft.transaction
                && let Some(first) = group.iter().position(|other| other.draft.transaction.as_ref() == Some(key))
                && let Some(result) = results.get(first)
            {
                results.push(result.clone());
                continue;
            }
            let before = built.events.len();
            let result = current.build(self.storage(), &self.0.servers, draft, nr, Some(self), &mut built).await;
            // Done before, and forbidden since: the answer is that of then. Client-Server API, "Transaction identifiers".
            if result.is_err()
                && let Some(key) = &draft.transaction
                && let Some(Some(event_id)) = self.storage().find_transaction(key).await?
            {
                results.push(Ok(event_id));
                continue;
            }
            if result.is_ok()
                && let Some(key) = &draft.transaction
            {
                let event_nr = if built.events.len() > before { Some(nr) } else { self.standing(&result).await? };
                transactions.push(NewTransaction { key: key.clone(), event_nr });
            }
            results.push(result);
        }
        if built.events.is_empty() && transactions.is_empty() {
            *head = Some(current);
            return Ok(results);
        }
        let mut room = RoomCommit { lease, ..room_commit(&current, built) };
        if current.is_partial
            && let Err(error) = Box::pin(self.settle_memberships(&mut room)).await
        {
            return all(error);
        }
        let commit = Commit { room: Some(room), transactions, ..Commit::default() };
        self.storage().commit(commit).await?;
        current.committed();
        *head = Some(current);
        Ok(results)
    }

    /// The number of a state event that stood already.
    async fn standing(&self, result: &Result<OwnedEventId, Error>) -> Result<Option<model::EventNr>, CommitError> {
        match result {
            Ok(event_id) => Ok(self.storage().find_event_nr(event_id).await?),
            Err(_) => Ok(None),
        }
    }
}

/// What was built upon a head, as the committer takes it.
pub(crate) fn room_commit(head: &Head, built: Built) -> RoomCommit {
    let added = head.extremities.iter().map(|(nr, _)| *nr);
    RoomCommit {
        room_nr: head.row.nr,
        expected_state: head.stored_state,
        state: head.state,
        depth: head.depth,
        extremities_added: added.filter(|nr| built.events.iter().any(|event| event.nr == *nr)).collect(),
        extremities_used: built.extremities_used,
        events: built.events,
        state_nodes: built.nodes.nodes,
        state_changes: built.state_changes,
        summary: built.summary_changed.then(|| head.summary.clone()),
        redactions: built.redactions,
        related_redactions: built.related_redactions,
        ..RoomCommit::default()
    }
}
