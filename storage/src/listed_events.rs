//! Events for long lists, such as the members of a large room. Those that are not in memory are read as far as it takes to show them, and
//! not kept: they would take the place of what many ask for.

use std::{collections::HashMap, sync::Arc};

use model::{ClientEvent, EventNr, NodeNr, Position, UserNr};
use ruma::{EventId, OwnedEventId};

use crate::{
    Error, Storage, StoredEvent,
    db::{Row, args},
    events::decode_body,
    statement::statements,
};

statements! {
    LIST_BODIES = ["
        SELECT e.event_nr, e.event_id, e.position, e.state_node, e.sender_nr, e.redacted_by, b.body
          FROM events e
          JOIN event_bodies b ON b.month = e.body_month AND b.event_nr = e.event_nr
         WHERE e.event_nr", (in_list 1), "
         ORDER BY e.event_nr"];
}

/// An event for a list.
#[derive(Clone, Debug)]
pub enum ListedEvent {
    /// The event: it was in memory, or it was redacted, or its sender asked to be forgotten.
    Whole(Arc<StoredEvent>),
    /// What it takes to show any other event.
    Body(EventBody),
}

/// What it takes to show an event that everybody sees whole.
#[derive(Clone, Debug)]
pub struct EventBody {
    nr: EventNr,
    /// Its id.
    pub event_id: OwnedEventId,
    /// Its place in the stream; only live events have one.
    pub position: Option<Position>,
    /// The room's state after it.
    pub state: NodeNr,
    json: Arc<str>,
}

impl ListedEvent {
    /// The event, if it is whole.
    #[must_use]
    pub fn whole(&self) -> Option<&Arc<StoredEvent>> {
        match self {
            Self::Whole(event) => Some(event),
            Self::Body(_) => None,
        }
    }
}

impl EventBody {
    fn of_row(row: &Row) -> Result<Self, Error> {
        let nr: EventNr = row.nr(0)?;
        let damaged = |what: &str| Error::Damaged(format!("{what} of event {nr}"));
        Ok(Self {
            nr,
            event_id: EventId::parse(row.get::<String>(1)?).map_err(|_| damaged("id"))?,
            position: row.maybe_nr(2)?,
            state: row.nr(3)?,
            json: decode_body(&row.get::<Vec<u8>>(6)?).ok_or_else(|| damaged("body"))?,
        })
    }

    /// What clients see of the event.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] when what is stored is no event.
    pub fn event(&self) -> Result<ClientEvent<'_>, Error> {
        ClientEvent::of(&self.json).map_err(|_| Error::Damaged(format!("event {}", self.nr)))
    }
}

impl Storage {
    /// The state events of those numbers, in their order, in one query mostly; numbers of no event are left out.
    ///
    /// # Errors
    ///
    /// When the database fails or an event is damaged.
    pub async fn list_events(&self, events: &[EventNr]) -> Result<Vec<ListedEvent>, Error> {
        let mut listed = HashMap::with_capacity(events.len());
        let mut missing = Vec::new();
        for nr in events {
            match self.event_in_memory(*nr) {
                Some(event) => drop(listed.insert(*nr, ListedEvent::Whole(event))),
                None => missing.push(nr.0),
            }
        }
        if !missing.is_empty() {
            let rows = self.db().read(&LIST_BODIES, args![missing]).await?;
            let senders = rows.iter().map(|row| row.nr(4)).collect::<Result<Vec<UserNr>, Error>>()?;
            let erased = self.erased_users(senders.iter().copied());
            let (mut whole, mut newest) = (Vec::new(), None);
            for (row, sender) in rows.iter().zip(senders) {
                if erased.contains_key(&sender) || row.maybe_nr::<EventNr>(5)?.is_some() {
                    whole.push(row.nr(0)?);
                    continue;
                }
                let body = EventBody::of_row(row)?;
                newest = newest.max(body.position);
                listed.insert(body.nr, ListedEvent::Body(body));
            }
            self.settle(newest.unwrap_or_default()).await?;
            let whole = self.get_events(&whole).await?.into_iter();
            listed.extend(whole.map(|(nr, event)| (nr, ListedEvent::Whole(event))));
        }
        Ok(events.iter().filter_map(|nr| listed.remove(nr)).collect())
    }
}
