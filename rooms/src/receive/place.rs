//! The general way to take in an event: whatever it comes after. One at a time, upon the head as it is stored.

use std::{collections::HashMap, sync::Arc};

use model::{EventNr, NodeNr, Pdu, Relation};
use ruma::{
    OwnedEventId,
    events::{StateEventType, TimelineEventType},
    state_res,
};
use storage::{Commit, CommitError, NewEvent, NewNodes, Placement, RoomCommit, RoomRow, StoredEvent};

use super::{Incoming, Received};
use crate::{
    Error, Rooms,
    head::{Head, apply_to_summary},
    outliers::check_by_auth_events,
    push,
    race::Race,
    redactions::redact_event,
    relations::new_relation,
    resolution::{Unstored, resolve},
};

/// Most events that were kept out of the room and lie in a row before an event, of which is looked what lies before them.
const KEPT_OUT_MAX: usize = 100;

/// Most gaps of a room, the newest ones, of which is looked whether an event belongs into them.
const GAPS_MAX: u32 = 100;

/// What follows from the graph alone, and never changes.
struct Judged {
    pdu: Pdu,
    prev: Vec<EventNr>,
    /// The events that lie right before it in the room: also those before what was kept out of it.
    used: Vec<EventNr>,
    auth: Vec<EventNr>,
    state_before: NodeNr,
    /// The rule that forbids it.
    rejection: Option<String>,
    /// Whether some of what comes before it is not here.
    lacks: bool,
    /// Whether the state before it lacks members who are not here yet.
    lacks_members: bool,
    /// The events that allow it, where it does.
    allowing: Vec<(EventNr, Arc<Pdu>)>,
}

impl Rooms {
    /// Takes in one event. To be called in the room's turn; the head in memory is old afterwards.
    pub(super) async fn receive_one(&self, room: &Arc<RoomRow>, incoming: Incoming) -> Result<Received, Error> {
        let mut race = Race::default();
        loop {
            let head = Head::load(self.storage(), room.clone()).await?;
            match self.place(&head, incoming.clone(), race.wants_lease()).await {
                Err(Retry::Lost(error)) => {
                    if !race.goes_on(&error).await {
                        return Err(Error::Busy);
                    }
                }
                Err(Retry::Failed(error)) => return Err(error),
                Ok(Received::Accepted) => {
                    self.follow_up(room, &incoming.pdu).await?;
                    return Ok(Received::Accepted);
                }
                Ok(received) => return Ok(received),
            }
        }
    }

    /// Does what a new event causes: it may be what a redaction waited for, or relate to what was redacted with all that relates to it.
    async fn follow_up(&self, room: &Arc<RoomRow>, pdu: &Pdu) -> Result<(), Error> {
        // Of a redaction and its target that come to two processes at once, one sees the other here.
        for target in [Some(&pdu.event_id), pdu.redacts.as_ref()].into_iter().flatten() {
            self.release_redactions(room, target).await?;
        }
        if Relation::of_content(&pdu.content).is_some() {
            self.go_on_to_related();
        }
        Ok(())
    }

    /// Judges an event and commits it.
    async fn place(&self, head: &Head, incoming: Incoming, lease: bool) -> Result<Received, Retry> {
        let storage = self.storage();
        let mut nodes = NewNodes::default();
        let stored = storage.find_event(&incoming.pdu.event_id).await?;
        if stored.as_ref().is_some_and(|event| !event.outlier) {
            return Ok(Received::Known);
        }
        let (behind, passed_on, refusal) = (incoming.behind, incoming.passed_on, incoming.refusal.clone());
        let judged = match self.judge(head, incoming, &mut nodes).await? {
            Ok(judged) => judged,
            Err(missing) => return Ok(Received::Missing(missing)),
        };
        let Judged { mut pdu, prev, used, auth, state_before, rejection, lacks, lacks_members, allowing } = judged;
        // Members whom the event lists count in the current state, too, if that has nothing else to say of them.
        let mut current = head.state;
        if !allowing.is_empty() {
            (current, _) = Box::pin(self.with_members_of(&head.row, current, &pdu, &allowing, &mut nodes)).await?;
        }
        let nr = match &stored {
            Some(outlier) => outlier.nr,
            None => storage.take_event_nrs(1).await?.next().ok_or(Error::Busy)?,
        };
        let type_nr = storage.type_nr(&pdu.event_type.to_string()).await?;
        let mut state_key_nr = None;
        let mut replaces = None;
        let mut state = state_before;
        if let Some(state_key) = &pdu.state_key {
            let key = (type_nr, storage.state_key_nr(state_key).await?);
            state_key_nr = Some(key.1);
            replaces = storage.get_state_event(head.row.nr, state_before, key).await?;
            if rejection.is_none() {
                state = storage.change_state(head.row.nr, state_before, key, Some(nr), &mut nodes).await?;
            }
        }
        // What was before the room's current state is not measured by it.
        let soft_failure = match (&rejection, behind) {
            (None, None) => self.forbidden_by(head, &pdu, current).await?.or(refusal),
            _ => None,
        };
        let mut placement = match (&rejection, &soft_failure, behind) {
            (Some(_), ..) => Placement::Rejected,
            (None, Some(_), _) => Placement::SoftFailed,
            (None, None, Some((anchor, step))) => Placement::Backfilled { anchor, step },
            (None, None, None) => Placement::Live,
        };
        let is_shown = matches!(placement, Placement::Live | Placement::Backfilled { .. });
        let mut redacted = None;
        if is_shown && pdu.event_type == TimelineEventType::RoomRedaction {
            redacted = self.target_of_redaction(&head.row, &head.rules, &pdu, state_before).await?;
            if redacted.is_none() {
                placement = Placement::Held;
            }
        }
        pdu.rejected = rejection.is_some();
        let pdu = Arc::new(pdu);
        let sender_nr = storage.user_nr(&pdu.sender).await?;
        let mut countable = None;
        if placement == Placement::Live {
            let may_notify_room =
                async || Ok(self.power_at(&head.row, state_before).await?.may_notify_room(&pdu.sender));
            countable = push::class::countable(storage, self.servers(), head.row.nr, &pdu, may_notify_room).await?;
        }
        let event = NewEvent {
            nr,
            pdu: pdu.clone(),
            sender_nr,
            type_nr,
            state_key_nr,
            state,
            replaces,
            prev,
            auth,
            placement,
            passed_on,
            was_outlier: stored.is_some(),
            lacks_members,
            transaction: None,
            countable,
            relation: match Relation::of_content(&pdu.content) {
                Some(relation) => Some(new_relation(storage, &pdu, &relation).await?),
                None => None,
            },
        };
        let mut commit = RoomCommit {
            room_nr: head.row.nr,
            expected_state: head.stored_state,
            lease,
            state: head.state,
            depth: head.depth.max(pdu.depth),
            events: vec![event],
            ..RoomCommit::default()
        };
        commit.gaps_opened.extend((lacks && is_shown).then_some(nr));
        if matches!(placement, Placement::Live | Placement::Held) && behind.is_none() {
            let tips: Vec<EventNr> =
                head.extremities.iter().map(|(nr, _)| *nr).filter(|nr| !used.contains(nr)).collect();
            let stored = storage.get_events(&tips).await?;
            let mut states: Vec<NodeNr> =
                tips.iter().filter_map(|nr| stored.get(nr)).map(|event| event.state).collect();
            if tips.is_empty() || !self.is_superseded(&head.row, &pdu, state).await? {
                states.push(state);
                commit.extremities_added = vec![nr];
            }
            let unstored = Unstored {
                event: Arc::new(StoredEvent::of_new(&commit.events[0], head.row.nr, None)),
                auth: commit.events[0].auth.clone(),
            };
            commit.state = resolve(storage, &head.row, &head.rules, &states, Some(&unstored), &mut nodes).await?;
            if head.is_partial {
                commit.state = Box::pin(self.keep_members(head, commit.state, &mut nodes)).await?;
            }
            commit.extremities_used = used;
            let changed = self.changes(head, commit.state, &HashMap::from([(nr, pdu.clone())])).await?;
            (commit.state_changes, commit.summary) = changed;
        }
        if is_shown {
            commit.related_again.extend(commit.events[0].relation.as_ref().map(|relation| relation.parent.clone()));
        }
        if let Some(target) = redacted {
            let (redaction, left) = redact_event(storage, &head.row, &head.rules, commit.state, &target, nr).await?;
            let mut summary = commit.summary.clone().unwrap_or_else(|| head.summary.clone());
            if left.is_some_and(|left| apply_to_summary(&mut summary, &left)) {
                commit.summary = Some(summary);
            }
            commit.redactions.push(redaction);
        }
        commit.state_nodes = nodes.nodes;
        if head.is_partial {
            Box::pin(self.settle_memberships(&mut commit)).await?;
        }
        match storage.commit(Commit { room: Some(commit), ..Commit::default() }).await {
            Ok(_) => Ok(match (rejection, soft_failure) {
                (Some(rule), _) => Received::Rejected(rule),
                (None, Some(rule)) => Received::SoftFailed(rule),
                (None, None) => Received::Accepted,
            }),
            Err(CommitError::Storage(source)) => Err(Error::Storage(source).into()),
            Err(error) => Err(Retry::Lost(error)),
        }
    }

    /// Checks 4 and 5: by the event's own `auth_events`, and by the state before it.
    async fn judge(
        &self,
        head: &Head,
        incoming: Incoming,
        nodes: &mut NewNodes,
    ) -> Result<Result<Judged, Vec<OwnedEventId>>, Error> {
        let storage = self.storage();
        let Incoming { pdu, state_before: given, behind, lacks_members: given_lacks, .. } = incoming;
        // While members are not here, what comes now comes after what the room is now, as long as nothing better is known: when all are
        // here it is looked at again.
        let is_now = head.is_partial && given.is_none() && behind.is_none();
        // Only the first event of the room comes after nothing, and only where its place is at the very beginning.
        let is_first = pdu.event_type == TimelineEventType::RoomCreate && given == Some(NodeNr(0));
        if pdu.prev_events.is_empty() && !is_first {
            return Err(Error::BadEvent("it has no `prev_events`".to_owned()));
        }
        let referred: Vec<OwnedEventId> = pdu.prev_events.iter().chain(&pdu.auth_events).cloned().collect();
        let found = storage.find_event_nrs(&referred).await?;
        let events = storage.get_events(&found.values().copied().collect::<Vec<_>>()).await?;
        if events.values().any(|event| event.room_nr != head.row.nr) {
            return Err(Error::BadEvent("it refers to events of another room".to_owned()));
        }
        let has_state = |event: &Arc<StoredEvent>| !event.outlier && (head.is_partial || !event.lacks_members);
        let has_place = |id: &&OwnedEventId| found.get(*id).and_then(|nr| events.get(nr)).is_some_and(has_state);
        let lacks = !pdu.prev_events.iter().all(|id| has_place(&id));
        let without_place = pdu.prev_events.iter().filter(|id| given.is_none() && !is_now && !has_place(id));
        let unknown = pdu.auth_events.iter().filter(|id| !found.contains_key(*id));
        let missing: Vec<OwnedEventId> = without_place.chain(unknown).cloned().collect();
        if !missing.is_empty() {
            return Ok(Err(missing));
        }
        let prev: Vec<EventNr> = pdu.prev_events.iter().filter_map(|id| found.get(id).copied()).collect();
        let auth: Vec<EventNr> = pdu.auth_events.iter().map(|id| found[id]).collect();
        let before: Vec<&Arc<StoredEvent>> = prev.iter().filter_map(|nr| events.get(nr)).collect();
        let lacking = before.iter().filter(|event| head.is_partial && event.lacks_members).map(|event| event.state);
        let lacking: Vec<NodeNr> = lacking.collect();
        let lacks_members = given_lacks || is_now || (given.is_none() && !lacking.is_empty());
        let mut state_before = match given {
            Some(state) => state,
            None => {
                let states = match (lacking.is_empty(), is_now) {
                    (false, _) => lacking,
                    (true, true) => vec![head.state],
                    (true, false) => before.iter().map(|event| event.state).collect(),
                };
                resolve(storage, &head.row, &head.rules, &states, None, nodes).await?
            }
        };
        let used = self.lie_before(&prev).await?;
        let mut allowing = Vec::new();
        if lacks_members {
            allowing.extend(auth.iter().filter_map(|nr| Some((*nr, events.get(nr)?.pdu.clone()))));
            (state_before, _) = Box::pin(self.with_members_of(&head.row, state_before, &pdu, &allowing, nodes)).await?;
        }

        // By its own auth events.
        let create = head.state_event(storage, "m.room.create", "").await?.map(|(_, pdu)| pdu);
        let auth_pdus: Vec<Arc<Pdu>> =
            auth.iter().filter_map(|nr| events.get(nr)).map(|event| event.pdu.clone()).collect();
        let authorization = &head.rules.authorization;
        let mut rejection = check_by_auth_events(authorization, &pdu, &auth_pdus, create.as_deref()).err();
        // By the state before it.
        if rejection.is_none() {
            rejection = self.forbidden_by(head, &pdu, state_before).await?;
        }
        Ok(Ok(Judged { pdu, prev, used, auth, state_before, rejection, lacks, lacks_members, allowing }))
    }

    /// Whether an event is one that was missing when the one after it came: that one says what the room's state is, as long as the state that
    /// was told for it is the one that this event leads to.
    async fn is_superseded(&self, room: &RoomRow, pdu: &Pdu, state: NodeNr) -> Result<bool, Error> {
        let storage = self.storage();
        let gaps = storage.get_events(&storage.list_backward_gaps(room.nr, GAPS_MAX).await?).await?;
        for after in gaps.values().filter(|after| after.pdu.prev_events == std::slice::from_ref(&pdu.event_id)) {
            let differences = storage.diff_state(room.nr, state, after.state).await?;
            if differences.iter().all(|(_, old, new)| *new == Some(after.nr) && *old == after.replaces) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Events, and those that lie before the ones among them that were rejected or have soft-failed: no event of the room lies after those
    /// but for what comes now. Otherwise what lies before them would stay an extremity for ever.
    async fn lie_before(&self, prev: &[EventNr]) -> Result<Vec<EventNr>, Error> {
        let mut used = prev.to_vec();
        let mut open = prev.to_vec();
        while !open.is_empty() && used.len() < KEPT_OUT_MAX {
            let kept_out = self.storage().get_events(&open).await?;
            let kept_out = kept_out.values().filter(|event| event.pdu.rejected || event.soft_failed);
            let before: Vec<OwnedEventId> = kept_out.flat_map(|event| event.pdu.prev_events.clone()).collect();
            if before.is_empty() {
                break;
            }
            open =
                self.storage().find_event_nrs(&before).await?.into_values().filter(|nr| !used.contains(nr)).collect();
            used.extend(&open);
        }
        Ok(used)
    }

    /// The rule by which a state forbids an event, if one does.
    pub(crate) async fn forbidden_by(&self, head: &Head, pdu: &Pdu, state: NodeNr) -> Result<Option<String>, Error> {
        let storage = self.storage();
        let authorization = &head.rules.authorization;
        let mut keys = match state_res::auth_types_for_event(
            &pdu.event_type,
            &pdu.sender,
            pdu.state_key.as_deref(),
            &pdu.content,
            authorization,
        ) {
            Ok(keys) => keys,
            Err(rule) => return Ok(Some(rule)),
        };
        keys.push((StateEventType::RoomCreate, String::new()));
        let mut found = HashMap::new();
        for (event_type, state_key) in keys {
            if let Some(key) = storage.find_state_key(&event_type.to_string(), &state_key).await?
                && let Some(nr) = storage.get_state_event(head.row.nr, state, key).await?
                && let Some(event) = storage.get_event(nr).await?
            {
                found.insert((event_type, state_key), event);
            }
        }
        let fetch = |kind: &StateEventType, key: &str| Some(&*found.get(&(kind.clone(), key.to_owned()))?.pdu);
        Ok(state_res::check_state_dependent_auth_rules(authorization, pdu, fetch).err())
    }
}

/// Whether to do it again.
pub(super) enum Retry {
    Lost(CommitError),
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Retry {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
