//! Moving a room to another version. Client-Server API, "Room upgrades".

use std::{sync::Arc, time::Duration};

use accounts::{Accounts, Requester};
use model::{CanonicalError, EventNr, Membership, canonical_object};
use ruma::{
    Int, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, UserId, events::TimelineEventType,
    room_version_rules::RoomVersionRules,
};
use serde_json::{
    Map, Value, json,
    value::{RawValue, to_raw_value},
};
use storage::{RoomRow, StoredEvent};
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::{
    Draft, Error, NewRoomRequest, Preset, Rooms,
    aliases::keep_aliases,
    power::rules_of,
    space_children::{CHILD, Child},
    to_the_end,
};

/// State that the new room takes over as it is. Power levels are taken over too, fitted to the new version.
const TRANSFERRED: [&str; 8] = [
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
];

/// How long the other processes wait for the one that upgrades a room, in milliseconds. Longer than one takes, it is only for one that
/// died: should two be at it all the same, the tombstone of the first makes the second give up.
const LEASE_MS: i64 = 60_000;
/// How long is waited before a room that another process upgrades is looked at again, and how often.
const WAIT: Duration = Duration::from_millis(50);
const WAITS_MAX: usize = 1_200;
/// Image packs, each with a state key of its own: as the specification has them, and as clients in use write them. Client-Server API,
/// "Image packs", and MSC2545.
const IMAGE_PACKS: [&str; 2] = ["m.room.image_pack", "im.ponies.room_emotes"];

/// Most bans that the new room takes over.
const BANS_MAX: u32 = 20_000;
/// How many bans and children of a space the new room starts with; the others follow before anybody is told of it.
const CARRIED_AT_FIRST: usize = 900;

/// State that the new room takes over: type, state key, content.
type Carried = (String, String, Box<RawValue>);

fn carried(event: &StoredEvent, content: &RawValue) -> Result<Option<Carried>, Error> {
    let Some(state_key) = event.pdu.state_key.clone() else { return Ok(None) };
    Ok(Some((event.pdu.event_type.to_string(), state_key, with_integers(content)?)))
}

/// The power level of upgrading a room whose creators are above all levels. Client-Server API, "POST /createRoom".
pub(crate) const TOMBSTONE_LEVEL: i64 = 150;

impl Rooms {
    /// Makes a room of another version that takes the place of this one. Client-Server API, "Room upgrades".
    ///
    /// Once begun it goes on to its end, whoever waits for it. One upgrade of a room is made at a time, in all processes: who asks for the
    /// same again meanwhile gets the room that is being made.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`] for who may not send `m.room.tombstone`, or when somebody else upgraded the room meanwhile;
    /// [`Error::UnsupportedVersion`]. Once the new room stands, the old one is pointed to it; what may not be changed there stays as it is.
    pub async fn upgrade(
        &self,
        accounts: &Accounts,
        requester: &Requester,
        room_id: &RoomId,
        version: RoomVersionId,
        additional_creators: Vec<OwnedUserId>,
    ) -> Result<OwnedRoomId, Error> {
        let (rooms, accounts) = (self.clone(), accounts.clone());
        let (requester, room_id) = (requester.clone(), room_id.to_owned());
        to_the_end(async move {
            let rules = rules_of(&version)?;
            // 1. Permission.
            let room = rooms.joined_room(&requester, &room_id).await?;
            // Bans go along.
            rooms.wait_for_members(&room).await?;
            if !rooms.may_send_state(&requester, &room, "m.room.tombstone").await? {
                return Err(Error::NotAllowed("you may not upgrade this room".to_owned()));
            }
            let creators = if rules.authorization.additional_room_creators { additional_creators } else { Vec::new() };
            let tombstone_before = rooms.tombstone_nr(&room).await?;
            let turn = rooms.turn(room.nr);
            let (_one_at_a_time, has_waited) = turn.take_upgrade().await;
            let lease = format!("upgrade of room {}", room.nr);
            let has_waited = rooms.lease_upgrade(&lease).await? || has_waited;
            // Who had to wait may have come when the other one had sent the tombstone already.
            let tombstone_before = tombstone_before.filter(|_| !has_waited);
            let upgraded = match rooms.upgraded_since(&requester, &room, &version, tombstone_before).await {
                Ok(Some(new_id)) => Ok(new_id),
                Ok(None) => rooms.upgrade_now(&requester, &room, (version, &rules), &creators, tombstone_before).await,
                Err(error) => Err(error),
            };
            if let Err(error) = rooms.storage().end_consumer(&lease).await {
                warn!(room.id = %room_id, %error, "an upgrade could not give back its lease, which ends by itself");
            }
            let new_id = upgraded?;
            rooms.take_settings_along(&accounts, &requester, &new_id).await;
            Ok(new_id)
        })
        .await
    }

    /// Joins a room as [`Rooms::join_via`] does. Whoever comes in for the first time takes along what they had set for the room that this
    /// one replaces. Client-Server API, "Room upgrades".
    ///
    /// # Errors
    ///
    /// As [`Rooms::join_via`].
    pub async fn join_with_settings(
        &self,
        accounts: &Accounts,
        requester: &Requester,
        room_id: &RoomId,
        via: &[OwnedServerName],
        reason: Option<&str>,
    ) -> Result<OwnedRoomId, Error> {
        let (rooms, accounts) = (self.clone(), accounts.clone());
        let (requester, room_id, reason) = (requester.clone(), room_id.to_owned(), reason.map(str::to_owned));
        let via = via.to_vec();
        to_the_end(async move {
            let before = match rooms.find_here(&room_id).await? {
                Some(room) => rooms.storage().get_membership(room.nr, requester.user_nr).await?,
                None => None,
            };
            rooms.join_via(&requester, &room_id, &via, reason.as_deref()).await?;
            if before.is_none_or(|row| row.membership != Membership::Join) {
                rooms.take_settings_along(&accounts, &requester, &room_id).await;
            }
            Ok(room_id)
        })
        .await
    }

    /// Takes what a user has set for the room that this one replaces over to it, if they were in that one. What fails is logged: they
    /// are in the new room.
    async fn take_settings_along(&self, accounts: &Accounts, requester: &Requester, new_id: &RoomId) {
        let taken = async {
            let new = self.room(new_id).await?;
            let Some(old) = self.predecessor(&new).await? else { return Ok(()) };
            if self.storage().get_membership(old.nr, requester.user_nr).await?.is_some_and(|row| !row.forgotten) {
                accounts.copy_room_settings(requester, (old.nr, &old.id), (new.nr, &new.id)).await?;
            }
            Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
        };
        if let Err(error) = taken.await {
            warn!(room.id = %new_id, %error, "what a user had set for a room was not taken to its successor");
        }
    }

    /// The room that this one replaces. Both say so: anybody can make a room that says it of itself.
    async fn predecessor(&self, new: &RoomRow) -> Result<Option<Arc<RoomRow>>, Error> {
        let Some(create) = self.find_state(new, "m.room.create", "").await? else { return Ok(None) };
        let create = object_of(&create.pdu.content);
        let old_id = create.get("predecessor").and_then(|predecessor| predecessor["room_id"].as_str());
        let Some(old_id) = old_id.and_then(|id| RoomId::parse(id).ok()) else { return Ok(None) };
        let old = match self.room(&old_id).await {
            Err(Error::RoomUnknown) => return Ok(None),
            other => other?,
        };
        let tombstone = self.find_state(&old, "m.room.tombstone", "").await?;
        let is_named = tombstone.is_some_and(|event| {
            object_of(&event.pdu.content).get("replacement_room").and_then(Value::as_str) == Some(new.id.as_str())
        });
        Ok(is_named.then_some(old))
    }

    /// Waits until no other process upgrades the room; whether one did.
    async fn lease_upgrade(&self, lease: &str) -> Result<bool, Error> {
        for waits in 0..WAITS_MAX {
            if self.storage().lease_consumer(lease, LEASE_MS).await?.is_some() {
                return Ok(waits > 0);
            }
            sleep(WAIT).await;
        }
        Err(Error::Busy)
    }

    async fn tombstone_nr(&self, room: &RoomRow) -> Result<Option<EventNr>, Error> {
        Ok(self.find_state(room, "m.room.tombstone", "").await?.map(|event| event.nr))
    }

    /// The room by which this one was replaced since `tombstone_before` was all that was known of it, if the requester did just that.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`] if somebody else did, or it was to another version.
    async fn upgraded_since(
        &self,
        requester: &Requester,
        room: &RoomRow,
        version: &RoomVersionId,
        tombstone_before: Option<EventNr>,
    ) -> Result<Option<OwnedRoomId>, Error> {
        let tombstone = self.find_state(room, "m.room.tombstone", "").await?;
        let Some(tombstone) = tombstone.filter(|tombstone| Some(tombstone.nr) != tombstone_before) else {
            return Ok(None);
        };
        let content = object_of(&tombstone.pdu.content);
        let new_id = content.get("replacement_room").and_then(Value::as_str).and_then(|id| RoomId::parse(id).ok());
        if tombstone.sender_nr == requester.user_nr
            && let Some(new_id) = new_id
            && self.room(&new_id).await?.version == *version
        {
            return Ok(Some(new_id));
        }
        Err(upgraded_already())
    }

    async fn upgrade_now(
        &self,
        requester: &Requester,
        room: &RoomRow,
        (version, rules): (RoomVersionId, &RoomVersionRules),
        creators: &[OwnedUserId],
        tombstone_before: Option<EventNr>,
    ) -> Result<OwnedRoomId, Error> {
        // 2. The new room, 3. with the state that can be taken over.
        let mut initial_state = Vec::new();
        for event_type in TRANSFERRED {
            if let Some(event) = self.find_state(room, event_type, "").await? {
                initial_state.extend(carried(&event, &event.pdu.content)?);
            }
        }
        // Without the event guests are kept out, but the preset below would let them in.
        if !initial_state.iter().any(|(event_type, ..)| event_type == "m.room.guest_access") {
            let content = raw(&json!({"guest_access": "forbidden"}))?;
            initial_state.push(("m.room.guest_access".to_owned(), String::new(), content));
        }
        let levels = self.levels_for(requester, room, rules, creators).await?;
        let mut more = self.children_of(room).await?;
        more.extend(self.image_packs_of(room).await?);
        more.extend(self.bans_of(requester, room, levels.as_ref(), creators).await?);
        let later = more.split_off(more.len().min(CARRIED_AT_FIRST));
        initial_state.append(&mut more);
        let request = NewRoomRequest {
            version: Some(version),
            creation_content: Some(self.creation_content(room, rules, creators).await?),
            initial_state,
            power_level_content_override: levels.as_ref().map(|levels| raw(&levels.at_first)).transpose()?,
            ..NewRoomRequest::new(Preset::PrivateChat)
        };
        let new_id = self.create_room(requester, request).await?;
        let new = self.room(&new_id).await?;
        if let Err(error) = self.replace(requester, room, tombstone_before, &new, later, levels).await {
            // If it is sure that nobody is led to the new room, it shall not stand about in the list of who tried.
            if self.tombstone_nr(room).await? == tombstone_before
                && let Err(error) = self.leave(requester, &new_id, None).await
            {
                debug!(room.id = %new_id, %error, "the room of an upgrade that failed could not be left");
            }
            return Err(error);
        }

        // 4. The aliases. The upgrade stands: what fails from here on stays as it was.
        if let Err(error) = self.storage().move_aliases(room.nr, new.nr).await {
            warn!(room.id = %room.id, %error, "an upgrade could not move the aliases");
        }
        if let Err(error) = self.move_canonical_alias(requester, room, &new).await {
            debug!(room.id = %room.id, %error, "an upgrade could not move the canonical alias");
        }
        if let Err(error) = self.storage().move_listed(room.nr, new.nr).await {
            warn!(room.id = %room.id, %error, "an upgrade could not move the room's place in the directory");
        }

        // 6. Nobody shall go on in the old room.
        if let Err(error) = self.quieten(requester, room).await {
            debug!(room.id = %room.id, %error, "an upgrade could not close the old room");
        }
        Ok(new_id)
    }

    /// Gives the new room what is left of its state, and leads people from the old one to it.
    async fn replace(
        &self,
        requester: &Requester,
        old: &RoomRow,
        tombstone_before: Option<EventNr>,
        new: &Arc<RoomRow>,
        later: Vec<Carried>,
        levels: Option<Levels>,
    ) -> Result<(), Error> {
        self.send_carried(requester, new, later).await?;
        if let Some(levels) = levels
            && levels.at_first != levels.at_last
        {
            let levels = raw(&levels.at_last)?;
            self.send_state(requester, &new.id, TimelineEventType::RoomPowerLevels, "", &levels, None).await?;
        }
        // 5. The tombstone: before the aliases, so that whatever ends the rest half-way, people find the new room.
        // Not of a room that somebody else has upgraded meanwhile: aliases and settings go to theirs.
        if self.tombstone_nr(old).await? != tombstone_before {
            return Err(upgraded_already());
        }
        let tombstone = raw(&json!({"body": "This room has been replaced", "replacement_room": new.id}))?;
        self.send_state(requester, &old.id, TimelineEventType::RoomTombstone, "", &tombstone, None).await.map(|_| ())
    }

    /// What is in a space: a space without it would be empty.
    async fn children_of(&self, room: &RoomRow) -> Result<Vec<Carried>, Error> {
        let summary = self.storage().get_summaries(&[room.nr]).await?.remove(&room.nr);
        if summary.is_none_or(|(summary, ..)| summary.room_type.as_deref() != Some("m.space")) {
            return Ok(Vec::new());
        }
        let events = self.current_of_type(room, CHILD).await?;
        // One without a valid `via` was taken out of the space.
        let children = events.iter().filter(|event| Child::of(event, false).is_some());
        children.filter_map(|event| carried(event, &event.pdu.content).transpose()).collect()
    }

    /// The image packs: users who have chosen them choose those of the new room with their other settings. An empty one was taken away.
    async fn image_packs_of(&self, room: &RoomRow) -> Result<Vec<Carried>, Error> {
        let mut packs = Vec::new();
        for event_type in IMAGE_PACKS {
            let events = self.current_of_type(room, event_type).await?;
            for event in events.iter().filter(|event| !object_of(&event.pdu.content).is_empty()) {
                packs.extend(carried(event, &event.pdu.content)?);
            }
        }
        Ok(packs)
    }

    /// The bans: who was kept out of the old room is kept out of the new one. But for its creators, and those whom the levels put
    /// beside its maker.
    async fn bans_of(
        &self,
        requester: &Requester,
        room: &RoomRow,
        levels: Option<&Levels>,
        creators: &[OwnedUserId],
    ) -> Result<Vec<Carried>, Error> {
        let banned = self.storage().list_members_of_kinds(room.nr, &[Membership::Ban], BANS_MAX).await?;
        let numbers: Vec<EventNr> = banned.iter().map(|row| row.event_nr).collect();
        let found = self.storage().get_events(&numbers).await?;
        let level = |user_id: &str| levels.and_then(|levels| levels.at_first["users"][user_id].as_i64());
        let own = level(requester.user_id.as_str());
        let is_below = |user_id: &str| own.is_none_or(|own| level(user_id).is_none_or(|level| level < own));
        let mut bans = Vec::with_capacity(numbers.len());
        for event in numbers.iter().filter_map(|nr| found.get(nr)) {
            let is_creator = |user_id: &str| creators.iter().any(|creator| creator == user_id);
            if !event.pdu.state_key.as_deref().is_some_and(|user_id| is_below(user_id) && !is_creator(user_id)) {
                continue;
            }
            let mut content = json!({"membership": Membership::Ban.as_str()});
            if let Some(reason) = object_of(&event.pdu.content).get("reason").filter(|reason| reason.is_string()) {
                content["reason"] = reason.clone();
            }
            bans.extend(carried(event, &raw(&content)?)?);
        }
        Ok(bans)
    }

    async fn current_of_type(&self, room: &RoomRow, event_type: &'static str) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let head = self.storage().get_head(room.nr).await?.ok_or(Error::RoomUnknown)?;
        let typed = self.state_of_type(room.nr, head.state, event_type).await?;
        let mut numbers: Vec<EventNr> = typed.events().collect();
        numbers.sort_unstable();
        let found = self.storage().get_events(&numbers).await?;
        Ok(numbers.iter().filter_map(|nr| found.get(nr).cloned()).collect())
    }

    /// Sends what did not fit into the making of the room. What the new version refuses is left out, and logged.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`], [`Error::Storage`]: bans are not lost without a word.
    async fn send_carried(&self, requester: &Requester, new: &Arc<RoomRow>, later: Vec<Carried>) -> Result<(), Error> {
        let draft = |(event_type, state_key, content): Carried| -> Result<Draft, Error> {
            Ok(Draft::of_client(requester, event_type.into(), &content)?.with_state_key(state_key))
        };
        let (drafts, refused): (Vec<_>, Vec<_>) = later.into_iter().map(draft).partition(Result::is_ok);
        let sent = self.submit_all(new, drafts.into_iter().flatten().collect()).await;
        let failed: Vec<Error> =
            refused.into_iter().filter_map(Result::err).chain(sent.into_iter().filter_map(Result::err)).collect();
        let count = failed.len();
        for (index, error) in failed.into_iter().enumerate() {
            match error {
                Error::Busy | Error::Storage(_) => return Err(error),
                _ if index == 0 => {
                    warn!(room.id = %new.id, %error, count, "an upgrade left out bans, children or image packs")
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Those of the aliases that the old room names which have moved; the others are names of the old room only.
    async fn move_canonical_alias(&self, requester: &Requester, old: &RoomRow, new: &RoomRow) -> Result<(), Error> {
        let Some(event) = self.find_state(old, "m.room.canonical_alias", "").await? else { return Ok(()) };
        let alias = TimelineEventType::RoomCanonicalAlias;
        let moved = self.storage().list_aliases(new.nr).await?;
        let has_moved = |alias: &str| moved.iter().any(|row| row.alias == alias);
        let (mut moving, mut staying) = (object_of(&event.pdu.content), object_of(&event.pdu.content));
        keep_aliases(&mut moving, has_moved);
        keep_aliases(&mut staying, |alias| !has_moved(alias));
        let moving = raw(&Value::Object(moving))?;
        let moved = self.send_state(requester, &new.id, alias.clone(), "", &moving, None).await;
        let staying = raw(&Value::Object(staying))?;
        self.send_state(requester, &old.id, alias, "", &staying, None).await?;
        moved.map(|_| ())
    }

    async fn creation_content(
        &self,
        room: &RoomRow,
        rules: &RoomVersionRules,
        creators: &[OwnedUserId],
    ) -> Result<Box<RawValue>, Error> {
        let create = self.find_state(room, "m.room.create", "").await?.ok_or(Error::RoomUnknown)?;
        let old = object_of(&create.pdu.content);
        let mut content = Map::new();
        for key in ["type", "m.federate"] {
            if let Some(value) = old.get(key) {
                content.insert(key.to_owned(), value.clone());
            }
        }
        let mut predecessor = json!({"room_id": room.id});
        if !rules.authorization.room_create_event_id_as_room_id {
            let head = self.storage().get_head(room.nr).await?.ok_or(Error::RoomUnknown)?;
            let last = head.extremities.last().copied().unwrap_or(create.nr);
            let last = self.storage().get_event(last).await?.ok_or(Error::EventUnknown)?;
            predecessor["event_id"] = json!(last.pdu.event_id);
        }
        content.insert("predecessor".to_owned(), predecessor);
        if !creators.is_empty() {
            content.insert("additional_creators".to_owned(), json!(creators));
        }
        raw(&Value::Object(content))
    }

    /// The power levels of the new room, if the old one has any.
    async fn levels_for(
        &self,
        requester: &Requester,
        room: &RoomRow,
        rules: &RoomVersionRules,
        creators: &[OwnedUserId],
    ) -> Result<Option<Levels>, Error> {
        let Some(event) = self.find_state(room, "m.room.power_levels", "").await? else { return Ok(None) };
        let power = self.power_of_room(room).await?;
        let levels = object_of(&event.pdu.content);
        let old_creators: Vec<&UserId> = power.privileged_creators().collect();
        let creators: Vec<&UserId> = creators.iter().map(|user_id| &**user_id).chain([&*requester.user_id]).collect();
        Ok(Some(fit_levels(levels, rules, &old_creators, &creators, &requester.user_id)))
    }

    /// Lets only those write and invite in the old room who have the power of moderators.
    async fn quieten(&self, requester: &Requester, room: &RoomRow) -> Result<(), Error> {
        let Some(event) = self.find_state(room, "m.room.power_levels", "").await? else { return Ok(()) };
        let mut levels = object_of(&event.pdu.content);
        let level = |levels: &Map<String, Value>, key: &str| levels.get(key).and_then(Value::as_i64).unwrap_or(0);
        let quiet = (level(&levels, "users_default") + 1).max(50);
        for key in ["events_default", "invite"] {
            let now = level(&levels, key);
            levels.insert(key.to_owned(), json!(now.max(quiet)));
        }
        let levels = raw(&Value::Object(levels))?;
        self.send_state(requester, &room.id, TimelineEventType::RoomPowerLevels, "", &levels, None).await?;
        Ok(())
    }
}

fn upgraded_already() -> Error {
    Error::NotAllowed("this room has just been upgraded".to_owned())
}

/// The power levels while the new room is made, and those that stay.
#[derive(Debug, PartialEq)]
struct Levels {
    at_first: Value,
    at_last: Value,
}

/// Fits power levels to a room version.
///
/// Where creators are above all levels, the levels must not name them, and an upgrade is theirs; where they are not, creators that were
/// above all get the highest level. While the room is made, its maker needs the power for all state that is taken over.
fn fit_levels(
    mut levels: Map<String, Value>,
    rules: &RoomVersionRules,
    old_creators: &[&UserId],
    creators: &[&UserId],
    maker: &UserId,
) -> Levels {
    to_integers(&mut levels);
    let needed =
        levels.get("events").and_then(Value::as_object).into_iter().flatten().filter_map(|(_, level)| level.as_i64());
    let of_room = ["state_default", "ban"].into_iter().filter_map(|key| levels.get(key)?.as_i64());
    let highest = needed.chain(of_room).fold(100, i64::max);
    let users_default = levels.get("users_default").and_then(Value::as_i64).unwrap_or(0);
    let mut users = levels.get("users").and_then(Value::as_object).cloned().unwrap_or_default();
    if rules.authorization.explicitly_privilege_room_creators {
        for creator in creators {
            users.remove(creator.as_str());
        }
        let mut events = levels.get("events").and_then(Value::as_object).cloned().unwrap_or_default();
        let state_default = levels.get("state_default").and_then(Value::as_i64).unwrap_or(50);
        let tombstone = events.get("m.room.tombstone").and_then(Value::as_i64).unwrap_or(0).max(TOMBSTONE_LEVEL);
        let tombstone = tombstone.max(state_default.saturating_add(1));
        events.insert("m.room.tombstone".to_owned(), json!(tombstone));
        levels.insert("events".to_owned(), Value::Object(events));
        levels.insert("users".to_owned(), Value::Object(users));
        let levels = Value::Object(levels);
        return Levels { at_first: levels.clone(), at_last: levels };
    }
    for creator in old_creators {
        users.insert(creator.to_string(), json!(highest));
    }
    let own = users.get(maker.as_str()).and_then(Value::as_i64).unwrap_or(users_default);
    levels.insert("users".to_owned(), Value::Object(users.clone()));
    let at_last = Value::Object(levels.clone());
    users.insert(maker.to_string(), json!(own.max(highest)));
    levels.insert("users".to_owned(), Value::Object(users));
    Levels { at_first: Value::Object(levels), at_last }
}

/// Writes levels as numbers that are texts of digits: before version 10 they might be. Room Version 10, "Values in m.room.power_levels
/// events must be integers".
fn to_integers(levels: &mut Map<String, Value>) {
    for level in levels.values_mut() {
        match level {
            Value::Object(inner) => to_integers(inner),
            Value::String(text) => {
                if let Ok(number) = text.trim().parse::<i64>() {
                    *level = json!(number);
                }
            }
            _ => cut_fractions(level),
        }
    }
}

/// Content whose numbers all versions take: before version 6 any might be. Room Version 6, "Canonical JSON".
fn with_integers(content: &RawValue) -> Result<Box<RawValue>, Error> {
    if !matches!(canonical_object(content), Err(CanonicalError::BadNumber)) {
        return Ok(content.to_owned());
    }
    let mut content = Value::Object(object_of(content));
    cut_fractions(&mut content);
    raw(&content)
}

fn cut_fractions(value: &mut Value) {
    match value {
        Value::Object(object) => object.values_mut().for_each(cut_fractions),
        Value::Array(array) => array.iter_mut().for_each(cut_fractions),
        // Beyond the range of integers, the nearest one.
        Value::Number(number) => {
            let cut = number.as_i64().unwrap_or_else(|| number.as_f64().unwrap_or(0.0) as i64);
            *value = json!(Int::new_saturating(cut));
        }
        _ => {}
    }
}

fn object_of(content: &RawValue) -> Map<String, Value> {
    serde_json::from_str(content.get()).unwrap_or_default()
}

fn raw(value: &Value) -> Result<Box<RawValue>, Error> {
    to_raw_value(value).map_err(|error| Error::BadEvent(error.to_string()))
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    fn fit(levels: Value, version: RoomVersionId, old_creators: &[&UserId]) -> Levels {
        let Value::Object(levels) = levels else { panic!("not an object") };
        let (rules, maker) = (version.rules().unwrap(), user_id!("@mod:hs"));
        fit_levels(levels, &rules, old_creators, &[maker], maker)
    }

    #[test]
    fn a_moderator_has_full_power_only_while_the_room_is_made() {
        let old = json!({"users": {"@mod:hs": 50, "@alice:hs": 100}, "events": {"m.room.tombstone": 50}});
        let levels = fit(old.clone(), RoomVersionId::V11, &[]);
        assert_eq!(levels.at_last, old);
        assert_eq!(levels.at_first["users"]["@mod:hs"], 100);
    }

    #[test]
    fn levels_that_are_texts_become_numbers() {
        let old = json!({"users": {"@alice:hs": "100", "@mod:hs": " 50 "}, "ban": "60", "events": {"m.room.name": 50}});
        let levels = fit(old, RoomVersionId::V10, &[]);
        let expected = json!({"users": {"@alice:hs": 100, "@mod:hs": 50}, "ban": 60, "events": {"m.room.name": 50}});
        assert_eq!(levels.at_last, expected);
    }

    #[test]
    fn numbers_that_only_old_versions_take_are_cut_to_integers() {
        let fit = |json: &str| with_integers(&RawValue::from_string(json.to_owned()).unwrap()).unwrap().to_string();
        assert_eq!(
            fit(r#"{"a":[1.9,-1.9,{"b":1e300}],"c":"1.5"}"#),
            r#"{"a":[1,-1,{"b":9007199254740991}],"c":"1.5"}"#
        );
        assert_eq!(fit(r#"{ "a": 1 }"#), r#"{ "a": 1 }"#);
        let levels = fit_levels(
            serde_json::from_str(r#"{"ban":50.5,"users":{"@alice:hs":1e2}}"#).unwrap(),
            &RoomVersionId::V11.rules().unwrap(),
            &[],
            &[],
            user_id!("@alice:hs"),
        );
        assert_eq!(levels.at_last, json!({"ban": 50, "users": {"@alice:hs": 100}}));
    }

    #[test]
    fn creators_are_not_named_where_they_are_above_all_levels() {
        let levels = fit(json!({"users": {"@mod:hs": 100, "@bob:hs": 50}}), RoomVersionId::V12, &[]);
        assert_eq!(levels.at_first, levels.at_last);
        assert_eq!(levels.at_last, json!({"users": {"@bob:hs": 50}, "events": {"m.room.tombstone": 150}}));
        let back =
            fit(json!({"users": {}, "events": {"m.room.tombstone": 150}}), RoomVersionId::V11, &[user_id!("@a:hs")]);
        assert_eq!(back.at_last["users"], json!({"@a:hs": 150}));
    }
}
