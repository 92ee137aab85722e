//! Joining a room through another server. Server-Server API, "Joining Rooms".

use std::{collections::HashMap, sync::Arc};

use accounts::Requester;
use model::{EventNr, Membership, NodeNr, Pdu};
use ruma::{
    CanonicalJsonObject, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId, events::StateEventType,
    room_version_rules::RoomVersionRules, state_res,
};
use serde_json::value::RawValue;
use storage::{
    Commit, CommitError, MembershipChange, NewEvent, NewNodes, Placement, RoomCommit, RoomRow, RoomSummary,
    StateChange, StateKey, StoredEvent,
};
use tracing::info;

use super::Failure;
use crate::{
    Error, Rooms,
    head::Head,
    outliers::{Stored, check_by_auth_events},
    power::rules_of,
    race::Race,
    resolution::{Unstored, resolve},
    to_the_end,
};

/// The state of a room before a join, as the resident told it and as it is stored here.
struct GivenState {
    by_key: HashMap<(StateEventType, String), Stored>,
    entries: Vec<(StateKey, EventNr)>,
}

/// A join that a resident has brought into the room.
struct Joined {
    pdu: Arc<Pdu>,
    rules: RoomVersionRules,
    state: GivenState,
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

        let answer = remote.send_join(as_server, server, &pdu).await?;
        let pdu = match answer.event {
            Some(event) => self.countersigned(&room, &pdu, &event).await?,
            None => pdu,
        };
        let (chain, told) = (answer.auth_chain.len(), answer.state.len());
        let all = answer.auth_chain.into_iter().chain(answer.state).collect();
        let mut stored = self.take_in_outliers(&room, all).await?;
        let auth: HashMap<_, _> = stored.iter().flatten().map(|(_, pdu)| (pdu.event_id.clone(), pdu.clone())).collect();
        let state = self.given_state(stored.split_off(chain).into_iter().flatten()).await?;
        let create = state.by_key.get(&(StateEventType::RoomCreate, String::new())).map(|(_, pdu)| pdu.clone());
        let create = create.ok_or_else(|| Error::BadEvent("the state told has no sound `m.room.create`".to_owned()))?;
        // What a resident lets in need not be allowed: neither by the event's own past nor by the state.
        let own_auth: Vec<Arc<Pdu>> = pdu.auth_events.iter().filter_map(|id| auth.get(id).cloned()).collect();
        if own_auth.len() < pdu.auth_events.len() {
            return Err(Error::BadEvent("the events that allow the join were not told".to_owned()));
        }
        let fetch = |kind: &StateEventType, key: &str| Some(&*state.by_key.get(&(kind.clone(), key.to_owned()))?.1);
        check_by_auth_events(&rules.authorization, &pdu, &own_auth, Some(&create))
            .and_then(|()| state_res::check_state_dependent_auth_rules(&rules.authorization, &pdu, fetch))
            .map_err(|rule| Error::BadEvent(format!("the state told does not allow the join: {rule}")))?;
        info!(room.id = %room_id, %server, events = told, "joined a room through another server");
        self.commit_join(&room, Joined { pdu: Arc::new(pdu), rules, state }).await
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

    /// The state that consists of these events: none that was rejected, and of two for the same key none.
    async fn given_state(&self, events: impl Iterator<Item = Stored>) -> Result<GivenState, Error> {
        let storage = self.storage();
        let mut state = GivenState { by_key: HashMap::new(), entries: Vec::new() };
        for (nr, pdu) in events.filter(|(_, pdu)| !pdu.rejected) {
            let Some(state_key) = pdu.state_key.clone() else { continue };
            let event_type = pdu.event_type.to_string();
            let key = (storage.type_nr(&event_type).await?, storage.state_key_nr(&state_key).await?);
            let words = (StateEventType::from(event_type), state_key);
            match state.by_key.insert(words, (nr, pdu)) {
                None => state.entries.push((key, nr)),
                Some((other, _)) if other == nr => {}
                Some(_) => return Err(Error::BadEvent("the state told has two events for one key".to_owned())),
            }
        }
        Ok(state)
    }

    /// Makes the room be here, as of the join.
    async fn commit_join(&self, room: &Arc<RoomRow>, joined: Joined) -> Result<(), Error> {
        let storage = self.storage();
        let Joined { pdu, rules, state: given } = joined;
        let users: Vec<&UserId> =
            given.by_key.keys().filter_map(|(_, key)| <&UserId>::try_from(key.as_str()).ok()).collect();
        storage.intern(&[], &[], &users).await?;
        let nr = storage.take_event_nrs(1).await?.next().ok_or(Error::Busy)?;
        let type_nr = storage.type_nr(&pdu.event_type.to_string()).await?;
        let state_key_nr = storage.state_key_nr(pdu.state_key.as_deref().unwrap_or_default()).await?;
        let key = (type_nr, state_key_nr);
        let prev = storage.find_event_nrs(&pdu.prev_events).await?;
        let auth = storage.find_event_nrs(&pdu.auth_events).await?;
        let is_gap = prev.len() < pdu.prev_events.len();

        let turn = self.turn(room.nr);
        let mut cached = turn.take_head().await;
        *cached = None;
        let mut race = Race::default();
        loop {
            let head = Head::load(storage, room.clone()).await?;
            let is_here = self.is_here(room).await?;
            let mut nodes = NewNodes::default();
            let before = storage.build_state(room.nr, head.state, given.entries.clone(), &mut nodes).await?;
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
            let (own, members, summary) = self.changes_by_join(&head, state, &event, &given).await?;
            storage.insert_state_nodes(room.nr, nodes).await?;
            let commit = RoomCommit {
                room_nr: room.nr,
                expected_state: head.stored_state,
                lease: race.wants_lease(),
                state,
                depth: head.depth.max(pdu.depth),
                extremities_used: if is_here { event.prev.clone() } else { tips },
                extremities_added: vec![nr],
                events: vec![event],
                state_changes: vec![StateChange { event_nr: Some(nr), membership: own }],
                members,
                summary,
                gaps_opened: is_gap.then_some(nr).into_iter().collect(),
                ..RoomCommit::default()
            };
            match storage.commit(Commit { room: Some(commit), ..Commit::default() }).await {
                Ok(_) => return Ok(()),
                // It came to this server by another way, too.
                Err(CommitError::EventExists) => return Ok(()),
                Err(error) if race.goes_on(&error).await => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What becomes of who joins, and of all others, and what the room shows of itself if that changes.
    async fn changes_by_join(
        &self,
        head: &Head,
        state: NodeNr,
        join: &NewEvent,
        given: &GivenState,
    ) -> Result<(Option<MembershipChange>, Vec<MembershipChange>, Option<RoomSummary>), Error> {
        let told = given.by_key.values().cloned().chain([(join.nr, join.pdu.clone())]).collect();
        let (changes, summary) = self.changes(head, state, &told).await?;
        let (mut own, mut members) = (None, Vec::with_capacity(changes.len()));
        for StateChange { event_nr, membership } in changes {
            let Some(mut change) = membership else { continue };
            if change.is_local {
                // They may have been invited since, which no state here says.
                let row = self.storage().get_membership(head.row.nr, change.user_nr).await?;
                change.before = row.map(|row| row.membership);
            }
            if event_nr == Some(join.nr) {
                own = Some(change);
            } else if change.before != Some(change.after) || !change.is_local {
                members.push(change);
            }
        }
        Ok((own, members, summary))
    }
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
