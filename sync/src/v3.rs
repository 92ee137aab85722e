//! `/sync`. Client-Server API, "Syncing".

mod filter;
mod news;
mod room;

use std::{collections::BTreeSet, time::Duration};

use accounts::Requester;
use event_bus::TypingNews;
use model::{Membership, Position, RoomNr, StreamToken, UserNr};
use ruma::{
    OneTimeKeyAlgorithm, UInt,
    api::client::{filter::FilterDefinition, sync::sync_events::v3::Response},
    push::Ruleset,
    serde::Raw,
};
use serde_json::{json, value::RawValue};
use storage::{RoomMembership, RoomRow};

pub use self::filter::matches as matches_filter;
use self::{filter::matches_type, news::News};
use crate::{Error, Sync};

/// Longest that a poll waits: longer is cut, so that dead connections do not pile up.
const TIMEOUT_MAX: Duration = Duration::from_secs(120);
/// Most messages to a device in one answer; the next answer has the others.
const TO_DEVICE_MAX: u32 = 100;

/// What a client asks.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where it stands; nothing for the first time.
    pub since: Option<StreamToken>,
    /// What it wants.
    pub filter: FilterDefinition,
    /// Whether it wants all state of its rooms again.
    pub full_state: bool,
    /// How long it waits for news.
    pub timeout: Duration,
    /// Whether it wants the state at the end of the timelines instead of their start.
    pub use_state_after: bool,
}

/// One answer in the making: who asks, and from where to where.
struct Answer<'a> {
    requester: &'a Requester,
    request: &'a Request,
    since: Option<Position>,
    upto: Position,
}

impl Sync {
    /// What is new for the requester, waiting for it if there is nothing yet.
    ///
    /// Messages to the device up to `since` are gone afterwards: with the token the client says that it has them.
    ///
    /// # Errors
    ///
    /// [`Error::BadToken`].
    pub async fn sync_events(&self, requester: &Requester, request: &Request) -> Result<Response, Error> {
        self.reach(self.0.storage.published()).await;
        if let Some(since) = request.since {
            if since.position > self.position() {
                // Another process may be ahead of this one; nobody is ahead of the database.
                let newest = self.0.storage.newest_durable().await?;
                if since.position > newest {
                    return Err(Error::BadToken);
                }
                self.reach(newest).await;
            }
            if let Some(device_id) = &requester.device_id {
                self.acknowledge(requester.user_nr, device_id.as_str(), since.position).await?;
            }
        }
        let timeout = tokio::time::sleep(request.timeout.min(TIMEOUT_MAX));
        tokio::pin!(timeout);
        let answers_at_once = request.since.is_none() || request.full_state || request.timeout.is_zero();
        loop {
            let memberships = self.memberships(requester).await?;
            let joined: Vec<RoomNr> =
                memberships.iter().filter(|row| row.membership == Membership::Join).map(|row| row.room_nr).collect();
            // Registered before the look, so that nothing can slip in between.
            let (wake, guard) = self.0.waiters.wait(requester.user_nr, &joined);
            let notified = wake.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();

            let typing = self.0.typing.news(&joined, request.since.unwrap_or_default().ephemeral);
            let typing_now = typing.position;
            let upto = self.position();
            let news = self.news(requester, request, &memberships, &joined, upto, &typing)?;
            if answers_at_once || news.any() {
                let answer = Answer { requester, request, since: request.since.map(|since| since.position), upto };
                let response = self.build(&answer, news, &memberships, &joined, typing).await?;
                let is_empty = response.rooms.is_empty()
                    && response.to_device.is_empty()
                    && response.account_data.is_empty()
                    && response.device_lists.is_empty();
                if answers_at_once || !is_empty {
                    return Ok(response);
                }
            }
            let is_over = tokio::select! {
                () = &mut notified => self.0.stopping.is_cancelled(),
                () = &mut timeout => true,
            };
            drop(guard);
            if is_over {
                let token = StreamToken { position: upto, ephemeral: typing_now };
                return Ok(Response::new(token.to_string()));
            }
        }
    }

    /// Waits until the tailer has come to a position; it is there in moments.
    async fn reach(&self, position: Position) {
        let mut newest = self.0.ring.watch();
        let arrived = newest.wait_for(|newest| *newest >= position);
        let _ = tokio::time::timeout(Duration::from_secs(5), arrived).await;
    }

    async fn acknowledge(&self, user_nr: UserNr, device_id: &str, upto: Position) -> Result<(), Error> {
        // The common client has nothing waiting: that costs a read, not a turn of the writer.
        let waiting = self.0.storage.list_to_device(user_nr, device_id, Position(0), upto, 1).await?;
        if !waiting.is_empty() {
            while self.0.storage.delete_to_device(user_nr, device_id, upto, 500).await? == 500 {}
        }
        Ok(())
    }

    async fn build(
        &self,
        answer: &Answer<'_>,
        news: News,
        memberships: &[RoomMembership],
        joined: &[RoomNr],
        typing: TypingNews,
    ) -> Result<Response, Error> {
        let Answer { requester, request, .. } = *answer;
        let storage = &self.0.storage;
        let mut upto = answer.upto;
        let after = answer.since.unwrap_or(Position(0));
        let mut to_device = Vec::new();
        if let Some(device_id) = requester.device_id.as_ref().filter(|_| news.to_device) {
            let list =
                storage.list_to_device(requester.user_nr, device_id.as_str(), after, upto, TO_DEVICE_MAX).await?;
            if list.len() == TO_DEVICE_MAX as usize {
                // The others come with the next answer: this one ends where its messages end.
                upto = list.last().map_or(upto, |(position, _)| *position);
            }
            to_device = list;
        }
        let answer = Answer { upto, ..*answer };
        let mut response = Response::new(StreamToken { position: upto, ephemeral: typing.position }.to_string());
        response.to_device.events = to_device.into_iter().filter_map(|(_, json)| raw(json)).collect();

        let mut wanted: Vec<&RoomMembership> =
            memberships.iter().filter(|row| !row.forgotten && self.concerns(&answer, &news, row)).collect();
        let account_data = if news.account_data {
            storage.list_account_data(requester.user_nr, after, upto).await?
        } else {
            Vec::new()
        };
        let typing = typing.changes;
        let also: BTreeSet<RoomNr> = account_data
            .iter()
            .map(|row| row.room_nr)
            .chain(typing.iter().map(|change| change.room_nr))
            .filter(|room| joined.contains(room) && !wanted.iter().any(|row| row.room_nr == *room))
            .collect();
        wanted.extend(memberships.iter().filter(|row| also.contains(&row.room_nr)));

        let numbers: Vec<RoomNr> = wanted.iter().map(|row| row.room_nr).collect();
        let rooms = if numbers.is_empty() { Default::default() } else { storage.get_rooms(&numbers).await? };
        let wanted: Vec<(&RoomMembership, &RoomRow)> = wanted
            .into_iter()
            .filter_map(|row| Some((row, rooms.get(&row.room_nr)?)))
            .filter(|(_, room)| filter::matches_room(&request.filter.room, &room.id))
            .collect();
        let receipts = if news.receipts {
            let joined: Vec<RoomNr> = wanted
                .iter()
                .filter(|(row, _)| row.membership == Membership::Join)
                .map(|(row, _)| row.room_nr)
                .collect();
            self.receipts(&answer, &joined, &wanted).await?
        } else {
            Default::default()
        };
        let mut newcomers: BTreeSet<UserNr> = BTreeSet::new();
        for (row, room) in wanted {
            match row.membership {
                Membership::Join => {
                    let mut shown = self.joined_room(&answer, &news, row, room, &mut newcomers).await?;
                    self.add_room_account_data(&answer, &mut shown, row, &account_data).await?;
                    if let Some(change) = typing.iter().find(|change| change.room_nr == room.nr)
                        && matches_type(&request.filter.room.ephemeral, "m.typing")
                    {
                        let users = storage.user_ids(&change.users).await?;
                        let ids: BTreeSet<_> = users.into_values().collect();
                        let event = json!({"type": "m.typing", "content": {"user_ids": ids}});
                        shown.ephemeral.events.extend(raw(event.to_string()));
                    }
                    if let Some(event) = receipts.get(&room.nr)
                        && matches_type(&request.filter.room.ephemeral, "m.receipt")
                    {
                        shown.ephemeral.events.extend(raw(event.clone()));
                    }
                    if !shown.is_empty() || answer.since.is_none() {
                        response.rooms.join.insert(room.id.clone(), shown);
                    }
                }
                Membership::Invite => {
                    response.rooms.invite.insert(room.id.clone(), self.invited_room(row, room, requester).await?);
                }
                Membership::Knock => {
                    response.rooms.knock.insert(room.id.clone(), self.knocked_room(row, room, requester).await?);
                }
                Membership::Leave | Membership::Ban => {
                    if let Some(shown) = self.left_room(&answer, row, room).await? {
                        response.rooms.leave.insert(room.id.clone(), shown);
                    }
                }
            }
        }
        self.add_global_account_data(&answer, &mut response, &account_data);
        if news.device_lists && answer.since.is_some() {
            newcomers.extend(storage.list_device_list_changes(requester.user_nr, after, upto).await?);
        }
        if answer.since.is_some() && !newcomers.is_empty() {
            let users: Vec<UserNr> = newcomers.into_iter().collect();
            let ids: BTreeSet<_> = storage.user_ids(&users).await?.into_values().collect();
            response.device_lists.changed = ids.into_iter().collect();
        }
        if let Some(device_id) = &requester.device_id {
            for (algorithm, count) in storage.count_one_time_keys(requester.user_nr, device_id.as_str()).await? {
                let count = UInt::try_from(count).unwrap_or(UInt::MAX);
                response.device_one_time_keys_count.insert(OneTimeKeyAlgorithm::from(algorithm), count);
            }
            response.device_one_time_keys_count.entry(OneTimeKeyAlgorithm::SignedCurve25519).or_default();
            let unused = storage.list_unused_fallback_keys(requester.user_nr, device_id.as_str()).await?;
            response.device_unused_fallback_key_types = Some(unused.into_iter().map(Into::into).collect());
        }
        Ok(response)
    }

    /// Whether a room has anything to tell in this answer.
    fn concerns(&self, answer: &Answer<'_>, news: &News, row: &RoomMembership) -> bool {
        let Some(since) = answer.since else {
            return match row.membership {
                Membership::Leave | Membership::Ban => answer.request.filter.room.include_leave,
                _ => true,
            };
        };
        match row.membership {
            Membership::Join => answer.request.full_state || row.position > since || news.room(row.room_nr),
            _ => row.position > since,
        }
    }

    fn add_global_account_data(&self, answer: &Answer<'_>, response: &mut Response, rows: &[storage::AccountDataRow]) {
        let filter = &answer.request.filter.account_data;
        let wanted = |event_type: &str| filter::matches_words(&filter.types, &filter.not_types, event_type);
        let global = rows.iter().filter(|row| row.room_nr == RoomNr(0));
        for row in global.clone().filter(|row| wanted(&row.event_type)) {
            response.account_data.events.extend(raw(account_data_event(&row.event_type, &row.content)));
        }
        let has_rules = global.clone().any(|row| row.event_type == "m.push_rules");
        if answer.since.is_none() && !has_rules && wanted("m.push_rules") {
            // Whoever never changed their rules has the default ones. Client-Server API, "m.push_rules".
            let rules = Ruleset::server_default(&answer.requester.user_id);
            let event = json!({"type": "m.push_rules", "content": {"global": rules}});
            response.account_data.events.extend(raw(event.to_string()));
        }
    }
}

pub(crate) fn account_data_event(event_type: &str, content: &str) -> String {
    let content: Option<Box<RawValue>> = RawValue::from_string(content.to_owned()).ok();
    json!({"type": event_type, "content": content}).to_string()
}

/// Ready-made JSON as ruma takes it; damaged JSON is left out.
pub(crate) fn raw<T>(json: String) -> Option<Raw<T>> {
    RawValue::from_string(json).ok().map(Raw::from_json)
}
