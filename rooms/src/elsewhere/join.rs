//! Joining a room through another server. Server-Server API, "Joining Rooms".
//!
//! The members of a large room are asked for afterwards (`omit_members`), so that who joins can read and talk at once; see
//! [`super::completing`].

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use accounts::Requester;
use model::{EventNr, Membership, NodeNr, Pdu, limits::ID_BYTES_MAX};
use ruma::{
    CanonicalJsonObject, OwnedEventId, OwnedServerName, OwnedUserId, RoomId, ServerName,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res,
};
use serde_json::value::RawValue;
use storage::{
    Commit, CommitError, Completion, NewEvent, NewNodes, NewPartial, Placement, RoomCommit, RoomRow, StateChange,
    StateKey, StoredEvent,
};
use tracing::info;

use super::{
    Failure,
    members::{MemberEvent, PIECE},
};
use crate::{
    Error, Rooms,
    head::{Head, membership_change},
    outliers::{Told, check_by_auth_events},
    power::rules_of,
    race::Race,
    resolution::{Unstored, resolve},
    to_the_end,
};

/// Most servers of a room that another one may name.
const SERVERS_TOLD_MAX: usize = 20_000;

/// A join that a resident has brought into the room.
struct Joined {
    pdu: Arc<Pdu>,
    rules: RoomVersionRules,
    /// The state before it, as the resident told it and as it is stored here.
    state: Vec<(StateKey, EventNr)>,
    /// Where members were left out: who let us in, and the servers that are in the room.
    omitted: Option<Omitted>,
}

/// What is needed to get the members that were left out.
struct Omitted {
    as_server: OwnedServerName,
    resident: OwnedServerName,
    servers: Vec<OwnedServerName>,
}

impl Rooms {
    /// Joins a room through one of its servers. In this process one user at a time joins a room like this: when the second one's turn has
    /// come, the room is here.
    pub(crate) async fn join_elsewhere(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        via: &[OwnedServerName],
        reason: Option<&str>,
    ) -> Result<(), Error> {
        let (rooms, requester, room_id) = (self.clone(), requester.clone(), room_id.to_owned());
        let (via, reason) = (via.to_vec(), reason.map(ToOwned::to_owned));
        // However long it takes: what the resident brought into the room must come to be here.
        to_the_end(async move {
            let turn = rooms.0.joining.get_with(room_id.clone(), Arc::default);
            let _turn = turn.lock().await;
            if rooms.is_joined(&requester, &room_id).await? {
                return Ok(());
            }
            let residents = rooms.residents(&requester.user_id, &room_id, &via).await?;
            let mut failure = Failure::new();
            for server in residents {
                match rooms.join_through(&requester, &room_id, &server, reason.as_deref()).await {
                    Ok(()) => return Ok(()),
                    Err(error) => failure.note(server, error)?,
                }
            }
            Err(failure.0)
        })
        .await
    }

    async fn is_joined(&self, requester: &Requester, room_id: &RoomId) -> Result<bool, Error> {
        let Some(room) = self.find_here(room_id).await? else { return Ok(false) };
        let row = self.storage().get_membership(room.nr, requester.user_nr).await?;
        Ok(row.is_some_and(|row| row.membership == Membership::Join))
    }

    async fn join_through(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        server: &ServerName,
        reason: Option<&str>,
    ) -> Result<(), Error> {
        let (user_id, remote) = (&requester.user_id, self.remote());
        let as_server = user_id.server_name();
        let template = remote.make_membership(as_server, server, room_id, user_id, Membership::Join).await?;
        let rules = rules_of(&template.version)?;
        let mut content = self.own_member_content(requester, Membership::Join, reason).await?;
        if let Some(voucher) = voucher_in(&template.event) {
            content.insert("join_authorised_via_users_server".to_owned(), voucher.as_str().into());
        }
        let pdu = self.member_event_of_template(&template, (room_id, user_id), content)?;
        let room = self.room_of_version(room_id, &template.version).await?;

        // Of a room that we were in before, what we know of members is old, and not to be told from what is left out.
        let omit_members = self.storage().get_head(room.nr).await?.is_some_and(|head| head.state == NodeNr(0));
        let answer = remote.send_join(as_server, server, &pdu, omit_members).await?;
        let pdu = match &answer.event {
            Some(event) => self.countersigned(&room, &pdu, event).await?,
            None => pdu,
        };
        let omitted = match answer.members_omitted {
            true if !omit_members => return Err(Error::BadEvent("members were left out unasked".to_owned())),
            true => Some(Omitted {
                as_server: as_server.to_owned(),
                resident: server.to_owned(),
                servers: self.servers_told(server, &answer.servers),
            }),
            false => None,
        };
        let (chain, told) = (answer.auth_chain.len(), answer.state.len());
        let all = answer.auth_chain.into_iter().chain(answer.state).collect();
        let mut stored = Box::pin(self.take_in_outliers(&room, all)).await?;
        let known: HashSet<OwnedEventId> = stored.iter().flatten().map(|told| told.event_id.clone()).collect();
        let state = given_state(stored.split_off(chain).into_iter().flatten())?;
        Box::pin(self.check_join(&room, &rules, &pdu, (&state, omitted.is_some()), |id| known.contains(id))).await?;
        let is_partial = omitted.is_some();
        info!(room.id = %room_id, %server, events = told, is_partial, "joined a room through another server");
        Box::pin(self.commit_join(&room, Joined { pdu: Arc::new(pdu), rules, state, omitted })).await?;
        if is_partial {
            self.0.completing.notify_one();
        }
        Ok(())
    }

    /// The servers that are in a room as one of them says, without ours: it may say anything.
    fn servers_told(&self, resident: &ServerName, names: &[String]) -> Vec<OwnedServerName> {
        let told = names.iter().take(SERVERS_TOLD_MAX).filter(|name| name.len() <= ID_BYTES_MAX);
        let told = told.filter_map(|name| OwnedServerName::try_from(name.as_str()).ok());
        let all: BTreeSet<OwnedServerName> = told.chain([resident.to_owned()]).collect();
        all.into_iter().filter(|name| !self.servers().is_local(name)).collect()
    }

    /// What a resident lets in need not be allowed: neither by the event's own past nor by the state that it tells.
    async fn check_join(
        &self,
        room: &RoomRow,
        rules: &RoomVersionRules,
        pdu: &Pdu,
        (state, lacks_members): (&[(StateKey, EventNr)], bool),
        is_told: impl Fn(&OwnedEventId) -> bool,
    ) -> Result<(), Error> {
        let storage = self.storage();
        let bad = |what: &str| Error::BadEvent(what.to_owned());
        if !pdu.auth_events.iter().all(is_told) {
            return Err(bad("the events that allow the join were not told"));
        }
        let numbers: Vec<EventNr> = storage.find_event_nrs(&pdu.auth_events).await?.into_values().collect();
        let listed = storage.get_events(&numbers).await?;
        let own_auth: Vec<Arc<Pdu>> = listed.values().map(|event| event.pdu.clone()).collect();
        let keys = state_res::auth_types_for_event(
            &pdu.event_type,
            &pdu.sender,
            pdu.state_key.as_deref(),
            &pdu.content,
            &rules.authorization,
        );
        let mut keys = keys.map_err(Error::BadEvent)?;
        keys.push((StateEventType::RoomCreate, String::new()));
        let by_key: HashMap<StateKey, EventNr> = state.iter().copied().collect();
        let mut found = HashMap::new();
        for (event_type, state_key) in keys {
            if let Some(key) = storage.find_state_key(&event_type.to_string(), &state_key).await?
                && let Some(nr) = by_key.get(&key)
                && let Some(event) = storage.get_event(*nr).await?.filter(|event| event.room_nr == room.nr)
            {
                found.insert((event_type, state_key), event);
            }
        }
        // Who vouches for the join may be among the members that were left out.
        for event in listed.values().filter(|event| lacks_members && event.room_nr == room.nr && !event.pdu.rejected) {
            if let Some(state_key) =
                event.pdu.state_key.clone().filter(|_| event.pdu.event_type == TimelineEventType::RoomMember)
            {
                found.entry((StateEventType::RoomMember, state_key)).or_insert_with(|| event.clone());
            }
        }
        let create = found.get(&(StateEventType::RoomCreate, String::new())).map(|event| event.pdu.clone());
        let create = create.ok_or_else(|| bad("the state told has no sound `m.room.create`"))?;
        if version_in(&create) != *room.version.as_str() {
            return Err(Error::BadEvent(format!("the room was not made with version {}", room.version)));
        }
        let fetch = |kind: &StateEventType, key: &str| Some(&*found.get(&(kind.clone(), key.to_owned()))?.pdu);
        check_by_auth_events(&rules.authorization, pdu, &own_auth, Some(&create))
            .and_then(|()| state_res::check_state_dependent_auth_rules(&rules.authorization, pdu, fetch))
            .map_err(|rule| Error::BadEvent(format!("the state told does not allow the join: {rule}")))
    }

    /// Our join event as the resident gives it back: with its signature, where it vouches for us.
    async fn countersigned(&self, room: &Arc<RoomRow>, own: &Pdu, event: &RawValue) -> Result<Pdu, Error> {
        let bad = |error: &dyn std::fmt::Display| Error::BadEvent(format!("the join came back changed: {error}"));
        let object: CanonicalJsonObject = serde_json::from_str(event.get()).map_err(|error| bad(&error))?;
        let rules = Arc::new(rules_of(&room.version)?);
        let (_, read) = self.read_events(room, &rules, vec![object]).await?.remove(0);
        let pdu = self.verify_events(vec![read?]).await?.remove(0)?;
        if pdu.event_id != own.event_id || pdu.content.get() != own.content.get() {
            return Err(bad(&pdu.event_id));
        }
        Ok(pdu)
    }

    /// Makes the room be here, as of the join.
    async fn commit_join(&self, room: &Arc<RoomRow>, joined: Joined) -> Result<(), Error> {
        let storage = self.storage();
        let Joined { pdu, rules, state: given, omitted } = joined;
        let nr = storage.take_event_nrs(1).await?.next().ok_or(Error::Busy)?;
        let type_nr = storage.type_nr(&pdu.event_type.to_string()).await?;
        let state_key_nr = storage.state_key_nr(pdu.state_key.as_deref().unwrap_or_default()).await?;
        let key = (type_nr, state_key_nr);
        let prev = storage.find_event_nrs(&pdu.prev_events).await?;
        let auth = storage.find_event_nrs(&pdu.auth_events).await?;
        // Also what is here as part of the state has no place in the timeline.
        let is_gap = self.find_placed(&pdu.prev_events).await?.len() < pdu.prev_events.len();
        let is_here = self.is_here(room).await?;
        if !is_here {
            Box::pin(self.bring_in_most_members(room, &given, key)).await?;
        }

        let turn = self.turn(room.nr);
        let mut cached = turn.take_head().await;
        *cached = None;
        let mut race = Race::default();
        loop {
            let head = Head::load(storage, room.clone()).await?;
            let is_here = self.is_here(room).await?;
            let mut nodes = NewNodes::default();
            let before = storage.build_state(room.nr, head.state, given.clone(), &mut nodes).await?;
            let after = storage.change_state(room.nr, before, key, Some(nr), &mut nodes).await?;
            let event = NewEvent {
                nr,
                pdu: pdu.clone(),
                sender_nr: storage.user_nr(&pdu.sender).await?,
                type_nr,
                state_key_nr: Some(state_key_nr),
                state: after,
                replaces: storage.get_state_event(room.nr, before, key).await?,
                prev: prev.values().copied().collect(),
                auth: auth.values().copied().collect(),
                placement: Placement::Live,
                // The resident sends it to the others. Server-Server API, "Joining Rooms".
                passed_on: true,
                was_outlier: false,
                lacks_members: omitted.is_some(),
                transaction: None,
                countable: None,
                relation: None,
            };
            // Where none of ours was in the room, what is known of it is old, and what the resident tells comes in its place.
            let mut state = after;
            let tips: Vec<EventNr> = head.extremities.iter().map(|(nr, _)| *nr).collect();
            if is_here {
                let unstored =
                    Unstored { event: Arc::new(StoredEvent::of_new(&event, room.nr, None)), auth: event.auth.clone() };
                let stored = storage.get_events(&tips).await?;
                let states = tips.iter().filter_map(|nr| stored.get(nr)).map(|event| event.state).chain([after]);
                let states: Vec<NodeNr> = states.collect();
                state = resolve(storage, room, &rules, &states, Some(&unstored), &mut nodes).await?;
            }
            let (members, summary) = self.changes_of_state(&head, state, type_nr).await?;
            let members: Vec<MemberEvent> = members.into_iter().filter(|(member, _)| *member != nr).collect();
            let own = membership_change(storage, self.servers(), nr, &pdu, None).await?;
            storage.insert_state_nodes(room.nr, nodes).await?;
            if head.stored_state == NodeNr(0) {
                storage.update_room_version(room.nr, &room.version).await?;
            }
            let mut commit = RoomCommit {
                room_nr: room.nr,
                expected_state: head.stored_state,
                lease: race.wants_lease(),
                state,
                depth: head.depth.max(pdu.depth),
                extremities_used: if is_here { event.prev.clone() } else { tips },
                extremities_added: vec![nr],
                events: vec![event],
                state_changes: vec![StateChange { event_nr: Some(nr), membership: own }],
                members: self.member_changes(&self.not_yet_in(room, members).await?).await?,
                summary,
                gaps_opened: is_gap.then_some(nr).into_iter().collect(),
                // What was partial when the last of ours left is whole now.
                completion: (head.is_partial && !is_here).then(Completion::default),
                partial: omitted.as_ref().map(|omitted| NewPartial {
                    join_nr: nr,
                    as_server: omitted.as_server.clone(),
                    resident: omitted.resident.clone(),
                    servers: omitted.servers.clone(),
                }),
                ..RoomCommit::default()
            };
            self.settle_memberships(&mut commit).await?;
            match storage.commit(Commit { room: Some(commit), ..Commit::default() }).await {
                Ok(_) => return Ok(()),
                // It came to this server by another way, too.
                Err(CommitError::EventExists) => return Ok(()),
                Err(error) if race.goes_on(&error).await => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Brings in the members of a room that none of ours is in, before the room is here: nobody sees them. A few are left to the commit
    /// of the join.
    async fn bring_in_most_members(
        &self,
        room: &Arc<RoomRow>,
        given: &[(StateKey, EventNr)],
        own: StateKey,
    ) -> Result<(), Error> {
        let members = given.iter().filter(|(key, _)| key.0 == own.0 && *key != own);
        let members: Vec<MemberEvent> = members.map(|(_, nr)| (*nr, None)).collect();
        if members.len() > PIECE {
            self.bring_in_members(room, members, None).await?;
        }
        Ok(())
    }
}

/// The version that a create event says its room has. Room Version 1 has rooms that do not say it. Client-Server API, `m.room.create`.
fn version_in(create: &Pdu) -> String {
    #[derive(serde::Deserialize)]
    struct Content {
        room_version: Option<String>,
    }
    let content: Option<Content> = serde_json::from_str(create.content.get()).ok();
    content.and_then(|content| content.room_version).unwrap_or_else(|| "1".to_owned())
}

/// The state that consists of these events: of two for the same key none.
fn given_state(events: impl Iterator<Item = Told>) -> Result<Vec<(StateKey, EventNr)>, Error> {
    let mut state: HashMap<StateKey, EventNr> = HashMap::new();
    for (key, nr) in events.filter_map(|told| Some((told.key?, told.nr))) {
        if state.insert(key, nr).is_some_and(|other| other != nr) {
            return Err(Error::BadEvent("the state told has two events for one key".to_owned()));
        }
    }
    Ok(state.into_iter().collect())
}

/// Who vouches for a join, by the template that the resident gave.
fn voucher_in(template: &RawValue) -> Option<OwnedUserId> {
    #[derive(serde::Deserialize)]
    struct Template {
        content: Content,
    }
    #[derive(serde::Deserialize)]
    struct Content {
        join_authorised_via_users_server: Option<OwnedUserId>,
    }
    serde_json::from_str::<Template>(template.get()).ok()?.content.join_authorised_via_users_server
}
