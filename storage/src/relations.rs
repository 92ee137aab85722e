//! How events relate to others, and threads. The committer writes them with the events.

use std::collections::{BTreeMap, HashMap};

use model::{EventNr, Position, Relation, RoomNr, TypeNr, UserNr};
use ruma::{EventId, OwnedEventId};
use sha2::{Digest as _, Sha256};

use crate::{
    Error, NewRelation, Storage, TimelineDirection, TimelinePlace,
    db::{Row, args},
    rows::Rows,
    statement::{Statement, statements},
};

/// Most events that are looked at for one page of what relates to an event, directly or not.
const DESCENDANTS_MAX: i64 = 20_000;
/// Most of them that relate to the event itself.
const DIRECT_MAX: i64 = 10_000;

statements! {
    INSERT = ["
        INSERT INTO relations (event_nr, room_nr, parent_id, rel_type_nr, type_nr, sender_nr, origin_server_ts, anchor, step,
                               is_whole, annotation_key)
        SELECT event_nr, room_nr, parent_id, rel_type_nr, type_nr, sender_nr, origin_server_ts, anchor, step, is_whole,
               annotation_key
          FROM", (rows [1 event_nr bigint, 2 room_nr bigint, 3 parent_id text, 4 rel_type_nr bigint, 5 type_nr bigint,
                        6 sender_nr bigint, 7 origin_server_ts bigint, 8 anchor bigint, 9 step bigint, 10 is_whole boolean,
                        11 annotation_key bigint])];
    /// The same for events that are stored. What was redacted after it was read relates to nothing any more.
    INSERT_OF_STORED = ["
        INSERT INTO relations (event_nr, room_nr, parent_id, rel_type_nr, type_nr, sender_nr, origin_server_ts, anchor, step,
                               is_whole, annotation_key)
        SELECT event_nr, room_nr, parent_id, rel_type_nr, type_nr, sender_nr, origin_server_ts, anchor, step, is_whole,
               annotation_key
          FROM", (rows [1 event_nr bigint, 2 room_nr bigint, 3 parent_id text, 4 rel_type_nr bigint, 5 type_nr bigint,
                        6 sender_nr bigint, 7 origin_server_ts bigint, 8 anchor bigint, 9 step bigint, 10 is_whole boolean,
                        11 annotation_key bigint]), "
         WHERE EXISTS (SELECT 1 FROM events e WHERE e.event_nr = r.event_nr AND e.redacted_by IS NULL)
            ON CONFLICT DO NOTHING RETURNING event_nr"];
    UPSERT_THREADS = ["
        INSERT INTO threads (room_nr, root_id, events, anchor, step)
        SELECT room_nr, root_id, events, anchor, step
          FROM", (rows [1 room_nr bigint, 2 root_id text, 3 events bigint, 4 anchor bigint, 5 step bigint]), "
         WHERE TRUE
            ON CONFLICT (room_nr, root_id) DO UPDATE
           SET events = threads.events + excluded.events,
               anchor = CASE WHEN (excluded.anchor, excluded.step) > (threads.anchor, threads.step)
                             THEN excluded.anchor ELSE threads.anchor END,
               step = CASE WHEN (excluded.anchor, excluded.step) > (threads.anchor, threads.step)
                           THEN excluded.step ELSE threads.step END"];
    FIND_ANNOTATION = ["
        SELECT event_nr FROM relations
         WHERE room_nr = $1 AND parent_id = $2 AND sender_nr = $3 AND type_nr = $4 AND annotation_key = $5"];
    /// For each event: its newest edit, the newest event of its thread, how many there are, whether the reader is among their
    /// senders, and whether anything refers to it.
    GET_CHILDREN = ["
        SELECT p.event_nr,
               (SELECT c.event_nr FROM relations c JOIN events e ON e.event_nr = c.event_nr
                 WHERE c.room_nr = p.room_nr AND c.parent_id = p.event_id AND c.rel_type_nr = $1 AND c.sender_nr = p.sender_nr
                   AND c.type_nr = p.type_nr AND c.is_whole AND c.origin_server_ts = (
                       SELECT n.origin_server_ts FROM relations n
                        WHERE n.room_nr = p.room_nr AND n.parent_id = p.event_id AND n.rel_type_nr = $1
                          AND n.sender_nr = p.sender_nr AND n.type_nr = p.type_nr AND n.is_whole AND n.anchor <= $4
                        ORDER BY n.origin_server_ts DESC LIMIT 1)
                 ORDER BY e.event_id DESC LIMIT 1),
               (SELECT c.event_nr FROM relations c
                 WHERE c.room_nr = p.room_nr AND c.parent_id = p.event_id AND c.rel_type_nr = $2 AND c.anchor <= $4
                   AND NOT c.sender_nr", (in_list 6), "
                 ORDER BY c.anchor DESC, c.step DESC LIMIT 1),
               (SELECT t.events FROM threads t WHERE t.room_nr = p.room_nr AND t.root_id = p.event_id),
               EXISTS (SELECT 1 FROM relations c
                        WHERE c.room_nr = p.room_nr AND c.parent_id = p.event_id AND c.rel_type_nr = $2 AND c.sender_nr = $5),
               EXISTS (SELECT 1 FROM relations c
                        WHERE c.room_nr = p.room_nr AND c.parent_id = p.event_id AND c.rel_type_nr = $3)
          FROM events p WHERE p.event_nr", (in_list 7)];
    /// Of each event the newest ones of a type of relation, oldest first.
    LIST_NEWEST_CHILDREN = [(either "
        SELECT p.value, c.event_nr
          FROM json_each($5) p CROSS JOIN relations c
         WHERE c.event_nr IN (
               SELECT n.event_nr FROM relations n
                WHERE n.room_nr = $1 AND n.rel_type_nr = $2 AND n.anchor <= $3 AND n.parent_id = p.value
                  AND NOT n.sender_nr IN (SELECT value FROM json_each($4))
                ORDER BY n.anchor DESC, n.step DESC LIMIT $6)
         ORDER BY p.value, c.anchor, c.step" "
        SELECT p.parent_id, c.event_nr
          FROM UNNEST($5::text[]) AS p(parent_id) CROSS JOIN LATERAL (
               SELECT n.event_nr, n.anchor, n.step FROM relations n
                WHERE n.room_nr = $1 AND n.rel_type_nr = $2 AND n.anchor <= $3 AND n.parent_id = p.parent_id
                  AND NOT n.sender_nr = ANY($4)
                ORDER BY n.anchor DESC, n.step DESC LIMIT $6) c
         ORDER BY p.parent_id, c.anchor, c.step")];
    /// How many events of threads a reader is not shown: those after what they see, and those of whom they ignore before that. Each part
    /// has an index of its own.
    COUNT_HIDDEN = ["
        SELECT h.parent_id, CAST(sum(h.events) AS BIGINT)
          FROM (SELECT parent_id, count(*) AS events FROM relations
                 WHERE room_nr = $1 AND rel_type_nr = $2 AND parent_id", (in_list 5), " AND anchor > $3
                 GROUP BY parent_id
                 UNION ALL
                SELECT parent_id, count(*) AS events FROM relations
                 WHERE room_nr = $1 AND rel_type_nr = $2 AND parent_id", (in_list 5), " AND sender_nr", (in_list 4), "
                   AND anchor <= $3
                 GROUP BY parent_id) AS h
         GROUP BY h.parent_id ORDER BY h.parent_id"];
    COUNT_PART = ["
        SELECT parent_id, count(*) FROM relations
         WHERE room_nr = $1 AND rel_type_nr = $2 AND parent_id", (in_list 5), " AND anchor >= $6 AND anchor < $7
           AND anchor <= $3 AND NOT sender_nr", (in_list 4), "
         GROUP BY parent_id ORDER BY parent_id"];

    CHILDREN_BACKWARD = ["
        SELECT event_nr, anchor, step FROM relations
         WHERE room_nr = $1 AND parent_id = $2 AND rel_type_nr = $3 AND (type_nr = $4 OR $4 = 0)
           AND (anchor, step) < ($5, $6) AND (anchor, step) > ($7, $8)
         ORDER BY anchor DESC, step DESC LIMIT $9"];
    CHILDREN_FORWARD = ["
        SELECT event_nr, anchor, step FROM relations
         WHERE room_nr = $1 AND parent_id = $2 AND rel_type_nr = $3 AND (type_nr = $4 OR $4 = 0)
           AND (anchor, step) > ($5, $6) AND (anchor, step) < ($7, $8)
         ORDER BY anchor, step LIMIT $9"];
    CHILDREN_OF_ANY_TYPE_BACKWARD = ["
        SELECT event_nr, anchor, step FROM relations
         WHERE room_nr = $1 AND parent_id = $2 AND (type_nr = $3 OR $3 = 0)
           AND (anchor, step) < ($4, $5) AND (anchor, step) > ($6, $7)
         ORDER BY anchor DESC, step DESC LIMIT $8"];
    CHILDREN_OF_ANY_TYPE_FORWARD = ["
        SELECT event_nr, anchor, step FROM relations
         WHERE room_nr = $1 AND parent_id = $2 AND (type_nr = $3 OR $3 = 0)
           AND (anchor, step) > ($4, $5) AND (anchor, step) < ($6, $7)
         ORDER BY anchor, step LIMIT $8"];
    /// What relates to an event over at most so many others, of the newest that relate to it themselves before the place: what relates to
    /// these in turn comes after them. The number of levels ends cycles.
    DESCENDANTS_BACKWARD = ["
        WITH RECURSIVE found (event_nr, anchor, step, level) AS (
            SELECT s.event_nr, s.anchor, s.step, CAST(1 AS BIGINT)
              FROM (SELECT c.event_nr, c.anchor, c.step FROM relations c
                     WHERE c.room_nr = $1 AND c.parent_id = $2 AND (c.rel_type_nr = $3 OR $3 = 0)
                       AND (c.type_nr = $4 OR $4 = 0) AND (c.anchor, c.step) < ($5, $6)
                     ORDER BY c.anchor DESC, c.step DESC LIMIT $12) AS s
             UNION ALL
            SELECT c.event_nr, c.anchor, c.step, f.level + 1
              FROM found f JOIN events e ON e.event_nr = f.event_nr
              JOIN relations c ON c.room_nr = e.room_nr AND c.parent_id = e.event_id
             WHERE f.level < $10 AND (c.rel_type_nr = $3 OR $3 = 0) AND (c.type_nr = $4 OR $4 = 0))
        SELECT DISTINCT d.event_nr, d.anchor, d.step
          FROM (SELECT event_nr, anchor, step FROM found LIMIT $11) AS d
         WHERE (d.anchor, d.step) < ($5, $6) AND (d.anchor, d.step) > ($7, $8)
         ORDER BY d.anchor DESC, d.step DESC LIMIT $9"];
    /// The same after the place. Of what relates to the event itself the next ones after it, as many as a page has, and the newest before
    /// it: what relates to these in turn may come after it.
    DESCENDANTS_FORWARD = ["
        WITH RECURSIVE found (event_nr, anchor, step, level) AS (
            SELECT s.event_nr, s.anchor, s.step, CAST(1 AS BIGINT)
              FROM (SELECT c.event_nr, c.anchor, c.step FROM relations c
                     WHERE c.room_nr = $1 AND c.parent_id = $2 AND (c.rel_type_nr = $3 OR $3 = 0)
                       AND (c.type_nr = $4 OR $4 = 0) AND (c.anchor, c.step) > ($5, $6)
                     ORDER BY c.anchor, c.step LIMIT $9) AS s
             UNION ALL
            SELECT s.event_nr, s.anchor, s.step, CAST(1 AS BIGINT)
              FROM (SELECT c.event_nr, c.anchor, c.step FROM relations c
                     WHERE c.room_nr = $1 AND c.parent_id = $2 AND (c.rel_type_nr = $3 OR $3 = 0)
                       AND (c.type_nr = $4 OR $4 = 0) AND (c.anchor, c.step) <= ($5, $6)
                     ORDER BY c.anchor DESC, c.step DESC LIMIT $12) AS s
             UNION ALL
            SELECT c.event_nr, c.anchor, c.step, f.level + 1
              FROM found f JOIN events e ON e.event_nr = f.event_nr
              JOIN relations c ON c.room_nr = e.room_nr AND c.parent_id = e.event_id
             WHERE f.level < $10 AND (c.rel_type_nr = $3 OR $3 = 0) AND (c.type_nr = $4 OR $4 = 0))
        SELECT DISTINCT d.event_nr, d.anchor, d.step
          FROM (SELECT event_nr, anchor, step FROM found LIMIT $11) AS d
         WHERE (d.anchor, d.step) > ($5, $6) AND (d.anchor, d.step) < ($7, $8)
         ORDER BY d.anchor, d.step LIMIT $9"];
    HAS_THREAD = ["SELECT events FROM threads WHERE room_nr = $1 AND root_id = $2 AND events > 0"];

    /// The roots of threads that were looked at: nothing where there is none here, or the user has no part in it.
    LIST_THREADS = ["
        SELECT e.event_nr, t.anchor, t.step
          FROM (SELECT room_nr, root_id, anchor, step FROM threads
                 WHERE room_nr = $1 AND (anchor, step) < ($2, $3) AND events > 0
                 ORDER BY anchor DESC, step DESC LIMIT $7) AS t
          LEFT JOIN events e ON e.event_id = t.root_id AND e.room_nr = t.room_nr
           AND ($4 OR e.sender_nr = $5 OR EXISTS (
               SELECT 1 FROM relations c
                WHERE c.room_nr = t.room_nr AND c.parent_id = t.root_id AND c.rel_type_nr = $6 AND c.sender_nr = $5))
         ORDER BY t.anchor DESC, t.step DESC"];
}

/// Adds the relations of new events; two equal annotations of one sender are refused.
pub(crate) const INSERT_RELATIONS: &Statement = &INSERT;
/// Adds those relations of stored events that are not there; gives the events that got one.
pub(crate) const INSERT_MISSING_RELATIONS: &Statement = &INSERT_OF_STORED;
/// Adds events to threads.
pub(crate) const ADD_TO_THREADS: &Statement = &UPSERT_THREADS;

/// An event in a timeline and how it relates to another one, as it is stored.
pub(crate) struct RelationRow<'a> {
    pub(crate) event_nr: EventNr,
    pub(crate) room_nr: RoomNr,
    pub(crate) type_nr: TypeNr,
    pub(crate) sender_nr: UserNr,
    pub(crate) origin_server_ts: i64,
    pub(crate) place: TimelinePlace,
    pub(crate) relation: &'a NewRelation,
}

/// The rows of relations.
pub(crate) fn relation_rows(new: &[RelationRow<'_>]) -> Rows {
    Rows::new()
        .bigint(new.iter().map(|row| row.event_nr.0))
        .bigint(new.iter().map(|row| row.room_nr.0))
        .text(new.iter().map(|row| row.relation.parent.to_string()))
        .bigint(new.iter().map(|row| row.relation.rel_type_nr.0))
        .bigint(new.iter().map(|row| row.type_nr.0))
        .bigint(new.iter().map(|row| row.sender_nr.0))
        .bigint(new.iter().map(|row| row.origin_server_ts))
        .bigint(new.iter().map(|row| row.place.0.0))
        .bigint(new.iter().map(|row| row.place.1))
        .boolean(new.iter().map(|row| row.relation.is_whole))
        .bigint(new.iter().map(|row| row.relation.annotation_key))
}

/// What they add to threads. A statement may touch a row once: the events of one thread come together.
pub(crate) fn thread_rows<'a>(new: impl IntoIterator<Item = &'a RelationRow<'a>>) -> Rows {
    let mut threads: BTreeMap<(RoomNr, &EventId), (i64, TimelinePlace)> = BTreeMap::new();
    for row in new.into_iter().filter(|row| row.relation.is_thread) {
        let (count, newest) = threads.entry((row.room_nr, &row.relation.parent)).or_default();
        (*count, *newest) = (*count + 1, row.place.max(*newest));
    }
    Rows::new()
        .bigint(threads.keys().map(|(room_nr, _)| room_nr.0))
        .text(threads.keys().map(|(_, root)| root.to_string()))
        .bigint(threads.values().map(|(count, _)| *count))
        .bigint(threads.values().map(|(_, newest)| newest.0.0))
        .bigint(threads.values().map(|(_, newest)| newest.1))
}

/// The numbers of the types of relations that the server makes something of.
#[derive(Clone, Copy, Debug)]
pub struct RelationTypes {
    /// `m.replace`.
    pub replace: TypeNr,
    /// `m.thread`.
    pub thread: TypeNr,
    /// `m.reference`.
    pub reference: TypeNr,
}

/// Whose children are looked for, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct ChildrenReader<'a> {
    /// Who reads.
    pub user_nr: UserNr,
    /// The position up to which they see the room.
    pub upto: Position,
    /// Whom they ignore.
    pub ignored: &'a [UserNr],
}

/// What relates to an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Children {
    /// The newest valid edit.
    pub edit: Option<EventNr>,
    /// The newest event of the thread.
    pub latest: Option<EventNr>,
    /// How many events the thread has, whoever sees them.
    pub thread_events: u64,
    /// Whether the reader sent any of them.
    pub participated: bool,
    /// Whether any event refers to it.
    pub has_references: bool,
}

/// Which of an event's children are asked for.
#[derive(Clone, Copy, Debug)]
pub struct ChildrenQuery<'a> {
    /// The room.
    pub room_nr: RoomNr,
    /// The event that they relate to.
    pub parent: &'a EventId,
    /// The type of the relation, or any.
    pub rel_type_nr: Option<TypeNr>,
    /// Their type, or any.
    pub type_nr: Option<TypeNr>,
    /// Over how many relations they may relate to it; all of these have the asked types.
    pub levels: u32,
}

/// The hash by which the key of an annotation is stored.
#[must_use]
pub fn annotation_key(key: &str) -> i64 {
    let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = Sha256::digest(key).into();
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl Storage {
    /// The numbers of the types of relations that the server makes something of.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn relation_types(&self) -> Result<RelationTypes, Error> {
        Ok(RelationTypes {
            replace: self.type_nr(Relation::REPLACE).await?,
            thread: self.type_nr(Relation::THREAD).await?,
            reference: self.type_nr(Relation::REFERENCE).await?,
        })
    }

    /// How an event of a type relates to another one, as it is stored; an annotation without its key, which not all of them have: see
    /// [`NewRelation::annotation_key`].
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn new_relation(
        &self,
        event_type: &str,
        is_state: bool,
        relation: &Relation,
    ) -> Result<NewRelation, Error> {
        Ok(NewRelation {
            parent: relation.parent.clone(),
            rel_type_nr: self.type_nr(&relation.rel_type).await?,
            is_thread: relation.rel_type == Relation::THREAD,
            is_whole: relation.is_whole(event_type, is_state),
            annotation_key: None,
        })
    }

    /// Whether a thread with this root has any events, whether the root itself is here or not.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn has_thread(&self, room_nr: RoomNr, root: &EventId) -> Result<bool, Error> {
        Ok(self.db().read_one(&HAS_THREAD, args![room_nr, root.as_str()]).await?.is_some())
    }

    /// The event by which a user of ours annotates another event, if they do.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_annotation(
        &self,
        room_nr: RoomNr,
        parent: &EventId,
        sender_nr: UserNr,
        type_nr: TypeNr,
        key: i64,
    ) -> Result<Option<EventNr>, Error> {
        let args = args![room_nr, parent.as_str(), sender_nr, type_nr, key];
        self.db().read_one(&FIND_ANNOTATION, args).await?.map(|row| row.nr(0)).transpose()
    }

    /// Those of some events to which anything may relate that is made something of: of the others it was found before that nothing does.
    /// Touches no table.
    pub fn possible_parents<'a>(
        &self,
        events: impl IntoIterator<Item = (EventNr, &'a EventId)>,
    ) -> Vec<(EventNr, &'a EventId)> {
        events.into_iter().filter(|(_, event_id)| !self.0.childless.contains(event_id)).collect()
    }

    /// What relates to each of some events, of those to which anything does.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_children(
        &self,
        types: RelationTypes,
        reader: ChildrenReader<'_>,
        events: &[(EventNr, &EventId)],
    ) -> Result<HashMap<EventNr, Children>, Error> {
        let childless = &self.0.childless;
        let version = childless.version();
        let mut found = HashMap::new();
        let numbers: Vec<i64> = events.iter().map(|(nr, _)| nr.0).collect();
        let ChildrenReader { user_nr, upto, ignored } = reader;
        let (replace, thread, reference) = (types.replace, types.thread, types.reference);
        let args = args![replace, thread, reference, upto, user_nr, numbers_of(ignored), numbers];
        for row in self.db().read(&GET_CHILDREN, args).await? {
            let children = Children {
                edit: row.maybe_nr(1)?,
                latest: row.maybe_nr(2)?,
                thread_events: row.get::<Option<i64>>(3)?.unwrap_or(0).unsigned_abs(),
                participated: row.get(4)?,
                has_references: row.get(5)?,
            };
            if children != Children::default() {
                found.insert(row.nr(0)?, children);
            }
        }
        // There may be some that this reader does not see.
        if upto == Position(i64::MAX) {
            let none = events.iter().filter(|(nr, _)| !found.contains_key(nr)).map(|(_, event_id)| *event_id);
            childless.insert(none, version);
        }
        Ok(found)
    }

    /// Of each of some events of a room the newest ones that relate to it in that way, at most `limit` each, oldest first.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_newest_children(
        &self,
        room_nr: RoomNr,
        rel_type_nr: TypeNr,
        reader: ChildrenReader<'_>,
        parents: &[&EventId],
        limit: u32,
    ) -> Result<HashMap<OwnedEventId, Vec<EventNr>>, Error> {
        let ids: Vec<String> = parents.iter().map(ToString::to_string).collect();
        let args = args![room_nr, rel_type_nr, reader.upto, numbers_of(reader.ignored), ids, i64::from(limit)];
        let mut found: HashMap<OwnedEventId, Vec<EventNr>> = HashMap::new();
        for row in self.db().read(&LIST_NEWEST_CHILDREN, args).await? {
            found.entry(parent_of(&row)?).or_default().push(row.nr(1)?);
        }
        Ok(found)
    }

    /// How many events of each of some threads the reader is not shown; those of which they see all are left out.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn count_hidden_in_threads(
        &self,
        room_nr: RoomNr,
        thread_nr: TypeNr,
        reader: ChildrenReader<'_>,
        roots: &[&EventId],
    ) -> Result<HashMap<OwnedEventId, u64>, Error> {
        let ids: Vec<String> = roots.iter().map(ToString::to_string).collect();
        let args = args![room_nr, thread_nr, reader.upto, numbers_of(reader.ignored), ids];
        let rows = self.db().read(&COUNT_HIDDEN, args).await?;
        rows.iter().map(|row| Ok((parent_of(row)?, row.get::<i64>(1)?.unsigned_abs()))).collect()
    }

    /// How many events of each of some threads lie in a part of the timeline, from a position up to before another, but for those that
    /// [`Storage::count_hidden_in_threads`] counts.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn count_part_of_threads(
        &self,
        room_nr: RoomNr,
        thread_nr: TypeNr,
        reader: ChildrenReader<'_>,
        roots: &[&EventId],
        (from, upto): (Position, Position),
    ) -> Result<HashMap<OwnedEventId, u64>, Error> {
        let ids: Vec<String> = roots.iter().map(ToString::to_string).collect();
        let args = args![room_nr, thread_nr, reader.upto, numbers_of(reader.ignored), ids, from, upto];
        let rows = self.db().read(&COUNT_PART, args).await?;
        rows.iter().map(|row| Ok((parent_of(row)?, row.get::<i64>(1)?.unsigned_abs()))).collect()
    }

    /// Events that relate to another one, strictly between two places, from `from` towards `to`, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_children(
        &self,
        query: ChildrenQuery<'_>,
        direction: TimelineDirection,
        from: TimelinePlace,
        to: TimelinePlace,
        limit: u32,
    ) -> Result<Vec<(EventNr, TimelinePlace)>, Error> {
        let ChildrenQuery { room_nr, parent, rel_type_nr, type_nr, levels } = query;
        // No type has the number zero.
        let (rel_type, event_type) = (rel_type_nr.map_or(0, |nr| nr.0), type_nr.map_or(0, |nr| nr.0));
        let limit = i64::from(limit);
        let is_backward = direction == TimelineDirection::Backward;
        let (statement, args) = if levels > 1 {
            let statement = if is_backward { &DESCENDANTS_BACKWARD } else { &DESCENDANTS_FORWARD };
            let (id, levels) = (parent.as_str(), i64::from(levels));
            let mut args = args![room_nr, id, rel_type, event_type, from.0, from.1, to.0, to.1, limit];
            args.extend(args![levels, DESCENDANTS_MAX, DIRECT_MAX]);
            (statement, args)
        } else if rel_type_nr.is_some() {
            let statement = if is_backward { &CHILDREN_BACKWARD } else { &CHILDREN_FORWARD };
            (statement, args![room_nr, parent.as_str(), rel_type, event_type, from.0, from.1, to.0, to.1, limit])
        } else {
            let statement = if is_backward { &CHILDREN_OF_ANY_TYPE_BACKWARD } else { &CHILDREN_OF_ANY_TYPE_FORWARD };
            (statement, args![room_nr, parent.as_str(), event_type, from.0, from.1, to.0, to.1, limit])
        };
        let rows = self.db().read(statement, args).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, (row.nr(1)?, row.get(2)?)))).collect()
    }

    /// Looks at a room's threads whose newest event lies before a place, newest first, at most `limit`: their roots, with the place of
    /// the newest event. Nothing stands for a thread whose root is not here, or in which the `participant` has no part.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_threads(
        &self,
        room_nr: RoomNr,
        before: TimelinePlace,
        participant: Option<UserNr>,
        limit: u32,
    ) -> Result<Vec<(Option<EventNr>, TimelinePlace)>, Error> {
        let thread_nr = self.type_nr(Relation::THREAD).await?;
        let (of_all, user_nr) = (participant.is_none(), participant.unwrap_or(UserNr(0)));
        let args = args![room_nr, before.0, before.1, of_all, user_nr, thread_nr, i64::from(limit)];
        let rows = self.db().read(&LIST_THREADS, args).await?;
        rows.iter().map(|row| Ok((row.maybe_nr(0)?, (row.nr(1)?, row.get(2)?)))).collect()
    }
}

fn numbers_of(users: &[UserNr]) -> Vec<i64> {
    users.iter().map(|user| user.0).collect()
}

fn parent_of(row: &Row) -> Result<OwnedEventId, Error> {
    let id: String = row.get(0)?;
    EventId::parse(&id).map_err(|_| Error::Damaged(format!("parent {id}")))
}
