//! Events that others refer to and that are not here. Server-Server API, "Backfilling and retrieving missing events".
//!
//! Who sent an event that comes after what is not here is asked for that. What can be had is taken in first, in order. Where something
//! still lacks, the event is received with the state that its server says there was before it, and a gap is left in the timeline, at which
//! `/messages` asks for more.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use model::{NodeNr, Pdu};
use ruma::{OwnedEventId, events::room::policy::RoomPolicyEventContent};
use serde_json::value::RawValue;
use storage::{RoomRow, StoredEvent};
use tokio::time::timeout;
use tracing::debug;

use super::{Incoming, Received, Source, legible};
use crate::{Error, Rooms, power::rules_of, told_events::next_part};

/// Most events that one answer may have.
const EVENTS_OF_ANSWER_MAX: u32 = 100;

/// How often a server is asked for what comes before its answers.
const ROUNDS_MAX: usize = 10;

/// How many gaps one transaction may leave in a room: each takes a state.
const GAPS_MAX: usize = 3;

/// How long who sends an event waits while what lies before it is asked for.
const MISSING_WAIT: Duration = Duration::from_secs(20);

/// How long it waits while the state before it is asked for.
const STATE_WAIT: Duration = Duration::from_secs(30);

/// What became of events, in the order in which they were taken in.
type Outcomes = Vec<(OwnedEventId, Result<Received, Error>)>;

impl Rooms {
    /// Takes in verified events of one room, and what lies before them, as far as it is not here and can be had.
    pub(super) async fn receive_in_room(
        &self,
        source: Source<'_>,
        room: &Arc<RoomRow>,
        state: NodeNr,
        pdus: Vec<Pdu>,
    ) -> Result<Outcomes, Error> {
        let mut pdus = in_order(pdus);
        let policy = self.policy_at(room, state).await?;
        if self.find_lacking(&pdus).await?.is_empty() {
            return self.receive_all(source, room, policy.as_ref(), pdus, 0).await;
        }
        // One at a time asks a server for what is missing in a room: the next one finds it here.
        let turn = self.0.asking.get_with((room.nr, source.server.to_owned()), Arc::default);
        let _turn = turn.lock().await;
        let fetched = match timeout(MISSING_WAIT, self.fetch_missing(source, room, &pdus)).await {
            Ok(Err(error @ (Error::Storage(_) | Error::Busy))) => return Err(error),
            Ok(Err(error)) => {
                debug!(room.id = %room.id, server.name = %source.server, %error, "could not ask for missing events");
                Vec::new()
            }
            Err(_) => Vec::new(),
            Ok(Ok(fetched)) => fetched,
        };
        pdus.splice(..0, fetched);
        if let Ok(Err(error @ (Error::Storage(_) | Error::Busy))) =
            timeout(STATE_WAIT, Box::pin(self.fetch_senders(source, room, &pdus))).await
        {
            return Err(error);
        }
        self.receive_all(source, room, policy.as_ref(), in_order(pdus), GAPS_MAX).await
    }

    /// Takes in events in order; before one that lacks something, the state at it is asked for, for so many of them.
    async fn receive_all(
        &self,
        source: Source<'_>,
        room: &Arc<RoomRow>,
        policy: Option<&RoomPolicyEventContent>,
        pdus: Vec<Pdu>,
        mut gaps: usize,
    ) -> Result<Outcomes, Error> {
        let mut outcomes = Vec::with_capacity(pdus.len());
        let mut pdus = VecDeque::from(pdus);
        while !pdus.is_empty() {
            let lacking = self.find_lacking(pdus.make_contiguous()).await?;
            let lacks = |pdu: &Pdu| refers_to(pdu).any(|id| lacking.contains(id));
            let whole = pdus.iter().position(lacks).unwrap_or(pdus.len());
            let next = pdus.drain(..whole).collect();
            let judged = self.judged_by_policy_server(source.as_server, room, policy, next).await?;
            let incoming = judged.into_iter().map(|(pdu, refusal)| Incoming { refusal, ..Incoming::new(pdu, None) });
            let incoming = incoming.collect();
            outcomes.extend(self.receive_in_turn(room, incoming).await?);
            let Some(pdu) = pdus.pop_front() else { break };
            let mut state_before = None;
            if gaps > 0 {
                gaps -= 1;
                state_before = match timeout(STATE_WAIT, self.fill_gap_unless_partial(source, room, &pdu)).await {
                    Ok(Err(error @ (Error::Storage(_) | Error::Busy))) => return Err(error),
                    Ok(Err(error)) => {
                        let event_id = &pdu.event_id;
                        debug!(room.id = %room.id, event.id = %event_id, %error, "the state at a gap could not be had");
                        None
                    }
                    Err(_) => None,
                    Ok(Ok(state)) => state,
                };
            }
            let judged = self.judged_by_policy_server(source.as_server, room, policy, vec![pdu]).await?.into_iter();
            let incoming = judged.map(|(pdu, refusal)| Incoming { refusal, ..Incoming::new(pdu, state_before) });
            outcomes.extend(self.receive_in_turn(room, incoming.collect()).await?);
        }
        Ok(outcomes)
    }

    /// What events refer to that is neither among them nor here: of `prev_events` also what is here without a place, as its state is not
    /// known.
    pub(super) async fn find_lacking(&self, pdus: &[Pdu]) -> Result<HashSet<OwnedEventId>, Error> {
        let own: HashSet<&OwnedEventId> = pdus.iter().map(|pdu| &pdu.event_id).collect();
        let referred: HashSet<&OwnedEventId> = pdus.iter().flat_map(refers_to).filter(|id| !own.contains(id)).collect();
        let referred: Vec<OwnedEventId> = referred.into_iter().cloned().collect();
        let numbers = self.storage().find_event_nrs(&referred).await?;
        let events = self.storage().get_events(&numbers.values().copied().collect::<Vec<_>>()).await?;
        let before: HashSet<&OwnedEventId> = pdus.iter().flat_map(|pdu| &pdu.prev_events).collect();
        // What came in a stay that ended before all members were here has a state that never became whole.
        let is_given_up = match events.values().find(|event| event.lacks_members) {
            Some(event) => !self.storage().is_partial(event.room_nr).await?,
            None => false,
        };
        let has_no_state = |event: &StoredEvent| event.outlier || (is_given_up && event.lacks_members);
        let is_lacking = |id: &OwnedEventId| match numbers.get(id).and_then(|nr| events.get(nr)) {
            Some(event) => has_no_state(event) && before.contains(id),
            None => true,
        };
        Ok(referred.into_iter().filter(is_lacking).collect())
    }

    /// Asks a server for what lies before events that it has sent, back to what is here, in as many answers as that takes and may take.
    async fn fetch_missing(&self, source: Source<'_>, room: &Arc<RoomRow>, pdus: &[Pdu]) -> Result<Vec<Pdu>, Error> {
        let head = self.storage().get_head(room.nr).await?.ok_or(Error::RoomUnknown)?;
        let newest = self.storage().get_events(&head.extremities).await?;
        // What was said before we came is the past, at which whoever reads that far asks: not news.
        let oldest_depth = match head.is_partial {
            true => self.storage().get_partial_join_depth(room.nr).await?.unwrap_or(i64::MIN),
            false => i64::MIN,
        };
        let earliest: Vec<OwnedEventId> = newest.values().map(|event| event.pdu.event_id.clone()).collect();
        let mut found: HashMap<OwnedEventId, Pdu> = HashMap::new();
        let mut latest: Vec<&Pdu> = pdus.iter().collect();
        let mut chosen: HashSet<OwnedEventId> = HashSet::new();
        for _ in 0..ROUNDS_MAX {
            let lacking = self.find_lacking_before(&latest, pdus, &found).await?;
            if lacking.is_empty() {
                break;
            }
            let asked: Vec<OwnedEventId> = latest
                .iter()
                .filter(|pdu| pdu.prev_events.iter().any(|id| lacking.contains(id)))
                .map(|pdu| pdu.event_id.clone())
                .collect();
            let answer = self
                .remote()
                .get_missing_events(source, &room.id, earliest.clone(), asked, EVENTS_OF_ANSWER_MAX)
                .await?;
            let verified = self.verified(room, answer).await?.into_iter();
            for pdu in verified.filter(|pdu| pdu.depth > oldest_depth) {
                found.entry(pdu.event_id.clone()).or_insert(pdu);
            }
            // What does not lead to what was asked for is not wanted.
            let mut open: Vec<OwnedEventId> = lacking.into_iter().collect();
            let mut new = Vec::new();
            while let Some(id) = open.pop() {
                if let Some(pdu) = found.get(&id)
                    && chosen.insert(id.clone())
                {
                    open.extend(pdu.prev_events.iter().cloned());
                    new.push(id);
                }
            }
            if new.is_empty() {
                break;
            }
            latest = new.iter().filter_map(|id| found.get(id)).collect();
        }
        Ok(found.into_values().filter(|pdu| chosen.contains(&pdu.event_id)).collect())
    }

    /// What lies right before some events and is neither here nor among what was sent or found.
    async fn find_lacking_before(
        &self,
        latest: &[&Pdu],
        sent: &[Pdu],
        found: &HashMap<OwnedEventId, Pdu>,
    ) -> Result<HashSet<OwnedEventId>, Error> {
        let is_new = |id: &&OwnedEventId| !found.contains_key(*id) && !sent.iter().any(|pdu| pdu.event_id == **id);
        let before: HashSet<OwnedEventId> =
            latest.iter().flat_map(|pdu| &pdu.prev_events).filter(is_new).cloned().collect();
        let before: Vec<OwnedEventId> = before.into_iter().collect();
        let placed = self.find_placed(&before).await?;
        Ok(before.into_iter().filter(|id| !placed.contains(id)).collect())
    }

    /// Those events of an answer that are events of the room and signed as they must be; not more than were asked for.
    pub(super) async fn verified(&self, room: &Arc<RoomRow>, answer: Vec<Box<RawValue>>) -> Result<Vec<Pdu>, Error> {
        let rules = Arc::new(rules_of(&room.version)?);
        let mut events = answer.into_iter().take(EVENTS_OF_ANSWER_MAX as usize).peekable();
        let mut verified = Vec::new();
        while events.peek().is_some() {
            let part = next_part(&mut events).into_iter();
            let objects = part.filter_map(|event| legible(&event, &rules)).collect();
            let read = self.read_events(room, &rules, objects).await?;
            let read = read.into_iter().filter_map(|(_, event)| event.ok()).collect();
            verified.extend(self.verify_events(read).await?.into_iter().filter_map(Result::ok));
        }
        Ok(verified)
    }
}

/// All that an event refers to.
fn refers_to(pdu: &Pdu) -> impl Iterator<Item = &OwnedEventId> {
    pdu.prev_events.iter().chain(&pdu.auth_events)
}

/// The events so that those that others refer to come before them, and otherwise as they were; each once. Of a circle, which ids that are
/// hashes do not allow, the events come in any order.
pub(super) fn in_order(pdus: Vec<Pdu>) -> Vec<Pdu> {
    let mut ids = Vec::with_capacity(pdus.len());
    let index: HashMap<&OwnedEventId, usize> =
        pdus.iter().enumerate().rev().map(|(at, pdu)| (&pdu.event_id, at)).collect();
    let mut seen = vec![false; pdus.len()];
    for start in 0..pdus.len() {
        // Each with how many of what it refers to were looked at.
        let mut path = vec![(start, 0)];
        while let Some((at, next)) = path.pop() {
            if next == 0 && std::mem::replace(&mut seen[at], true) {
                continue;
            }
            match refers_to(&pdus[at]).nth(next) {
                Some(id) => {
                    path.push((at, next + 1));
                    path.extend(index.get(id).filter(|before| !seen[**before]).map(|before| (*before, 0)));
                }
                None => ids.push(at),
            }
        }
    }
    let mut pdus: Vec<Option<Pdu>> = pdus.into_iter().map(Some).collect();
    let mut once = HashSet::new();
    let in_order = ids.into_iter().filter_map(|at| pdus[at].take());
    in_order.filter(|pdu| once.insert(pdu.event_id.clone())).collect()
}
