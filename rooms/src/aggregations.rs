//! What the server puts together of the events that relate to an event. Client-Server API, "Aggregations of child events".

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use model::{EventNr, Position, Relation};
use ruma::{EventId, OwnedEventId, UserId};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use storage::{Children, ChildrenQuery, ChildrenReader, RelationTypes, StoredEvent, TimelineDirection};

use crate::{
    Error, Reader, Rooms,
    relations::{is_valid_child, may_be_parent},
};

/// Most references of an event that are shown with it. "It lists all the events": of more none are shown, and who wants them asks for what
/// relates to it.
const REFERENCES_MAX: u32 = 100;
/// How many of an event's children are looked at for the newest one that the reader sees, where that is not the newest one.
const LOOKED_AT_MAX: u32 = 100;

/// The aggregations of some events, as one reader sees them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aggregations(HashMap<EventNr, Aggregation>);

#[derive(Clone, Debug)]
struct Aggregation {
    json: Arc<RawValue>,
    is_thread: bool,
}

impl Aggregations {
    /// The `m.relations` of an event.
    pub(crate) fn of(&self, nr: EventNr) -> Option<Arc<RawValue>> {
        Some(self.0.get(&nr)?.json.clone())
    }

    /// Whether the event is the root of a thread.
    pub(crate) fn has_thread(&self, nr: EventNr) -> bool {
        self.0.get(&nr).is_some_and(|aggregation| aggregation.is_thread)
    }
}

#[derive(Default, Serialize)]
struct Bundle {
    #[serde(rename = "m.replace", skip_serializing_if = "Option::is_none")]
    replace: Option<Box<RawValue>>,
    #[serde(rename = "m.reference", skip_serializing_if = "Option::is_none")]
    reference: Option<References>,
    #[serde(rename = "m.thread", skip_serializing_if = "Option::is_none")]
    thread: Option<Thread>,
}

/// Client-Server API, "Server-side aggregation of `m.reference`".
#[derive(Serialize)]
struct References {
    chunk: Vec<Reference>,
}

#[derive(Serialize)]
struct Reference {
    event_id: OwnedEventId,
}

/// Client-Server API, "Server-side aggregation of `m.thread` relationships".
#[derive(Serialize)]
struct Thread {
    latest_event: Box<RawValue>,
    count: u64,
    current_user_participated: bool,
}

/// Who reads, and what they do not see.
struct Looking<'a> {
    reader: &'a Reader,
    ignored: Vec<model::UserNr>,
    types: RelationTypes,
    with_room_id: bool,
}

impl Looking<'_> {
    fn children_reader(&self) -> ChildrenReader<'_> {
        ChildrenReader { user_nr: self.reader.user_nr, upto: self.reader.upto(), ignored: &self.ignored }
    }
}

/// What was found of some events, loaded and seen by the reader.
#[derive(Default)]
struct Found {
    edits: HashMap<EventNr, Arc<StoredEvent>>,
    latest: HashMap<EventNr, Arc<StoredEvent>>,
    references: HashMap<EventNr, Vec<OwnedEventId>>,
}

impl Rooms {
    /// Events as [`Rooms::render`] shows them, with what is aggregated of the events that relate to them: a few queries for all, none
    /// while it is known that nothing relates to them. State events get no aggregations, and those of users whom the reader ignores or
    /// that the reader may not see are not in them.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn render_with_relations(
        &self,
        reader: &Reader,
        events: &[Arc<StoredEvent>],
        with_room_id: bool,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        let aggregations = self.aggregations(reader, events, with_room_id).await?;
        self.render_with(reader, events, with_room_id, &aggregations).await
    }

    /// The aggregations of events of one room.
    pub(crate) async fn aggregations(
        &self,
        reader: &Reader,
        events: &[Arc<StoredEvent>],
        with_room_id: bool,
    ) -> Result<Aggregations, Error> {
        let parents: Vec<&Arc<StoredEvent>> = self.possible_parents(events);
        if parents.is_empty() {
            return Ok(Aggregations::default());
        }
        let ignored: Vec<&UserId> = reader.ignored().collect();
        let looking = Looking {
            reader,
            ignored: self.storage().find_user_nrs(&ignored).await?.into_values().collect(),
            types: self.storage().relation_types().await?,
            with_room_id,
        };
        let children = self.valid_children(&looking, &parents).await?;
        if children.is_empty() {
            return Ok(Aggregations::default());
        }
        let found = self.find_children(&looking, &parents, &children).await?;
        // The newest events of threads have aggregations of their own. They are no roots, so that this ends here.
        let latest: Vec<_> = found.latest.values().cloned().collect();
        let latest_parents = self.possible_parents(&latest);
        let inner = self.valid_children(&looking, &latest_parents).await?;
        let inner_found = self.find_children(&looking, &latest_parents, &inner).await?;
        let inner = self.bundle(&looking, &latest_parents, &inner, inner_found, &Aggregations::default()).await?;
        self.bundle(&looking, &parents, &children, found, &inner).await
    }

    fn possible_parents<'a>(&self, events: &'a [Arc<StoredEvent>]) -> Vec<&'a Arc<StoredEvent>> {
        let named = events.iter().filter(|event| !event.is_state()).map(|event| (event.nr, &*event.pdu.event_id));
        let possible: HashSet<EventNr> = self.storage().possible_parents(named).into_iter().map(|(nr, _)| nr).collect();
        events.iter().filter(|event| possible.contains(&event.nr)).collect()
    }

    /// What relates to events, but for what the rules of relations forbid.
    async fn valid_children(
        &self,
        looking: &Looking<'_>,
        parents: &[&Arc<StoredEvent>],
    ) -> Result<HashMap<EventNr, Children>, Error> {
        if parents.is_empty() {
            return Ok(HashMap::new());
        }
        let named: Vec<(EventNr, &EventId)> = parents.iter().map(|event| (event.nr, &*event.pdu.event_id)).collect();
        let mut children = self.storage().get_children(looking.types, looking.children_reader(), &named).await?;
        for parent in parents {
            let Some(children) = children.get_mut(&parent.nr) else { continue };
            // What is left of the rules is in the query: see [`is_valid_child`].
            let own = parent.relation().map(|relation| relation.rel_type.as_str());
            if !may_be_parent(own, Relation::REPLACE) || parent.redacted_by.is_some() {
                children.edit = None;
            }
            if !may_be_parent(own, Relation::THREAD) {
                children.latest = None;
            }
        }
        Ok(children)
    }

    /// Loads what relates to events, so far as the reader sees it.
    async fn find_children(
        &self,
        looking: &Looking<'_>,
        parents: &[&Arc<StoredEvent>],
        children: &HashMap<EventNr, Children>,
    ) -> Result<Found, Error> {
        let storage = self.storage();
        let mut found = Found::default();
        if children.is_empty() {
            return Ok(found);
        }
        let referred: Vec<&Arc<StoredEvent>> = parents
            .iter()
            .filter(|parent| children.get(&parent.nr).is_some_and(|children| children.has_references))
            .copied()
            .collect();
        let mut references = HashMap::new();
        if !referred.is_empty() {
            let ids: Vec<&EventId> = referred.iter().map(|event| &*event.pdu.event_id).collect();
            let (room_nr, rel_type) = (looking.reader.room.nr, looking.types.reference);
            let reader = looking.children_reader();
            references = storage.list_newest_children(room_nr, rel_type, reader, &ids, REFERENCES_MAX + 1).await?;
            references.retain(|_, list| list.len() <= REFERENCES_MAX as usize);
        }
        let mut numbers: Vec<EventNr> =
            children.values().flat_map(|children| [children.edit, children.latest]).flatten().collect();
        numbers.extend(references.values().flatten());
        let loaded = storage.get_events(&numbers).await?;
        let visible = self.visible(looking.reader, loaded.into_values().collect()).await?;
        let visible: HashMap<EventNr, Arc<StoredEvent>> = visible.into_iter().map(|event| (event.nr, event)).collect();
        for parent in parents {
            let Some(children) = children.get(&parent.nr) else { continue };
            if let Some(nr) = children.edit {
                let edit = match visible.get(&nr) {
                    Some(edit) => Some(edit.clone()),
                    None => self.newest_seen_edit(looking, parent).await?,
                };
                found.edits.extend(edit.map(|edit| (parent.nr, edit)));
            }
            if let Some(nr) = children.latest {
                let latest = match visible.get(&nr) {
                    Some(latest) => Some(latest.clone()),
                    None => self.seen_children(looking, parent, looking.types.thread).await?.into_iter().next(),
                };
                found.latest.extend(latest.map(|latest| (parent.nr, latest)));
            }
        }
        for parent in referred {
            let list = references.remove(&parent.pdu.event_id).unwrap_or_default();
            let list = list.iter().filter_map(|nr| visible.get(nr)).map(|event| event.pdu.event_id.clone());
            found.references.insert(parent.nr, list.collect());
        }
        Ok(found)
    }

    /// Of the newest events that relate to an event in that way, those that the reader sees, newest first.
    async fn seen_children(
        &self,
        looking: &Looking<'_>,
        parent: &StoredEvent,
        rel_type_nr: model::TypeNr,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let query = ChildrenQuery {
            room_nr: parent.room_nr,
            parent: &parent.pdu.event_id,
            rel_type_nr: Some(rel_type_nr),
            type_nr: None,
            levels: 1,
        };
        let (from, to) = ((looking.reader.upto(), i64::MAX), (Position(i64::MIN), 0));
        let rows = self.storage().list_children(query, TimelineDirection::Backward, from, to, LOOKED_AT_MAX).await?;
        let numbers: Vec<EventNr> = rows.iter().map(|(nr, _)| *nr).collect();
        let events = self.storage().get_events(&numbers).await?;
        self.visible(looking.reader, numbers.iter().filter_map(|nr| events.get(nr).cloned()).collect()).await
    }

    /// The newest valid edit that the reader sees, where they do not see the newest one.
    async fn newest_seen_edit(
        &self,
        looking: &Looking<'_>,
        parent: &StoredEvent,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let edits = self.seen_children(looking, parent, looking.types.replace).await?.into_iter();
        let own = parent.relation().map(|relation| relation.rel_type.as_str());
        let valid = edits.filter(|edit| is_valid_child(parent, own, edit));
        Ok(valid.max_by(|a, b| made(a).cmp(&made(b))))
    }

    /// Puts together what was found; `inner` are the aggregations of the newest events of the threads.
    async fn bundle(
        &self,
        looking: &Looking<'_>,
        parents: &[&Arc<StoredEvent>],
        children: &HashMap<EventNr, Children>,
        mut found: Found,
        inner: &Aggregations,
    ) -> Result<Aggregations, Error> {
        let (reader, with_room_id) = (looking.reader, looking.with_room_id);
        let shown: Vec<Arc<StoredEvent>> = found.edits.values().chain(found.latest.values()).cloned().collect();
        if shown.is_empty() && found.references.is_empty() {
            return Ok(Aggregations::default());
        }
        let rendered = self.render_with(reader, &shown, with_room_id, inner).await?;
        let mut rendered: HashMap<EventNr, Box<RawValue>> = shown.iter().map(|event| event.nr).zip(rendered).collect();
        let hidden = self.hidden_in_threads(looking, parents, &found).await?;
        let mut aggregations = HashMap::new();
        for parent in parents {
            let Some(children) = children.get(&parent.nr) else { continue };
            let mut bundle = Bundle::default();
            if let Some(edit) = found.edits.get(&parent.nr) {
                bundle.replace = rendered.remove(&edit.nr);
            }
            if let Some(latest) = found.latest.get(&parent.nr) {
                let hidden = hidden.get(&parent.pdu.event_id).copied().unwrap_or(0);
                bundle.thread = rendered.remove(&latest.nr).map(|latest_event| Thread {
                    latest_event,
                    count: children.thread_events.saturating_sub(hidden).max(1),
                    current_user_participated: children.participated || parent.sender_nr == reader.user_nr,
                });
            }
            if let Some(list) = found.references.remove(&parent.nr).filter(|list| !list.is_empty()) {
                let chunk = list.into_iter().map(|event_id| Reference { event_id }).collect();
                bundle.reference = Some(References { chunk });
            }
            if bundle.replace.is_some() || bundle.reference.is_some() || bundle.thread.is_some() {
                let json =
                    to_raw_value(&bundle).map_err(|_| storage::Error::Damaged(format!("event {}", parent.nr)))?;
                let is_thread = bundle.thread.is_some();
                aggregations.insert(parent.nr, Aggregation { json: json.into(), is_thread });
            }
        }
        Ok(Aggregations(aggregations))
    }

    /// How many events of threads the reader is not shown. Most see all of them, and the threads are not looked at.
    async fn hidden_in_threads(
        &self,
        looking: &Looking<'_>,
        parents: &[&Arc<StoredEvent>],
        found: &Found,
    ) -> Result<HashMap<OwnedEventId, u64>, Error> {
        let roots = || parents.iter().filter(|root| found.latest.contains_key(&root.nr));
        let ids: Vec<&EventId> = roots().map(|root| &*root.pdu.event_id).collect();
        let mut hidden = HashMap::new();
        if ids.is_empty() {
            return Ok(hidden);
        }
        let (room_nr, thread_nr, reader) = (looking.reader.room.nr, looking.types.thread, looking.children_reader());
        if !looking.ignored.is_empty() || looking.reader.left_at().is_some() {
            hidden = self.storage().count_hidden_in_threads(room_nr, thread_nr, reader, &ids).await?;
        }
        // What is in a thread comes after its root.
        let oldest = roots().filter_map(|root| root.place).map(|(anchor, _)| anchor).min().unwrap_or_default();
        let parts = self.hidden_parts(looking.reader).await?;
        for part in parts.into_iter().filter(|(_, upto)| *upto > oldest) {
            for (root, count) in self.storage().count_part_of_threads(room_nr, thread_nr, reader, &ids, part).await? {
                *hidden.entry(root).or_default() += count;
            }
        }
        Ok(hidden)
    }
}

/// By what the newest edit is found. Client-Server API, "Server-side aggregation of `m.replace` relationships".
fn made(event: &StoredEvent) -> (i64, &EventId) {
    (event.pdu.origin_server_ts.get().into(), &event.pdu.event_id)
}
