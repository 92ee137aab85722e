//! Events that are stored though they have no place here: state that others tell of, and what allows it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use model::{EventNr, Pdu};
use ruma::{EventId, OwnedEventId, events::StateEventType, room_version_rules::AuthorizationRules, state_res};
use serde_json::value::RawValue;
use storage::RoomRow;
use tracing::debug;

use crate::{Error, Rooms, power::rules_of, receive::legible, told_events::next_part};

/// Events that are read from the database at once.
const READ_AT_ONCE: usize = 4_000;

/// An event that is stored, whether it has a place or not.
pub(crate) type Stored = (EventNr, Arc<Pdu>);

impl Rooms {
    /// Takes in events of a room that another server tells of, as outliers: each is checked by its format, its signatures, its hash and
    /// its `auth_events`. Gives the event for each that is stored now, in the order of `events`.
    ///
    /// What is forbidden by its `auth_events` is stored as rejected. What has no sound format or signature, or whose `auth_events` are
    /// neither here nor among the others, is left out. Server-Server API, "Checks performed on receipt of a PDU".
    ///
    /// # Errors
    ///
    /// [`Error::Storage`]; [`Error::Remote`] when no keys can be asked for.
    pub(crate) async fn take_in_outliers(
        &self,
        room: &Arc<RoomRow>,
        events: Vec<Box<RawValue>>,
    ) -> Result<Vec<Option<Stored>>, Error> {
        let rules = Arc::new(rules_of(&room.version)?);
        let mut ids: Vec<Option<OwnedEventId>> = Vec::with_capacity(events.len());
        let mut sound: HashMap<OwnedEventId, Arc<Pdu>> = HashMap::new();
        let mut events = events.into_iter().peekable();
        while events.peek().is_some() {
            let part = next_part(&mut events).into_iter();
            let objects: Vec<_> = part.map(|event| legible(&event, &rules).unwrap_or_default()).collect();
            let mut unverified = Vec::with_capacity(objects.len());
            for (event_id, read) in self.read_events(room, &rules, objects).await? {
                match read {
                    Ok(event) if !sound.contains_key(&event.pdu.event_id) => unverified.push(event),
                    Ok(_) => {}
                    Err(error) => {
                        debug!(room.id = %room.id, ?event_id, %error, "an event of the state told is unsound")
                    }
                }
                ids.push(event_id);
            }
            for pdu in self.verify_events(unverified).await? {
                match pdu {
                    Ok(pdu) => drop(sound.insert(pdu.event_id.clone(), Arc::new(pdu))),
                    Err(error) => {
                        debug!(room.id = %room.id, %error, "an event of the state told is not signed as it must be")
                    }
                }
            }
        }
        let (mut stored, foreign) = self.stored_events(room, sound.keys().cloned().collect()).await?;
        sound.retain(|event_id, _| !stored.contains_key(event_id) && !foreign.contains(event_id));
        let referred: HashSet<&OwnedEventId> = sound.values().flat_map(|pdu| &pdu.auth_events).collect();
        let elsewhere = referred.into_iter().filter(|id| !sound.contains_key(*id) && !stored.contains_key(*id));
        let elsewhere: Vec<OwnedEventId> = elsewhere.cloned().collect();
        stored.extend(self.stored_events(room, elsewhere).await?.0);

        let create = self.create_event(room, &sound, &stored).await?;
        let mut judged: HashMap<OwnedEventId, Arc<Pdu>> = HashMap::with_capacity(sound.len());
        let mut in_order = Vec::with_capacity(sound.len());
        for pdu in by_auth_events(&sound) {
            let by_id = |id: &OwnedEventId| judged.get(id).or_else(|| stored.get(id).map(|(_, pdu)| pdu)).cloned();
            let auth: Vec<Arc<Pdu>> = pdu.auth_events.iter().filter_map(by_id).collect();
            if auth.len() < pdu.auth_events.len() {
                debug!(room.id = %room.id, event.id = %pdu.event_id, "an event of the state told refers to what is not known");
                continue;
            }
            let pdu = match check_by_auth_events(&rules.authorization, &pdu, &auth, create.as_deref()) {
                Ok(()) => pdu,
                Err(rule) => {
                    debug!(room.id = %room.id, event.id = %pdu.event_id, rule, "an event of the state told is rejected");
                    Arc::new(Pdu { rejected: true, ..(*pdu).clone() })
                }
            };
            judged.insert(pdu.event_id.clone(), pdu.clone());
            in_order.push(pdu);
        }
        let numbers = self.storage().insert_outliers(room.nr, &in_order).await?;
        stored.extend(judged.into_iter().filter_map(|(id, pdu)| Some((id.clone(), (*numbers.get(&id)?, pdu)))));
        Ok(ids.into_iter().map(|id| stored.get(&id?).cloned()).collect())
    }

    /// Those of some events that are stored and of this room; and the ids under which there are events of other rooms, as versions 1 and 2
    /// let servers choose them.
    async fn stored_events(
        &self,
        room: &RoomRow,
        ids: Vec<OwnedEventId>,
    ) -> Result<(HashMap<OwnedEventId, Stored>, HashSet<OwnedEventId>), Error> {
        let (mut found, mut foreign) = (HashMap::new(), HashSet::new());
        for ids in ids.chunks(READ_AT_ONCE) {
            let numbers: Vec<EventNr> = self.storage().find_event_nrs(ids).await?.into_values().collect();
            let events = self.storage().get_events(&numbers).await?;
            for event in events.into_values() {
                if event.room_nr == room.nr {
                    found.insert(event.pdu.event_id.clone(), (event.nr, event.pdu.clone()));
                } else {
                    foreign.insert(event.pdu.event_id.clone());
                }
            }
        }
        Ok((found, foreign))
    }

    /// The event that made a room: from version 12 on events do not list it, though all of them depend on it.
    async fn create_event(
        &self,
        room: &RoomRow,
        new: &HashMap<OwnedEventId, Arc<Pdu>>,
        stored: &HashMap<OwnedEventId, Stored>,
    ) -> Result<Option<Arc<Pdu>>, Error> {
        if !rules_of(&room.version)?.authorization.room_create_event_id_as_room_id {
            return Ok(None);
        }
        let Ok(id) = EventId::parse(room.id.as_str().replacen('!', "$", 1)) else { return Ok(None) };
        if let Some(pdu) = new.get(&id).or_else(|| stored.get(&id).map(|(_, pdu)| pdu)) {
            return Ok(Some(pdu.clone()));
        }
        Ok(self.storage().find_event(&id).await?.map(|event| event.pdu.clone()))
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
