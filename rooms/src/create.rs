//! Making a room. Client-Server API, "Creation".

use std::collections::HashMap;

use accounts::Requester;
use model::{UserNr, canonical_object};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedRoomAliasId, OwnedRoomId, OwnedUserId,
    RoomId, RoomVersionId, UserId, events::TimelineEventType, room_version_rules::RoomVersionRules,
};
use serde_json::{Value, json, value::RawValue};
use storage::{ChangedProfile, Commit, CommitError, NewRoom, RoomRow};
use tracing::{info, warn};

use crate::{
    Draft, Error, Rooms,
    aliases::named_aliases,
    head::{Built, Head, random_room_id},
    power::rules_of,
    profiles::MemberProfile,
    turn::room_commit,
    upgrade::TOMBSTONE_LEVEL,
};

/// Most events that a request to make a room may ask for.
const EVENTS_MAX: usize = 1_000;
/// Most people who are invited to a room as it is made.
const INVITATIONS_MAX: usize = 200;
/// How often a room is made again whose create event, or alias, somebody else was first with.
const ATTEMPTS: u32 = 20;

/// A set of rules for a new room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// By invitation only.
    PrivateChat,
    /// By invitation only, and who is invited has the power of who made it.
    TrustedPrivateChat,
    /// Open to all.
    PublicChat,
}

/// What a new room shall be.
#[derive(Clone, Debug)]
pub struct NewRoomRequest {
    /// Its version; the default one if none is given.
    pub version: Option<RoomVersionId>,
    /// Its rules.
    pub preset: Preset,
    /// Whether the directory shows it.
    pub listed: bool,
    /// Its alias on the server of who makes it.
    pub alias: Option<OwnedRoomAliasId>,
    /// Its name.
    pub name: Option<String>,
    /// Its topic.
    pub topic: Option<String>,
    /// Who is invited.
    pub invite: Vec<OwnedUserId>,
    /// Whether the invitations say that it is a direct chat.
    pub is_direct: bool,
    /// More content of `m.room.create`.
    pub creation_content: Option<Box<RawValue>>,
    /// State that it starts with: type, state key, content.
    pub initial_state: Vec<(String, String, Box<RawValue>)>,
    /// Content of `m.room.power_levels` that replaces the preset's, key by key.
    pub power_level_content_override: Option<Box<RawValue>>,
}

impl NewRoomRequest {
    /// A room by a preset, of which nothing else is said.
    #[must_use]
    pub fn new(preset: Preset) -> Self {
        Self {
            version: None,
            preset,
            listed: false,
            alias: None,
            name: None,
            topic: None,
            invite: Vec::new(),
            is_direct: false,
            creation_content: None,
            initial_state: Vec::new(),
            power_level_content_override: None,
        }
    }
}

impl Rooms {
    /// Makes a room with all that was asked, or nothing.
    ///
    /// # Errors
    ///
    /// [`Error::AliasInUse`], [`Error::UnsupportedVersion`], [`Error::InvalidRoomState`], [`Error::BadEvent`]: the
    /// requester's fault, nothing was made.
    pub async fn create_room(&self, requester: &Requester, request: NewRoomRequest) -> Result<OwnedRoomId, Error> {
        let version = request.version.clone().unwrap_or_else(|| self.default_version().clone());
        let rules = rules_of(&version)?;
        if request.initial_state.len() + request.invite.len() > EVENTS_MAX {
            return Err(Error::InvalidParam(format!("a room starts with at most {EVENTS_MAX} events")));
        }
        if request.invite.len() > INVITATIONS_MAX {
            let message = format!("a room starts with at most {INVITATIONS_MAX} invitations; invite the others later");
            return Err(Error::InvalidParam(message));
        }
        let server = requester.user_id.server_name();
        if let Some(alias) = &request.alias {
            if alias.server_name() != server {
                return Err(Error::InvalidParam("an alias is made on your own server".to_owned()));
            }
            if self.storage().find_alias(alias.as_str()).await?.is_some() {
                return Err(Error::AliasInUse);
            }
        }
        let invited = request.invite.iter().map(|user_id| &**user_id);
        let ours: Vec<&UserId> = invited.filter(|user_id| self.servers().has_user(user_id)).collect();
        let blocking = self.who_blocks_invites(&ours).await?;
        if let Some(user_id) = blocking.iter().next()
            && blocking.len() == request.invite.len()
        {
            return Err(Error::InviteBlocked((*user_id).to_owned()));
        }
        let mut members = self.user_nrs(&ours).await?;
        members.insert(requester.user_id.clone(), requester.user_nr);
        let profiles = self.member_profiles(&members.values().copied().collect::<Vec<_>>()).await?;
        let mut drafts = self.first_events(requester, &request, &version, |user_id, content| {
            if let Some(profile) = members.get(user_id).and_then(|user_nr| profiles.get(user_nr)) {
                profile.add_to(content);
            }
        })?;
        drafts.retain(|draft| Self::invited_by(draft).is_none_or(|user_id| !blocking.contains(user_id)));
        let is_elsewhere = |user_id: &UserId| !self.servers().has_user(user_id);
        let elsewhere: Vec<Draft> =
            drafts.extract_if(.., |draft| Self::invited_by(draft).is_some_and(is_elsewhere)).collect();
        self.intern_words(&drafts).await?;
        for attempt in 0..ATTEMPTS {
            match self.commit_new_room(&request, &version, &rules, requester, &drafts, attempt).await? {
                Some(room_id) => {
                    // The room is there: whoever got an error would make another one.
                    if let Err(error) = self.follow_profile_of(requester.user_nr, &profiles).await {
                        warn!(%error, room.id = %room_id, "a new room may show an old profile of its maker");
                    }
                    self.invite_to_new_room(&room_id, elsewhere, request.invite.len() - blocking.len()).await?;
                    return Ok(room_id);
                }
                // Somebody else was first: with the alias, or with the very same create event.
                None => {
                    if let Some(alias) = &request.alias
                        && self.storage().find_alias(alias.as_str()).await?.is_some()
                    {
                        return Err(Error::AliasInUse);
                    }
                }
            }
        }
        Err(Error::Busy)
    }

    /// Invites users of other servers to a room that was just made.
    ///
    /// Who made it is told of a failure only when nobody is invited: with an error they would make another room. Client-Server API,
    /// "Invite permission".
    async fn invite_to_new_room(&self, room_id: &RoomId, drafts: Vec<Draft>, invited: usize) -> Result<(), Error> {
        if drafts.is_empty() {
            return Ok(());
        }
        let room = self.room(room_id).await?;
        let mut failures = Vec::new();
        for result in self.invite_many_elsewhere(&room, drafts).await {
            if let Err(error) = result {
                info!(%error, room.id = %room_id, "somebody could not be invited to a new room");
                failures.push(error);
            }
        }
        if failures.len() < invited { Ok(()) } else { failures.pop().map_or(Ok(()), Err) }
    }

    /// Gives numbers to all that the first events of a room name at once: one by one, each that is new would be a write.
    async fn intern_words(&self, drafts: &[Draft]) -> Result<(), Error> {
        let types: Vec<String> = drafts.iter().map(|draft| draft.event_type.to_string()).collect();
        let types: Vec<&str> = types.iter().map(String::as_str).collect();
        let keys: Vec<&str> = drafts.iter().filter_map(|draft| draft.state_key.as_deref()).collect();
        if types.iter().chain(&keys).any(|word| word.contains('\0')) {
            return Err(Error::InvalidParam("event types and state keys have no zero byte".to_owned()));
        }
        let members = drafts.iter().filter(|draft| draft.event_type == TimelineEventType::RoomMember);
        let members = members.filter_map(|draft| <&UserId>::try_from(draft.state_key.as_deref()?).ok());
        Ok(self.storage().intern(&types, &keys, &members.collect::<Vec<_>>()).await?)
    }

    /// Lets the new room show what its maker's profile is by now: who follows changes of profiles did not find the room.
    async fn follow_profile_of(&self, user_nr: UserNr, shown: &HashMap<UserNr, MemberProfile>) -> Result<(), Error> {
        if self.member_profiles(&[user_nr]).await?.get(&user_nr) != shown.get(&user_nr) {
            let profiles = vec![ChangedProfile { user_nr, is_in_rooms: true }];
            self.storage().commit(Commit { profiles, ..Commit::default() }).await?;
        }
        Ok(())
    }

    /// Builds and commits the first events of a room; gives nothing when the room or its alias existed.
    ///
    /// A room of version 12 is named by the hash of its create event: what one user makes twice in a millisecond with the same
    /// content would be the same room. The create event of a later attempt is that many milliseconds later.
    async fn commit_new_room(
        &self,
        request: &NewRoomRequest,
        version: &RoomVersionId,
        rules: &RoomVersionRules,
        requester: &Requester,
        drafts: &[Draft],
        attempt: u32,
    ) -> Result<Option<OwnedRoomId>, Error> {
        let (storage, server) = (self.storage(), requester.user_id.server_name());
        let row = RoomRow {
            nr: storage.take_room_nr().await?,
            id: random_room_id(storage.random(), server)?,
            version: version.clone(),
            has_state: true,
        };
        let mut head = Head::new(row, rules.clone());
        let mut built = Built::default();
        let numbers = storage.take_event_nrs(drafts.len()).await?;
        let later = (attempt > 0)
            .then(|| MilliSecondsSinceUnixEpoch(storage.clock().now().get().saturating_add(attempt.into())));
        for (index, (draft, nr)) in drafts.iter().zip(numbers).enumerate() {
            let draft = draft.clone().with_timestamp(later);
            let made = head.build(storage, &self.0.servers, &draft, nr, None, &mut built).await;
            made.map_err(|error| match error {
                Error::NotAllowed(rule) => Error::InvalidRoomState(rule),
                other => other,
            })?;
            if index == 0 {
                // Version 12 rooms are named by their create event.
                let id = built.events[0].pdu.room_id.clone();
                head.row = RoomRow { id, ..(*head.row).clone() }.into();
            }
        }
        let mut room = room_commit(&head, built);
        room.new_room = Some(NewRoom { room_id: head.row.id.clone(), version: version.clone() });
        room.extremities_used.clear();
        room.summary = Some(head.summary.clone());
        room.aliases = request.alias.iter().map(|alias| (alias.to_string(), requester.user_nr)).collect();
        room.listed_on = request.listed.then(|| server.to_owned());
        match storage.commit(Commit { room: Some(room), ..Commit::default() }).await {
            Ok(_) => Ok(Some(head.row.id.clone())),
            Err(CommitError::RoomExists | CommitError::EventExists) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The events of a new room, in the order of the specification. Client-Server API, "POST /createRoom".
    fn first_events(
        &self,
        requester: &Requester,
        request: &NewRoomRequest,
        version: &RoomVersionId,
        add_profile: impl Fn(&UserId, &mut CanonicalJsonObject),
    ) -> Result<Vec<Draft>, Error> {
        let rules = rules_of(version)?;
        let creator = &requester.user_id;
        let mut drafts = Vec::new();
        let mut add = |event_type: &str, state_key: &str, content: CanonicalJsonObject| {
            let draft = Draft::new(creator.clone(), requester.user_nr, TimelineEventType::from(event_type), content);
            drafts.push(draft.with_state_key(state_key));
        };
        // 1. The create event.
        let mut create = request.creation_content.as_deref().map(object_of).transpose()?.unwrap_or_default();
        create.insert("room_version".to_owned(), CanonicalJsonValue::String(version.to_string()));
        create.remove("creator");
        if !rules.authorization.use_room_create_sender {
            create.insert("creator".to_owned(), CanonicalJsonValue::String(creator.to_string()));
        }
        let trusted = request.preset == Preset::TrustedPrivateChat;
        if rules.authorization.additional_room_creators && trusted {
            let creators =
                create.entry("additional_creators".to_owned()).or_insert_with(|| CanonicalJsonValue::Array(Vec::new()));
            let CanonicalJsonValue::Array(creators) = creators else {
                return Err(Error::BadEvent("`additional_creators` is a list of user ids".to_owned()));
            };
            for user in &request.invite {
                let user = CanonicalJsonValue::String(user.to_string());
                if !creators.contains(&user) {
                    creators.push(user);
                }
            }
        }
        let named_creators: Vec<String> = match create.get("additional_creators") {
            Some(CanonicalJsonValue::Array(ids)) => {
                ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        };
        add("m.room.create", "", create);

        // 2. Whoever makes the room is in it.
        let mut member = object(json!({"membership": "join"}))?;
        add_profile(creator, &mut member);
        add("m.room.member", creator.as_str(), member);

        // 3. Power levels.
        let mut levels = json!({
            "users": {}, "users_default": 0, "events_default": 0, "state_default": 50,
            "ban": 50, "kick": 50, "redact": 50, "invite": if request.preset == Preset::PublicChat { 50 } else { 0 },
            "historical": 100,
            "events": {
                "m.room.name": 50, "m.room.power_levels": 100, "m.room.history_visibility": 100,
                "m.room.canonical_alias": 50, "m.room.avatar": 50, "m.room.server_acl": 100, "m.room.encryption": 100,
            },
        });
        // Version 12: creators have all power, and the levels must not name them.
        if !rules.authorization.explicitly_privilege_room_creators {
            levels["events"]["m.room.tombstone"] = json!(100);
            levels["users"][creator.as_str()] = json!(100);
            if trusted {
                for user in &request.invite {
                    levels["users"][user.as_str()] = json!(100);
                }
            }
        }
        let mut levels = object(levels)?;
        if let Some(replace) = &request.power_level_content_override {
            levels.extend(object_of(replace)?);
        }
        if rules.authorization.explicitly_privilege_room_creators {
            keep_tombstone_level(&mut levels);
        }
        if let Some(CanonicalJsonValue::Object(users)) = levels.get("users")
            && rules.authorization.explicitly_privilege_room_creators
            && users.keys().any(|user| user == creator.as_str() || named_creators.contains(user))
        {
            return Err(Error::InvalidRoomState("power levels must not name the room's creators".to_owned()));
        }
        add("m.room.power_levels", "", levels);

        // 4. The alias.
        if let Some(alias) = &request.alias {
            add("m.room.canonical_alias", "", object(json!({"alias": alias}))?);
        }

        // 5. The preset, where the initial state does not say otherwise.
        let (join_rule, guest_access) = match request.preset {
            Preset::PublicChat => ("public", "forbidden"),
            Preset::PrivateChat | Preset::TrustedPrivateChat => ("invite", "can_join"),
        };
        let by_preset = [
            ("m.room.join_rules", json!({"join_rule": join_rule})),
            ("m.room.history_visibility", json!({"history_visibility": "shared"})),
            ("m.room.guest_access", json!({"guest_access": guest_access})),
        ];
        for (event_type, content) in by_preset {
            let given = request.initial_state.iter().any(|(given, key, _)| given == event_type && key.is_empty());
            if !given {
                add(event_type, "", object(content)?);
            }
        }

        // 6. The initial state.
        for (event_type, state_key, content) in &request.initial_state {
            if event_type == "m.room.create" {
                return Err(Error::InvalidParam(
                    "`m.room.create` is not initial state; use `creation_content`".to_owned(),
                ));
            }
            // No other alias can point to a room that does not exist yet.
            if event_type == "m.room.canonical_alias"
                && let Some(alias) = named_aliases(content)?
                    .into_iter()
                    .find(|alias| request.alias.as_ref().is_none_or(|own| own.as_str() != alias))
            {
                return Err(Error::BadAlias(alias));
            }
            add(event_type, state_key, object_of(content)?);
        }

        // 7. Name and topic.
        if let Some(name) = &request.name {
            add("m.room.name", "", object(json!({"name": name}))?);
        }
        if let Some(topic) = &request.topic {
            let content = json!({"topic": topic, "m.topic": {"m.text": [{"body": topic}]}});
            add("m.room.topic", "", object(content)?);
        }

        // 8. Invitations.
        for user in request.invite.iter().filter(|user| *user != creator) {
            let mut content = json!({"membership": "invite"});
            if request.is_direct {
                content["is_direct"] = json!(true);
            }
            let mut member = object(content)?;
            add_profile(user, &mut member);
            add("m.room.member", user.as_str(), member);
        }
        Ok(drafts)
    }
}

/// Where creators are above all levels, an upgrade is theirs unless the levels say otherwise: also where `events` was replaced.
/// Client-Server API, "POST /createRoom", step 3.
fn keep_tombstone_level(levels: &mut CanonicalJsonObject) {
    let state_default = levels.get("state_default").and_then(CanonicalJsonValue::as_integer);
    let state_default = state_default.map_or(50, i64::from);
    let events = levels.entry("events".to_owned()).or_insert_with(|| CanonicalJsonValue::Object(Default::default()));
    // What is no object is refused by the authorization rules.
    let CanonicalJsonValue::Object(events) = events else { return };
    if !events.contains_key("m.room.tombstone") {
        let level = state_default.saturating_add(1).max(TOMBSTONE_LEVEL);
        let level = level.try_into().unwrap_or(ruma::Int::MAX);
        events.insert("m.room.tombstone".to_owned(), CanonicalJsonValue::Integer(level));
    }
}

/// JSON of a client as canonical JSON.
pub(crate) fn object_of(json: &RawValue) -> Result<CanonicalJsonObject, Error> {
    canonical_object(json).map_err(|error| Error::BadEvent(error.to_string()))
}

/// JSON of ours as canonical JSON.
pub(crate) fn object(value: Value) -> Result<CanonicalJsonObject, Error> {
    match CanonicalJsonValue::try_from(value) {
        Ok(CanonicalJsonValue::Object(object)) => Ok(object),
        Ok(_) => Err(Error::BadEvent("not an object".to_owned())),
        Err(error) => Err(Error::BadEvent(error.to_string())),
    }
}
