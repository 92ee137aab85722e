//! Getting the members of rooms that came here without them. Server-Server API, "PUT /send_join/{roomId}/{eventId}", `members_omitted`.
//!
//! A server of the room tells the state before our join: the one that let us in, or another. Its members are brought in piece by piece,
//! while the room goes on. Then all events since the join get their whole state and are judged by it once more, oldest first; what it
//! forbids has no say any more. One commit makes that count, and the current state that comes of it.
//!
//! One process does it for a room; when it dies, another begins again, and finds what was brought in. See
//! `docs/decisions/0022-members-afterwards.md`.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use model::{EventNr, NodeNr, RoomNr};
use ruma::OwnedServerName;
use storage::{Commit, CompletedEvent, Completion, NewNodes, PartialRoom, RoomCommit, RoomRow, StateKey, StoredEvent};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{debug, info, warn};

use super::members::MemberEvent;
use crate::{Error, RemoteError, Rooms, Source, head::Head, race::Race, receive::misbehaved, resolution::resolve};

/// Rooms that are completed at the same time: each may take the memory of a large state.
const ROOMS_AT_ONCE: usize = 2;

/// Most servers that are asked, one after the other.
const SERVERS_MAX: u32 = 8;

/// How long a process that does not answer keeps a room from the others, in milliseconds.
const LEASE_MS: i64 = 15_000;

/// How often it says that it works on.
const RENEW_EVERY: Duration = Duration::from_secs(4);

/// How often each process looks for rooms that are due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When it is tried again after it failed for the first time, in milliseconds: each time it takes twice as long.
const BACK_OFF_MS: i64 = 2_000;

/// And how long at most.
const BACK_OFF_MAX_MS: i64 = 3_600_000;

/// At how many events of one room the state is asked for, because what lies before them is not here.
const GAPS_MAX: usize = 5;

/// Events that are judged once more and are in memory at the same time.
const JUDGED_AT_ONCE: usize = 200;

/// What comes of the events of a room when its state is whole.
struct Whole {
    head: Head,
    /// The states before and after the join.
    before: NodeNr,
    joined: NodeNr,
    events: HashMap<EventNr, CompletedEvent>,
    /// Events of which nobody told the state before them or before those that they come after: they have that at our join, which for what
    /// was before it is too new to forbid anything.
    guessed: HashSet<EventNr>,
    gaps_left: usize,
}

impl Rooms {
    /// Gets the members of rooms that came here without them, until `stop` ends. Run it as one task of each process.
    pub async fn complete_partial_rooms(&self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut running: HashSet<RoomNr> = HashSet::new();
        let mut tasks: JoinSet<RoomNr> = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(done) = tasks.join_next() => match done {
                    Ok(room_nr) => drop(running.remove(&room_nr)),
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => break,
                },
                () = self.0.completing.notified() => {}
                _ = look.tick() => {}
            }
            if tasks.len() >= ROOMS_AT_ONCE {
                continue;
            }
            let due = match self.storage().list_due_partial_rooms(2 * ROOMS_AT_ONCE as u32).await {
                Ok(due) => due,
                Err(error) => {
                    warn!(%error, "could not look for rooms that lack members");
                    continue;
                }
            };
            for partial in due {
                if tasks.len() < ROOMS_AT_ONCE && running.insert(partial.room_nr) {
                    let rooms = self.clone();
                    tasks.spawn(async move {
                        let room_nr = partial.room_nr;
                        if let Err(error) = rooms.try_to_complete(partial).await {
                            warn!(%error, "could not note that a room lacks members");
                        }
                        room_nr
                    });
                }
            }
        }
        tasks.shutdown().await;
        for room_nr in running {
            // The next one need not wait until our time is over.
            let _ = self.storage().end_consumer(&lease_of(room_nr)).await;
        }
    }

    /// Completes a room, if no other process does, or notes when it is to be tried again.
    async fn try_to_complete(&self, partial: PartialRoom) -> Result<(), Error> {
        let storage = self.storage();
        let lease = lease_of(partial.room_nr);
        if storage.lease_consumer(&lease, LEASE_MS).await?.is_none() {
            return Ok(());
        }
        let Some(room) = storage.get_rooms(&[partial.room_nr]).await?.remove(&partial.room_nr) else {
            return Err(Error::RoomUnknown);
        };
        let work = async {
            match self.is_here(&room).await? {
                // All of ours have left.
                false => self.leave_partial(&room).await,
                true => Box::pin(self.complete(&room, &partial)).await,
            }
        };
        let renewing = async {
            loop {
                sleep(RENEW_EVERY).await;
                if storage.lease_consumer(&lease, LEASE_MS).await?.is_none() {
                    return Ok::<(), Error>(());
                }
            }
        };
        // Both go on at the same time: the work may have what writes, for which renewing waits.
        let completed = tokio::select! {
            completed = work => completed,
            lost = renewing => return lost,
        };
        if let Err(error) = completed {
            let in_ms = (BACK_OFF_MS << partial.tries.clamp(0, 20)).min(BACK_OFF_MAX_MS);
            warn!(
                room.id = %room.id, tries = partial.tries + 1, in_ms, since_ms = partial.begun_at_ms, %error,
                "the members of a room could not be had; what is known of it goes on"
            );
            storage.try_partial_room_later(room.nr, partial.tries + 1, in_ms).await?;
        }
        storage.end_consumer(&lease).await?;
        Ok(())
    }

    async fn complete(&self, room: &Arc<RoomRow>, partial: &PartialRoom) -> Result<(), Error> {
        let storage = self.storage();
        let join = storage.get_event(partial.join_nr).await?.ok_or(Error::EventUnknown)?;
        let ours: Vec<OwnedServerName> = self.servers().iter().map(|server| server.name.clone()).collect();
        let mut as_server = partial.as_server.clone();
        for name in &ours {
            if !storage.has_joined_user(room.nr, &as_server).await? {
                as_server.clone_from(name);
            }
        }
        let mut servers = vec![partial.resident.clone()];
        let known = storage.list_servers(room.nr, SERVERS_MAX).await?;
        servers.extend(known.into_iter().filter_map(|name| OwnedServerName::try_from(name).ok()));
        let mut seen = HashSet::new();
        servers.retain(|server| !self.servers().is_local(server) && seen.insert(server.clone()));
        let mut failure = Error::Remote(RemoteError::NotFederating);
        for server in servers {
            let source = Source { as_server: &as_server, server: &server };
            match Box::pin(self.complete_from(source, room, &join)).await {
                Ok(()) => return Ok(()),
                Err(error @ (Error::Storage(_) | Error::Busy)) => return Err(error),
                Err(error) => {
                    debug!(room.id = %room.id, server.name = %server, %error, "{server} does not tell the members of a room");
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    async fn complete_from(&self, source: Source<'_>, room: &Arc<RoomRow>, join: &StoredEvent) -> Result<(), Error> {
        let storage = self.storage();
        let told = Box::pin(self.fetch_state_before(source, room, &join.pdu.event_id)).await?;
        // Read anew: the event may have been completed before.
        let head = Head::load(storage, room.clone()).await?;
        if !head.is_partial {
            return Ok(());
        }
        let mut state: HashMap<StateKey, EventNr> = self.state_before(join).await?.into_iter().collect();
        let create = storage.find_state_key("m.room.create", "").await?.ok_or(Error::StateUnknown)?;
        if told.get(&create) != state.get(&create) {
            return Err(misbehaved(source, "the state told is not that of the room"));
        }
        // What the resident told of all else was built upon already.
        let is_new = |key: &StateKey| key.0 == join.type_nr && !state.contains_key(key);
        let members: HashMap<EventNr, StateKey> =
            told.into_iter().filter(|(key, _)| is_new(key)).map(|(key, nr)| (nr, key)).collect();
        state.extend(members.iter().map(|(nr, key)| (*key, *nr)));
        let own = (join.type_nr, join.state_key_nr.ok_or(Error::StateUnknown)?);
        let replaces = state.get(&own).copied();
        let mut nodes = NewNodes::default();
        let before = storage.build_state(room.nr, NodeNr(0), state.into_iter().collect(), &mut nodes).await?;
        let joined = storage.change_state(room.nr, before, own, Some(join.nr), &mut nodes).await?;
        storage.insert_state_nodes(room.nr, nodes).await?;

        let new: Vec<MemberEvent> = members.keys().map(|nr| (*nr, None)).collect();
        self.bring_in_members(room, new, Some(&members)).await?;
        let of_join = CompletedEvent { nr: join.nr, state: joined, replaces, is_rejected: false };
        let events = HashMap::from([(join.nr, of_join)]);
        let mut whole = Whole { head, before, joined, events, guessed: HashSet::new(), gaps_left: GAPS_MAX };
        Box::pin(self.judge_again(Some(source), &mut whole)).await?;
        Box::pin(self.commit_completion(room, whole)).await?;
        info!(room.id = %room.id, server.name = %source.server, members = members.len(), "all members of a room are here");
        Ok(())
    }

    /// Finds what the events of a room that lack members come to be, of those that it was not found of yet: oldest first. Without a source
    /// nobody is asked for what lies before an event that is not here.
    async fn judge_again(&self, source: Option<Source<'_>>, whole: &mut Whole) -> Result<(), Error> {
        let storage = self.storage();
        let room = whole.head.row.clone();
        let mut open: HashMap<EventNr, Vec<EventNr>> =
            storage.list_events_lacking_members(room.nr).await?.into_iter().collect();
        open.retain(|nr, _| !whole.events.contains_key(nr));
        let in_order = by_prev(&open);
        let mut nodes = NewNodes::default();
        for part in in_order.chunks(JUDGED_AT_ONCE) {
            let before = part.iter().filter_map(|nr| open.get(nr)).flatten();
            let before: Vec<EventNr> = before.filter(|nr| !whole.events.contains_key(nr)).copied().collect();
            let events = storage.get_events(&[part, &before].concat()).await?;
            for nr in part {
                let Some(event) = events.get(nr) else { continue };
                let whole_state = |nr: &EventNr| match whole.events.get(nr) {
                    Some(completed) => Some(completed.state),
                    None => events.get(nr).filter(|prev| !prev.outlier && !prev.lacks_members).map(|prev| prev.state),
                };
                let mut states: Vec<NodeNr> = open[nr].iter().filter_map(whole_state).collect();
                let mut is_guessed = open[nr].iter().any(|prev| whole.guessed.contains(prev));
                if states.is_empty() {
                    let told = self.state_at_gap(source, whole, event).await?;
                    is_guessed = told.is_none();
                    // What was before us is not what we were there for.
                    let guess = if event.position.is_some() { whole.joined } else { whole.before };
                    states.push(told.unwrap_or(guess));
                }
                if is_guessed {
                    whole.guessed.insert(*nr);
                }
                let before = resolve(storage, &room, &whole.head.rules, &states, None, &mut nodes).await?;
                let is_judged = !event.pdu.rejected && (event.position.is_some() || !is_guessed);
                let is_rejected = is_judged && self.forbidden_by(&whole.head, &event.pdu, before).await?.is_some();
                if is_rejected {
                    info!(room.id = %room.id, event.id = %event.pdu.event_id, "an event is rejected, now that all members are here");
                }
                let mut completed = CompletedEvent { nr: *nr, state: before, replaces: None, is_rejected };
                if let Some(state_key_nr) = event.state_key_nr {
                    let key = (event.type_nr, state_key_nr);
                    completed.replaces = storage.get_state_event(room.nr, before, key).await?;
                    if !is_rejected && !event.pdu.rejected {
                        completed.state = storage.change_state(room.nr, before, key, Some(*nr), &mut nodes).await?;
                    }
                }
                whole.events.insert(*nr, completed);
            }
        }
        storage.insert_state_nodes(room.nr, nodes).await?;
        Ok(())
    }

    /// The state before an event of which nothing that lies before it is here, if the server tells.
    async fn state_at_gap(
        &self,
        source: Option<Source<'_>>,
        whole: &mut Whole,
        event: &StoredEvent,
    ) -> Result<Option<NodeNr>, Error> {
        if let Some(source) = source.filter(|_| whole.gaps_left > 0) {
            whole.gaps_left -= 1;
            match Box::pin(self.fill_gap(source, &whole.head.row, &event.pdu)).await {
                Ok(Some(state)) => return Ok(Some(state)),
                Err(error @ (Error::Storage(_) | Error::Busy)) => return Err(error),
                Ok(None) | Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Makes the whole state of a room count.
    async fn commit_completion(&self, room: &Arc<RoomRow>, mut whole: Whole) -> Result<(), Error> {
        let storage = self.storage();
        let member = storage.type_nr("m.room.member").await?;
        let turn = self.turn(room.nr);
        let mut cached = turn.take_head().await;
        let mut race = Race::default();
        loop {
            *cached = None;
            // First: what comes between is noticed by it.
            let position = storage.get_head(room.nr).await?.ok_or(Error::RoomUnknown)?.position;
            let head = Head::load(storage, room.clone()).await?;
            if !head.is_partial {
                return Ok(());
            }
            whole.head = head;
            Box::pin(self.judge_again(None, &mut whole)).await?;
            let head = &whole.head;
            let mut nodes = NewNodes::default();
            let (tips, dropped) = self.tips_of(&whole).await?;
            let stored = storage.get_events(&tips).await?;
            let state_of = |nr: &EventNr| match whole.events.get(nr) {
                Some(completed) => Some(completed.state),
                None => stored.get(nr).map(|event| event.state),
            };
            let states: Vec<NodeNr> = tips.iter().filter_map(state_of).collect();
            let state = resolve(storage, room, &head.rules, &states, None, &mut nodes).await?;
            storage.insert_state_nodes(room.nr, nodes).await?;
            let (members, summary) = self.changes_of_state(head, state, member).await?;
            let members = self.not_yet_in(room, members).await?;
            let mut commit = RoomCommit {
                room_nr: room.nr,
                expected_state: head.stored_state,
                lease: race.wants_lease(),
                state,
                depth: head.depth,
                extremities_used: dropped,
                extremities_added: tips
                    .into_iter()
                    .filter(|nr| head.extremities.iter().all(|(tip, _)| tip != nr))
                    .collect(),
                members: self.member_changes(&members).await?,
                summary,
                completion: Some(Completion { events: whole.events.values().copied().collect() }),
                ..RoomCommit::default()
            };
            self.settle_memberships(&mut commit).await?;
            commit.expected_position = Some(position);
            match storage.commit(Commit { room: Some(commit), ..Commit::default() }).await {
                Ok(_) => return Ok(()),
                Err(error) if race.goes_on(&error).await => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The forward extremities of a room without what is rejected now, in place of which is what lies before it; and those that are none
    /// any more.
    async fn tips_of(&self, whole: &Whole) -> Result<(Vec<EventNr>, Vec<EventNr>), Error> {
        let is_rejected = |nr: &EventNr| whole.events.get(nr).is_some_and(|event| event.is_rejected);
        let all: Vec<EventNr> = whole.head.extremities.iter().map(|(nr, _)| *nr).collect();
        let (mut dropped, mut tips): (Vec<EventNr>, Vec<EventNr>) = all.into_iter().partition(is_rejected);
        let mut open = dropped.clone();
        while let Some(nr) = open.pop() {
            let Some(event) = self.storage().get_event(nr).await? else { continue };
            for prev in self.storage().find_event_nrs(&event.pdu.prev_events).await?.into_values() {
                if is_rejected(&prev) {
                    open.push(prev);
                    dropped.push(prev);
                } else if !tips.contains(&prev) {
                    tips.push(prev);
                }
            }
        }
        Ok((tips, dropped))
    }

    /// Ends asking for the members of a room that none of ours is in any more: who joins it again is told all of its state.
    async fn leave_partial(&self, room: &Arc<RoomRow>) -> Result<(), Error> {
        let turn = self.turn(room.nr);
        let mut cached = turn.take_head().await;
        let mut race = Race::default();
        loop {
            *cached = None;
            let head = Head::load(self.storage(), room.clone()).await?;
            let commit = RoomCommit {
                room_nr: room.nr,
                expected_state: head.stored_state,
                state: head.state,
                depth: head.depth,
                completion: Some(Completion::default()),
                ..RoomCommit::default()
            };
            match self.storage().commit(Commit { room: Some(commit), ..Commit::default() }).await {
                Ok(_) => return Ok(()),
                Err(error) if race.goes_on(&error).await => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn lease_of(room_nr: RoomNr) -> String {
    format!("partial room {room_nr}")
}

/// Events so that those before an event come before it.
fn by_prev(events: &HashMap<EventNr, Vec<EventNr>>) -> Vec<EventNr> {
    let mut starts: Vec<EventNr> = events.keys().copied().collect();
    starts.sort_unstable();
    let mut in_order = Vec::with_capacity(events.len());
    let mut seen: HashSet<EventNr> = HashSet::with_capacity(events.len());
    for start in starts {
        // Each with the next of those before it to look at.
        let mut path: Vec<(EventNr, usize)> = Vec::new();
        if seen.insert(start) {
            path.push((start, 0));
        }
        while let Some((nr, next)) = path.last_mut() {
            match events[nr].get(*next) {
                Some(prev) => {
                    *next += 1;
                    if events.contains_key(prev) && seen.insert(*prev) {
                        path.push((*prev, 0));
                    }
                }
                None => {
                    in_order.push(*nr);
                    path.pop();
                }
            }
        }
    }
    in_order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_before_an_event_comes_first() {
        let nr = |nr: i64| EventNr(nr);
        // 9 is the oldest: numbers tell nothing of the order.
        let events = HashMap::from([
            (nr(1), vec![nr(5), nr(3)]),
            (nr(3), vec![nr(9), nr(70)]),
            (nr(5), vec![nr(9)]),
            (nr(9), vec![nr(71)]),
        ]);
        assert_eq!(by_prev(&events), [nr(9), nr(5), nr(3), nr(1)]);
    }
}
