//! Rooms that none of our servers is in: what users of ours are to them, and how they come in and go.
//!
//! A member event of ours needs a server that is in the room, a resident: it says what the event has to refer to, and brings it into the
//! room. Server-Server API, "Joining Rooms", "Leaving Rooms (Rejecting Invites)", "Knocking upon a room", "Inviting to a room".

mod completing;
mod join;
mod leave;
mod members;

use std::sync::Arc;

use accounts::Requester;
use model::{EventNr, Membership, NodeNr, Pdu};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, UserId,
    events::TimelineEventType,
    room_version_rules::{EventIdFormatVersion, RoomVersionRules},
    signatures,
};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use storage::{Commit, CommitError, NewEvent, NewNodes, Placement, RoomCommit, RoomRow, StateChange};
use tracing::debug;

use crate::{
    Error, MemberTemplate, RemoteError, Rooms,
    create::object,
    head::{Head, membership_change},
    power::rules_of,
    push,
    race::Race,
};

/// Most servers that are asked, one after the other, to bring somebody into a room.
const RESIDENTS_MAX: usize = 8;

/// Most servers that are known of a room, and asked when nobody named better ones.
const KNOWN_SERVERS_MAX: u32 = 3;

impl Rooms {
    /// Whether any of our servers is in a room, or was and nobody is by now: then what is known here is all that there is.
    pub(crate) async fn is_here(&self, room: &RoomRow) -> Result<bool, Error> {
        let storage = self.storage();
        let names = self.servers().iter().map(|server| server.name.to_string());
        if storage.is_any_in_room(room.nr, names).await? {
            return Ok(true);
        }
        let is_empty = storage.list_servers(room.nr, 1).await?.is_empty();
        Ok(is_empty && storage.get_head(room.nr).await?.is_some_and(|head| head.state != NodeNr(0)))
    }

    /// The room of an id, if any of our servers is in it.
    pub(crate) async fn find_here(&self, room_id: &RoomId) -> Result<Option<Arc<RoomRow>>, Error> {
        match self.room(room_id).await {
            Ok(room) if self.is_here(&room).await? => Ok(Some(room)),
            Ok(_) | Err(Error::RoomUnknown) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The servers that may bring a user into a room, or out of it: first those that were named, then that of who invited the user, and those
    /// of whom the state is that they were shown of the room.
    pub(crate) async fn residents(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        via: &[OwnedServerName],
    ) -> Result<Vec<OwnedServerName>, Error> {
        let mut servers: Vec<OwnedServerName> = via.to_vec();
        if let Ok(room) = self.room(room_id).await {
            if let Some(user_nr) = self.storage().find_user_nr(user_id).await?
                && let Some(row) = self.storage().get_membership(room.nr, user_nr).await?
                && let Some(member) = self.storage().get_event(row.event_nr).await?
            {
                servers.push(member.pdu.sender.server_name().to_owned());
                if member.outlier
                    && let Some(shown) = self.storage().get_stripped_state(member.nr).await?
                {
                    let shown: Vec<StrippedEvent<'_>> = serde_json::from_str(&shown).unwrap_or_default();
                    servers.extend(shown.iter().map(|event| event.sender.server_name().to_owned()));
                }
            }
            let known = self.storage().list_servers(room.nr, KNOWN_SERVERS_MAX).await?;
            servers.extend(known.into_iter().filter_map(|name| name.try_into().ok()));
        }
        // Up to version 11 a room's id names the server that made it.
        servers.extend(room_id.server_name().map(ToOwned::to_owned));
        let mut residents = Vec::new();
        for server in servers {
            if !self.servers().is_local(&server) && !residents.contains(&server) && residents.len() < RESIDENTS_MAX {
                residents.push(server);
            }
        }
        Ok(residents)
    }

    /// The content of a member event by which a user of ours changes what they are.
    async fn own_member_content(
        &self,
        requester: &Requester,
        membership: Membership,
        reason: Option<&str>,
    ) -> Result<CanonicalJsonObject, Error> {
        let mut content = object(json!({"membership": membership.as_str()}))?;
        if membership != Membership::Leave
            && let Some(profile) = self.member_profiles(&[requester.user_nr]).await?.get(&requester.user_nr)
        {
            profile.add_to(&mut content);
        }
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), CanonicalJsonValue::String(reason.to_owned()));
        }
        Ok(content)
    }

    /// A user's own member event as a resident wants it, signed.
    fn member_event_of_template(
        &self,
        template: &MemberTemplate,
        (room_id, user_id): (&RoomId, &UserId),
        content: CanonicalJsonObject,
    ) -> Result<Pdu, Error> {
        let rules = rules_of(&template.version)?;
        let given: CanonicalJsonObject =
            serde_json::from_str(template.event.get()).map_err(|error| Error::BadEvent(error.to_string()))?;
        let mut event = CanonicalJsonObject::new();
        for field in ["prev_events", "auth_events", "depth"] {
            let value = given.get(field).ok_or_else(|| Error::BadEvent(format!("the template has no `{field}`")))?;
            event.insert(field.to_owned(), value.clone());
        }
        self.sign_member_event(event, &rules, (room_id, user_id, user_id), content)
    }

    /// Completes and signs a member event of `sender`, a user of ours, about `target`.
    fn sign_member_event(
        &self,
        mut event: CanonicalJsonObject,
        rules: &RoomVersionRules,
        (room_id, sender, target): (&RoomId, &UserId, &UserId),
        content: CanonicalJsonObject,
    ) -> Result<Pdu, Error> {
        let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
        let server = self.servers().get(sender.server_name()).ok_or(Error::NotLocal)?;
        if rules.event_id_format == EventIdFormatVersion::V1 {
            let id = format!("${}:{}", self.storage().random().alphanumeric(18), server.name);
            event.insert("event_id".to_owned(), CanonicalJsonValue::String(id));
        }
        let now_ms: i64 = self.storage().clock().now().get().into();
        event.extend([
            ("type".to_owned(), text("m.room.member")),
            ("room_id".to_owned(), text(room_id.as_str())),
            ("sender".to_owned(), text(sender.as_str())),
            ("state_key".to_owned(), text(target.as_str())),
            ("content".to_owned(), CanonicalJsonValue::Object(content)),
            ("origin_server_ts".to_owned(), CanonicalJsonValue::Integer(now_ms.try_into().unwrap_or(ruma::Int::MAX))),
        ]);
        let bad = |error: &dyn std::fmt::Display| Error::BadEvent(error.to_string());
        signatures::hash_and_sign_event(server.name.as_str(), &server.key, &mut event, &rules.redaction)
            .map_err(|error| bad(&error))?;
        Pdu::from_canonical(&event, rules).map_err(|error| bad(&error))
    }

    /// The room of an id with the version that another server says it has; a new one, which nobody is in, if it was not known.
    ///
    /// Whoever spoke of it first may have lied: while its state is not known here, it is the room that this server says. Who joins makes it so
    /// for all.
    pub(crate) async fn room_of_version(
        &self,
        room_id: &RoomId,
        version: &RoomVersionId,
    ) -> Result<Arc<RoomRow>, Error> {
        rules_of(version)?;
        let room = self.storage().ensure_room(room_id, version).await?;
        if room.version == *version {
            return self.room(room_id).await;
        }
        if room.has_state {
            return Err(Error::BadEvent(format!("{room_id} has version {}, not {version}", room.version)));
        }
        Ok(Arc::new(RoomRow { version: version.clone(), ..room }))
    }

    /// Tells a user of ours what they are to a room that none of our servers is in; `stripped_state` is what they are shown of it.
    ///
    /// The event is in the stream, not in a timeline, and says nothing of the room's state.
    pub(crate) async fn commit_outside(
        &self,
        room: &Arc<RoomRow>,
        pdu: Pdu,
        stripped_state: Option<&[Box<RawValue>]>,
    ) -> Result<(), Error> {
        self.commit_outside_after(room, pdu, stripped_state, None).await
    }

    /// The same, if with `only_after` that is still what says what the user is to the room.
    pub(crate) async fn commit_outside_after(
        &self,
        room: &Arc<RoomRow>,
        pdu: Pdu,
        stripped_state: Option<&[Box<RawValue>]>,
        only_after: Option<EventNr>,
    ) -> Result<(), Error> {
        let storage = self.storage();
        let pdu = Arc::new(pdu);
        let type_nr = storage.type_nr(&TimelineEventType::RoomMember.to_string()).await?;
        let state_key_nr = storage.state_key_nr(pdu.state_key.as_deref().unwrap_or_default()).await?;
        let nr = storage.take_event_nrs(1).await?.next().ok_or(Error::Busy)?;
        let mut nodes = NewNodes::default();
        let state = storage.change_state(room.nr, NodeNr(0), (type_nr, state_key_nr), Some(nr), &mut nodes).await?;
        let stripped_state = match stripped_state {
            Some(events) => {
                let json =
                    serde_json::to_string(&stripped(events)).map_err(|error| Error::BadEvent(error.to_string()))?;
                Some((nr, json))
            }
            None => None,
        };
        let turn = self.turn(room.nr);
        let mut cached = turn.take_head().await;
        *cached = None;
        let mut race = Race::default();
        loop {
            let head = Head::load(storage, room.clone()).await?;
            let mut change = membership_change(storage, self.servers(), nr, &pdu, None).await?;
            let mut replaces = None;
            if let Some(change) = &mut change
                && let Some(row) = storage.get_membership(room.nr, change.user_nr).await?
            {
                (change.before, replaces) = (Some(row.membership), Some(row.event_nr));
            }
            if only_after.is_some() && replaces != only_after {
                return Ok(());
            }
            let countable = push::class::countable(storage, self.servers(), room.nr, &pdu, async || Ok(false)).await?;
            let event = NewEvent {
                nr,
                pdu: pdu.clone(),
                sender_nr: storage.user_nr(&pdu.sender).await?,
                type_nr,
                state_key_nr: Some(state_key_nr),
                state,
                replaces,
                prev: Vec::new(),
                auth: Vec::new(),
                placement: Placement::Outside,
                passed_on: false,
                was_outlier: false,
                lacks_members: false,
                transaction: None,
                countable,
                relation: None,
            };
            let commit = RoomCommit {
                room_nr: room.nr,
                expected_state: head.stored_state,
                lease: race.wants_lease(),
                state: head.state,
                depth: head.depth,
                events: vec![event],
                state_nodes: nodes.nodes.clone(),
                state_changes: vec![StateChange { event_nr: Some(nr), membership: change }],
                stripped_state: stripped_state.clone(),
                ..RoomCommit::default()
            };
            match storage.commit(Commit { room: Some(commit), ..Commit::default() }).await {
                // It came twice.
                Ok(_) | Err(CommitError::EventExists) => return Ok(()),
                Err(error) if race.goes_on(&error).await => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Why nothing came of asking residents, one after the other: each may know what another one lacks, so all are asked.
struct Failure(Error);

impl Failure {
    fn new() -> Self {
        Self(Error::RoomUnknown)
    }

    /// Notes what came of one. That somebody said no counts more than that another one gave no answer.
    ///
    /// # Errors
    ///
    /// What is ours, and would be the same with any other server.
    fn note(&mut self, server: OwnedServerName, error: Error) -> Result<(), Error> {
        if matches!(error, Error::Storage(_) | Error::Busy | Error::Remote(RemoteError::NotFederating)) {
            return Err(error);
        }
        debug!(%server, %error, "a server of the room did not bring it about");
        if !matches!(self.0, Error::NotAllowed(_)) {
            self.0 = match error {
                Error::Remote(refused) if refused.is_forbidden() => Error::NotAllowed(refused.to_string()),
                Error::Remote(RemoteError::UnsupportedVersion(version)) => {
                    Error::UnsupportedVersion(version.to_string())
                }
                Error::BadEvent(what) => RemoteError::Misbehaved { server, what }.into(),
                error => error,
            };
        }
        Ok(())
    }
}

/// Most events that show somebody a room; more are left out.
const STRIPPED_EVENTS_MAX: usize = 50;

/// Most bytes of them.
const STRIPPED_BYTES_MAX: usize = 256 * 1_024;

/// What clients are shown of the state by which another server shows a room: servers send whole events. Client-Server API, "Stripped
/// state".
fn stripped(events: &[Box<RawValue>]) -> Vec<StrippedEvent<'_>> {
    let mut bytes = 0;
    let events = events.iter().take(STRIPPED_EVENTS_MAX).filter(|event| {
        bytes += event.get().len();
        bytes <= STRIPPED_BYTES_MAX
    });
    let shown = events.filter_map(|event| serde_json::from_str::<StrippedEvent<'_>>(event.get()).ok());
    shown.filter(|event| event.content.get().starts_with('{')).collect()
}

#[derive(Deserialize, Serialize)]
struct StrippedEvent<'a> {
    #[serde(rename = "type")]
    event_type: String,
    state_key: String,
    sender: OwnedUserId,
    #[serde(borrow)]
    content: &'a RawValue,
}
