//! Events that are stored though they have no place here: state that others tell of, and what allows it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use model::{EventNr, Pdu};
use ruma::{
    EventId, OwnedEventId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::{AuthorizationRules, RoomVersionRules},
    state_res,
};
use serde_json::value::RawValue;
use storage::{RoomRow, StateKey};
use tracing::debug;

use crate::{Error, Rooms, power::rules_of, told_events::next_part};

/// Events that are read from the database at once.
const READ_AT_ONCE: usize = 4_000;

/// Most events that may allow others and are kept in memory; more are read again.
const ALLOWING_MAX: usize = 10_000;

/// An event that another server told of and that is stored now.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) nr: EventNr,
    pub(crate) event_id: OwnedEventId,
    /// Of what it is the state; nothing when it was rejected.
    pub(crate) key: Option<StateKey>,
}

/// Events on their way in.
#[derive(Default)]
struct Taking {
    /// What is stored, by its id.
    told: HashMap<OwnedEventId, Told>,
    /// Of that what may allow other events, and not much of it. All else is dropped as soon as it is stored: a room has tens of thousands
    /// of events.
    allowing: HashMap<OwnedEventId, Arc<Pdu>>,
    /// What is sound, and refers to what did not come yet.
    waiting: HashMap<OwnedEventId, Arc<Pdu>>,
    /// Ids under which there are events of other rooms: versions 1 and 2 let servers choose them.
    foreign: HashSet<OwnedEventId>,
    /// The event that made the room, where events do not list it though all of them depend on it: from version 12 on.
    create: Option<Arc<Pdu>>,
}

impl Rooms {
    /// Takes in events of a room that another server tells of, as outliers: each is checked by its format, its signatures, its hash and
    /// its `auth_events`. Gives the event for each that is stored now, in the order of `events`.
    ///
    /// What is forbidden by its `auth_events` is stored as rejected. What has no sound format or signature, or whose `auth_events` are
    /// neither here nor among the others, is left out. Server-Server API, "Checks performed on receipt of a PDU".
    ///
    /// Needs little memory where events come after those that allow them.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`]; [`Error::Remote`] when no keys can be asked for.
    pub(crate) async fn take_in_outliers(
        &self,
        room: &Arc<RoomRow>,
        events: Vec<Box<RawValue>>,
    ) -> Result<Vec<Option<Told>>, Error> {
        let rules = Arc::new(rules_of(&room.version)?);
        let mut ids: Vec<Option<OwnedEventId>> = Vec::with_capacity(events.len());
        let mut taking = Taking::default();
        if rules.authorization.room_create_event_id_as_room_id
            && let Ok(id) = EventId::parse(room.id.as_str().replacen('!', "$", 1))
        {
            taking.create = self.storage().find_event(&id).await?.map(|event| event.pdu.clone());
        }
        let mut events = events.into_iter().peekable();
        while events.peek().is_some() {
            let part = next_part(&mut events);
            let mut unverified = Vec::with_capacity(part.len());
            for (event_id, read) in self.read_texts(room, &rules, part).await? {
                match read {
                    Ok(event) => unverified.push(event),
                    Err(error) => {
                        debug!(room.id = %room.id, ?event_id, %error, "an event of the state told is unsound")
                    }
                }
                ids.push(event_id);
            }
            let new: Vec<OwnedEventId> = unverified.iter().map(|event| event.pdu.event_id.clone()).collect();
            self.note_stored(room, &mut taking, new).await?;
            let mut seen = HashSet::new();
            unverified.retain(|event| {
                let id = &event.pdu.event_id;
                let is_known = taking.told.contains_key(id) || taking.waiting.contains_key(id);
                !is_known && !taking.foreign.contains(id) && seen.insert(id.clone())
            });
            for pdu in self.verify_events(unverified).await? {
                match pdu {
                    Ok(pdu) => drop(taking.waiting.insert(pdu.event_id.clone(), Arc::new(pdu))),
                    Err(error) => {
                        debug!(room.id = %room.id, %error, "an event of the state told is not signed as it must be")
                    }
                }
            }
            self.judge_waiting(room, &rules, &mut taking, events.peek().is_none()).await?;
        }
        Ok(ids.into_iter().map(|id| taking.told.get(&id?).cloned()).collect())
    }

    /// Notes those of some events that are stored already.
    async fn note_stored(&self, room: &RoomRow, taking: &mut Taking, mut ids: Vec<OwnedEventId>) -> Result<(), Error> {
        ids.retain(|id| !taking.told.contains_key(id));
        for ids in ids.chunks(READ_AT_ONCE) {
            let numbers: Vec<EventNr> = self.storage().find_event_nrs(ids).await?.into_values().collect();
            for event in self.storage().get_events(&numbers).await?.into_values() {
                if event.room_nr != room.nr {
                    taking.foreign.insert(event.pdu.event_id.clone());
                    continue;
                }
                let key = event.state_key_nr.filter(|_| !event.pdu.rejected).map(|key| (event.type_nr, key));
                taking.add(event.nr, event.pdu.clone(), key);
            }
        }
        Ok(())
    }

    /// Judges and stores what waits and has all that it refers to; at the end the rest is given up.
    async fn judge_waiting(
        &self,
        room: &Arc<RoomRow>,
        rules: &RoomVersionRules,
        taking: &mut Taking,
        is_end: bool,
    ) -> Result<(), Error> {
        let storage = self.storage();
        let referred: HashSet<&OwnedEventId> = taking.waiting.values().flat_map(|pdu| &pdu.auth_events).collect();
        let at_hand = |id: &&OwnedEventId| taking.waiting.contains_key(*id) || taking.allowing.contains_key(*id);
        let referred = referred.into_iter().filter(|id| !at_hand(id));
        let (told, elsewhere): (Vec<&OwnedEventId>, Vec<&OwnedEventId>) =
            referred.partition(|id| taking.told.contains_key(*id));
        let told: Vec<EventNr> = told.into_iter().map(|id| taking.told[id].nr).collect();
        let elsewhere = elsewhere.into_iter().cloned().collect();
        let told = storage.get_events(&told).await?.into_values();
        taking.allowing.extend(told.map(|event| (event.pdu.event_id.clone(), event.pdu.clone())));
        self.note_stored(room, taking, elsewhere).await?;
        let is_create = |pdu: &Pdu| pdu.event_type == TimelineEventType::RoomCreate;
        let needs_create = rules.authorization.room_create_event_id_as_room_id;
        if needs_create && taking.create.is_none() {
            taking.create = taking.waiting.values().find(|pdu| is_create(pdu)).cloned();
        }
        let mut in_order = Vec::with_capacity(taking.waiting.len());
        for pdu in by_auth_events(&taking.waiting) {
            let auth: Vec<Arc<Pdu>> =
                pdu.auth_events.iter().filter_map(|id| taking.allowing.get(id)).cloned().collect();
            let lacks = auth.len() < pdu.auth_events.len();
            if lacks || (needs_create && taking.create.is_none() && !is_end) {
                if is_end {
                    debug!(room.id = %room.id, event.id = %pdu.event_id, "an event of the state told refers to what is not known");
                }
                continue;
            }
            let pdu = match check_by_auth_events(&rules.authorization, &pdu, &auth, taking.create.as_deref()) {
                Ok(()) => pdu,
                Err(rule) => {
                    debug!(room.id = %room.id, event.id = %pdu.event_id, rule, "an event of the state told is rejected");
                    Arc::new(Pdu { rejected: true, ..(*pdu).clone() })
                }
            };
            taking.waiting.remove(&pdu.event_id);
            taking.keep(&pdu);
            in_order.push(pdu);
        }
        let numbers = storage.insert_outliers(room.nr, &in_order).await?;
        for pdu in in_order {
            let Some(nr) = numbers.get(&pdu.event_id) else { continue };
            let key = match pdu.state_key.as_deref().filter(|_| !pdu.rejected) {
                Some(state_key) => {
                    let type_nr = storage.type_nr(&pdu.event_type.to_string()).await?;
                    Some((type_nr, storage.state_key_nr(state_key).await?))
                }
                None => None,
            };
            taking.add(*nr, pdu, key);
        }
        if taking.allowing.len() > ALLOWING_MAX {
            taking.allowing.clear();
        }
        Ok(())
    }
}

impl Taking {
    fn add(&mut self, nr: EventNr, pdu: Arc<Pdu>, key: Option<StateKey>) {
        self.keep(&pdu);
        let event_id = pdu.event_id.clone();
        self.told.insert(event_id.clone(), Told { nr, event_id, key });
    }

    /// Keeps what may allow others, whatever came of it itself. Server-Server API, "Auth events selection".
    fn keep(&mut self, pdu: &Arc<Pdu>) {
        let may_allow = matches!(
            pdu.event_type,
            TimelineEventType::RoomCreate
                | TimelineEventType::RoomPowerLevels
                | TimelineEventType::RoomJoinRules
                | TimelineEventType::RoomMember
                | TimelineEventType::RoomThirdPartyInvite
        );
        if may_allow {
            self.allowing.insert(pdu.event_id.clone(), pdu.clone());
        }
    }
}

/// The events in an order where those that an event lists as `auth_events` come before it. Of a circle, which no hash allows, the events
/// come in any order, and then lack what they list.
fn by_auth_events(events: &HashMap<OwnedEventId, Arc<Pdu>>) -> Vec<Arc<Pdu>> {
    let mut in_order = Vec::with_capacity(events.len());
    let mut seen: HashSet<&OwnedEventId> = HashSet::with_capacity(events.len());
    for start in events.values() {
        // Each with the next of its auth events to look at.
        let mut path: Vec<(&Arc<Pdu>, usize)> = Vec::new();
        if seen.insert(&start.event_id) {
            path.push((start, 0));
        }
        while let Some((pdu, next)) = path.last_mut() {
            match pdu.auth_events.get(*next) {
                Some(id) => {
                    *next += 1;
                    if let Some(before) = events.get(id).filter(|before| seen.insert(&before.event_id)) {
                        path.push((before, 0));
                    }
                }
                None => {
                    in_order.push((*pdu).clone());
                    path.pop();
                }
            }
        }
    }
    in_order
}

/// Whether an event is allowed by the events that it lists for it. Server-Server API, "Rejection".
///
/// # Errors
///
/// The rule that forbids it.
pub(crate) fn check_by_auth_events(
    rules: &AuthorizationRules,
    pdu: &Pdu,
    auth: &[Arc<Pdu>],
    create: Option<&Pdu>,
) -> Result<(), String> {
    let all = || auth.iter().map(|pdu| &**pdu).chain(create);
    state_res::check_state_independent_auth_rules(rules, pdu, |id: &EventId| all().find(|pdu| pdu.event_id == id))?;
    state_res::check_state_dependent_auth_rules(rules, pdu, |kind: &StateEventType, key: &str| {
        let mut fitting = all().filter(|pdu| pdu.state_key.as_deref() == Some(key));
        fitting.find(|pdu| pdu.event_type.to_string() == kind.to_string())
    })
}
