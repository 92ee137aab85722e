//! Filters that clients upload. Client-Server API, "Filtering".

use model::UserNr;
use ruma::{
    OwnedRoomId,
    api::client::filter::{Filter, FilterDefinition, RoomEventFilter},
};

use crate::{Accounts, Error, secrets};

/// Most different filters of a user.
const FILTERS_MAX: i64 = 1_000;
/// Largest filter, in bytes.
const FILTER_BYTES_MAX: usize = 65_536;
/// Most entries of one list in a filter, and longest entry, in bytes: each event is compared with each of them.
const ENTRIES_MAX: usize = 1_000;

impl Accounts {
    /// Keeps a filter; the same filter gets the same id.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], [`Error::InvalidParam`] when the filter has too many entries or the user too many filters.
    pub async fn create_filter(&self, user_nr: UserNr, filter: &FilterDefinition) -> Result<String, Error> {
        check_filter(filter)?;
        let content = serde_json::to_string(filter).map_err(|error| Error::BadJson(error.to_string()))?;
        if content.len() > FILTER_BYTES_MAX {
            return Err(Error::TooLarge(FILTER_BYTES_MAX));
        }
        let hash = secrets::hash(&content);
        let filter_nr = self.0.storage.insert_filter(user_nr, hash, &content, FILTERS_MAX).await?;
        let filter_nr = filter_nr.ok_or_else(|| Error::InvalidParam(format!("at most {FILTERS_MAX} filters")))?;
        Ok(filter_nr.to_string())
    }

    /// A filter of a user.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn filter(&self, user_nr: UserNr, filter_id: &str) -> Result<FilterDefinition, Error> {
        let filter_nr: i64 = filter_id.parse().map_err(|_| Error::NotFound("filter"))?;
        let content = self.0.storage.get_filter(user_nr, filter_nr).await?.ok_or(Error::NotFound("filter"))?;
        serde_json::from_str(&content).map_err(|error| storage::Error::Damaged(format!("filter: {error}")).into())
    }
}

/// Refuses filters that would cost more than they are worth.
///
/// # Errors
///
/// [`Error::InvalidParam`].
pub fn check_filter(filter: &FilterDefinition) -> Result<(), Error> {
    let FilterDefinition { event_fields, presence, account_data, room, .. } = filter;
    check_lengths([event_fields.as_ref().map_or(0, Vec::len), rooms(&room.rooms, &room.not_rooms)])?;
    check_names(event_fields.iter().flatten())?;
    for Filter { types, not_types, senders, not_senders, .. } in [presence, account_data] {
        check_names(types.iter().flatten().chain(not_types))?;
        check_lengths([senders.as_ref().map_or(0, Vec::len) + not_senders.len()])?;
    }
    [&room.account_data, &room.timeline, &room.ephemeral, &room.state].into_iter().try_for_each(check_room_event_filter)
}

/// Refuses filters of room events that would cost more than they are worth.
///
/// # Errors
///
/// [`Error::InvalidParam`].
pub fn check_room_event_filter(filter: &RoomEventFilter) -> Result<(), Error> {
    check_names(filter.types.iter().flatten().chain(&filter.not_types))?;
    check_lengths([
        filter.senders.as_ref().map_or(0, Vec::len) + filter.not_senders.len(),
        rooms(&filter.rooms, &filter.not_rooms),
    ])
}

fn rooms(wanted: &Option<Vec<OwnedRoomId>>, unwanted: &[OwnedRoomId]) -> usize {
    wanted.as_ref().map_or(0, Vec::len) + unwanted.len()
}

/// Types and fields are texts of any length.
fn check_names<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    let mut count = 0;
    for name in names {
        count += 1;
        check_lengths([count, name.len()])?;
    }
    Ok(())
}

fn check_lengths(lengths: impl IntoIterator<Item = usize>) -> Result<(), Error> {
    if lengths.into_iter().any(|length| length > ENTRIES_MAX) {
        return Err(Error::InvalidParam(format!(
            "a list in a filter has at most {ENTRIES_MAX} entries of as many bytes"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn every_list_of_a_filter_has_a_bound() {
        let list = |entry: &str, count: usize| -> Vec<String> { vec![entry.to_owned(); count] };
        let names = ["types", "not_types"].map(|name| (name, "m.x"));
        let users = ["senders", "not_senders"].map(|name| (name, "@a:b.test"));
        let rooms = ["rooms", "not_rooms"].map(|name| (name, "!a:b.test"));
        let paths = |prefix: &str, lists: &[(&str, &'static str)]| -> Vec<(String, &'static str)> {
            lists.iter().map(|(name, entry)| (format!("{prefix}/{name}"), *entry)).collect()
        };
        let mut all = vec![("/event_fields".to_owned(), "content.body")];
        all.extend(paths("/room", &rooms));
        for part in ["/presence", "/account_data"] {
            all.extend(paths(part, &[names, users].concat()));
        }
        for part in ["/room/account_data", "/room/timeline", "/room/ephemeral", "/room/state"] {
            all.extend(paths(part, &[names, users, rooms].concat()));
        }
        for (path, entry) in all {
            let check = |entries: Vec<String>| {
                let filter = path
                    .rsplit('/')
                    .filter(|key| !key.is_empty())
                    .fold(json!(entries), |value, key| Value::Object([(key.to_owned(), value)].into_iter().collect()));
                check_filter(&serde_json::from_value(filter).unwrap())
            };
            assert!(check(list(entry, ENTRIES_MAX)).is_ok(), "{path}");
            assert!(matches!(check(list(entry, ENTRIES_MAX + 1)), Err(Error::InvalidParam(_))), "{path}");
            if entry.starts_with(['m', 'c']) {
                let long = "*".repeat(ENTRIES_MAX + 1);
                assert!(matches!(check(list(&long, 1)), Err(Error::InvalidParam(_))), "{path}");
            }
        }
    }
}
