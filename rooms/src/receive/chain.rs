//! The fast way to take in events: as long as each comes after what is in the room now, they are judged upon the head in memory and
//! written together.
//!
//! It applies while the state before an event is the room's current state, and the state after it becomes the current one, without state
//! resolution having a say. That is so for what one server after the other says, and for messages of several that say something at the same
//! time. What else comes is left to [`super::place`].

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use model::{EventNr, NodeNr, Pdu, Relation};
use ruma::{
    EventId, OwnedEventId,
    events::{StateEventType, TimelineEventType},
    state_res,
};
use storage::{Commit, CommitError, NewEvent, NewNodes, Placement, RoomCommit, StateChange, StoredEvent};

use super::{Incoming, Received, place::Retry};
use crate::{
    Error, Rooms,
    head::{Built, Head, NewlyMade, membership_change},
    outliers::check_by_auth_events,
    power::power_levels,
    push,
    race::Race,
    relations::new_relation,
    turn::room_commit,
};

/// State events by type and state key.
type State = HashMap<(StateEventType, String), (EventNr, Arc<Pdu>)>;

/// What the events of a chain refer to.
struct Referred {
    numbers: HashMap<OwnedEventId, EventNr>,
    events: HashMap<EventNr, Arc<StoredEvent>>,
}

impl Referred {
    fn get(&self, id: &EventId) -> Option<&Arc<StoredEvent>> {
        self.events.get(self.numbers.get(id)?)
    }
}

/// A head with the states after its extremities, and what was built upon it.
struct Chain {
    head: Head,
    /// The state after each extremity.
    tips: HashMap<EventNr, NodeNr>,
    /// The events of this chain that are in the room.
    new: HashMap<OwnedEventId, (EventNr, NodeNr, Arc<Pdu>)>,
    built: Built,
}

/// What comes before an event, and what allows it.
struct Behind {
    prev: Vec<EventNr>,
    auth: Vec<(EventNr, Arc<Pdu>)>,
}

impl Chain {
    /// What an event comes after, if that is the current state of the room and stays so, but for the event itself.
    fn behind(&self, pdu: &Pdu, referred: &Referred) -> Option<Behind> {
        let mut prev = Vec::with_capacity(pdu.prev_events.len());
        let mut is_current = !pdu.prev_events.is_empty();
        for id in &pdu.prev_events {
            let (nr, state) = match self.new.get(id) {
                Some((nr, state, _)) => (*nr, *state),
                None => {
                    let event = referred.get(id).filter(|event| event.room_nr == self.head.row.nr)?;
                    // What lies before what is no part of the room is for the general way.
                    if event.outlier || event.soft_failed || event.pdu.rejected {
                        return None;
                    }
                    (event.nr, event.state)
                }
            };
            is_current &= state == self.head.state;
            prev.push(nr);
        }
        let distinct: HashSet<EventNr> = prev.iter().copied().collect();
        let is_last = self.tips.keys().all(|nr| distinct.contains(nr));
        // After all extremities and nothing else, the state is what they resolve to.
        is_current |= is_last && distinct.len() == self.tips.len();
        let stays_current = is_last
            || (pdu.state_key.is_none()
                && self.tips.iter().all(|(nr, state)| distinct.contains(nr) || *state == self.head.state));
        if !(is_current && stays_current) {
            return None;
        }
        let mut auth = Vec::with_capacity(pdu.auth_events.len());
        for id in &pdu.auth_events {
            auth.push(match self.new.get(id) {
                Some((nr, _, pdu)) => (*nr, pdu.clone()),
                None => {
                    let event = referred.get(id).filter(|event| event.room_nr == self.head.row.nr)?;
                    (event.nr, event.pdu.clone())
                }
            });
        }
        Some(Behind { prev, auth })
    }
}

impl Rooms {
    /// Takes in as many of the events as can be, from the first on, and commits them together; gives the head after them, and
    /// what became of each. To be called in the room's turn.
    pub(super) async fn receive_chain(
        &self,
        head: Head,
        incoming: &[Incoming],
        race: &Race,
    ) -> Result<(Head, Vec<Received>), Retry> {
        let storage = self.storage();
        let referred = self.referred(&head, incoming, race.is_lost()).await?;
        let tips = head.extremities.iter().filter_map(|(nr, _)| Some((*nr, referred.events.get(nr)?.state))).collect();
        let mut chain = Chain { head, tips, new: HashMap::new(), built: Built::default() };
        let mut numbers = storage.take_event_nrs(incoming.len()).await?;
        let mut received = Vec::with_capacity(incoming.len());
        for Incoming { pdu, state_before, refusal, passed_on, .. } in incoming {
            match referred.get(&pdu.event_id) {
                Some(known) if !known.outlier => {
                    received.push(Received::Known);
                    continue;
                }
                None if state_before.is_none()
                    && refusal.is_none()
                    && !passed_on
                    && pdu.event_type != TimelineEventType::RoomRedaction => {}
                _ => break,
            }
            let Some(behind) = chain.behind(pdu, &referred) else { break };
            let nr = numbers.next().ok_or(Error::Busy)?;
            match self.add_to_chain(&mut chain, pdu, behind, nr).await {
                Ok(outcome) => received.push(outcome),
                // Of no shape that can be stored: the general way says so.
                Err(Error::BadEvent(_)) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let Chain { mut head, built, .. } = chain;
        if built.events.is_empty() {
            return Ok((head, received));
        }
        let live = built.events.iter().filter(|event| event.placement == Placement::Live);
        let related_again: Vec<OwnedEventId> =
            live.filter_map(|event| Some(event.relation.as_ref()?.parent.clone())).collect();
        let has_relations = !related_again.is_empty();
        let mut commit = RoomCommit { lease: race.wants_lease(), related_again, ..room_commit(&head, built) };
        if head.is_partial {
            Box::pin(self.settle_memberships(&mut commit)).await?;
        }
        match storage.commit(Commit { room: Some(commit), ..Commit::default() }).await {
            Ok(_) => head.committed(),
            Err(CommitError::Storage(source)) => return Err(Error::Storage(source).into()),
            Err(error) => return Err(Retry::Lost(error)),
        }
        if has_relations {
            self.go_on_to_related();
        }
        Ok((head, received))
    }

    /// Reads what the events refer to. They themselves were not here a moment ago; whether they are now this process knows, unless another one
    /// was first.
    async fn referred(&self, head: &Head, incoming: &[Incoming], may_be_here: bool) -> Result<Referred, Error> {
        let pdus = || incoming.iter().map(|incoming| &incoming.pdu);
        let own: HashSet<&OwnedEventId> = pdus().map(|pdu| &pdu.event_id).collect();
        let before = pdus().flat_map(|pdu| pdu.prev_events.iter().chain(&pdu.auth_events));
        let before = before.filter(|id| !own.contains(id));
        let here = own.iter().copied().filter(|id| may_be_here || self.storage().is_event_in_memory(id));
        let ids: HashSet<&OwnedEventId> = before.chain(here).collect();
        let numbers = self.storage().find_event_nrs(&ids.into_iter().cloned().collect::<Vec<_>>()).await?;
        let tips = head.extremities.iter().map(|(nr, _)| *nr);
        let events = self.storage().get_events(&numbers.values().copied().chain(tips).collect::<Vec<_>>()).await?;
        Ok(Referred { numbers, events })
    }

    /// Judges an event by its `auth_events` and by the current state, which is the state before it: checks 4, 5 and 6. Moves the head on
    /// to it unless it is rejected.
    async fn add_to_chain(&self, chain: &mut Chain, pdu: &Pdu, behind: Behind, nr: EventNr) -> Result<Received, Error> {
        let storage = self.storage();
        if chain.head.is_partial {
            Box::pin(self.learn_members(chain, pdu, &behind.auth)).await?;
        }
        let head = &chain.head;
        let mut state = HashMap::new();
        let rejection = match self.relevant_state(head, pdu).await? {
            Ok(relevant) => {
                state = relevant;
                self.forbidden(head, pdu, &behind.auth, &state)
            }
            Err(rule) => Some(rule),
        };
        let pdu = Arc::new(Pdu { rejected: rejection.is_some(), ..pdu.clone() });
        let type_nr = storage.type_nr(&pdu.event_type.to_string()).await?;
        let mut event = NewEvent {
            nr,
            pdu: pdu.clone(),
            sender_nr: storage.user_nr(&pdu.sender).await?,
            type_nr,
            state_key_nr: None,
            state: head.state,
            replaces: None,
            prev: behind.prev,
            auth: behind.auth.iter().map(|(nr, _)| *nr).collect(),
            placement: if rejection.is_some() { Placement::Rejected } else { Placement::Live },
            passed_on: false,
            was_outlier: false,
            lacks_members: head.is_partial,
            transaction: None,
            countable: None,
            relation: match Relation::of_content(&pdu.content) {
                Some(relation) => Some(new_relation(storage, &pdu, &relation).await?),
                None => None,
            },
        };
        let (mut nodes, mut state_change) = (NewNodes::default(), None);
        if let Some(state_key) = &pdu.state_key {
            let key = (type_nr, storage.state_key_nr(state_key).await?);
            let replaced = head.state_event(storage, &pdu.event_type.to_string(), state_key).await?;
            event.state_key_nr = Some(key.1);
            event.replaces = replaced.as_ref().map(|(nr, _)| *nr);
            if rejection.is_none() {
                let old = replaced.as_ref().map(|(_, old)| &**old);
                let membership = membership_change(storage, self.servers(), nr, &pdu, old).await?;
                event.state = storage.change_state(head.row.nr, head.state, key, Some(nr), &mut nodes).await?;
                state_change = Some(StateChange { event_nr: Some(nr), membership });
            }
        }
        if let Some(rule) = rejection {
            chain.built.events.push(event);
            return Ok(Received::Rejected(rule));
        }
        let may_notify_room = async || Ok(power_levels(&head.rules, &state)?.may_notify_room(&pdu.sender));
        event.countable = push::class::countable(storage, self.servers(), head.row.nr, &pdu, may_notify_room).await?;
        chain.tips.retain(|nr, _| !event.prev.contains(nr));
        chain.tips.insert(nr, event.state);
        chain.new.insert(pdu.event_id.clone(), (nr, event.state, pdu));
        chain.head.take_in(NewlyMade { event, nodes, state_change, redaction: None, related: None }, &mut chain.built);
        Ok(Received::Accepted)
    }

    /// Takes the members that an event lists and that the state lacks into the state.
    async fn learn_members(&self, chain: &mut Chain, pdu: &Pdu, auth: &[(EventNr, Arc<Pdu>)]) -> Result<(), Error> {
        let head = &mut chain.head;
        let (state, learned) = self.with_members_of(&head.row, head.state, pdu, auth, &mut chain.built.nodes).await?;
        for (nr, member) in learned {
            let membership = membership_change(self.storage(), self.servers(), nr, &member, None).await?;
            chain.built.state_changes.push(StateChange { event_nr: Some(nr), membership });
        }
        // The states of before say nothing else of anybody.
        for tip in chain.tips.values_mut().filter(|tip| **tip == head.state) {
            *tip = state;
        }
        for (_, of_new, _) in chain.new.values_mut().filter(|(_, of_new, _)| *of_new == head.state) {
            *of_new = state;
        }
        head.state = state;
        Ok(())
    }

    /// What the rules read of the current state to judge an event; or the rule by which none of its kind is one.
    async fn relevant_state(&self, head: &Head, pdu: &Pdu) -> Result<Result<State, String>, Error> {
        let keys = state_res::auth_types_for_event(
            &pdu.event_type,
            &pdu.sender,
            pdu.state_key.as_deref(),
            &pdu.content,
            &head.rules.authorization,
        );
        let mut keys = match keys {
            Ok(keys) => keys,
            Err(rule) => return Ok(Err(rule)),
        };
        // From version 12 on it is not among them, and the rules need it all the same.
        keys.push((StateEventType::RoomCreate, String::new()));
        let mut state = State::with_capacity(keys.len());
        for (event_type, state_key) in keys {
            if let Some(found) = head.state_event(self.storage(), &event_type.to_string(), &state_key).await? {
                state.insert((event_type, state_key), found);
            }
        }
        Ok(Ok(state))
    }

    /// The rule that forbids an event, by its `auth_events` or by the state.
    fn forbidden(&self, head: &Head, pdu: &Pdu, auth: &[(EventNr, Arc<Pdu>)], state: &State) -> Option<String> {
        let rules = &head.rules.authorization;
        let create = state.get(&(StateEventType::RoomCreate, String::new()));
        let auth_pdus: Vec<Arc<Pdu>> = auth.iter().map(|(_, pdu)| pdu.clone()).collect();
        if let Err(rule) = check_by_auth_events(rules, pdu, &auth_pdus, create.map(|(_, pdu)| &**pdu)) {
            return Some(rule);
        }
        // What allows it is as a rule what the state has; then this was checked just now.
        let listed: HashSet<EventNr> = auth.iter().map(|(nr, _)| *nr).collect();
        let is_same =
            state.values().all(|(nr, _)| listed.contains(nr) || create.is_some_and(|(create, _)| create == nr))
                && listed.iter().all(|nr| state.values().any(|(in_state, _)| in_state == nr));
        if is_same {
            return None;
        }
        let fetch = |kind: &StateEventType, key: &str| Some(&*state.get(&(kind.clone(), key.to_owned()))?.1);
        state_res::check_state_dependent_auth_rules(rules, pdu, fetch).err()
    }
}
