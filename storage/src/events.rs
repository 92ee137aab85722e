//! Events as they are stored, and how they are read.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use model::{
    ClientEvent, EventNr, NodeNr, Pdu, Position, ReadyEvent, Relation, RoomNr, StateKeyNr, Thread, TypeNr, UserNr,
};
use moka::sync::Cache;
use ruma::{EventId, OwnedEventId, RoomVersionId};

use crate::{
    Error, Storage,
    commit::{NewEvent, Placement},
    db::{Row, args},
    packed::{from_hex, unpack_events},
    statement::statements,
    unread::thread_of_event,
};

pub(crate) const FLAG_OUTLIER: i64 = 1;
pub(crate) const FLAG_REJECTED: i64 = 2;
pub(crate) const FLAG_SOFT_FAILED: i64 = 4;
pub(crate) const FLAG_HELD: i64 = 8;
pub(crate) const FLAG_PASSED_ON: i64 = 16;

/// The first byte of a body that is plain JSON.
const FORMAT_PLAIN: u8 = b'p';

/// Most bytes of events in memory.
const CACHE_BYTES: u64 = 64 << 20;

/// Milliseconds of a month on average: bodies need to be together, not on the calendar's borders.
const MONTH_MS: i64 = 2_629_746_000;

statements! {
    GET_EVENTS = ["
        SELECT e.event_nr, e.event_id, e.room_nr, e.position, e.anchor, e.step, e.sender_nr, e.type_nr, e.state_key_nr,
               e.state_node, e.replaces, e.flags, e.redacted_by, b.body, m.room_id, m.version, e.body_month, c.class, c.thread
          FROM events e
          JOIN event_bodies b ON b.month = e.body_month AND b.event_nr = e.event_nr
          JOIN rooms m ON m.room_nr = e.room_nr
          LEFT JOIN countable_events c ON c.room_nr = e.room_nr AND c.position = e.position AND c.user_nr = 0
         WHERE e.event_nr", (in_list 1)];
    FIND_EVENT_NRS = ["SELECT event_nr, event_id FROM events WHERE event_id", (in_list 1)];
    LIST_AUTH = [
        (either "SELECT json_group_array(json_array(event_nr, hex(auth)))" "SELECT event_nr, encode(auth, 'hex')"), "
           FROM events WHERE event_nr", (in_list 1)];
    FIND_EVENT_TRANSACTIONS = ["
        SELECT event_nr, transaction_id FROM transaction_ids
         WHERE user_nr = $1 AND device_id = $2 AND event_nr", (in_list 3)];
}

/// An event as it is stored, with what it is in its room.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Its number.
    pub nr: EventNr,
    /// Its place in the stream; only live events have one.
    pub position: Option<Position>,
    /// Its place in the timeline: the position of the live event that it stands at or lies behind, and a step back.
    pub place: Option<(Position, i64)>,
    /// Its room.
    pub room_nr: RoomNr,
    /// Its sender.
    pub sender_nr: UserNr,
    /// Its type.
    pub type_nr: TypeNr,
    /// Its state key, for a state event.
    pub state_key_nr: Option<StateKeyNr>,
    /// The room's state after it.
    pub state: NodeNr,
    /// The state event that it replaced.
    pub replaces: Option<EventNr>,
    /// Known, but not where it belongs in the graph.
    pub outlier: bool,
    /// Forbidden by the state of its time.
    pub soft_failed: bool,
    /// A redaction that cannot redact anything yet.
    pub held: bool,
    /// Its sender's server leaves it to the one that let the sender in to send it to the others: to us, or for ours to another.
    pub passed_on: bool,
    /// The event that redacted it; its content is gone then.
    pub redacted_by: Option<EventNr>,
    /// The event itself.
    pub pdu: Arc<Pdu>,
    /// How its sender's device named the request, when this process has just written it.
    pub transaction: Option<(String, String)>,
    /// What it is to unread counts, if it may count: its class, and its thread.
    pub countable: Option<(i64, Thread)>,
    /// The event as clients see it, made when the first one does.
    ready: OnceLock<ReadyEvent>,
    /// How it relates to another event, found when somebody asks first.
    relation: OnceLock<Option<Relation>>,
}

impl StoredEvent {
    /// A new event as it will be stored.
    #[must_use]
    pub fn of_new(event: &NewEvent, room_nr: RoomNr, position: Option<Position>) -> Self {
        Self {
            nr: event.nr,
            position,
            place: event.placement.in_timeline(position),
            room_nr,
            sender_nr: event.sender_nr,
            type_nr: event.type_nr,
            state_key_nr: event.state_key_nr,
            state: event.state,
            replaces: event.replaces,
            outlier: matches!(event.placement, Placement::Outlier | Placement::Outside),
            soft_failed: event.placement == Placement::SoftFailed,
            held: event.placement == Placement::Held,
            passed_on: event.passed_on,
            redacted_by: None,
            pdu: event.pdu.clone(),
            transaction: event.transaction.as_ref().map(|key| (key.device_id.clone(), key.transaction_id.clone())),
            countable: event.countable.as_ref().map(|countable| (countable.class, countable.thread.clone())),
            ready: OnceLock::new(),
            relation: OnceLock::new(),
        }
    }

    fn of_row(row: &Row) -> Result<Self, Error> {
        let nr: EventNr = row.nr(0)?;
        let damaged = |what: &str| Error::Damaged(format!("{what} of event {nr}"));
        let flags: i64 = row.get(11)?;
        let version = RoomVersionId::try_from(row.get::<String>(15)?).map_err(|_| damaged("room version"))?;
        let rules = version.rules().ok_or_else(|| damaged("room version"))?;
        let event_id = EventId::parse(row.get::<String>(1)?).map_err(|_| damaged("id"))?;
        let room_id = row.get::<String>(14)?.try_into().map_err(|_| damaged("room id"))?;
        let json = decode_body(&row.get::<Vec<u8>>(13)?).ok_or_else(|| damaged("body"))?;
        let mut pdu = Pdu::from_stored(json, event_id, room_id, &rules).map_err(|_| damaged("body"))?;
        pdu.rejected = flags & FLAG_REJECTED != 0;
        Ok(Self {
            nr,
            position: row.maybe_nr(3)?,
            place: row.maybe_nr(4)?.zip(row.get::<Option<i64>>(5)?),
            room_nr: row.nr(2)?,
            sender_nr: row.nr(6)?,
            type_nr: row.nr(7)?,
            state_key_nr: row.maybe_nr(8)?,
            state: row.nr(9)?,
            replaces: row.maybe_nr(10)?,
            outlier: flags & FLAG_OUTLIER != 0,
            soft_failed: flags & FLAG_SOFT_FAILED != 0,
            held: flags & FLAG_HELD != 0,
            passed_on: flags & FLAG_PASSED_ON != 0,
            redacted_by: row.maybe_nr(12)?,
            pdu: Arc::new(pdu),
            transaction: None,
            countable: row
                .get::<Option<i64>>(17)?
                .zip(row.get::<Option<String>>(18)?.map(thread_of_event).transpose()?),
            ready: OnceLock::new(),
            relation: OnceLock::new(),
        })
    }

    /// The same event with a place in the timeline.
    pub(crate) fn placed_at(&self, position: Position) -> Self {
        Self { position: Some(position), place: Some((position, 0)), held: false, ..self.clone() }
    }

    /// The same event with another content.
    #[must_use]
    pub fn with_pdu(&self, pdu: Pdu) -> Self {
        Self { pdu: Arc::new(pdu), ready: OnceLock::new(), relation: OnceLock::new(), ..self.clone() }
    }

    /// The event as clients see it, but for what the server adds for each reader. Made once for all of them.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] when what is stored is no event.
    pub fn ready(&self) -> Result<&ReadyEvent, Error> {
        if let Some(ready) = self.ready.get() {
            return Ok(ready);
        }
        let event = self.client_event()?;
        Ok(self.ready.get_or_init(|| event.to_ready(&self.pdu.event_id, self.pdu.redacts.as_deref())))
    }

    /// What clients see of the event.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] when what is stored is no event.
    pub fn client_event(&self) -> Result<ClientEvent<'_>, Error> {
        ClientEvent::of(&self.pdu.json).map_err(|_| Error::Damaged(format!("event {}", self.nr)))
    }

    /// How it relates to another event. Client-Server API, "Forming relationships between events".
    #[must_use]
    pub fn relation(&self) -> Option<&Relation> {
        self.relation.get_or_init(|| Relation::of_content(&self.pdu.content)).as_ref()
    }

    /// Whether this is a state event.
    #[must_use]
    pub fn is_state(&self) -> bool {
        self.state_key_nr.is_some()
    }
}

/// The month that a body of now belongs to, counted from 1970.
pub(crate) fn body_month(now_ms: i64) -> i64 {
    now_ms / MONTH_MS + 1
}

pub(crate) fn encode_body(json: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(json.len() + 1);
    body.push(FORMAT_PLAIN);
    body.extend_from_slice(json.as_bytes());
    body
}

pub(crate) fn decode_body(body: &[u8]) -> Option<Arc<str>> {
    match body.split_first()? {
        (&FORMAT_PLAIN, json) => std::str::from_utf8(json).ok().map(Arc::from),
        _ => None,
    }
}

/// Events in memory.
///
/// An entry never goes stale by itself: an event changes only by its redaction, which removes it here in the process that
/// writes it, and in the others as they follow the stream.
#[derive(Clone)]
pub(crate) struct EventCache {
    events: Cache<EventNr, Arc<StoredEvent>>,
    numbers: Cache<OwnedEventId, EventNr>,
    /// Counts what was forgotten: what was read from the database while something was may be as it was before.
    forgotten: Arc<AtomicU64>,
}

impl EventCache {
    pub(crate) fn new() -> Self {
        let events = Cache::builder()
            .max_capacity(CACHE_BYTES)
            .weigher(|_, event: &Arc<StoredEvent>| (3 * event.pdu.json.len() + 900) as u32)
            .build();
        Self { events, numbers: Cache::new(100_000), forgotten: Arc::default() }
    }

    pub(crate) fn insert(&self, event: Arc<StoredEvent>) {
        self.numbers.insert(event.pdu.event_id.clone(), event.nr);
        self.events.insert(event.nr, event);
    }

    /// Forgets an event that was redacted.
    pub(crate) fn forget(&self, nr: EventNr) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.events.invalidate(&nr);
    }
}

impl Storage {
    /// The events of those numbers, in one query at most; numbers of no event are left out.
    ///
    /// # Errors
    ///
    /// When the database fails or an event is damaged.
    pub async fn get_events(&self, events: &[EventNr]) -> Result<HashMap<EventNr, Arc<StoredEvent>>, Error> {
        let cache = &self.0.event_cache;
        let mut found = HashMap::with_capacity(events.len());
        let mut missing = Vec::new();
        for nr in events {
            match cache.events.get(nr) {
                Some(event) => drop(found.insert(*nr, event)),
                None => missing.push(nr.0),
            }
        }
        if !missing.is_empty() {
            missing.sort_unstable();
            missing.dedup();
            let forgotten = cache.forgotten.load(Ordering::SeqCst);
            let mut newest = None;
            for row in self.db().read(&GET_EVENTS, args![missing]).await? {
                let event = Arc::new(StoredEvent::of_row(&row)?);
                cache.insert(event.clone());
                if cache.forgotten.load(Ordering::SeqCst) != forgotten {
                    // It may have been redacted since it was read. Looked at last: who forgets counts first.
                    cache.events.invalidate(&event.nr);
                }
                newest = newest.max(event.position);
                found.insert(event.nr, event);
            }
            self.settle(newest.unwrap_or_default()).await?;
        }
        Ok(found)
    }

    /// An event, if it is in memory.
    pub(crate) fn event_in_memory(&self, nr: EventNr) -> Option<Arc<StoredEvent>> {
        self.0.event_cache.events.get(&nr)
    }

    /// The event of a number.
    ///
    /// # Errors
    ///
    /// When the database fails or the event is damaged.
    pub async fn get_event(&self, nr: EventNr) -> Result<Option<Arc<StoredEvent>>, Error> {
        if let Some(event) = self.event_in_memory(nr) {
            return Ok(Some(event));
        }
        Ok(self.get_events(&[nr]).await?.remove(&nr))
    }

    /// Whether the event of an id is stored, as far as this process remembers.
    #[must_use]
    pub fn is_event_in_memory(&self, event_id: &EventId) -> bool {
        self.0.event_cache.numbers.contains_key(event_id)
    }

    /// The number of an event id, if the event is stored.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_event_nr(&self, event_id: &EventId) -> Result<Option<EventNr>, Error> {
        if let Some(nr) = self.0.event_cache.numbers.get(event_id) {
            return Ok(Some(nr));
        }
        Ok(self.find_event_nrs(&[event_id.to_owned()]).await?.remove(event_id))
    }

    /// The numbers of event ids, of those that are stored.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_event_nrs(&self, ids: &[OwnedEventId]) -> Result<HashMap<OwnedEventId, EventNr>, Error> {
        let mut found = HashMap::with_capacity(ids.len());
        let mut names = Vec::new();
        for id in ids {
            match self.0.event_cache.numbers.get(id) {
                Some(nr) => drop(found.insert(id.clone(), nr)),
                None => names.push(id.to_string()),
            }
        }
        if names.is_empty() {
            return Ok(found);
        }
        for row in self.db().read(&FIND_EVENT_NRS, args![names]).await? {
            let nr = row.nr(0)?;
            let id = EventId::parse(row.get::<String>(1)?).map_err(|_| Error::Damaged(format!("id of event {nr}")))?;
            found.insert(id, nr);
        }
        Ok(found)
    }

    /// The event of an id, if it is stored.
    ///
    /// # Errors
    ///
    /// When the database fails or the event is damaged.
    pub async fn find_event(&self, event_id: &EventId) -> Result<Option<Arc<StoredEvent>>, Error> {
        match self.find_event_nr(event_id).await? {
            Some(nr) => self.get_event(nr).await,
            None => Ok(None),
        }
    }

    /// The `auth_events` of events, as numbers.
    ///
    /// # Errors
    ///
    /// When the database fails or a list is damaged.
    pub async fn list_auth_events(&self, events: &[EventNr]) -> Result<HashMap<EventNr, Vec<EventNr>>, Error> {
        let numbers: Vec<i64> = events.iter().map(|nr| nr.0).collect();
        // Of a large room there are tens of thousands: in one hand-over.
        let rows: Vec<(i64, String)> = self.db().read_packed(&LIST_AUTH, args![numbers]).await?;
        let read = |(nr, packed): (i64, String)| {
            let listed = from_hex(&packed).and_then(|bytes| unpack_events(&bytes));
            Ok((EventNr(nr), listed.ok_or_else(|| Error::Damaged(format!("auth events of event {nr}")))?))
        };
        rows.into_iter().map(read).collect()
    }

    /// Forgets all that is in memory and may have changed: any event may have been redacted, anything may relate to any, and anybody's
    /// account data be another.
    pub fn forget_all(&self) {
        self.0.account_data_versions.note_all();
        self.0.event_cache.forgotten.fetch_add(1, Ordering::SeqCst);
        self.0.event_cache.events.invalidate_all();
        self.0.childless.forget_all();
    }

    /// The transaction ids by which a device sent events, of those that it sent.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_event_transactions(
        &self,
        user_nr: UserNr,
        device_id: &str,
        events: &[EventNr],
    ) -> Result<HashMap<EventNr, String>, Error> {
        let numbers: Vec<i64> = events.iter().map(|nr| nr.0).collect();
        let rows = self.db().read(&FIND_EVENT_TRANSACTIONS, args![user_nr, device_id, numbers]).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, row.get(1)?))).collect()
    }
}
