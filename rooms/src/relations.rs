//! How events relate to each other: what may be sent, and what relates to an event. Client-Server API, "Forming relationships between
//! events".

use accounts::Requester;
use model::{Pdu, Relation, TypeNr};
use ruma::{EventId, RoomId};
use storage::{ChildrenQuery, NewRelation, Storage, StoredEvent, annotation_key};

use crate::{
    Draft, Error, PageRequest, Rooms,
    head::{Built, Head},
    timeline::{Page, Source},
};

/// Over how many relations an event may relate to the one that is asked for with `recurse`. Client-Server API, "Relationships API".
pub const RECURSION_LEVELS: u32 = 3;

/// What is asked for of what relates to an event.
#[derive(Clone, Copy, Debug)]
pub struct RelationsRequest<'a> {
    /// The part of it.
    pub page: PageRequest<'a>,
    /// The type of the relation.
    pub rel_type: Option<&'a str>,
    /// The type of the events.
    pub event_type: Option<&'a str>,
    /// Whether events count that relate to it over others.
    pub recurse: bool,
}

impl Rooms {
    /// A page of the events that relate to an event. Client-Server API, "GET /rooms/{roomId}/relations/{eventId}".
    ///
    /// # Errors
    ///
    /// [`Error::EventUnknown`], also for what the requester may not see; [`Error::NotMember`]; [`Error::InvalidParam`] for a token of
    /// another kind.
    pub async fn relations(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        event_id: &EventId,
        asked: RelationsRequest<'_>,
    ) -> Result<Page, Error> {
        // A thread that an ignored user began is one, of which others' events are shown.
        let (reader, parent) = self.event_of_anyone(requester, room_id, event_id).await?;
        let (mut rel_type_nr, mut type_nr) = (None, None);
        for (word, nr) in [(asked.rel_type, &mut rel_type_nr), (asked.event_type, &mut type_nr)] {
            let Some(word) = word else { continue };
            // A word that nobody has said yet has no number, and no event has a negative one.
            *nr = Some(self.storage().find_type_nr(word).await?.unwrap_or(TypeNr(-1)));
        }
        let levels = if asked.recurse { RECURSION_LEVELS } else { 1 };
        let query = ChildrenQuery { room_nr: reader.room.nr, parent: event_id, rel_type_nr, type_nr, levels };
        // Where relations go in a circle, the event itself is none of its relatives.
        self.page(reader, Source::Children(query), asked.page, |event| event.nr != parent.nr).await
    }
}

impl Head {
    /// How an event that was made upon this head relates to another one, if it may.
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateAnnotation`]: Client-Server API, "Avoiding duplicate annotations". [`Error::BadRelation`]: Client-Server API,
    /// "Validation of `m.thread` relationships". What else breaks the rules of relations is sent, and is none.
    pub(crate) async fn relation_of_draft(
        &self,
        storage: &Storage,
        draft: &Draft,
        type_nr: TypeNr,
        pdu: &Pdu,
        before: &Built,
    ) -> Result<Option<NewRelation>, Error> {
        let Some(read) = Relation::of_content(&pdu.content) else { return Ok(None) };
        let mut relation = new_relation(storage, pdu, &read).await?;
        if relation.is_thread {
            let in_turn = before.events.iter().find(|event| event.pdu.event_id == relation.parent);
            let stored = storage.find_event(&relation.parent).await?.filter(|root| root.room_nr == self.row.nr);
            match in_turn.map(|root| root.relation.is_some()).or(stored.map(|root| root.relation().is_some())) {
                Some(false) => {}
                Some(true) => {
                    return Err(Error::BadRelation("a thread cannot start from an event that relates to another one"));
                }
                // Others may have answered to what has not come here.
                None if storage.has_thread(self.row.nr, &relation.parent).await? => {}
                None => return Err(Error::BadRelation("a thread starts from an event of the room")),
            }
        }
        if let Some(key) = read.key.filter(|_| read.rel_type == Relation::ANNOTATION) {
            let key = annotation_key(&key);
            relation.annotation_key = Some(key);
            let (parent, sender_nr) = (&relation.parent, draft.sender_nr);
            let standing = storage.find_annotation(self.row.nr, parent, sender_nr, type_nr, key).await?;
            let stands = |nr| !before.redactions.iter().any(|redaction| redaction.event_nr == nr);
            let is_twin = |event: &storage::NewEvent| {
                (event.sender_nr, event.type_nr) == (sender_nr, type_nr) && event.relation.as_ref() == Some(&relation)
            };
            if standing.is_some_and(stands) || before.events.iter().any(is_twin) {
                return Err(Error::DuplicateAnnotation);
            }
        }
        Ok(Some(relation))
    }
}

/// Whether an event that relates to others in a way itself, or not, may have children of a type of relation. Client-Server API, "Validity of
/// replacement events", "Threading".
pub(crate) fn may_be_parent(own_rel_type: Option<&str>, rel_type: &str) -> bool {
    match rel_type {
        Relation::REPLACE => own_rel_type != Some(Relation::REPLACE),
        Relation::THREAD => own_rel_type.is_none(),
        Relation::ANNOTATION => !matches!(own_rel_type, Some(Relation::ANNOTATION | Relation::REPLACE)),
        _ => true,
    }
}

/// Whether an event relates to another one by the rules of its type of relation. How the parent relates to others is said apart: when it
/// is redacted, it tells no more.
pub(crate) fn is_valid_child(parent: &StoredEvent, parent_rel_type: Option<&str>, child: &StoredEvent) -> bool {
    let Some(relation) = child.relation() else { return false };
    let is_same = (child.sender_nr, child.type_nr) == (parent.sender_nr, parent.type_nr);
    may_be_parent(parent_rel_type, &relation.rel_type)
        && relation.is_whole(&child.pdu.event_type.to_string(), child.is_state())
        && (relation.rel_type != Relation::REPLACE || (is_same && !parent.is_state()))
}

/// The relation of an event, as it is stored.
pub(crate) async fn new_relation(storage: &Storage, pdu: &Pdu, relation: &Relation) -> Result<NewRelation, Error> {
    Ok(storage.new_relation(&pdu.event_type.to_string(), pdu.state_key.is_some(), relation).await?)
}
