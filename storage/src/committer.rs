//! The committer: one task that writes commits in groups and gives them their places in the stream.
//!
//! Commits that arrive while a group is being flushed make up the next group, at most one of a room. A group is one
//! transaction, of four hand-overs to the database:
//! 1. *Order*: take the order lock (PostgreSQL: an advisory lock, in a statement of its own; SQLite: `BEGIN IMMEDIATE`). What arrives
//!    until then is part of the group.
//! 2. *Check* each commit against what is stored; it passes whole or fails alone.
//! 3. *Write* all that passed, in one batch.
//! 4. *Make durable, publish, answer*, then wake who listens. SQLite syncs as it commits. PostgreSQL commits without waiting, which frees
//!    the order lock, then one empty durable transaction makes this and all before it durable, while the next group is being written.
//!
//! Event ids and transaction ids are not looked up first: they are inserted, and when some existed the group is undone
//! and tried again with a look at each. That is rare, and the common group saves two queries.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use model::{Clock, EventNr, NodeNr, Position, RoomNr};
use ruma::{EventId, OwnedEventId};
use tokio::sync::{Mutex, broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Commit, CommitError, Committed, Error, Storage, TransactionKey,
    account_data::AccountDataVersions,
    childless::Childless,
    db::{Db, Tx, args},
    events::EventCache,
    group::GroupWriter,
    packed::unpack_events,
    room_leases::{RoomLease, RoomLeases},
    rows::Rows,
    statement::statements,
    stream::{Item, Published},
};

/// Most commits that wait; more are refused with [`CommitError::Busy`].
const WAITING_MAX: usize = 4_096;
/// Most commits of one group: bounds how long the order lock is held.
const GROUP_COMMITS_MAX: usize = 512;
/// Most events of one group, unless a single commit has more.
const GROUP_EVENTS_MAX: usize = 1_000;
/// How many groups a slow receiver of the stream may be behind before it has to read the database.
pub(crate) const PUBLISHED_KEPT: usize = 1_024;

statements! {
    NEWEST_POSITION = ["SELECT coalesce(max(position), 0) FROM commits"];
    /// The newest position, beside each of the heads; once without a head when there are none.
    GET_NEWEST_AND_HEADS = ["
        SELECT c.newest, h.room_nr, h.state_node, h.depth, h.extremities, h.lease_process, h.lease_until_ms, h.position,
               h.is_partial
          FROM (SELECT coalesce(max(position), 0) AS newest FROM commits) AS c
          LEFT JOIN room_heads h ON h.room_nr", (in_list 1)];
    FIND_TRANSACTIONS = ["
        SELECT t.user_nr, t.device_id, t.scope, t.transaction_id, e.event_id
          FROM", (rows [1 user_nr bigint, 2 device_id text, 3 scope text, 4 transaction_id text]), "
          JOIN transaction_ids t ON t.user_nr = r.user_nr AND t.device_id = r.device_id
               AND t.scope = r.scope AND t.transaction_id = r.transaction_id
          LEFT JOIN events e ON e.event_nr = t.event_nr"];
    FIND_EVENT_IDS = ["SELECT event_id FROM events WHERE event_id", (in_list 1)];
    /// Those of some events that have their place.
    FIND_PLACED = ["SELECT event_nr FROM events WHERE event_nr", (in_list 1), " AND flags & 1 = 0"];
    FIND_ROOMS = ["SELECT room_id FROM rooms WHERE room_id", (in_list 1)];
    FIND_ANNOTATIONS = ["
        SELECT c.room_nr, c.event_nr
          FROM", (rows [1 room_nr bigint, 2 parent_id text, 3 sender_nr bigint, 4 type_nr bigint, 5 annotation_key bigint]), "
          JOIN relations c ON c.room_nr = r.room_nr AND c.parent_id = r.parent_id AND c.sender_nr = r.sender_nr
               AND c.type_nr = r.type_nr AND c.annotation_key = r.annotation_key"];
    FIND_ALIASES = ["SELECT alias FROM aliases WHERE alias", (in_list 1)];
}

/// What the committer works with.
pub(crate) struct Parts {
    pub(crate) db: Db,
    pub(crate) clock: Clock,
    pub(crate) process: String,
    pub(crate) published: watch::Sender<Position>,
    pub(crate) stream: broadcast::Sender<Arc<Published>>,
    pub(crate) events: EventCache,
    pub(crate) account_data: AccountDataVersions,
    pub(crate) childless: Childless,
}

/// The handle to the committer's task.
pub(crate) struct Committer {
    queue: mpsc::Sender<Waiting>,
    closing: CancellationToken,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

struct Waiting {
    commit: Commit,
    answer: oneshot::Sender<Result<Committed, CommitError>>,
}

/// The newest position in the database.
pub(crate) async fn newest_position(db: &Db) -> Result<Position, Error> {
    db.read_one(&NEWEST_POSITION, args![]).await?.map_or(Ok(Position(0)), |row| row.nr(0))
}

impl Committer {
    pub(crate) fn start(parts: Parts) -> Self {
        let (queue, receiver) = mpsc::channel(WAITING_MAX);
        let closing = CancellationToken::new();
        let task = tokio::spawn(run(parts, receiver, closing.clone()));
        Self { queue, closing, task: Mutex::new(Some(task)) }
    }

    pub(crate) async fn commit(&self, commit: Commit) -> Result<Committed, CommitError> {
        if self.closing.is_cancelled() {
            return Err(Error::Closed.into());
        }
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Waiting { commit, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CommitError::Busy,
            mpsc::error::TrySendError::Closed(_) => Error::Closed.into(),
        })?;
        answered.await.unwrap_or_else(|_| Err(Error::Closed.into()))
    }

    /// Writes what is queued and ends the task.
    pub(crate) async fn close(&self) {
        self.closing.cancel();
        if let Some(task) = self.task.lock().await.take() {
            let _ = task.await;
        }
    }
}

async fn run(parts: Parts, mut queue: mpsc::Receiver<Waiting>, closing: CancellationToken) {
    // Commits whose room is in the running group wait here, in order.
    let mut later: VecDeque<Waiting> = VecDeque::new();
    let mut written: Vec<Unpublished> = Vec::new();
    loop {
        if later.is_empty()
            && let Ok(waiting) = queue.try_recv()
        {
            later.push_back(waiting);
        }
        if later.is_empty() {
            finish(&parts, std::mem::take(&mut written)).await;
            tokio::select! {
                next = queue.recv() => match next {
                    Some(waiting) => later.push_back(waiting),
                    None => return,
                },
                () = closing.cancelled() => match queue.try_recv() {
                    Ok(waiting) => later.push_back(waiting),
                    Err(_) => return,
                },
            }
        }
        // What was written becomes durable while the next group is being written.
        let next = write_next(&parts, &mut queue, &mut later);
        let ((), next) = tokio::join!(finish(&parts, std::mem::take(&mut written)), next);
        written = next;
    }
}

/// Writes the next group: what has arrived when it is this process's turn. The longer it waits for that, the larger the group.
async fn write_next(
    parts: &Parts,
    queue: &mut mpsc::Receiver<Waiting>,
    later: &mut VecDeque<Waiting>,
) -> Vec<Unpublished> {
    let tx = parts.db.begin_ordered().await;
    while later.len() < WAITING_MAX {
        match queue.try_recv() {
            Ok(waiting) => later.push_back(waiting),
            Err(_) => break,
        }
    }
    write_group(parts, tx, take_group(later)).await
}

/// Takes the next group off the queue: in order, at most one commit of a room.
fn take_group(later: &mut VecDeque<Waiting>) -> Vec<Waiting> {
    let mut group = Vec::new();
    let mut rooms = HashSet::new();
    let mut events = 0;
    let mut rest = VecDeque::new();
    while let Some(waiting) = later.pop_front() {
        let room = waiting.commit.room.as_ref();
        let count = room.map_or(0, |room| room.events.len());
        let full = group.len() >= GROUP_COMMITS_MAX || (events > 0 && events + count > GROUP_EVENTS_MAX);
        if full || room.is_some_and(|room| rooms.contains(&room.room_nr)) {
            // What waits for the same room later must not overtake it.
            rooms.extend(room.map(|room| room.room_nr));
            rest.push_back(waiting);
        } else {
            rooms.extend(room.map(|room| room.room_nr));
            events += count;
            group.push(waiting);
        }
    }
    *later = rest;
    group
}

/// A group that is written, and not yet durable everywhere.
struct Unpublished {
    group: Vec<Waiting>,
    results: Vec<Option<CommitError>>,
    written: Written,
}

/// Writes a group; gives what was written, in order. What could not be is answered here.
///
/// When the database refuses the group, its commits are written one at a time: one that cannot be stored fails alone.
async fn write_group(parts: &Parts, tx: Result<Tx, Error>, group: Vec<Waiting>) -> Vec<Unpublished> {
    let alone = match write_together(parts, tx, group).await {
        Ok(written) => return vec![written],
        Err((group, Some(error))) if group.len() == 1 || !error.is_refusal() => {
            fail(group, error);
            return Vec::new();
        }
        Err((group, None)) if group.len() == 1 => {
            // Something existed both times that the look at each did not find.
            tracing::error!("a commit collided with stored rows that its check does not see");
            for waiting in group {
                let _ = waiting.answer.send(Err(CommitError::EventExists));
            }
            return Vec::new();
        }
        Err((group, _)) => group,
    };
    let mut written = Vec::with_capacity(alone.len());
    for waiting in alone {
        let tx = parts.db.begin_ordered().await;
        written.extend(Box::pin(write_group(parts, tx, vec![waiting])).await);
    }
    written
}

/// Writes a group in one transaction, or gives it back with the error, if there was one, or because keys exist.
async fn write_together(
    parts: &Parts,
    tx: Result<Tx, Error>,
    group: Vec<Waiting>,
) -> Result<Unpublished, (Vec<Waiting>, Option<Error>)> {
    let mut results: Vec<Option<CommitError>> = group.iter().map(|_| None).collect();
    let commits: Vec<&Commit> = group.iter().map(|waiting| &waiting.commit).collect();
    let mut outcome = try_group(parts, tx, &commits, &mut results, false).await;
    if matches!(outcome, Ok(None)) {
        let tx = parts.db.begin_ordered().await;
        outcome = try_group(parts, tx, &commits, &mut results, true).await;
    }
    match outcome {
        Ok(Some(written)) => Ok(Unpublished { group, results, written }),
        Ok(None) => Err((group, None)),
        Err(error) => Err((group, Some(error))),
    }
}

/// Makes groups durable, publishes them and answers.
async fn finish(parts: &Parts, unpublished: Vec<Unpublished>) {
    if unpublished.iter().any(|unpublished| unpublished.written.published.is_some())
        && let Err(error) = parts.db.make_durable().await
    {
        return fail(unpublished.into_iter().flat_map(|unpublished| unpublished.group).collect(), error);
    }
    for Unpublished { group, results, written } in unpublished {
        let published = written.published.map(|published| publish(parts, published));
        for ((waiting, failed), position) in group.into_iter().zip(results).zip(written.positions) {
            let _ = waiting.answer.send(failed.map_or(Ok(Committed { position }), Err));
        }
        // Listeners are woken after those who wait for an answer: some clients lose an event whose echo they see before it.
        if let Some(published) = published {
            let _ = parts.stream.send(published);
        }
    }
}

fn fail(group: Vec<Waiting>, error: Error) {
    tracing::error!(commits = group.len(), error = %full_text(&error), "a group of commits could not be written");
    let error = CommitError::from(error);
    for waiting in group {
        let _ = waiting.answer.send(Err(error.clone()));
    }
}

fn full_text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Shows a group to whoever asks from now on; listeners are told of it by the stream.
fn publish(parts: &Parts, published: Published) -> Arc<Published> {
    // From here on nobody is shown what they were.
    for nr in &published.redacted {
        parts.events.forget(*nr);
    }
    for (_, item) in &published.items {
        match item {
            Item::Event(event) => {
                if let Some(relation) = event.relation() {
                    parts.childless.forget(&relation.parent);
                }
                parts.events.insert(event.clone());
            }
            Item::AccountData(user_nr) => parts.account_data.note(*user_nr),
            _ => {}
        }
    }
    let position = published.position;
    parts.published.send_if_modified(|newest| {
        let newer = position > *newest;
        if newer {
            *newest = position;
        }
        newer
    });
    Arc::new(published)
}

struct Written {
    published: Option<Published>,
    /// The last position of each commit of the group; zero for one that failed.
    positions: Vec<Position>,
}

/// The head of a room as it is stored.
#[derive(Default)]
pub(crate) struct StoredHead {
    pub(crate) state: NodeNr,
    pub(crate) depth: i64,
    pub(crate) extremities: Vec<EventNr>,
    pub(crate) position: Position,
    /// Whether the state lacks members.
    pub(crate) is_partial: bool,
    /// Who has the room for itself.
    pub(crate) lease: Option<RoomLease>,
}

/// Writes a group in that transaction. Gives nothing, and has written nothing, when a row existed that was not looked for.
async fn try_group(
    parts: &Parts,
    tx: Result<Tx, Error>,
    commits: &[&Commit],
    failed: &mut [Option<CommitError>],
    look_at_each: bool,
) -> Result<Option<Written>, Error> {
    let mut tx = tx?;
    // 2. Check.
    let (newest, heads) = read_heads(&mut tx, commits).await?;
    let now_ms = parts.clock.now_ms();
    let mut leases = RoomLeases::new(&parts.process, now_ms);
    for (commit, failed) in commits.iter().zip(failed.iter_mut()) {
        *failed = commit.room.as_ref().and_then(|room| leases.check(room, heads.get(&room.room_nr)));
    }
    check_outliers(&mut tx, commits, failed).await?;
    if look_at_each {
        check_transactions(&mut tx, commits, failed).await?;
        check_existing(&mut tx, commits, failed).await?;
        check_annotations(&mut tx, commits, failed).await?;
    }
    let passing: Vec<(usize, &Commit)> =
        commits.iter().enumerate().filter(|(i, _)| failed[*i].is_none()).map(|(i, c)| (i, *c)).collect();
    let has_leases = leases.write(&mut tx).await?;
    let mut positions = vec![Position(0); commits.len()];
    if passing.is_empty() {
        if has_leases {
            tx.commit().await?
        } else {
            tx.rollback().await?
        }
        return Ok(Some(Written { published: None, positions }));
    }
    // 3. Write.
    let mut writer = GroupWriter::new(newest, now_ms);
    for (index, commit) in &passing {
        writer.add(commit, heads.get(&commit.room.as_ref().map_or(RoomNr(0), |room| room.room_nr)));
        positions[*index] = writer.newest();
    }
    match tx.run(writer.batch()).await {
        Ok(()) => tx.commit().await?,
        Err(error) if error.is_unique_violation() => {
            tx.rollback().await?;
            return Ok(None);
        }
        Err(error) => {
            tx.rollback().await?;
            return Err(error);
        }
    }
    let published = writer.into_published();
    Ok(Some(Written { published: Some(published), positions }))
}

/// The newest position, and the heads of the rooms that the commits are about.
async fn read_heads(tx: &mut Tx, commits: &[&Commit]) -> Result<(Position, HashMap<RoomNr, StoredHead>), Error> {
    let rooms: Vec<i64> = commits.iter().filter_map(|commit| commit.room.as_ref()).map(|room| room.room_nr.0).collect();
    let mut heads = HashMap::with_capacity(rooms.len());
    let mut newest = Position(0);
    for row in tx.fetch(&GET_NEWEST_AND_HEADS, args![rooms]).await? {
        newest = row.nr(0)?;
        let Some(room_nr) = row.maybe_nr(1)? else { continue };
        let extremities = unpack_events(&row.get::<Vec<u8>>(4)?)
            .ok_or_else(|| Error::Damaged(format!("extremities of room {room_nr}")))?;
        let until_ms: i64 = row.get::<Option<i64>>(6)?.unwrap_or(0);
        let process = row.get::<Option<String>>(5)?.filter(|_| until_ms > 0);
        let lease = process.map(|process| RoomLease { process, until_ms });
        let head = StoredHead {
            state: row.nr(2)?,
            depth: row.get(3)?,
            extremities,
            position: row.nr(7)?,
            is_partial: row.get(8)?,
            lease,
        };
        heads.insert(room_nr, head);
    }
    Ok((newest, heads))
}

impl Storage {
    /// What came of a request that was done before: nothing when it was not, an event if there was one.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_transaction(&self, key: &TransactionKey) -> Result<Option<Option<OwnedEventId>>, Error> {
        let rows = self.db().read(&FIND_TRANSACTIONS, transaction_rows(&[key])).await?;
        rows.first().map(|row| Ok(row.get::<Option<String>>(4)?.and_then(|id| EventId::parse(id).ok()))).transpose()
    }
}

fn transaction_rows(keys: &[&TransactionKey]) -> Rows {
    Rows::new()
        .bigint(keys.iter().map(|key| key.user_nr.0))
        .text(keys.iter().map(|key| key.device_id.clone()))
        .text(keys.iter().map(|key| key.scope.clone()))
        .text(keys.iter().map(|key| key.transaction_id.clone()))
}

/// Fails the commits with requests that were done before, or twice in this group.
async fn check_transactions(tx: &mut Tx, commits: &[&Commit], failed: &mut [Option<CommitError>]) -> Result<(), Error> {
    let keys: Vec<&TransactionKey> =
        commits.iter().flat_map(|commit| &commit.transactions).map(|transaction| &transaction.key).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let mut known = HashMap::new();
    for row in tx.fetch(&FIND_TRANSACTIONS, transaction_rows(&keys)).await? {
        let key = TransactionKey {
            user_nr: row.nr(0)?,
            device_id: row.get(1)?,
            scope: row.get(2)?,
            transaction_id: row.get(3)?,
        };
        let event_id = row.get::<Option<String>>(4)?.and_then(|id| EventId::parse(id).ok());
        known.insert(key, event_id);
    }
    let mut seen = HashSet::new();
    for (commit, failed) in commits.iter().zip(failed.iter_mut()) {
        let replayed: Vec<_> = commit
            .transactions
            .iter()
            .filter_map(|transaction| known.get_key_value(&transaction.key))
            .map(|(key, event_id)| (key.clone(), event_id.clone()))
            .collect();
        if !replayed.is_empty() {
            *failed = Some(CommitError::Replayed(replayed));
        } else if commit.transactions.iter().any(|transaction| !seen.insert(&transaction.key)) {
            // Its twin in this group goes first; asked again, it will be found as done.
            *failed = Some(CommitError::StateChanged);
        }
    }
    Ok(())
}

/// Fails the commits that give a place to an outlier which has got one meanwhile. Common groups have no outliers, and cost nothing.
async fn check_outliers(tx: &mut Tx, commits: &[&Commit], failed: &mut [Option<CommitError>]) -> Result<(), Error> {
    let outliers = |commit: &Commit| -> Vec<i64> {
        let events = commit.room.iter().flat_map(|room| &room.events);
        events.filter(|event| event.was_outlier).map(|event| event.nr.0).collect()
    };
    let all: Vec<i64> = commits.iter().flat_map(|commit| outliers(commit)).collect();
    if all.is_empty() {
        return Ok(());
    }
    let mut placed: HashSet<i64> = HashSet::new();
    for row in tx.fetch(&FIND_PLACED, args![all]).await? {
        placed.insert(row.get(0)?);
    }
    for (commit, failed) in commits.iter().zip(failed.iter_mut()).filter(|(_, failed)| failed.is_none()) {
        if outliers(commit).iter().any(|nr| placed.contains(nr)) {
            *failed = Some(CommitError::EventExists);
        }
    }
    Ok(())
}

/// Fails the commits with events, rooms or aliases that exist.
async fn check_existing(tx: &mut Tx, commits: &[&Commit], failed: &mut [Option<CommitError>]) -> Result<(), Error> {
    let rooms = || commits.iter().filter_map(|commit| commit.room.as_ref());
    let event_ids: Vec<String> =
        rooms().flat_map(|room| &room.events).map(|event| event.pdu.event_id.as_str().to_owned()).collect();
    let room_ids: Vec<String> =
        rooms().filter_map(|room| room.new_room.as_ref()).map(|room| room.room_id.as_str().to_owned()).collect();
    let aliases: Vec<String> = rooms().flat_map(|room| &room.aliases).map(|(alias, _)| alias.clone()).collect();
    let mut known: [HashSet<String>; 3] = Default::default();
    for ((statement, names), known) in
        [(&FIND_EVENT_IDS, event_ids), (&FIND_ROOMS, room_ids), (&FIND_ALIASES, aliases)].into_iter().zip(&mut known)
    {
        for row in tx.fetch(statement, args![names]).await? {
            known.insert(row.get(0)?);
        }
    }
    for (commit, failed) in commits.iter().zip(failed.iter_mut()).filter(|(_, failed)| failed.is_none()) {
        let Some(room) = &commit.room else { continue };
        let [events, rooms, aliases] = &mut known;
        if room.new_room.as_ref().is_some_and(|new| !rooms.insert(new.room_id.to_string()))
            || room.aliases.iter().any(|(alias, _)| !aliases.insert(alias.clone()))
        {
            *failed = Some(CommitError::RoomExists);
        } else if room.events.iter().any(|event| !event.was_outlier && !events.insert(event.pdu.event_id.to_string())) {
            *failed = Some(CommitError::EventExists);
        }
    }
    Ok(())
}

/// Fails the commits in which a user annotates an event as they do already: another process was first. Built anew, it is seen.
async fn check_annotations(tx: &mut Tx, commits: &[&Commit], failed: &mut [Option<CommitError>]) -> Result<(), Error> {
    let rooms = commits.iter().filter_map(|commit| commit.room.as_ref());
    let new: Vec<_> = rooms
        .flat_map(|room| room.events.iter().map(move |event| (room.room_nr, event)))
        .filter_map(|(room_nr, event)| {
            let relation = event.relation.as_ref()?;
            Some((room_nr, event, relation, relation.annotation_key?))
        })
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let rows = Rows::new()
        .bigint(new.iter().map(|(room_nr, ..)| room_nr.0))
        .text(new.iter().map(|(_, _, relation, _)| relation.parent.to_string()))
        .bigint(new.iter().map(|(_, event, ..)| event.sender_nr.0))
        .bigint(new.iter().map(|(_, event, ..)| event.type_nr.0))
        .bigint(new.iter().map(|(.., key)| *key));
    let mut standing: HashMap<RoomNr, Vec<EventNr>> = HashMap::new();
    for row in tx.fetch(&FIND_ANNOTATIONS, rows).await? {
        standing.entry(row.nr(0)?).or_default().push(row.nr(1)?);
    }
    for (commit, failed) in commits.iter().zip(failed.iter_mut()).filter(|(_, failed)| failed.is_none()) {
        let Some(room) = &commit.room else { continue };
        let is_redacted = |nr: &EventNr| room.redactions.iter().any(|redaction| redaction.event_nr == *nr);
        if standing.get(&room.room_nr).is_some_and(|events| !events.iter().all(is_redacted)) {
            *failed = Some(CommitError::StateChanged);
        }
    }
    Ok(())
}
