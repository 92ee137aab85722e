//! Presence in an answer.

use std::collections::HashSet;

use event_bus::Availability;
use model::{EphemeralPosition, UserNr};
use ruma::{UserId, api::client::filter::Filter};

use super::{Request, filter::matches_filter_type};
use crate::{Error, Sync, UserRooms, presence_events::Told};

/// Most users of whom one answer tells; the next one tells of the others.
const USERS_MAX: usize = 1_000;

/// Of whom an answer tells, and where its reader stands then.
#[derive(Default)]
pub(super) struct PresenceOf {
    pub(super) users: Vec<Told>,
    pub(super) position: EphemeralPosition,
}

/// Whether a client wants to hear of anybody.
pub(super) fn wants_any(filter: &Filter) -> bool {
    matches_filter_type(filter, "m.presence") && filter.senders.as_ref().is_none_or(|senders| !senders.is_empty())
}

impl Sync {
    /// Whose presence is new to a reader who stands at `since`, of those whom they may see.
    pub(super) async fn new_presence(
        &self,
        user_nr: UserNr,
        request: &Request,
        rooms: &UserRooms,
        since: EphemeralPosition,
    ) -> Result<PresenceOf, Error> {
        let filter = &request.filter.presence;
        let Some(presence) = self.presence().filter(|_| wants_any(filter)) else {
            return Ok(PresenceOf { users: Vec::new(), position: since });
        };
        let news = presence.news(since);
        if news.changes.is_empty() {
            return Ok(PresenceOf { users: Vec::new(), position: news.position });
        }
        let mut seen = self.who_is_seen(user_nr, rooms, news.changes).await?;
        if filter.senders.is_some() || !filter.not_senders.is_empty() {
            let users: Vec<UserNr> = seen.iter().map(|(_, user_nr)| *user_nr).collect();
            let names = self.0.storage.user_ids(&users).await?;
            seen.retain(|(_, user_nr)| names.get(user_nr).is_some_and(|user_id| wants_of(filter, user_id)));
        }
        let limit = filter.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(USERS_MAX).clamp(1, USERS_MAX);
        let mut position = news.position;
        if seen.len() > limit {
            seen.truncate(limit);
            position.position = seen.last().map_or(position.position, |(at, _)| *at);
        }
        let told = |(at, user_nr)| (Some(EphemeralPosition { position: at, ..news.position }), user_nr);
        Ok(PresenceOf { users: seen.into_iter().map(told).collect(), position })
    }

    /// Those of users who are there, for somebody who sees them from now on, and wants to.
    pub(super) async fn presence_of_newcomers(
        &self,
        filter: &Filter,
        users: &[UserNr],
        told: &[Told],
    ) -> Result<Vec<Told>, Error> {
        let Some(presence) = self.presence().filter(|_| wants_any(filter)) else { return Ok(Vec::new()) };
        let is_there = |user_nr: &UserNr| {
            presence.get(*user_nr).is_some_and(|known| known.shown.availability != Availability::Offline)
        };
        let told: HashSet<UserNr> = told.iter().map(|(_, user_nr)| *user_nr).collect();
        let there = users.iter().copied().filter(|user_nr| !told.contains(user_nr) && is_there(user_nr));
        let mut there: Vec<UserNr> = there.take(USERS_MAX).collect();
        if filter.senders.is_some() || !filter.not_senders.is_empty() {
            let names = self.0.storage.user_ids(&there).await?;
            there.retain(|user_nr| names.get(user_nr).is_some_and(|user_id| wants_of(filter, user_id)));
        }
        Ok(there.into_iter().map(|user_nr| (None, user_nr)).collect())
    }
}

fn wants_of(filter: &Filter, user_id: &UserId) -> bool {
    filter.senders.as_ref().is_none_or(|senders| senders.iter().any(|sender| sender == user_id))
        && !filter.not_senders.iter().any(|sender| sender == user_id)
}
