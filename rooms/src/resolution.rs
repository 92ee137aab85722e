//! State resolution: one state from several. Room Versions, "State resolution"; the algorithms of version 2 and later are ruma's.
//!
//! The algorithm is fed what differs: the conflicted keys, the unconflicted ones that authorization reads, and of the auth chains
//! what can matter. The result is laid over the state that they share.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use model::{EventNr, NodeNr, Pdu};
use ruma::{
    EventId, OwnedEventId,
    events::StateEventType,
    room_version_rules::{RoomVersionRules, StateResolutionV2Rules, StateResolutionVersion},
    state_res::{self, StateMap, utils::event_id_set::EventIdSet},
};
use sha1::{Digest as _, Sha1};
use storage::{NewNodes, RoomRow, StateKey, Storage, StoredEvent};

use crate::Error;

/// Most events of auth chains that are looked at; a room with more is refused rather than held for minutes.
const CHAIN_EVENTS_MAX: usize = 500_000;

/// So many events of the state that is shared are looked at first, and then each time so many times more.
const FIRST_PIECE: usize = 64;
const PIECES_GROW: usize = 8;

/// An event that is not stored yet and takes part all the same.
pub(crate) struct Unstored {
    pub(crate) event: Arc<StoredEvent>,
    pub(crate) auth: Vec<EventNr>,
}

/// The events that a resolution may look at, by number and by id.
struct Known {
    by_nr: HashMap<EventNr, Arc<StoredEvent>>,
    by_id: HashMap<OwnedEventId, EventNr>,
}

impl Known {
    async fn load(
        storage: &Storage,
        events: impl IntoIterator<Item = EventNr>,
        unstored: Option<&Unstored>,
    ) -> Result<Self, Error> {
        let numbers: Vec<EventNr> = events.into_iter().collect();
        let mut by_nr = storage.get_events(&numbers).await?;
        by_nr.extend(unstored.map(|unstored| (unstored.event.nr, unstored.event.clone())));
        let by_id = by_nr.values().map(|event| (event.pdu.event_id.clone(), event.nr)).collect();
        Ok(Self { by_nr, by_id })
    }

    fn get(&self, event_id: &EventId) -> Option<&Pdu> {
        Some(&*self.by_nr.get(self.by_id.get(event_id)?)?.pdu)
    }

    fn id(&self, nr: EventNr) -> Option<OwnedEventId> {
        Some(self.by_nr.get(&nr)?.pdu.event_id.clone())
    }

    fn ids<'a>(&'a self, events: impl IntoIterator<Item = &'a EventNr>) -> impl Iterator<Item = OwnedEventId> {
        events.into_iter().filter_map(|nr| self.id(*nr))
    }
}

/// The auth chains of events, as numbers.
#[derive(Default)]
pub(crate) struct Chains {
    edges: HashMap<EventNr, Vec<EventNr>>,
}

impl Chains {
    /// Reads all that can be reached from these events, level by level.
    pub(crate) async fn load(
        &mut self,
        storage: &Storage,
        from: impl IntoIterator<Item = EventNr>,
        unstored: Option<&Unstored>,
    ) -> Result<(), Error> {
        let mut level: Vec<EventNr> = from.into_iter().filter(|nr| !self.edges.contains_key(nr)).collect();
        while !level.is_empty() {
            let mut found = storage.list_auth_events(&level).await?;
            found.extend(unstored.map(|unstored| (unstored.event.nr, unstored.auth.clone())));
            let mut next = BTreeSet::new();
            for nr in level {
                let auth = found.get(&nr).cloned().unwrap_or_default();
                next.extend(auth.iter().copied());
                self.edges.insert(nr, auth);
            }
            if self.edges.len() > CHAIN_EVENTS_MAX {
                return Err(Error::InvalidRoomState("the auth chains of the room are too long to resolve".to_owned()));
            }
            level = next.into_iter().filter(|nr| !self.edges.contains_key(nr)).collect();
        }
        Ok(())
    }

    /// All that can be reached from the events that were loaded; those among them that others refer to are too.
    pub(crate) fn all(&self) -> HashSet<EventNr> {
        self.edges.values().flatten().copied().collect()
    }

    /// All that can be reached from these events, themselves included.
    fn reached(&self, from: impl IntoIterator<Item = EventNr>) -> HashSet<EventNr> {
        let mut reached = HashSet::new();
        self.reach(&mut reached, from);
        reached
    }

    /// Adds all that can be reached from these events, themselves included; what is there already has been followed.
    fn reach(&self, reached: &mut HashSet<EventNr>, from: impl IntoIterator<Item = EventNr>) {
        let mut open: Vec<EventNr> = from.into_iter().collect();
        while let Some(nr) = open.pop() {
            if reached.insert(nr) {
                open.extend(self.edges.get(&nr).into_iter().flatten());
            }
        }
    }

    /// The events on paths between two of `conflicted`. Room Version 12, "State resolution", *conflicted state subgraph*.
    fn subgraph(&self, conflicted: &HashSet<EventNr>) -> HashSet<EventNr> {
        let below = self.reached(conflicted.iter().copied());
        let mut children: HashMap<EventNr, Vec<EventNr>> = HashMap::new();
        for nr in &below {
            for auth in self.edges.get(nr).into_iter().flatten() {
                children.entry(*auth).or_default().push(*nr);
            }
        }
        let mut above = HashSet::new();
        let mut open: Vec<EventNr> = conflicted.iter().copied().collect();
        while let Some(nr) = open.pop() {
            if above.insert(nr) {
                open.extend(children.get(&nr).into_iter().flatten());
            }
        }
        above.intersection(&below).copied().collect()
    }
}

/// A state key in words: type and state key.
type Words = (StateEventType, String);

/// What differs between states: for each key its event in each of them.
type Conflicts = BTreeMap<StateKey, Vec<Option<EventNr>>>;

/// Resolves states of a room to one; gives its root. `unstored` is an event of one of the states
/// that is not in the database yet.
///
/// # Errors
///
/// [`Error::InvalidRoomState`] when the algorithm cannot be run on what is stored.
pub(crate) async fn resolve(
    storage: &Storage,
    room: &RoomRow,
    rules: &RoomVersionRules,
    states: &[NodeNr],
    unstored: Option<&Unstored>,
    new: &mut NewNodes,
) -> Result<NodeNr, Error> {
    let mut distinct: Vec<NodeNr> = Vec::new();
    for state in states {
        if !distinct.contains(state) {
            distinct.push(*state);
        }
    }
    let [base, others @ ..] = &distinct[..] else { return Ok(NodeNr(0)) };
    let mut conflicts = Conflicts::new();
    for (index, other) in others.iter().enumerate() {
        for (key, in_base, in_other) in storage.diff_state(room.nr, *base, *other).await? {
            let entry = conflicts.entry(key).or_insert_with(|| vec![in_base; distinct.len()]);
            entry[index + 1] = in_other;
        }
    }
    if conflicts.is_empty() {
        return Ok(*base);
    }
    let resolved = match &rules.state_res {
        StateResolutionVersion::V2(v2) => {
            resolve_v2(storage, room, rules, v2, *base, (&conflicts, distinct.len()), unstored).await?
        }
        _ => resolve_v1(storage, room, rules, *base, &conflicts, unstored).await?,
    };
    // What is conflicted and did not pass is in no state any more; what the chains brought back is in none of those that came in.
    let mut changes: BTreeMap<StateKey, Option<EventNr>> = conflicts.keys().map(|key| (*key, None)).collect();
    changes.extend(resolved.into_iter().map(|(key, nr)| (key, Some(nr))));
    let mut state = *base;
    for (key, event) in changes {
        if event != conflicts.get(&key).and_then(|in_states| in_states[0]) {
            state = storage.change_state(room.nr, state, key, event, new).await?;
        }
    }
    Ok(state)
}

/// The algorithm of version 2 and later: for each key that not all states share, its event, if one passed. A key of none of the
/// states is there too when an event of the auth chains passed: the algorithm says so.
async fn resolve_v2(
    storage: &Storage,
    room: &RoomRow,
    rules: &RoomVersionRules,
    v2: &StateResolutionV2Rules,
    base: NodeNr,
    (conflicts, count): (&Conflicts, usize),
    unstored: Option<&Unstored>,
) -> Result<HashMap<StateKey, EventNr>, Error> {
    let conflicted: HashSet<EventNr> = conflicts.values().flatten().flatten().copied().collect();
    let shared: Vec<(StateKey, EventNr)> =
        storage.list_state(room.nr, base).await?.into_iter().filter(|(key, _)| !conflicts.contains_key(key)).collect();
    let mut chains = Chains::default();
    chains.load(storage, conflicted.iter().copied(), unstored).await?;
    let reachable = chains.reached(conflicted.iter().copied());
    let rests: Vec<HashSet<EventNr>> =
        (0..count).map(|index| chains.reached(conflicts.values().filter_map(|in_states| in_states[index]))).collect();

    // What all auth chains have in common cannot be in their difference: only the rest is fed. Of what the states share, the chains of
    // those events are looked at first that the conflict has to do with, and of the others no more than it takes: as a rule all else that
    // differs is in conflict itself, or what any member refers to.
    let in_all = |nr: &EventNr| rests.iter().all(|rest| rest.contains(nr));
    let in_question: Vec<EventNr> =
        reachable.iter().filter(|nr| !conflicted.contains(nr) && !in_all(nr)).copied().collect();
    let (near, far): (Vec<EventNr>, Vec<EventNr>) =
        shared.iter().map(|(_, nr)| *nr).partition(|nr| reachable.contains(nr));
    let mut common = chains.reached(near);
    let mut far = far.into_iter();
    let mut piece = FIRST_PIECE;
    while far.len() > 0 && in_question.iter().any(|nr| !common.contains(nr)) {
        let next: Vec<EventNr> = far.by_ref().take(piece).collect();
        chains.load(storage, next.iter().copied(), unstored).await?;
        chains.reach(&mut common, next);
        piece *= PIECES_GROW;
    }
    let rests: Vec<HashSet<EventNr>> =
        rests.into_iter().map(|rest| rest.into_iter().filter(|nr| !common.contains(nr)).collect()).collect();
    let mut known = Known::load(storage, reachable, unstored).await?;

    // Of the shared state what authorization reads of the events at stake.
    let mut shared_map: StateMap<OwnedEventId> = StateMap::new();
    let at_stake = rests.iter().flatten().chain(&conflicted);
    let read = read_by_rules(storage, room, rules, base, conflicts, &known, at_stake).await?;
    let numbers: Vec<EventNr> = read.iter().map(|(_, nr)| *nr).collect();
    chains.load(storage, numbers.iter().copied(), None).await?;
    let more = Known::load(storage, chains.reached(numbers), None).await?;
    known.by_nr.extend(more.by_nr);
    known.by_id.extend(more.by_id);
    for (words, nr) in read {
        if let Some(id) = known.id(nr) {
            shared_map.insert(words, id);
        }
    }

    let words = key_words(storage, conflicts.keys()).await?;
    let maps: Vec<StateMap<OwnedEventId>> = (0..count)
        .map(|index| {
            let mut map = shared_map.clone();
            for (key, in_states) in conflicts {
                if let (Some(nr), Some(words)) = (in_states[index], words.get(key))
                    && let Some(id) = known.id(nr)
                {
                    map.insert(words.clone(), id);
                }
            }
            map
        })
        .collect();
    let auth_chains: Vec<EventIdSet<OwnedEventId>> = rests.iter().map(|rest| known.ids(rest).collect()).collect();
    let subgraph = if v2.consider_conflicted_state_subgraph { chains.subgraph(&conflicted) } else { HashSet::new() };
    let subgraph: Vec<OwnedEventId> = known.ids(&subgraph).collect();

    let (authorization, v2) = (rules.authorization.clone(), *v2);
    // The algorithm is synchronous and may take long: not on a thread that serves requests.
    let resolved = tokio::task::spawn_blocking(move || {
        let resolved = state_res::resolve(
            &authorization,
            &v2,
            &maps,
            auth_chains,
            |id| known.get(id),
            |_| Some(subgraph.iter().cloned().collect()),
        );
        resolved.map(|map| (map, known))
    })
    .await
    .map_err(|_| Error::Busy)?;
    let (map, known) = resolved.map_err(|error| Error::InvalidRoomState(error.to_string()))?;
    let shared: HashSet<StateKey> = shared.into_iter().map(|(key, _)| key).collect();
    let stored = map.values().filter_map(|id| known.by_nr.get(known.by_id.get(id)?));
    let by_key = stored.filter_map(|event| Some(((event.type_nr, event.state_key_nr?), event.nr)));
    Ok(by_key.filter(|(key, _)| !shared.contains(key)).collect())
}

/// The events of the state that all share by which the rules judge some events.
async fn read_by_rules<'a>(
    storage: &Storage,
    room: &RoomRow,
    rules: &RoomVersionRules,
    base: NodeNr,
    conflicts: &Conflicts,
    known: &Known,
    judged: impl Iterator<Item = &'a EventNr>,
) -> Result<Vec<(Words, EventNr)>, Error> {
    let mut wanted: BTreeSet<(String, String)> = BTreeSet::new();
    wanted.extend([("m.room.create".to_owned(), String::new()), ("m.room.power_levels".to_owned(), String::new())]);
    for event in judged.filter_map(|nr| known.by_nr.get(nr)) {
        let pdu = &event.pdu;
        let types = state_res::auth_types_for_event(
            &pdu.event_type,
            &pdu.sender,
            pdu.state_key.as_deref(),
            &pdu.content,
            &rules.authorization,
        );
        wanted.extend(types.unwrap_or_default().into_iter().map(|(kind, key)| (kind.to_string(), key)));
    }
    let mut read = Vec::new();
    for (event_type, state_key) in wanted {
        let Some(key) = storage.find_state_key(&event_type, &state_key).await? else { continue };
        if !conflicts.contains_key(&key)
            && let Some(nr) = storage.get_state_event(room.nr, base, key).await?
        {
            read.push(((StateEventType::from(event_type), state_key), nr));
        }
    }
    Ok(read)
}

async fn key_words<'a>(
    storage: &Storage,
    keys: impl Iterator<Item = &'a StateKey>,
) -> Result<HashMap<StateKey, Words>, Error> {
    let keys: Vec<StateKey> = keys.copied().collect();
    let types = storage.type_names(&keys.iter().map(|key| key.0).collect::<Vec<_>>()).await?;
    let names = storage.state_key_names(&keys.iter().map(|key| key.1).collect::<Vec<_>>()).await?;
    Ok(keys
        .into_iter()
        .filter_map(|key| {
            let words = (StateEventType::from(&**types.get(&key.0)?), names.get(&key.1)?.to_string());
            Some((key, words))
        })
        .collect())
}

/// The algorithm of version 1. Room Version 1, "State resolution".
async fn resolve_v1(
    storage: &Storage,
    room: &RoomRow,
    rules: &RoomVersionRules,
    base: NodeNr,
    conflicts: &Conflicts,
    unstored: Option<&Unstored>,
) -> Result<HashMap<StateKey, EventNr>, Error> {
    let conflicted: HashSet<EventNr> = conflicts.values().flatten().flatten().copied().collect();
    let mut known = Known::load(storage, conflicted, unstored).await?;
    let words = key_words(storage, conflicts.keys()).await?;
    // R: the union of the states without what conflicts, as far as authorization reads it.
    let mut result: HashMap<Words, EventNr> = HashMap::new();
    let read = read_by_rules(storage, room, rules, base, conflicts, &known, known.by_nr.keys()).await?;
    let more = Known::load(storage, read.iter().map(|(_, nr)| *nr), None).await?;
    known.by_nr.extend(more.by_nr);
    result.extend(read);
    // A key that only some of the states have does not conflict: its event is in the union.
    let mut resolved = HashMap::new();
    let mut open: Vec<(StateKey, Words, Vec<Arc<StoredEvent>>)> = Vec::new();
    for (key, in_states) in conflicts {
        let Some(words) = words.get(key) else { continue };
        let events: BTreeSet<EventNr> = in_states.iter().flatten().copied().collect();
        if let (1, Some(nr)) = (events.len(), events.first()) {
            result.insert(words.clone(), *nr);
            resolved.insert(*key, *nr);
            continue;
        }
        let mut events: Vec<Arc<StoredEvent>> =
            events.into_iter().filter_map(|nr| known.by_nr.get(&nr).cloned()).collect();
        // Ascending depth, then descending SHA-1 of the id.
        events.sort_by_key(|event| (event.pdu.depth, Reverse(Sha1::digest(event.pdu.event_id.as_bytes()).to_vec())));
        open.push((*key, words.clone(), events));
    }
    let is_allowed = |event: &StoredEvent, result: &HashMap<Words, EventNr>| {
        let by_key = |event_type: &StateEventType, key: &str| {
            let nr = result.get(&(event_type.clone(), key.to_owned()))?;
            Some(&*known.by_nr.get(nr)?.pdu)
        };
        state_res::check_state_dependent_auth_rules(&rules.authorization, &*event.pdu, by_key).is_ok()
    };
    let in_order = [
        Some(StateEventType::RoomPowerLevels),
        Some(StateEventType::RoomJoinRules),
        Some(StateEventType::RoomMember),
        None,
    ];
    for kind in &in_order {
        // What a pass finds counts from the next pass on: within it, no key depends on which was looked at before. (The
        // specification does not say; keys have no order that all servers share, and other servers do it this way.)
        let mut found = Vec::new();
        for (key, words, events) in &open {
            let is_this_pass = match kind {
                Some(kind) => words.0 == *kind,
                None => !in_order.contains(&Some(words.0.clone())),
            };
            if !is_this_pass {
                continue;
            }
            let chosen = match kind {
                Some(_) => {
                    let mut chosen = events.first();
                    for event in events.iter().skip(1) {
                        result.extend(chosen.map(|event| (words.clone(), event.nr)));
                        if !is_allowed(event, &result) {
                            break;
                        }
                        chosen = Some(event);
                    }
                    result.remove(words);
                    chosen
                }
                None => events.iter().rev().find(|event| is_allowed(event, &result)).or(events.first()),
            };
            if let Some(event) = chosen {
                found.push((words.clone(), event.nr));
                resolved.insert(*key, event.nr);
            }
        }
        result.extend(found);
    }
    Ok(resolved)
}
