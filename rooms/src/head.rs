//! What the next event of a room is built upon, and the building of it.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use model::{EventNr, LocalServers, Membership, NodeNr, Pdu, limits};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::{EventIdFormatVersion, EventsReferenceFormatVersion, RoomVersionRules},
    signatures, state_res,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::{
    MembershipChange, NewEvent, NewNodes, NewRelatedRedaction, Placement, Redaction, RoomRow, RoomSummary, StateChange,
    StateKey, Storage, StoredEvent,
};

use crate::{
    Draft, Error, Rooms,
    power::{power_levels, rules_of},
    profiles::with_profile_of,
    push::class::countable,
    redactions::redact_event,
};

/// A room as it will be after the events that were built so far.
pub(crate) struct Head {
    pub(crate) row: Arc<RoomRow>,
    pub(crate) rules: RoomVersionRules,
    /// The state that is stored, which the commit expects.
    pub(crate) stored_state: NodeNr,
    pub(crate) state: NodeNr,
    pub(crate) depth: i64,
    pub(crate) extremities: Vec<(EventNr, OwnedEventId)>,
    pub(crate) summary: RoomSummary,
    /// Whether the state lacks members who are not here yet: that one is absent says nothing of them.
    pub(crate) is_partial: bool,
    /// Events that were built but are not stored.
    built: HashMap<EventNr, Arc<Pdu>>,
}

/// What the events that were built need in the database.
#[derive(Default)]
pub(crate) struct Built {
    pub(crate) events: Vec<NewEvent>,
    pub(crate) nodes: NewNodes,
    pub(crate) state_changes: Vec<StateChange>,
    pub(crate) redactions: Vec<Redaction>,
    pub(crate) related_redactions: Vec<NewRelatedRedaction>,
    pub(crate) extremities_used: Vec<EventNr>,
    pub(crate) summary_changed: bool,
}

/// The events that allow an event.
type AuthEvents = Vec<(EventNr, Arc<Pdu>)>;

/// The state that decides whether an event is allowed.
type AuthState = HashMap<(StateEventType, String), (EventNr, Arc<Pdu>)>;

/// What came of a draft.
enum Made {
    /// The state event that says the same already.
    Standing(OwnedEventId),
    New(Box<NewlyMade>),
}

/// An event upon a head, and what it changes.
pub(crate) struct NewlyMade {
    pub(crate) event: NewEvent,
    pub(crate) nodes: NewNodes,
    pub(crate) state_change: Option<StateChange>,
    /// What it redacts; with what is left of it, if that is in the current state.
    pub(crate) redaction: Option<(Redaction, Option<Arc<Pdu>>)>,
    /// How it goes on to what relates to what it redacts.
    pub(crate) related: Option<NewRelatedRedaction>,
}

impl Head {
    /// The head of a room that exists.
    pub(crate) async fn load(storage: &Storage, row: Arc<RoomRow>) -> Result<Self, Error> {
        let head = storage.get_head(row.nr).await?.ok_or(Error::RoomUnknown)?;
        let events = storage.get_events(&head.extremities).await?;
        let extremities =
            head.extremities.iter().filter_map(|nr| Some((*nr, events.get(nr)?.pdu.event_id.clone()))).collect();
        let summary = storage.get_summaries(&[row.nr]).await?.remove(&row.nr).map(|(summary, ..)| summary);
        Ok(Self {
            rules: rules_of(&row.version)?,
            stored_state: head.state,
            state: head.state,
            depth: head.depth,
            extremities,
            summary: summary.unwrap_or_default(),
            is_partial: head.is_partial,
            built: HashMap::new(),
            row,
        })
    }

    /// The head of a room that does not exist yet.
    pub(crate) fn new(row: RoomRow, rules: RoomVersionRules) -> Self {
        Self {
            row: Arc::new(row),
            rules,
            stored_state: NodeNr(0),
            state: NodeNr(0),
            depth: 0,
            extremities: Vec::new(),
            // What a room is without the events that say so. Client-Server API, "m.room.join_rules" and the others.
            summary: RoomSummary {
                join_rule: "invite".to_owned(),
                history_visibility: "shared".to_owned(),
                guest_access: "forbidden".to_owned(),
                ..RoomSummary::default()
            },
            is_partial: false,
            built: HashMap::new(),
        }
    }

    /// The head is stored as it is.
    pub(crate) fn committed(&mut self) {
        self.stored_state = self.state;
        self.built.clear();
    }

    /// The state event of a type and key, stored or built.
    pub(crate) async fn state_event(
        &self,
        storage: &Storage,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<(EventNr, Arc<Pdu>)>, Error> {
        let Some(key) = storage.find_state_key(event_type, state_key).await? else { return Ok(None) };
        self.event_of_key(storage, key).await
    }

    /// The state event of a type whose state key is empty; see [`crate::Rooms::find_only_state_at`].
    pub(crate) async fn only_state_event(
        &self,
        storage: &Storage,
        event_type: &str,
    ) -> Result<Option<(EventNr, Arc<Pdu>)>, Error> {
        let key = (storage.type_nr(event_type).await?, storage.state_key_nr("").await?);
        self.event_of_key(storage, key).await
    }

    async fn event_of_key(&self, storage: &Storage, key: StateKey) -> Result<Option<(EventNr, Arc<Pdu>)>, Error> {
        let Some(nr) = storage.get_state_event(self.row.nr, self.state, key).await? else { return Ok(None) };
        if let Some(pdu) = self.built.get(&nr) {
            return Ok(Some((nr, pdu.clone())));
        }
        let event = storage.get_event(nr).await?.ok_or(Error::EventUnknown)?;
        Ok(Some((nr, event.pdu.clone())))
    }

    /// Builds an event upon this head: authorizes, hashes and signs it, and moves the head on.
    ///
    /// Nothing changes when it fails. Gives the event's id; a state event that changes nothing gives the one that stands. With `asking` the
    /// room's policy server is asked for its signature, if it has one.
    pub(crate) async fn build(
        &mut self,
        storage: &Storage,
        servers: &LocalServers,
        draft: &Draft,
        nr: EventNr,
        asking: Option<&Rooms>,
        out: &mut Built,
    ) -> Result<OwnedEventId, Error> {
        // All that can fail only looks at the head; what changes it cannot fail.
        match self.make(storage, servers, draft, nr, out).await? {
            Made::Standing(event_id) => Ok(event_id),
            Made::New(mut made) => {
                if let Some(rooms) = asking
                    && let Some(signed) = rooms.signed_by_policy_server(self, &made.event.pdu).await?
                {
                    made.event.pdu = signed;
                }
                Ok(self.take_in(*made, out))
            }
        }
    }

    /// Makes an event upon this head, and works out what it changes.
    async fn make(
        &self,
        storage: &Storage,
        servers: &LocalServers,
        draft: &Draft,
        nr: EventNr,
        before: &Built,
    ) -> Result<Made, Error> {
        let zero_byte = |text: &str| text.contains('\0');
        if zero_byte(&draft.event_type.to_string()) || draft.state_key.as_deref().is_some_and(zero_byte) {
            return Err(Error::InvalidParam("event types and state keys have no zero byte".to_owned()));
        }
        let with_profile;
        let draft = match draft.shows {
            Some(user_nr) => {
                with_profile = with_profile_of(storage, user_nr, draft).await?;
                &with_profile
            }
            None => draft,
        };
        let content = raw(&draft.content)?;
        let (auth, auth_state) = self.auth_of(storage, draft, &content).await?;
        let replaced = match &draft.state_key {
            Some(state_key) => self.state_event(storage, &draft.event_type.to_string(), state_key).await?,
            None => None,
        };
        if draft.while_joined
            && replaced.as_ref().and_then(|(_, old)| membership_of(old)).is_none_or(|old| old != Membership::Join)
        {
            return Err(Error::NotMember);
        }
        if let Some((_, old)) = &replaced
            && old.sender == draft.sender
            && old.content.get() == content.get()
        {
            return Ok(Made::Standing(old.event_id.clone()));
        }
        let redacted = self.redaction_target(storage, draft, &auth_state).await?;
        if let Some(target) = redacted.as_ref().filter(|_| draft.redacts_once) {
            let is_redacted = target.redacted_by.is_some()
                || before.redactions.iter().any(|redaction| redaction.event_nr == target.nr);
            if is_redacted {
                return Err(Error::EventUnknown);
            }
        }

        let pdu = self.sign(storage, servers, draft, &auth)?;
        self.authorize(&pdu, &auth, &auth_state)?;
        let redaction = match &redacted {
            Some(target) => Some(redact_event(storage, &self.row, &self.rules, self.state, target, nr).await?),
            None => None,
        };
        let may_notify_room = async || Ok(power_levels(&self.rules, &auth_state)?.may_notify_room(&draft.sender));
        let countable = countable(storage, servers, self.row.nr, &pdu, may_notify_room).await?;

        let type_nr = storage.type_nr(&pdu.event_type.to_string()).await?;
        let relation = self.relation_of_draft(storage, draft, type_nr, &pdu, before).await?;
        let (mut state, mut nodes) = (self.state, NewNodes::default());
        let (mut state_key_nr, mut state_change) = (None, None);
        if let Some(state_key) = &pdu.state_key {
            let key = (type_nr, storage.state_key_nr(state_key).await?);
            let old = replaced.as_ref().map(|(_, old)| &**old);
            let membership = membership_change(storage, servers, nr, &pdu, old).await?;
            state = storage.change_state(self.row.nr, state, key, Some(nr), &mut nodes).await?;
            state_key_nr = Some(key.1);
            state_change = Some(StateChange { event_nr: Some(nr), membership });
        }
        let event = NewEvent {
            nr,
            pdu: Arc::new(pdu),
            sender_nr: draft.sender_nr,
            type_nr,
            state_key_nr,
            state,
            replaces: replaced.map(|(nr, _)| nr),
            prev: self.extremities.iter().take(limits::PREV_EVENTS_MAX).map(|(nr, _)| *nr).collect(),
            auth: auth.iter().map(|(nr, _)| *nr).collect(),
            placement: Placement::Live,
            passed_on: false,
            was_outlier: false,
            lacks_members: self.is_partial,
            transaction: draft.transaction.clone(),
            countable,
            relation,
        };
        let related = redacted.filter(|_| !draft.related.is_empty()).map(|target| NewRelatedRedaction {
            redaction_nr: nr,
            target: target.pdu.event_id.clone(),
            target_rel_type: target.relation().map(|relation| relation.rel_type.clone()),
            rel_types: draft.related.clone(),
        });
        Ok(Made::New(Box::new(NewlyMade { event, nodes, state_change, redaction, related })))
    }

    /// An event that another server will hash and sign: all that follows from this head is in it, and the rules allow it.
    pub(crate) async fn template(&self, storage: &Storage, draft: &Draft) -> Result<CanonicalJsonObject, Error> {
        let (auth, state) = self.auth_of(storage, draft, &raw(&draft.content)?).await?;
        let mut object = self.unsigned(storage, draft, &auth);
        let pdu = Pdu::from_canonical(&object, &self.rules).map_err(|error| Error::BadEvent(error.to_string()))?;
        self.authorize(&pdu, &auth, &state)?;
        // Who makes an event names it.
        object.remove("event_id");
        Ok(object)
    }

    /// An event of ours that is not in the room before another server has signed it, too.
    pub(crate) async fn proposal(
        &self,
        storage: &Storage,
        servers: &LocalServers,
        draft: &Draft,
    ) -> Result<Pdu, Error> {
        let (auth, state) = self.auth_of(storage, draft, &raw(&draft.content)?).await?;
        let pdu = self.sign(storage, servers, draft, &auth)?;
        self.authorize(&pdu, &auth, &state)?;
        Ok(pdu)
    }

    /// The events that allow a draft, and the state that the rules look at. Server-Server API, "Auth events selection".
    async fn auth_of(
        &self,
        storage: &Storage,
        draft: &Draft,
        content: &RawValue,
    ) -> Result<(AuthEvents, AuthState), Error> {
        let auth_types = state_res::auth_types_for_event(
            &draft.event_type,
            &draft.sender,
            draft.state_key.as_deref(),
            content,
            &self.rules.authorization,
        )
        .map_err(Error::BadEvent)?;
        let mut state = AuthState::new();
        for (event_type, state_key) in auth_types {
            if let Some(found) = self.state_event(storage, &event_type.to_string(), &state_key).await? {
                state.insert((event_type, state_key), found);
            }
        }
        let auth: AuthEvents = state.values().cloned().collect();
        // Version 12 leaves the create event out of the list; the rules need it all the same.
        let create_key = (StateEventType::RoomCreate, String::new());
        if draft.event_type != TimelineEventType::RoomCreate && !state.contains_key(&create_key) {
            let create = self.state_event(storage, "m.room.create", "").await?.ok_or(Error::RoomUnknown)?;
            state.insert(create_key, create);
        }
        Ok((auth, state))
    }

    /// Moves the head on to an event that was made upon it.
    pub(crate) fn take_in(&mut self, made: NewlyMade, out: &mut Built) -> OwnedEventId {
        let NewlyMade { event, nodes, state_change, redaction, related } = made;
        out.related_redactions.extend(related);
        (self.state, self.depth) = (event.state, event.pdu.depth.max(self.depth));
        out.nodes.nodes.extend(nodes.nodes);
        if let Some(change) = state_change {
            out.state_changes.push(change);
            out.summary_changed |= apply_to_summary(&mut self.summary, &event.pdu);
        }
        if let Some((redaction, redacted)) = redaction {
            if let Some(redacted) = redacted {
                out.summary_changed |= apply_to_summary(&mut self.summary, &redacted);
                self.built.insert(redaction.event_nr, redacted);
            }
            out.redactions.push(redaction);
        }
        out.extremities_used.extend(&event.prev);
        self.extremities.retain(|(nr, _)| !event.prev.contains(nr));
        let event_id = event.pdu.event_id.clone();
        self.extremities.push((event.nr, event_id.clone()));
        self.built.insert(event.nr, event.pdu.clone());
        out.events.push(event);
        event_id
    }

    /// Puts the event together. Room Versions, "Event format".
    fn unsigned(&self, storage: &Storage, draft: &Draft, auth: &[(EventNr, Arc<Pdu>)]) -> CanonicalJsonObject {
        let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
        let references = |ids: Vec<&OwnedEventId>| {
            let reference = |id: &&OwnedEventId| match self.rules.events_reference_format {
                EventsReferenceFormatVersion::V1 => {
                    // The hash beside the id is not checked by anyone; versions 1 and 2 want something there.
                    CanonicalJsonValue::Array(vec![
                        text(id.as_str()),
                        CanonicalJsonValue::Object(CanonicalJsonObject::new()),
                    ])
                }
                _ => text(id.as_str()),
            };
            CanonicalJsonValue::Array(ids.iter().map(reference).collect())
        };
        let origin_server_ts = draft.timestamp.unwrap_or_else(|| storage.clock().now());
        let depth = (self.depth + 1).min(limits::DEPTH_MAX);
        let mut object = CanonicalJsonObject::new();
        let is_create = draft.event_type == TimelineEventType::RoomCreate;
        if !(is_create && self.rules.authorization.room_create_event_id_as_room_id) {
            object.insert("room_id".to_owned(), text(self.row.id.as_str()));
        }
        if self.rules.event_id_format == EventIdFormatVersion::V1 {
            let id = format!("${}:{}", storage.random().alphanumeric(18), draft.sender.server_name());
            object.insert("event_id".to_owned(), CanonicalJsonValue::String(id));
        }
        if let Some(state_key) = &draft.state_key {
            object.insert("state_key".to_owned(), text(state_key));
        }
        let mut content = draft.content.clone();
        if let Some(redacts) = &draft.redacts {
            // Room Version 11, "Moving the redacts property of m.room.redaction events to a content property".
            let place = if self.rules.redaction.content_field_redacts { &mut content } else { &mut object };
            place.insert("redacts".to_owned(), text(redacts.as_str()));
        }
        object.insert("type".to_owned(), CanonicalJsonValue::String(draft.event_type.to_string()));
        object.insert("sender".to_owned(), text(draft.sender.as_str()));
        object.insert("content".to_owned(), CanonicalJsonValue::Object(content));
        let prev = self.extremities.iter().take(limits::PREV_EVENTS_MAX).map(|(_, id)| id).collect();
        object.insert("prev_events".to_owned(), references(prev));
        object.insert("auth_events".to_owned(), references(auth.iter().map(|(_, pdu)| &pdu.event_id).collect()));
        object.insert("depth".to_owned(), CanonicalJsonValue::Integer(depth.try_into().unwrap_or(ruma::Int::MAX)));
        let ts: i64 = origin_server_ts.get().into();
        object.insert(
            "origin_server_ts".to_owned(),
            CanonicalJsonValue::Integer(ts.try_into().unwrap_or(ruma::Int::MAX)),
        );
        object
    }

    /// Puts the event together and signs it. Server-Server API, "Signing Events".
    fn sign(
        &self,
        storage: &Storage,
        servers: &LocalServers,
        draft: &Draft,
        auth: &[(EventNr, Arc<Pdu>)],
    ) -> Result<Pdu, Error> {
        let server = servers
            .get(draft.sender.server_name())
            .ok_or_else(|| Error::NotAllowed(format!("{} is not a user of this server", draft.sender)))?;
        let mut object = self.unsigned(storage, draft, auth);
        let mut signed =
            signatures::hash_and_sign_event(server.name.as_str(), &server.key, &mut object, &self.rules.redaction);
        // Who lets somebody in vouches for it with their own server's signature. Room Version 8, "Authorization rules".
        if let Some(other) = draft.authorised_via.as_ref().and_then(|user_id| servers.get(user_id.server_name()))
            && other.name != server.name
        {
            signed = signed.and_then(|()| {
                signatures::sign_event(other.name.as_str(), &other.key, &mut object, &self.rules.redaction)
            });
        }
        signed.map_err(|error| match error {
            signatures::JsonError::PduTooLarge => Error::TooLarge,
            other => Error::BadEvent(other.to_string()),
        })?;
        Pdu::from_canonical(&object, &self.rules).map_err(|error| {
            let size = serde_json::to_string(&object).map_or(0, |json| json.len());
            if size > limits::EVENT_BYTES_MAX - 1 { Error::TooLarge } else { Error::BadEvent(error.to_string()) }
        })
    }

    /// The authorization rules of the room's version. Server-Server API, "Authorization rules".
    fn authorize(&self, pdu: &Pdu, auth: &[(EventNr, Arc<Pdu>)], state: &AuthState) -> Result<(), Error> {
        let create = state.get(&(StateEventType::RoomCreate, String::new())).map(|(_, pdu)| pdu);
        let by_id = |id: &EventId| {
            auth.iter().map(|(_, pdu)| pdu).chain(create).find(|pdu| pdu.event_id == id).map(|pdu| &**pdu)
        };
        state_res::check_state_independent_auth_rules(&self.rules.authorization, pdu, by_id)
            .map_err(Error::NotAllowed)?;
        let by_key =
            |event_type: &StateEventType, key: &str| Some(&*state.get(&(event_type.clone(), key.to_owned()))?.1);
        state_res::check_state_dependent_auth_rules(&self.rules.authorization, pdu, by_key).map_err(Error::NotAllowed)
    }

    /// The event that a redaction redacts, if the sender may. Room Version 3, "Handling redactions".
    async fn redaction_target(
        &self,
        storage: &Storage,
        draft: &Draft,
        state: &AuthState,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        if draft.event_type != TimelineEventType::RoomRedaction {
            return Ok(None);
        }
        let Some(event_id) = &draft.redacts else {
            return Err(Error::BadEvent("a redaction names the event that it redacts".to_owned()));
        };
        let target = storage.find_event(event_id).await?.filter(|event| event.room_nr == self.row.nr);
        let target = target.ok_or(Error::EventUnknown)?;
        if target.pdu.event_type == TimelineEventType::RoomCreate {
            return Err(Error::NotAllowed("the event that made the room cannot be redacted".to_owned()));
        }
        if target.pdu.sender != draft.sender {
            let levels = power_levels(&self.rules, state)?;
            if !levels.user_can_redact(&draft.sender) {
                return Err(Error::NotAllowed("you may not redact events of others in this room".to_owned()));
            }
        }
        Ok(Some(target))
    }
}

fn raw(content: &CanonicalJsonObject) -> Result<Box<RawValue>, Error> {
    serde_json::value::to_raw_value(content).map_err(|error| Error::BadEvent(error.to_string()))
}

/// What a member event does to its user.
pub(crate) async fn membership_change(
    storage: &Storage,
    servers: &LocalServers,
    event_nr: EventNr,
    pdu: &Pdu,
    old: Option<&Pdu>,
) -> Result<Option<MembershipChange>, Error> {
    if pdu.event_type != TimelineEventType::RoomMember {
        return Ok(None);
    }
    let user_id = pdu.state_key.as_deref().and_then(|key| ruma::UserId::parse(key).ok());
    let user_id = user_id.ok_or_else(|| Error::BadEvent("the state key of a member event is a user id".to_owned()))?;
    let after = membership_of(pdu).ok_or_else(|| Error::BadEvent("unknown membership".to_owned()))?;
    Ok(Some(MembershipChange {
        user_nr: storage.user_nr(&user_id).await?,
        server: user_id.server_name().to_owned(),
        is_local: servers.has_user(&user_id),
        before: old.and_then(membership_of),
        after,
        event_nr,
    }))
}

/// The membership in a member event.
pub(crate) fn membership_of(pdu: &Pdu) -> Option<Membership> {
    membership_in(&pdu.content)
}

/// What the content of a member event says the user is.
pub(crate) fn membership_in(content: &RawValue) -> Option<Membership> {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        membership: Cow<'a, str>,
    }
    Membership::from_word(&serde_json::from_str::<Content<'_>>(content.get()).ok()?.membership)
}

/// Takes over what a state event says of the room; whether it said anything of this kind.
pub(crate) fn apply_to_summary(summary: &mut RoomSummary, pdu: &Pdu) -> bool {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Content {
        name: Option<String>,
        topic: Option<String>,
        url: Option<String>,
        alias: Option<String>,
        join_rule: Option<String>,
        history_visibility: Option<String>,
        guest_access: Option<String>,
        algorithm: Option<String>,
        #[serde(rename = "type")]
        room_type: Option<String>,
    }
    if pdu.state_key.as_deref() != Some("") {
        return false;
    }
    // A value of another type counts as absent, here as for clients.
    let content: Content = serde_json::from_str(pdu.content.get()).unwrap_or_default();
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    match pdu.event_type.to_string().as_str() {
        "m.room.create" => summary.room_type = content.room_type,
        "m.room.name" => summary.name = some(content.name),
        "m.room.topic" => summary.topic = some(content.topic),
        "m.room.avatar" => summary.avatar_url = some(content.url),
        "m.room.canonical_alias" => summary.canonical_alias = some(content.alias),
        "m.room.join_rules" => summary.join_rule = content.join_rule.unwrap_or_else(|| "invite".to_owned()),
        "m.room.history_visibility" => {
            summary.history_visibility = content.history_visibility.unwrap_or_else(|| "shared".to_owned());
        }
        "m.room.guest_access" => summary.guest_access = content.guest_access.unwrap_or_else(|| "forbidden".to_owned()),
        // Encryption that was on stays on. Client-Server API, "m.room.encryption".
        "m.room.encryption" => summary.encryption = content.algorithm.or(summary.encryption.take()),
        _ => return false,
    }
    true
}

/// The id of a room made now: in version 12 that of its create event, before that a random one.
pub(crate) fn random_room_id(random: &model::Random, server: &ruma::ServerName) -> Result<OwnedRoomId, Error> {
    ruma::RoomId::parse(format!("!{}:{server}", random.alphanumeric(18))).map_err(|e| Error::BadEvent(e.to_string()))
}
