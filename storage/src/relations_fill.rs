//! Finds how the events relate to each other that an older program stored, and when they were made.
//!
//! SQL alone cannot: what JSON takes a text for differs between the databases. Done at the start, some events at a time, each time with
//! how far it has come, so that it goes on where it ended; nothing is done twice, also when several processes do it.

use std::collections::{BTreeMap, HashSet};

use model::{EventNr, Relation, RoomNr, TypeNr};
use ruma::MilliSecondsSinceUnixEpoch;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    Error, Storage, TimelinePlace,
    db::{Row, args},
    events::decode_body,
    relations::{ADD_TO_THREADS, annotation_key},
    rows::Rows,
    statement::statements,
};

/// The consumer that says how far it has come.
const CONSUMER: &str = "relations";
/// Events that are read at once: a transaction of SQLite holds the one writer.
const EVENTS_AT_ONCE: i64 = 500;

statements! {
    GET_PROGRESS = ["SELECT position FROM consumers WHERE name = $1"];
    SET_PROGRESS = ["UPDATE consumers SET position = $2 WHERE name = $1 AND position < $2"];
    DELETE_PROGRESS = ["DELETE FROM consumers WHERE name = $1"];
    LIST_STORED = ["
        SELECT e.event_nr, e.room_nr, e.type_nr, e.sender_nr, e.state_key_nr, e.anchor, e.step, b.body
          FROM events e JOIN event_bodies b ON b.month = e.body_month AND b.event_nr = e.event_nr
         WHERE e.event_nr > $1 ORDER BY e.event_nr LIMIT $2"];
    SET_TIMES = ["
        UPDATE events SET origin_server_ts = r.made FROM", (rows [1 event_nr bigint, 2 made bigint]), "
         WHERE events.event_nr = r.event_nr"];
    /// What was redacted after it was read relates to nothing any more.
    INSERT_MISSING = ["
        INSERT INTO relations (event_nr, room_nr, parent_id, rel_type_nr, type_nr, sender_nr, origin_server_ts, anchor, step,
                               is_whole, annotation_key)
        SELECT event_nr, room_nr, parent_id, rel_type_nr, type_nr, sender_nr, origin_server_ts, anchor, step, is_whole,
               annotation_key
          FROM", (rows [1 event_nr bigint, 2 room_nr bigint, 3 parent_id text, 4 rel_type_nr bigint, 5 type_nr bigint,
                        6 sender_nr bigint, 7 origin_server_ts bigint, 8 anchor bigint, 9 step bigint, 10 is_whole boolean,
                        11 annotation_key bigint]), "
         WHERE EXISTS (SELECT 1 FROM events e WHERE e.event_nr = r.event_nr AND e.redacted_by IS NULL)
            ON CONFLICT DO NOTHING RETURNING event_nr"];
}

/// What is read of a stored event.
struct Stored {
    event_nr: EventNr,
    event_type: String,
    made: i64,
    relation: Option<Relation>,
}

/// A relation of a stored event.
struct Found {
    event_nr: EventNr,
    room_nr: RoomNr,
    type_nr: i64,
    sender_nr: i64,
    is_state: bool,
    place: TimelinePlace,
    made: i64,
    relation: Relation,
    rel_type_nr: TypeNr,
    event_type: String,
}

impl Storage {
    /// Goes through what an older program stored, if that was not done yet.
    ///
    /// # Errors
    ///
    /// When the database fails or an event is damaged; trying again goes on where it ended.
    pub(crate) async fn fill_relations(&self) -> Result<(), Error> {
        let Some(row) = self.db().read_one(&GET_PROGRESS, args![CONSUMER]).await? else { return Ok(()) };
        let mut after: i64 = row.get(0)?;
        tracing::info!("looking through the stored events for how they relate to each other; this is done once");
        loop {
            let rows = self.db().read(&LIST_STORED, args![after, EVENTS_AT_ONCE]).await?;
            let Some(last) = rows.last() else { break };
            after = last.get(0)?;
            self.fill_page(&rows, after).await?;
        }
        self.db().write(&DELETE_PROGRESS, args![CONSUMER]).await?;
        Ok(())
    }

    async fn fill_page(&self, rows: &[Row], upto: i64) -> Result<(), Error> {
        let (mut times, mut found) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            let Stored { event_nr, event_type, made, relation } = read(row)?;
            times.push((event_nr, made));
            let place = row.maybe_nr(5)?.zip(row.get::<Option<i64>>(6)?);
            let (Some(relation), Some(place)) = (relation, place) else { continue };
            found.push(Found {
                event_nr,
                room_nr: row.nr(1)?,
                type_nr: row.get(2)?,
                sender_nr: row.get(3)?,
                is_state: row.get::<Option<i64>>(4)?.is_some(),
                place,
                made,
                rel_type_nr: self.type_nr(&relation.rel_type).await?,
                relation,
                event_type,
            });
        }
        // In the order of all commits: what is being written is written before or after this.
        let mut tx = self.db().begin_ordered().await?;
        let rows = Rows::new().bigint(times.iter().map(|(nr, _)| nr.0)).bigint(times.iter().map(|(_, made)| *made));
        tx.execute(&SET_TIMES, rows).await?;
        let mut inserted: HashSet<i64> = HashSet::new();
        // Of two equal annotations of one sender the older one has the key; the other one comes in without it.
        for with_key in [true, false] {
            for row in tx.fetch(&INSERT_MISSING, rows_of(&found, with_key)).await? {
                inserted.insert(row.get(0)?);
            }
        }
        let mut threads: BTreeMap<(RoomNr, &str), (i64, TimelinePlace)> = BTreeMap::new();
        for new in
            found.iter().filter(|new| new.relation.rel_type == Relation::THREAD && inserted.contains(&new.event_nr.0))
        {
            let (count, newest) = threads.entry((new.room_nr, new.relation.parent.as_str())).or_default();
            (*count, *newest) = (*count + 1, new.place.max(*newest));
        }
        let rows = Rows::new()
            .bigint(threads.keys().map(|(room, _)| room.0))
            .text(threads.keys().map(|(_, root)| (*root).to_owned()))
            .bigint(threads.values().map(|(count, _)| *count))
            .bigint(threads.values().map(|(_, newest)| newest.0.0))
            .bigint(threads.values().map(|(_, newest)| newest.1));
        tx.execute(ADD_TO_THREADS, rows).await?;
        tx.execute(&SET_PROGRESS, args![CONSUMER, upto]).await?;
        tx.commit().await?;
        self.db().make_durable().await
    }
}

fn read(row: &Row) -> Result<Stored, Error> {
    #[derive(Deserialize)]
    struct Body<'a> {
        origin_server_ts: MilliSecondsSinceUnixEpoch,
        #[serde(rename = "type")]
        event_type: String,
        #[serde(borrow)]
        content: &'a RawValue,
    }
    let nr: EventNr = row.nr(0)?;
    let damaged = || Error::Damaged(format!("body of event {nr}"));
    let json = decode_body(&row.get::<Vec<u8>>(7)?).ok_or_else(damaged)?;
    let body: Body<'_> = serde_json::from_str(&json).map_err(|_| damaged())?;
    Ok(Stored {
        event_nr: nr,
        made: body.origin_server_ts.get().into(),
        relation: Relation::of_content(body.content),
        event_type: body.event_type,
    })
}

fn rows_of(found: &[Found], with_key: bool) -> Rows {
    Rows::new()
        .bigint(found.iter().map(|new| new.event_nr.0))
        .bigint(found.iter().map(|new| new.room_nr.0))
        .text(found.iter().map(|new| new.relation.parent.to_string()))
        .bigint(found.iter().map(|new| new.rel_type_nr.0))
        .bigint(found.iter().map(|new| new.type_nr))
        .bigint(found.iter().map(|new| new.sender_nr))
        .bigint(found.iter().map(|new| new.made))
        .bigint(found.iter().map(|new| new.place.0.0))
        .bigint(found.iter().map(|new| new.place.1))
        .boolean(found.iter().map(|new| new.relation.is_whole(&new.event_type, new.is_state)))
        .bigint(found.iter().map(|new| annotation_key_of(&new.relation).filter(|_| with_key)))
}

fn annotation_key_of(relation: &Relation) -> Option<i64> {
    let key = relation.key.as_deref().filter(|_| relation.rel_type == Relation::ANNOTATION)?;
    Some(annotation_key(key))
}
