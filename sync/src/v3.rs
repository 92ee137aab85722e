//! `/sync`. Client-Server API, "Syncing".

mod ahead;
mod ephemeral;
mod fields;
mod filter;
mod lazy;
mod presence;
mod room;
mod state;

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use accounts::{Requester, UserSettings};
use event_bus::TypingNews;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use model::{Membership, Position, RoomNr, StreamToken, UserNr};
use rooms::{Counts, Unread};
use ruma::{
    OneTimeKeyAlgorithm, UInt,
    api::client::{
        filter::FilterDefinition,
        sync::sync_events::{
            DeviceLists, UnreadNotificationsCount,
            v3::{InvitedRoom, JoinedRoom, KnockedRoom, LeftRoom, Response},
        },
    },
    serde::Raw,
};
use serde_json::value::RawValue;
use storage::{AccountDataRow, RoomMembership, RoomRow};

pub use self::filter::matches as matches_filter;
use self::{
    ahead::Ahead, ephemeral::add_ephemeral, fields::EventFields, lazy::LazyMembers, presence::PresenceOf,
    room::room_account_data,
};
use crate::{Error, Sync, UserRooms, ephemeral::EventByRoom, news::News, to_device};

/// Longest that a poll waits: longer is cut, so that dead connections do not pile up.
pub(crate) const TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// How many rooms of an answer are put together at once.
const ROOMS_AT_ONCE: usize = 8;

/// A room as an answer shows it.
enum ShownRoom {
    Joined(Box<JoinedRoom>),
    Invited(InvitedRoom),
    Knocked(KnockedRoom),
    Left(LeftRoom),
}

/// What a client asks.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where it stands; nothing for the first time.
    pub since: Option<StreamToken>,
    /// What it wants.
    pub filter: Arc<FilterDefinition>,
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
    /// What the requester chose: whom they ignore.
    settings: Arc<UserSettings>,
    /// What is shown of each event, if not all.
    fields: Option<EventFields>,
    /// What the device knows of members, if it loads them lazily and does not want to be told again.
    told: Option<LazyMembers>,
    ahead: Ahead,
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
            self.catch_up(since.position).await?;
            self.acknowledge(requester, since.to_device.unwrap_or(since.position)).await?;
        }
        let timeout = tokio::time::sleep(request.timeout.min(TIMEOUT_MAX));
        tokio::pin!(timeout);
        let answers_at_once = request.since.is_none() || request.full_state || request.timeout.is_zero();
        // Where the next look starts: what was looked at and gave nothing is not looked at again.
        let mut after = request.since.unwrap_or_default().position;
        let mut presence_after = request.since.unwrap_or_default().presence;
        let wants_presence = self.presence().is_some() && presence::wants_any(&request.filter.presence);
        loop {
            let rooms = self.user_rooms(requester.user_nr).await?;
            // Registered before the look, so that nothing can slip in between.
            let (wake, guard) = self.0.waiters.wait(requester.user_nr, &rooms, wants_presence);
            let notified = wake.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();

            let typing = self.0.typing.news(&rooms.joined, request.since.unwrap_or_default().typing);
            let typing_position = typing.position;
            let upto = self.position();
            let news = self.news(requester, request.since, &rooms, (after, upto), &typing);
            let now_ms = self.0.storage.clock().now_ms();
            let answers = answers_at_once || news.any();
            // Whose changes would not be told is not looked for.
            let looks = answers || self.0.waiters.may_tell_presence(requester.user_nr, now_ms);
            let presence = match looks {
                true => self.new_presence(requester.user_nr, request, &rooms, presence_after).await?,
                false => PresenceOf { users: Vec::new(), position: presence_after },
            };
            if presence.users.is_empty() {
                presence_after = presence.position;
            } else if !answers {
                self.0.waiters.presence_told(requester.user_nr, now_ms);
            }
            if answers || !presence.users.is_empty() {
                let since = request.since.map(|since| since.position);
                let settings = self.0.rooms.settings(requester).await?;
                let answer = self.begin(requester, request, (since, upto), settings);
                // Boxed: a poll that waits must not hold the memory of one that answers.
                let response = Box::pin(self.build(answer, news, &rooms, typing, presence)).await?;
                let is_empty = response.rooms.is_empty()
                    && response.presence.is_empty()
                    && response.to_device.is_empty()
                    && response.account_data.is_empty()
                    && response.device_lists.is_empty();
                if answers_at_once || !is_empty {
                    return Ok(response);
                }
            }
            after = after.max(upto);
            let is_over = tokio::select! {
                () = &mut notified => self.0.stopping.is_cancelled(),
                () = &mut timeout => true,
            };
            drop(guard);
            if is_over {
                let answer = request.since.and_then(|since| since.answer);
                let (typing, presence) = (typing_position, presence_after);
                let token = StreamToken { typing, presence, answer, ..StreamToken::at(upto) };
                let mut response = Response::new(token.to_string());
                self.add_key_counts(requester, &mut response).await?;
                return Ok(response);
            }
        }
    }

    /// Waits until this process has come to where a client is already: another process may be ahead of this one.
    pub(crate) async fn catch_up(&self, position: Position) -> Result<(), Error> {
        if position > self.position() {
            // Nobody is ahead of the database.
            let newest = self.0.storage.newest_durable().await?;
            if position > newest {
                return Err(Error::BadToken);
            }
            self.reach(newest).await;
        }
        Ok(())
    }

    fn begin<'a>(
        &self,
        requester: &'a Requester,
        request: &'a Request,
        (since, upto): (Option<Position>, Position),
        settings: Arc<UserSettings>,
    ) -> Answer<'a> {
        let told = self.lazy_members(requester, request);
        let fields = request.filter.event_fields.as_deref().map(EventFields::new);
        Answer { requester, request, since, upto, settings, fields, told, ahead: Ahead::default() }
    }

    /// Waits until the tailer has come to a position; it is there in moments.
    pub(crate) async fn reach(&self, position: Position) {
        if self.position() >= position {
            return;
        }
        let mut newest = self.0.ring.watch();
        let arrived = newest.wait_for(|newest| *newest >= position);
        let _ = tokio::time::timeout(Duration::from_secs(5), arrived).await;
    }

    async fn build(
        &self,
        mut answer: Answer<'_>,
        mut news: News,
        rooms: &UserRooms,
        typing: TypingNews,
        presence: PresenceOf,
    ) -> Result<Response, Error> {
        let Answer { requester, request, upto, .. } = answer;
        let storage = &self.0.storage;
        let after = answer.since.unwrap_or(Position(0));
        let mut token = StreamToken { typing: typing.position, presence: presence.position, ..StreamToken::at(upto) };
        // Until the answer has a number of its own.
        token.answer = request.since.and_then(|since| since.answer);
        let mut response = Response::new(String::new());
        if news.to_device {
            let after = request.since.and_then(|since| since.to_device).unwrap_or(after);
            let found = self.to_device(requester, &answer.settings, (after, upto), to_device::MESSAGES_MAX).await?;
            response.to_device.events = found.events.into_iter().map(Raw::from_json).collect();
            token.to_device = found.more_after;
        }
        if let Some(since) = answer.since.filter(|_| news.threads) {
            news.subscribed_rooms = self.subscribed_rooms(requester, since, upto).await?;
        }

        let mut wanted: Vec<&RoomMembership> =
            rooms.rows.iter().filter(|row| !row.forgotten && self.concerns(&answer, &news, row)).collect();
        if wanted.iter().any(|row| matches!(row.membership, Membership::Leave | Membership::Ban)) {
            // Forgetting a room is no change of membership: what is in memory does not know of it.
            let now = storage.list_rooms_of_user(requester.user_nr).await?;
            let forgotten: HashSet<RoomNr> = now.iter().filter(|row| row.forgotten).map(|row| row.room_nr).collect();
            wanted.retain(|row| !forgotten.contains(&row.room_nr));
        }
        let hidden = self.ignored_invites(&answer.settings, wanted.iter().copied()).await?;
        wanted.retain(|row| !hidden.contains(&row.room_nr));
        let account_data = if news.account_data {
            storage.list_account_data(requester.user_nr, after, upto).await?
        } else {
            Vec::new()
        };
        let typing = typing.changes;
        news.note_account_data(&account_data);
        let recounted = rooms.joined.iter().copied().filter(|_| news.recounts());
        let also: BTreeSet<RoomNr> = account_data
            .iter()
            .map(|row| row.room_nr)
            .chain(recounted)
            .chain(typing.iter().map(|change| change.room_nr))
            .filter(|room| rooms.is_joined.contains(room) && !wanted.iter().any(|row| row.room_nr == *room))
            .collect();
        if !also.is_empty() {
            wanted.extend(rooms.rows.iter().filter(|row| also.contains(&row.room_nr)));
        }

        let numbers: Vec<RoomNr> = wanted.iter().map(|row| row.room_nr).collect();
        let known = storage.get_rooms(&numbers).await?;
        let wanted: Vec<(&RoomMembership, &Arc<RoomRow>)> = wanted
            .into_iter()
            .filter_map(|row| Some((row, known.get(&row.room_nr)?)))
            .filter(|(_, room)| filter::matches_room(&request.filter.room, &room.id))
            .collect();
        let memberships: Vec<&RoomMembership> = wanted.iter().map(|(row, _)| *row).collect();
        answer.ahead = self.look_ahead(&answer, &memberships, news.events.is_some()).await?;
        let answer = &answer;
        let receipts = if news.receipts { self.receipts(answer, &wanted).await? } else { Default::default() };
        let joined = wanted.iter().filter(|(row, _)| row.membership == Membership::Join);
        let joined: Vec<RoomNr> = joined.map(|(row, _)| row.room_nr).collect();
        let mut unread = self.unread(requester, &joined, upto).await?;
        let splits_threads = request.filter.room.timeline.unread_thread_notifications;
        let typing = self.typing_events(&answer.settings, &typing).await?;
        let (news, account_data, ephemeral) =
            (&news, &account_data[..], [("m.typing", &typing), ("m.receipt", &receipts)]);
        let shown: Vec<_> = wanted
            .into_iter()
            .map(|(row, room)| async move {
                let shown = self.shown_room(answer, news, row, room, (account_data, ephemeral)).await?;
                Ok::<_, Error>((row.room_nr, room.id.clone(), shown))
            })
            .collect();
        // Some at a time: each waits for the database most of its time.
        let mut shown = std::pin::pin!(stream::iter(shown).buffered(ROOMS_AT_ONCE));
        while let Some((room_nr, room_id, mut room)) = shown.try_next().await? {
            if let ShownRoom::Joined(room) = &mut room
                && (!room.is_empty() || news.may_count(room_nr))
            {
                show_unread(room, unread.remove(&room_nr).unwrap_or_default(), splits_threads);
            }
            match room {
                ShownRoom::Joined(room) if room.is_empty() && answer.since.is_some() => {}
                ShownRoom::Joined(room) => drop(response.rooms.join.insert(room_id, *room)),
                ShownRoom::Invited(room) => drop(response.rooms.invite.insert(room_id, room)),
                ShownRoom::Knocked(room) => drop(response.rooms.knock.insert(room_id, room)),
                ShownRoom::Left(room) => drop(response.rooms.leave.insert(room_id, room)),
            }
        }
        self.add_global_account_data(answer, &mut response, account_data);
        let mut seen = presence.users;
        if let Some(since) = answer.since {
            response.device_lists = self.device_lists(requester.user_nr, news, (since, upto)).await?;
            let filter = &request.filter.presence;
            if news.members && self.presence().is_some() && presence::wants_any(filter) {
                let newcomers = storage.list_newcomers(requester.user_nr, since, upto).await?;
                seen.extend(self.presence_of_newcomers(filter, &newcomers, &seen).await?);
            }
        }
        response.presence.events = self.presence_events(&seen, &answer.settings).await?;
        self.add_key_counts(requester, &mut response).await?;
        token.answer = answer.told.as_ref().and_then(|told| told.finish(storage.random())).or(token.answer);
        response.next_batch = token.to_string();
        Ok(response)
    }

    async fn shown_room(
        &self,
        answer: &Answer<'_>,
        news: &News,
        row: &RoomMembership,
        room: &Arc<RoomRow>,
        (account_data, ephemeral): (&[AccountDataRow], [(&str, &EventByRoom); 2]),
    ) -> Result<ShownRoom, Error> {
        Ok(match row.membership {
            Membership::Join => {
                let mut shown = self.joined_room(answer, news, row, room).await?;
                self.add_room_account_data(answer, &mut shown, (row, room), account_data).await?;
                add_ephemeral(answer, &mut shown, room, ephemeral);
                ShownRoom::Joined(Box::new(shown))
            }
            Membership::Invite => ShownRoom::Invited(self.invited_room(row, room, answer.requester).await?),
            Membership::Knock => ShownRoom::Knocked(self.knocked_room(row, room, answer.requester).await?),
            Membership::Leave | Membership::Ban => {
                let mut shown = self.left_room(answer, row, room).await?;
                shown.account_data.events = room_account_data(answer, room, account_data);
                ShownRoom::Left(shown)
            }
        })
    }

    /// Whose devices the client has to ask for again, and whose it need not follow any more. Client-Server API, "Extensions to /sync".
    pub(crate) async fn device_lists(
        &self,
        user_nr: UserNr,
        news: &News,
        (since, upto): (Position, Position),
    ) -> Result<DeviceLists, Error> {
        let storage = &self.0.storage;
        let mut lists = DeviceLists::new();
        let (mut changed, mut left) = (BTreeSet::new(), BTreeSet::new());
        if news.device_lists {
            changed.extend(storage.list_device_list_changes(user_nr, since, upto).await?);
        }
        if news.members {
            changed.extend(storage.list_newcomers(user_nr, since, upto).await?);
            left.extend(storage.list_left(user_nr, since, upto).await?);
        }
        if changed.is_empty() && left.is_empty() {
            return Ok(lists);
        }
        let users: Vec<UserNr> = changed.union(&left).copied().collect();
        let names = storage.user_ids(&users).await?;
        let ids = |users: BTreeSet<UserNr>| -> Vec<_> {
            users.iter().filter_map(|user| names.get(user).cloned()).collect::<BTreeSet<_>>().into_iter().collect()
        };
        lists.left = ids(&left - &changed);
        lists.changed = ids(changed);
        Ok(lists)
    }

    /// Client-Server API, "Extensions to /sync": each answer has them, an empty one too.
    async fn add_key_counts(&self, requester: &Requester, response: &mut Response) -> Result<(), Error> {
        let Some(device_id) = &requester.device_id else { return Ok(()) };
        let counts = self.0.storage.get_key_counts(requester.user_nr, device_id.as_str()).await?;
        for (algorithm, count) in &counts.one_time {
            let count = UInt::try_from(*count).unwrap_or(UInt::MAX);
            response.device_one_time_keys_count.insert(OneTimeKeyAlgorithm::from(algorithm.as_str()), count);
        }
        response.device_one_time_keys_count.entry(OneTimeKeyAlgorithm::SignedCurve25519).or_default();
        let unused = counts.unused_fallback.iter().map(|algorithm| algorithm.as_str().into());
        response.device_unused_fallback_key_types = Some(unused.collect());
        Ok(())
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

    fn add_global_account_data(&self, answer: &Answer<'_>, response: &mut Response, rows: &[AccountDataRow]) {
        let filter = &answer.request.filter.account_data;
        let wanted = |event_type: &str| filter::matches_without_sender(filter, event_type);
        let global = rows.iter().filter(|row| row.room_nr == RoomNr(0));
        for row in global.clone().filter(|row| wanted(&row.event_type)) {
            response.account_data.events.extend(raw(self.global_account_data_event(
                answer.requester,
                &answer.settings,
                row,
            )));
        }
        let has_rules = global.clone().any(|row| row.event_type == "m.push_rules");
        if answer.since.is_none() && !has_rules && wanted("m.push_rules") {
            response.account_data.events.extend(raw(self.push_rules_event(answer.requester, &answer.settings)));
        }
    }
}

/// Client-Server API, "GET /sync", `unread_notifications`: with those of threads, or threads apart.
fn show_unread(room: &mut JoinedRoom, unread: Unread, splits_threads: bool) {
    let shown = |counts: Counts| {
        let mut shown = UnreadNotificationsCount::new();
        shown.notification_count = Some(UInt::new_saturating(counts.notifications));
        shown.highlight_count = Some(UInt::new_saturating(counts.highlights));
        shown
    };
    if splits_threads {
        room.unread_notifications = shown(unread.main);
        room.unread_thread_notifications =
            unread.threads.into_iter().map(|(root, counts)| (root, shown(counts))).collect();
    } else {
        room.unread_notifications = shown(unread.total());
    }
}

/// Ready-made JSON as ruma takes it; damaged JSON is left out.
pub(crate) fn raw<T>(json: String) -> Option<Raw<T>> {
    RawValue::from_string(json).ok().map(Raw::from_json)
}
