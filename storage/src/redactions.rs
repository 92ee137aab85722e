//! Redactions that wait for their target, and those that go on to what relates to it. The committer writes them with the events.

use model::{EventNr, RoomNr};
use ruma::{EventId, OwnedEventId};

use crate::{
    Error, Storage,
    db::{Row, args},
    rows::Rows,
    statement::statements,
};

statements! {
    LIST_HELD = ["SELECT event_nr FROM held_redactions WHERE room_nr = $1 AND target_id = $2 ORDER BY event_nr"];
    LIST_AWAITED = ["
        SELECT DISTINCT h.room_nr, h.target_id FROM", (rows [1 room_nr bigint, 2 target_id text]), "
          JOIN held_redactions h ON h.room_nr = r.room_nr AND h.target_id = r.target_id
         ORDER BY h.room_nr, h.target_id"];
    LIST_HELD_TARGETS = ["
        SELECT DISTINCT h.room_nr, h.target_id FROM held_redactions h JOIN events e ON e.event_id = h.target_id
         WHERE e.room_nr = h.room_nr AND e.redacted_by IS NULL AND e.anchor IS NOT NULL
           AND (h.room_nr, h.target_id) > ($1, $2)
         ORDER BY h.room_nr, h.target_id LIMIT $3"];
    LIST_RELATED_OPEN = ["
        SELECT redaction_nr, room_nr, target_id, target_rel_type, rel_types, looks FROM related_redactions
         WHERE NOT is_done AND redaction_nr > $1 ORDER BY redaction_nr LIMIT $2"];
    SET_RELATED_DONE = ["UPDATE related_redactions SET is_done = TRUE WHERE redaction_nr = $1 AND looks = $2"];
}

/// A redaction that goes on to what relates to its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelatedRedactionRow {
    /// The redaction.
    pub redaction_nr: EventNr,
    /// Its room.
    pub room_nr: RoomNr,
    /// What it redacts.
    pub target: OwnedEventId,
    /// How that related to another event itself, if it did.
    pub target_rel_type: Option<String>,
    /// The types of relation by which it goes on.
    pub rel_types: Vec<String>,
    looks: i64,
}

fn related_of(row: &Row) -> Result<RelatedRedactionRow, Error> {
    let redaction_nr: EventNr = row.nr(0)?;
    let damaged = || Error::Damaged(format!("what redaction {redaction_nr} goes on to"));
    Ok(RelatedRedactionRow {
        redaction_nr,
        room_nr: row.nr(1)?,
        target: EventId::parse(row.get::<String>(2)?).map_err(|_| damaged())?,
        target_rel_type: row.get(3)?,
        rel_types: serde_json::from_str(&row.get::<String>(4)?).map_err(|_| damaged())?,
        looks: row.get(5)?,
    })
}

fn target_of(row: &Row) -> Result<(RoomNr, OwnedEventId), Error> {
    let id: String = row.get(1)?;
    let target = EventId::parse(&id).map_err(|_| Error::Damaged(format!("target {id} of a redaction")))?;
    Ok((row.nr(0)?, target))
}

impl Storage {
    /// The redactions that wait for an event.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_held_redactions(&self, room_nr: RoomNr, target: &EventId) -> Result<Vec<EventNr>, Error> {
        self.db().read(&LIST_HELD, args![room_nr, target.as_str()]).await?.iter().map(|row| row.nr(0)).collect()
    }

    /// Those of some events for which redactions wait.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_awaited(&self, events: &[(RoomNr, OwnedEventId)]) -> Result<Vec<(RoomNr, OwnedEventId)>, Error> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let rows = Rows::new()
            .bigint(events.iter().map(|(room_nr, _)| room_nr.0))
            .text(events.iter().map(|(_, id)| id.to_string()));
        self.db().read(&LIST_AWAITED, rows).await?.iter().map(target_of).collect()
    }

    /// Events that are here, for which redactions wait all the same, after one of them by room and id, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_held_targets(
        &self,
        (room_nr, target): (RoomNr, &str),
        limit: u32,
    ) -> Result<Vec<(RoomNr, OwnedEventId)>, Error> {
        let rows = self.db().read(&LIST_HELD_TARGETS, args![room_nr, target, i64::from(limit)]).await?;
        rows.iter().map(target_of).collect()
    }

    /// All redactions that have still to go on to what relates to their target, after a number, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_open_related_redactions(
        &self,
        after: EventNr,
        limit: u32,
    ) -> Result<Vec<RelatedRedactionRow>, Error> {
        let rows = self.db().read(&LIST_RELATED_OPEN, args![after, i64::from(limit)]).await?;
        rows.iter().map(related_of).collect()
    }

    /// Notes that a redaction has gone on to all that related to its target when it was listed.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn set_related_redaction_done(&self, done: &RelatedRedactionRow) -> Result<(), Error> {
        self.db().write(&SET_RELATED_DONE, args![done.redaction_nr, done.looks]).await.map(drop)
    }
}
