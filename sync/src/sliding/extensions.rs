//! What an answer tells besides rooms: messages to the device, device lists, account data, receipts, typing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use accounts::Requester;
use model::{EphemeralPosition, Membership, Position, RoomNr, StreamToken};
use ruma::OwnedRoomId;
use serde_json::value::RawValue;
use storage::{AccountDataRow, ReceiptRow, StoredEvent};

use super::{
    Look, NextState,
    connection::{Sent, SentRoom},
    lists::Selection,
    request::{Request, Scope},
    response::{E2ee, Response, ThreadSubscriptions, ToDevice},
};
use crate::{Error, Sync, account_data::account_data_event, room_facts::ListedRoom, to_device};

/// Most changes of subscriptions to threads in one answer.
const THREADS_MAX: u32 = 100;

/// The events that an answer tells of each room.
type Timelines = HashMap<RoomNr, Vec<Arc<StoredEvent>>>;

impl Sync {
    /// Deletes the messages that the client says it has. MSC3885.
    pub(super) async fn acknowledge_to_device(&self, requester: &Requester, request: &Request) -> Result<(), Error> {
        let since = request.extensions.to_device.as_ref().and_then(|asked| asked.since.as_ref());
        let (Some(since), Some(_)) = (since, &requester.device_id) else { return Ok(()) };
        let since = to_device_position(since)?;
        self.catch_up(since).await?;
        self.acknowledge(requester, since).await
    }

    pub(super) async fn add_extensions(
        &self,
        look: &Look<'_>,
        selection: &Selection<'_>,
        timelines: &Timelines,
        next: &mut NextState<'_>,
        response: &mut Response,
    ) -> Result<(), Error> {
        self.add_to_device(look, response).await?;
        self.add_e2ee(look, response).await?;
        self.add_account_data(look, selection, next, response).await?;
        self.add_receipts(look, selection, timelines, next, response).await?;
        self.add_typing(look, selection, response).await?;
        self.add_thread_subscriptions(look, next, response).await
    }

    /// Subscriptions to threads. MSC4308.
    async fn add_thread_subscriptions(
        &self,
        look: &Look<'_>,
        next: &mut NextState<'_>,
        response: &mut Response,
    ) -> Result<(), Error> {
        let sent = look.start.state.threads;
        let Some(limit) = look.request.extensions.thread_subscriptions else {
            // What changed and is not told stays behind.
            if let (Sent::Live, Some(since), true) = (sent, look.since, look.news.threads) {
                next.threads = Sent::Upto(since);
            }
            return Ok(());
        };
        next.threads = Sent::Live;
        if sent == Sent::Live && !look.news.threads {
            return Ok(());
        }
        let after = sent.position(look.since).unwrap_or_default();
        let limit = limit.clamp(1, THREADS_MAX);
        let (changes, rest) = self.0.rooms.thread_subscriptions(look.requester, after, look.upto, limit).await?;
        if !changes.is_empty() {
            let prev_batch = rest.map(|position| StreamToken::at(position).to_string());
            response.extensions.thread_subscriptions = Some(ThreadSubscriptions { changes, prev_batch });
        }
        Ok(())
    }

    /// Messages to the device. MSC3885.
    async fn add_to_device(&self, look: &Look<'_>, response: &mut Response) -> Result<(), Error> {
        let (Some(asked), Some(_)) = (&look.request.extensions.to_device, &look.requester.device_id) else {
            return Ok(());
        };
        let after = asked.since.as_deref().map(to_device_position).transpose()?.unwrap_or_default();
        let limit = asked.limit.unwrap_or(to_device::MESSAGES_MAX).clamp(1, to_device::MESSAGES_MAX);
        let upto = look.upto.max(after);
        // Who has all up to where it stands, and of whom no news is heard, has none waiting.
        let found = match look.news.to_device || look.since.is_none_or(|since| after < since) {
            true => self.to_device(look.requester, &look.settings, (after, upto), limit).await?,
            false => Default::default(),
        };
        let next_batch = StreamToken::at(found.more_after.unwrap_or(upto)).to_string();
        response.extensions.to_device = Some(ToDevice { next_batch, events: found.events });
        Ok(())
    }

    /// Device lists and counts of keys. MSC3884. As with Synapse each answer has the counts: clients rely on it.
    async fn add_e2ee(&self, look: &Look<'_>, response: &mut Response) -> Result<(), Error> {
        let Some(device_id) = look.requester.device_id.as_ref().filter(|_| look.request.extensions.e2ee) else {
            return Ok(());
        };
        let user_nr = look.requester.user_nr;
        let device_lists = match look.since {
            Some(since) => self.device_lists(user_nr, &look.news, (since, look.upto)).await?,
            None => Default::default(),
        };
        let key_counts = self.0.storage.get_key_counts(user_nr, device_id.as_str()).await?;
        response.extensions.e2ee = Some(E2ee { device_lists, key_counts });
        Ok(())
    }

    /// Account data. MSC3959.
    async fn add_account_data(
        &self,
        look: &Look<'_>,
        selection: &Selection<'_>,
        next: &mut NextState<'_>,
        response: &mut Response,
    ) -> Result<(), Error> {
        let user_nr = look.requester.user_nr;
        let scope = look.request.extensions.account_data.as_ref();
        let global = look.start.state.account_data;
        let rooms = in_scope(look, selection, next, scope, |sent| &mut sent.account_data);
        let new: Vec<RoomNr> =
            rooms.iter().filter(|(.., from)| from.is_none()).map(|(room, _)| room.row.room_nr).collect();
        // The oldest place from which changes are told.
        let oldest = rooms.iter().filter_map(|(_, from)| *from);
        let oldest = oldest.chain(scope.and(global.position(look.since))).chain(look.since).min();
        let has_old = rooms.iter().any(|(_, from)| from.is_some_and(|from| Some(from) != look.since))
            || matches!(global, Sent::Upto(_));
        let changed = match oldest {
            Some(oldest) if look.news.account_data || (has_old && scope.is_some()) => {
                self.0.storage.list_account_data(user_nr, oldest, look.upto).await?
            }
            _ => Vec::new(),
        };
        let mut shown: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>> = BTreeMap::new();
        let all =
            if new.is_empty() { Vec::new() } else { self.0.storage.list_account_data_of_rooms(user_nr, &new).await? };
        for (room, from) in &rooms {
            let rows = if from.is_none() { &all } else { &changed };
            let is_told =
                |row: &&AccountDataRow| row.room_nr == room.row.room_nr && from.is_none_or(|from| row.position > from);
            let events: Vec<_> = rows.iter().filter(is_told).filter_map(event_of).collect();
            if !events.is_empty() {
                shown.insert(room.facts.room.id.clone(), events);
            }
        }
        response.extensions.room_account_data = shown;
        if scope.is_some() {
            let from = global.position(look.since);
            let rows = match from {
                Some(_) => changed.iter().filter(|row| row.room_nr == RoomNr(0)).cloned().collect(),
                None => self.0.storage.list_account_data_of_room(user_nr, RoomNr(0)).await?,
            };
            let is_told = |row: &&AccountDataRow| from.is_none_or(|from| row.position > from);
            let events = &mut response.extensions.global_account_data;
            let event_of = |row| {
                let json = self.global_account_data_event(look.requester, &look.settings, row);
                RawValue::from_string(json).ok()
            };
            events.extend(rows.iter().filter(is_told).filter_map(event_of));
            if from.is_none() && !rows.iter().any(|row| row.event_type == "m.push_rules") {
                events.extend(RawValue::from_string(self.push_rules_event(look.requester, &look.settings)).ok());
            }
            next.account_data = Sent::Live;
        } else if let (Sent::Live, Some(since)) = (global, look.since)
            && changed.iter().any(|row| row.room_nr == RoomNr(0))
        {
            next.account_data = Sent::Upto(since);
        }
        // What changed and is not told stays behind.
        if let Some(since) = look.since {
            let told: Vec<RoomNr> = rooms.iter().map(|(room, _)| room.row.room_nr).collect();
            for row in changed.iter().filter(|row| row.position > since && !told.contains(&row.room_nr)) {
                stay_behind(next, row.room_nr, since, |sent| &mut sent.account_data);
            }
        }
        Ok(())
    }

    /// Receipts. MSC3960: of a room that is new to the client those for the events in its timeline, and the user's own.
    async fn add_receipts(
        &self,
        look: &Look<'_>,
        selection: &Selection<'_>,
        timelines: &Timelines,
        next: &mut NextState<'_>,
        response: &mut Response,
    ) -> Result<(), Error> {
        let storage = &self.0.storage;
        let scope = look.request.extensions.receipts.as_ref();
        let rooms = in_scope(look, selection, next, scope, |sent| &mut sent.receipts);
        let mut found: HashMap<RoomNr, Vec<ReceiptRow>> = HashMap::new();
        let mut new: Vec<RoomNr> = Vec::new();
        let mut after: BTreeMap<Position, Vec<RoomNr>> = BTreeMap::new();
        // Rooms that are new, and those whose timeline now reaches further back, up to where their receipts were told.
        let mut with_events: HashMap<RoomNr, (&[Arc<StoredEvent>], Position)> = HashMap::new();
        for (room, from) in &rooms {
            let room_nr = room.row.room_nr;
            let events = timelines.get(&room_nr).map_or(&[][..], Vec::as_slice);
            if from.is_none() || response.rooms.get(&room.facts.room.id).is_some_and(|room| room.expanded_timeline) {
                with_events.insert(room_nr, (events, from.unwrap_or(look.upto)));
            }
            match from {
                None => new.push(room_nr),
                Some(from) if Some(*from) == look.since && !look.news.has_receipts(room_nr) => {}
                Some(from) => after.entry(*from).or_default().push(room_nr),
            }
        }
        for (from, rooms) in after {
            found.extend(storage.list_receipts(&rooms, from, look.upto).await?);
        }
        if !new.is_empty() {
            found.extend(storage.list_own_receipts(look.requester.user_nr, &new, look.upto).await?);
        }
        if !with_events.is_empty() {
            // An event is read after it was sent.
            let first = |events: &[Arc<StoredEvent>]| events.first().and_then(|event| event.place).map(|place| place.0);
            let places: Vec<(RoomNr, Position)> =
                with_events.iter().filter_map(|(room_nr, (events, _))| Some((*room_nr, first(events)?))).collect();
            for (room_nr, receipts) in storage.list_receipts_after(&places).await? {
                let Some((events, upto)) = with_events.get(&room_nr) else { continue };
                let ids: HashSet<&str> = events.iter().map(|event| event.pdu.event_id.as_str()).collect();
                let others = receipts.into_iter().filter(|receipt| {
                    receipt.position <= *upto
                        && receipt.user_nr != look.requester.user_nr
                        && ids.contains(receipt.event_id.as_str())
                });
                found.entry(room_nr).or_default().extend(others);
            }
        }
        let events = self.receipt_events(look.requester, found).await?;
        let by_nr: HashMap<RoomNr, &OwnedRoomId> =
            rooms.iter().map(|(room, _)| (room.row.room_nr, &room.facts.room.id)).collect();
        for (room_nr, event) in events {
            if let Some(room_id) = by_nr.get(&room_nr) {
                response.extensions.receipts.insert((*room_id).clone(), event);
            }
        }
        // What is new and is not told stays behind.
        if let Some(since) = look.since.filter(|_| look.news.receipts) {
            let behind = look
                .list
                .rooms
                .iter()
                .map(|room| room.row.room_nr)
                .filter(|room_nr| look.news.has_receipts(*room_nr) && !by_nr.contains_key(room_nr));
            for room_nr in behind {
                stay_behind(next, room_nr, since, |sent| &mut sent.receipts);
            }
        }
        Ok(())
    }

    /// Who is typing. MSC3961.
    async fn add_typing(
        &self,
        look: &Look<'_>,
        selection: &Selection<'_>,
        response: &mut Response,
    ) -> Result<(), Error> {
        let Some(scope) = &look.request.extensions.typing else { return Ok(()) };
        let is_new = |room: &ListedRoom| {
            response.rooms.get(&room.facts.room.id).is_some_and(|room| room.initial) && look.since.is_some()
        };
        let (mut rooms, mut new) = (HashMap::new(), Vec::new());
        for selected in selection.rooms.iter().filter(|selected| selection.covers(scope, selected)) {
            let room = &look.list.rooms[selected.place];
            if room.row.membership == Membership::Join {
                rooms.insert(room.row.room_nr, &room.facts.room.id);
                if is_new(room) {
                    new.push(room.row.room_nr);
                }
            }
        }
        let mut changes = look.typing.changes.clone();
        // Of a room that is new to the client it is told who is typing already.
        if !new.is_empty() {
            let now = self.0.typing.news(&new, EphemeralPosition::default());
            changes.retain(|change| !new.contains(&change.room_nr));
            changes.extend(now.changes);
        }
        changes.retain(|change| rooms.contains_key(&change.room_nr));
        for (room_nr, event) in self.typing_events(&look.settings, &changes).await? {
            response.extensions.typing.insert(rooms[&room_nr].clone(), event);
        }
        Ok(())
    }
}

/// The rooms that an extension tells of, with the position up to which the client has it; nothing when it has none of it. They
/// count as told. Only rooms that the client knows are among them.
fn in_scope<'l>(
    look: &'l Look<'_>,
    selection: &Selection<'_>,
    next: &mut NextState<'_>,
    scope: Option<&Scope>,
    part: impl Fn(&mut SentRoom) -> &mut Sent,
) -> Vec<(&'l ListedRoom, Option<Position>)> {
    let Some(scope) = scope else { return Vec::new() };
    let mut rooms = Vec::new();
    for selected in selection.rooms.iter().filter(|selected| selection.covers(scope, selected)) {
        let room = &look.list.rooms[selected.place];
        if room.row.membership != Membership::Join {
            continue;
        }
        let Some(mut sent) = next.room(room.row.room_nr) else { continue };
        let told = part(&mut sent);
        rooms.push((room, told.position(look.since)));
        if *told != Sent::Live {
            *told = Sent::Live;
            next.set(room.row.room_nr, sent);
        }
    }
    rooms
}

fn stay_behind(next: &mut NextState<'_>, room_nr: RoomNr, since: Position, part: impl Fn(&mut SentRoom) -> &mut Sent) {
    if let Some(mut sent) = next.room(room_nr)
        && *part(&mut sent) == Sent::Live
    {
        *part(&mut sent) = Sent::Upto(since);
        next.set(room_nr, sent);
    }
}

fn to_device_position(token: &str) -> Result<Position, Error> {
    Ok(token.parse::<StreamToken>().map_err(|_| Error::BadToken)?.position)
}

fn event_of(row: &AccountDataRow) -> Option<Box<RawValue>> {
    RawValue::from_string(account_data_event(&row.event_type, &row.content)).ok()
}
