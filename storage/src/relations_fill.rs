//! Finds how the events relate to each other that an older program stored, and when they were made.
//!
//! SQL alone cannot: what JSON takes a text for differs between the databases. Done at the start, before anybody reads, some events at a
//! time, each time with how far it has come, so that it goes on where it ended; nothing is done twice, also when several processes do it.
//!
//! Processes of the older program may run on while the first of the new one start, and write behind what was looked through already. So it
//! is done again later, beside everything else, until a look finds nothing more.

use std::{collections::HashSet, time::Duration};

use model::{EventNr, Relation, RoomNr, TypeNr, UserNr};
use ruma::MilliSecondsSinceUnixEpoch;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::info;

use crate::{
    Error, NewRelation, Storage, TimelinePlace,
    db::{Row, args},
    events::decode_body,
    relations::{ADD_TO_THREADS, INSERT_MISSING_RELATIONS, RelationRow, annotation_key, relation_rows, thread_rows},
    rows::Rows,
    statement::statements,
};

/// The consumer that says how far the look at the start has come.
const CONSUMER: &str = "relations";
/// The one that is there while later looks are to be taken.
const LATER: &str = "relations of older processes";
/// How long after a look the next one is taken.
pub(crate) const AGAIN_EVERY: Duration = Duration::from_secs(600);
/// Events that are read at once: a transaction of SQLite holds the one writer.
const EVENTS_AT_ONCE: i64 = 500;
/// Numbers of events that are looked through at once for those that are to be read.
const NUMBERS_AT_ONCE: i64 = 20_000;
/// After how many numbers the log says how far it has come.
const SAID_EVERY: i64 = 200_000;

statements! {
    GET_PROGRESS = ["SELECT position FROM consumers WHERE name = $1"];
    SET_PROGRESS = ["UPDATE consumers SET position = $2 WHERE name = $1 AND position < $2"];
    INSERT_PROGRESS = ["
        INSERT INTO consumers (name, position, process, lease_until_ms) VALUES ($1, 0, '', 0) ON CONFLICT (name) DO NOTHING"];
    DELETE_PROGRESS = ["DELETE FROM consumers WHERE name = $1"];
    GET_LAST = ["SELECT coalesce(max(event_nr), 0) FROM events"];
    /// The older program did not say when an event was made.
    LIST_STORED = ["
        SELECT e.event_nr, e.room_nr, e.type_nr, e.sender_nr, e.state_key_nr, e.anchor, e.step, b.body
          FROM events e JOIN event_bodies b ON b.month = e.body_month AND b.event_nr = e.event_nr
         WHERE e.event_nr > $1 AND e.event_nr <= $2 AND e.origin_server_ts = 0 ORDER BY e.event_nr LIMIT $3"];
    SET_TIMES = ["
        UPDATE events SET origin_server_ts = r.made FROM", (rows [1 event_nr bigint, 2 made bigint]), "
         WHERE events.event_nr = r.event_nr"];
}

/// What is read of a stored event.
struct Stored {
    event_nr: EventNr,
    event_type: String,
    made: i64,
    relation: Option<Relation>,
}

/// An event of a timeline that relates to another.
struct Found {
    event_nr: EventNr,
    room_nr: RoomNr,
    type_nr: TypeNr,
    sender_nr: UserNr,
    place: TimelinePlace,
    made: i64,
    relation: NewRelation,
}

impl Storage {
    /// Goes through what an older program stored, if that was not done yet.
    ///
    /// # Errors
    ///
    /// When the database fails or an event is damaged; trying again goes on where it ended.
    pub(crate) async fn fill_relations(&self) -> Result<(), Error> {
        let Some(row) = self.db().read_one(&GET_PROGRESS, args![CONSUMER]).await? else { return Ok(()) };
        info!("looking through the stored events for how they relate to each other; this is done once");
        self.fill_after(row.get(0)?).await?;
        self.db().write(&INSERT_PROGRESS, args![LATER]).await?;
        self.db().write(&DELETE_PROGRESS, args![CONSUMER]).await?;
        info!("looked through all stored events");
        Ok(())
    }

    /// Looks again for what older processes have written, if that is to be done; whether it was.
    ///
    /// # Errors
    ///
    /// As [`Storage::fill_relations`].
    pub(crate) async fn fill_relations_again(&self) -> Result<bool, Error> {
        if self.db().read_one(&GET_PROGRESS, args![LATER]).await?.is_none() {
            return Ok(false);
        }
        if self.fill_after(0).await? == 0 {
            self.db().write(&DELETE_PROGRESS, args![LATER]).await?;
        }
        Ok(true)
    }

    /// Fills what is missing of the events with higher numbers; gives how many there were.
    async fn fill_after(&self, mut after: i64) -> Result<usize, Error> {
        let last: i64 = self.db().read_one(&GET_LAST, args![]).await?.map_or(Ok(0), |row| row.get(0))?;
        let (mut count, mut said) = (0, after);
        while after < last {
            let upto = after + NUMBERS_AT_ONCE;
            let rows = self.db().read(&LIST_STORED, args![after, upto, EVENTS_AT_ONCE]).await?;
            // A full page ends before the numbers do.
            after = match rows.last() {
                Some(last) if rows.len() == EVENTS_AT_ONCE as usize => last.get(0)?,
                _ => upto,
            };
            count += self.fill_page(&rows, after).await?;
            if after - said >= SAID_EVERY {
                said = after;
                info!(event.nr = after, event.last = last, "looked through the stored events up to {after} of {last}");
            }
            tokio::task::yield_now().await;
        }
        Ok(count)
    }

    /// Fills what is missing of some events; gives for how many.
    async fn fill_page(&self, rows: &[Row], upto: i64) -> Result<usize, Error> {
        if rows.is_empty() {
            return Ok(0);
        }
        let (mut times, mut found) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            let Stored { event_nr, event_type, made, relation } = read(row)?;
            times.push((event_nr, made));
            let place = row.maybe_nr(5)?.zip(row.get::<Option<i64>>(6)?);
            let (Some(read), Some(place)) = (relation, place) else { continue };
            let is_state = row.get::<Option<i64>>(4)?.is_some();
            let mut relation = self.new_relation(&event_type, is_state, &read).await?;
            let key = read.key.as_deref().filter(|_| read.rel_type == Relation::ANNOTATION);
            relation.annotation_key = key.map(annotation_key);
            let (room_nr, type_nr, sender_nr) = (row.nr(1)?, row.nr(2)?, row.nr(3)?);
            found.push(Found { event_nr, room_nr, type_nr, sender_nr, place, made, relation });
        }
        // In the order of all commits: what is being written is written before or after this.
        let mut tx = self.db().begin_ordered().await?;
        let rows = Rows::new().bigint(times.iter().map(|(nr, _)| nr.0)).bigint(times.iter().map(|(_, made)| *made));
        tx.execute(&SET_TIMES, rows).await?;
        let mut inserted: HashSet<i64> = HashSet::new();
        // Of two equal annotations of one sender the older one has the key; the other one comes in without it.
        for with_key in [true, false] {
            for found in found.iter_mut().filter(|_| !with_key) {
                found.relation.annotation_key = None;
            }
            let rows: Vec<RelationRow<'_>> = found.iter().map(Found::row).collect();
            for row in tx.fetch(INSERT_MISSING_RELATIONS, relation_rows(&rows)).await? {
                inserted.insert(row.get(0)?);
            }
        }
        let new: Vec<RelationRow<'_>> =
            found.iter().filter(|found| inserted.contains(&found.event_nr.0)).map(Found::row).collect();
        tx.execute(ADD_TO_THREADS, thread_rows(&new)).await?;
        tx.execute(&SET_PROGRESS, args![CONSUMER, upto]).await?;
        tx.commit().await?;
        self.db().make_durable().await?;
        for row in &new {
            self.0.childless.forget(&row.relation.parent);
        }
        // An event may say that it was made at zero; it is none that is found again.
        Ok(times.iter().filter(|(_, made)| *made != 0).count())
    }
}

impl Found {
    fn row(&self) -> RelationRow<'_> {
        RelationRow {
            event_nr: self.event_nr,
            room_nr: self.room_nr,
            type_nr: self.type_nr,
            sender_nr: self.sender_nr,
            origin_server_ts: self.made,
            place: self.place,
            relation: &self.relation,
        }
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
