//! What redactions redact: by which rule, when it comes late, and what relates to it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use model::{EventNr, NodeNr, Pdu, Position, RoomNr};
use ruma::{
    CanonicalJsonObject, EventId, canonical_json::redact, events::TimelineEventType,
    room_version_rules::RoomVersionRules,
};
use storage::{
    ChildrenQuery, Commit, Redaction, RelatedRedactionRow, RoomCommit, RoomRow, Storage, StoredEvent,
    TimelineDirection, TimelinePlace,
};
use tokio::sync::Notify;
use tracing::warn;

use crate::{
    Draft, Error, Rooms,
    head::{Built, Head, apply_to_summary},
    race::Race,
    relations::{is_valid_child, new_relation},
    turn::room_commit,
};

/// The word for relations of any type. MSC3912.
const ANY_TYPE: &str = "*";
/// Related events that are looked at together.
const EVENTS_AT_ONCE: u32 = 100;
/// Most related events that one look goes through, the newest ones.
const RELATED_MAX: usize = 10_000;
/// Redactions that are taken up again together.
const TAKEN_UP_AT_ONCE: u32 = 100;
/// How often is looked for what was not done.
const LOOKED_EVERY: Duration = Duration::from_secs(60);
/// The consumer whose lease says which process looks.
const CONSUMER: &str = "redactions";
/// How long a process has it at most, in milliseconds.
const LEASE_MS: i64 = 50_000;

/// What the task that follows redactions of a process knows.
#[derive(Default)]
pub(crate) struct RedactionWork {
    /// Says that there is something to do.
    wake: Notify,
    /// The target, by room and id, after which the next look for redactions that wait goes on. No lock inside.
    held_upto: Mutex<(RoomNr, String)>,
}

impl RedactionWork {
    fn held_upto(&self) -> (RoomNr, String) {
        self.held_upto.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn set_held_upto(&self, upto: (RoomNr, String)) {
        *self.held_upto.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = upto;
    }
}

impl Rooms {
    /// What the redaction of another server redacts, if it is here and the sender may by the state at the redaction. Room Version 3,
    /// "Handling redactions"; before that the authorization rules have decided.
    pub(crate) async fn target_of_redaction(
        &self,
        room: &RoomRow,
        rules: &RoomVersionRules,
        redaction: &Pdu,
        state: NodeNr,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let Some(target) = &redaction.redacts else { return Ok(None) };
        let target = self.storage().find_event(target).await?.filter(|target| {
            target.room_nr == room.nr && !target.pdu.rejected && target.pdu.event_type != TimelineEventType::RoomCreate
        });
        let Some(target) = target else { return Ok(None) };
        let mut may_redact = rules.authorization.special_case_room_redaction
            || target.pdu.sender.server_name() == redaction.sender.server_name();
        if !may_redact {
            may_redact = self.power_at(room, state).await?.user_can_redact(&redaction.sender);
        }
        Ok(may_redact.then_some(target))
    }

    /// Lets redactions that waited for an event redact it, and shows them. To be called in the room's turn.
    pub(crate) async fn release_redactions(&self, room: &Arc<RoomRow>, target_id: &EventId) -> Result<(), Error> {
        let storage = self.storage();
        let mut race = Race::default();
        loop {
            let held = storage.list_held_redactions(room.nr, target_id).await?;
            if held.is_empty() {
                return Ok(());
            }
            let mut head = Head::load(storage, room.clone()).await?;
            let events = storage.get_events(&held).await?;
            let (mut built, mut released) = (Built::default(), Vec::new());
            for redaction in held.iter().filter_map(|nr| events.get(nr)) {
                let (pdu, state) = (&redaction.pdu, redaction.state);
                let Some(target) = self.target_of_redaction(room, &head.rules, pdu, state).await? else { continue };
                if released.is_empty() && target.redacted_by.is_none() {
                    let (redaction, left) =
                        redact_event(storage, room, &head.rules, head.state, &target, redaction.nr).await?;
                    built.summary_changed = left.is_some_and(|left| apply_to_summary(&mut head.summary, &left));
                    built.redactions.push(redaction);
                }
                released.push(redaction.clone());
            }
            if released.is_empty() {
                return Ok(());
            }
            let commit = RoomCommit { released, lease: race.wants_lease(), ..room_commit(&head, built) };
            match storage.commit(Commit { room: Some(commit), ..Commit::default() }).await {
                Ok(_) => return Ok(()),
                Err(error) if race.goes_on(&error).await => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets the task that follows redactions go on to what relates to an event that was redacted: the database says what is to be done.
    /// MSC3912.
    pub(crate) fn go_on_to_related(&self) {
        self.redaction_work().wake.notify_one();
    }

    /// Goes on to what relates to all that was redacted with that wish. One that fails is tried again with the next look.
    async fn redact_all_related(&self) -> Result<(), Error> {
        let mut after = EventNr(0);
        loop {
            let open = self.storage().list_open_related_redactions(after, TAKEN_UP_AT_ONCE).await?;
            let Some(last) = open.last() else { return Ok(()) };
            after = last.redaction_nr;
            for redaction in &open {
                if let Err(error) = self.redact_related(redaction).await {
                    let (nr, error) = (redaction.redaction_nr, &error as &dyn std::error::Error);
                    warn!(event.nr = %nr, error, "what relates to a redacted event could not be redacted; it is tried again");
                }
            }
        }
    }

    /// Redacts what relates to the target of a redaction, on behalf of its sender: what breaks the rules of its relation does not relate
    /// to it, and what the sender may not redact stays.
    async fn redact_related(&self, asked: &RelatedRedactionRow) -> Result<(), Error> {
        let storage = self.storage();
        let Some(redaction) = storage.get_event(asked.redaction_nr).await? else { return Ok(()) };
        let Some(target) = storage.find_event(&asked.target).await? else { return Ok(()) };
        let room = self.room(&redaction.pdu.room_id).await?;
        let mut content: CanonicalJsonObject =
            serde_json::from_str(redaction.pdu.content.get()).map_err(|error| Error::BadEvent(error.to_string()))?;
        content.remove("redacts");
        let query =
            ChildrenQuery { room_nr: room.nr, parent: &asked.target, rel_type_nr: None, type_nr: None, levels: 1 };
        let mut from: TimelinePlace = (Position(i64::MAX), 0);
        let (mut looked_at, mut only_own) = (0, false);
        'pages: loop {
            let (direction, to) = (TimelineDirection::Backward, (Position(i64::MIN), 0));
            let rows = storage.list_children(query, direction, from, to, EVENTS_AT_ONCE).await?;
            let numbers: Vec<EventNr> = rows.iter().map(|(nr, _)| *nr).collect();
            let events = storage.get_events(&numbers).await?;
            for event in numbers.iter().filter_map(|nr| events.get(nr)) {
                let is_own = event.sender_nr == redaction.sender_nr;
                if !is_asked_for(asked, &target, event) || (only_own && !is_own) {
                    continue;
                }
                let sender = redaction.pdu.sender.clone();
                let draft = Draft::new(sender, redaction.sender_nr, TimelineEventType::RoomRedaction, content.clone())
                    .redacting_once(event.pdu.event_id.clone());
                match self.submit(&room, draft).await {
                    Err(error @ (Error::Busy | Error::Storage(_))) => return Err(error),
                    // Who may not redact an event of another user may redact none, and who may not redact their own may redact nothing.
                    Err(Error::NotAllowed(_)) if is_own => break 'pages,
                    Err(Error::NotAllowed(_)) => only_own = true,
                    _ => {}
                }
            }
            looked_at += rows.len();
            if rows.len() < EVENTS_AT_ONCE as usize || looked_at >= RELATED_MAX {
                break;
            }
            from = rows.last().map_or(from, |(_, place)| *place);
        }
        Ok(storage.set_related_redaction_done(asked).await?)
    }

    /// Does, until `stop` ends, what redactions have still to do: those of this process, and those of processes that ended in the midst
    /// of it. Run it as one task of the process.
    pub async fn follow_redactions(self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut look = tokio::time::interval(LOOKED_EVERY);
        loop {
            let work = async {
                tokio::select! {
                    () = self.redaction_work().wake.notified() => self.redact_all_related().await,
                    _ = look.tick() => self.take_up_redactions().await,
                }
            };
            tokio::select! {
                () = &mut stop => return,
                outcome = work => {
                    if let Err(error) = outcome {
                        warn!(error = &error as &dyn std::error::Error, "could not look for redactions that are still to be done");
                    }
                }
            }
        }
    }

    /// One look for what redactions have still to do.
    ///
    /// # Errors
    ///
    /// When the database fails; the next look goes on.
    pub async fn take_up_redactions(&self) -> Result<(), Error> {
        let storage = self.storage();
        // Twice would do no harm, as what is redacted already is not redacted again, but is not needed.
        let Some(position) = storage.lease_consumer(CONSUMER, LEASE_MS).await? else { return Ok(()) };
        self.redact_all_related().await?;
        // On from where the last look ended: those that may redact nothing stay, and others come after them.
        let (room_nr, target) = self.redaction_work().held_upto();
        let targets = storage.list_held_targets((room_nr, &target), TAKEN_UP_AT_ONCE).await?;
        let is_end = targets.len() < TAKEN_UP_AT_ONCE as usize;
        let upto = targets.last().filter(|_| !is_end).map(|(room_nr, target)| (*room_nr, target.to_string()));
        self.redaction_work().set_held_upto(upto.unwrap_or_default());
        let rooms = storage.get_rooms(&targets.iter().map(|(room_nr, _)| *room_nr).collect::<Vec<_>>()).await?;
        for (room_nr, target) in &targets {
            let Some(room) = rooms.get(room_nr) else { continue };
            let turn = self.turn(*room_nr);
            let mut head = turn.take_head().await;
            *head = None;
            if let Err(error) = self.release_redactions(room, target).await {
                let error = &error as &dyn std::error::Error;
                warn!(room.id = %room.id, event.id = %target, error, "redactions that waited for {target} could not be done");
            }
        }
        storage.advance_consumer(CONSUMER, position, 0).await?;
        Ok(())
    }
}

/// Whether an event relates to the target in a way that was asked for, by the rules of relations.
fn is_asked_for(asked: &RelatedRedactionRow, target: &StoredEvent, event: &StoredEvent) -> bool {
    let Some(relation) = event.relation() else { return false };
    let is_wanted = asked.rel_types.iter().any(|wanted| wanted == ANY_TYPE || *wanted == relation.rel_type);
    is_wanted && is_valid_child(target, asked.target_rel_type.as_deref(), event)
}

/// What is left of an event, for the database and, if it is in that state, for the room. Room Versions, "Redactions".
pub(crate) async fn redact_event(
    storage: &Storage,
    room: &RoomRow,
    rules: &RoomVersionRules,
    state: NodeNr,
    target: &StoredEvent,
    by: EventNr,
) -> Result<(Redaction, Option<Arc<Pdu>>), Error> {
    let bad = |error: &dyn std::fmt::Display| Error::BadEvent(error.to_string());
    let object: CanonicalJsonObject = serde_json::from_str(&target.pdu.json).map_err(|error| bad(&error))?;
    let redacted = redact(object, &rules.redaction, None).map_err(|error| bad(&error))?;
    let json: Arc<str> = serde_json::to_string(&redacted).map_err(|error| bad(&error))?.into();
    let is_current = match target.state_key_nr {
        Some(key) => storage.get_state_event(room.nr, state, (target.type_nr, key)).await? == Some(target.nr),
        None => false,
    };
    let mut pdu = None;
    if is_current {
        let (event_id, room_id) = (target.pdu.event_id.clone(), target.pdu.room_id.clone());
        let read = Pdu::from_stored(json.clone(), event_id, room_id, rules).map_err(|error| bad(&error))?;
        pdu = Some(Arc::new(read));
    }
    let relation = match target.relation() {
        Some(relation) => Some(new_relation(storage, &target.pdu, relation).await?),
        None => None,
    };
    let counted_in = target.countable.as_ref().map(|(_, thread)| thread.clone());
    Ok((Redaction { event_nr: target.nr, json, by, relation, counted_in }, pdu))
}
