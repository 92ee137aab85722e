//! Which events a client wants. Client-Server API, "Filtering".
//!
//! `limit` bounds timelines and presence, of which the next answer, or the next page, has the rest. State, account data, receipts and typing
//! that were left out would be lost to the client: there it has no effect, as in other servers.

use ruma::{
    OwnedRoomId, RoomId,
    api::client::filter::{Filter, RoomEventFilter, RoomFilter, UrlFilter},
};
use storage::StoredEvent;

/// Whether a word matches a pattern in which `*` stands for anything.
fn matches_pattern(pattern: &str, word: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = word.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// Whether a type is among those that are wanted and not among those that are not.
pub(crate) fn matches_words(wanted: &Option<Vec<String>>, unwanted: &[String], word: &str) -> bool {
    wanted.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| matches_pattern(pattern, word)))
        && !unwanted.iter().any(|pattern| matches_pattern(pattern, word))
}

/// Whether a filter lets through what belongs to no room, of a type. What has no sender comes from none of those that are asked for.
pub(crate) fn matches_without_sender(filter: &Filter, event_type: &str) -> bool {
    matches_filter_type(filter, event_type) && filter.senders.is_none()
}

/// Whether a filter of what belongs to no room lets a type through.
pub(crate) fn matches_filter_type(filter: &Filter, event_type: &str) -> bool {
    matches_words(&filter.types, &filter.not_types, event_type)
}

/// Whether a filter lets a type through.
pub(crate) fn matches_type(filter: &RoomEventFilter, event_type: &str) -> bool {
    matches_words(&filter.types, &filter.not_types, event_type)
}

/// Whether a filter lets through what a room has beside its events, of a type: receipts, typing, account data. It comes from no sender
/// and has no URL.
pub(crate) fn matches_part(filter: &RoomEventFilter, room_id: &RoomId, event_type: &str) -> bool {
    matches_type(filter, event_type)
        && matches_rooms(filter.rooms.as_ref(), &filter.not_rooms, room_id)
        && filter.senders.is_none()
        && !matches!(filter.url_filter, Some(UrlFilter::EventsWithUrl))
}

/// Whether a filter lets a room through.
pub(crate) fn matches_room(filter: &RoomFilter, room_id: &RoomId) -> bool {
    matches_rooms(filter.rooms.as_ref(), &filter.not_rooms, room_id)
}

fn matches_rooms(wanted: Option<&Vec<OwnedRoomId>>, unwanted: &[OwnedRoomId], room_id: &RoomId) -> bool {
    wanted.is_none_or(|rooms| rooms.iter().any(|room| room == room_id)) && !unwanted.iter().any(|room| room == room_id)
}

/// Whether a filter lets an event through.
#[must_use]
pub fn matches(filter: &RoomEventFilter, event: &StoredEvent) -> bool {
    let pdu = &event.pdu;
    let has_types = filter.types.is_some() || !filter.not_types.is_empty();
    (!has_types || matches_type(filter, &pdu.event_type.to_string()))
        && filter.senders.as_ref().is_none_or(|senders| senders.contains(&pdu.sender))
        && !filter.not_senders.contains(&pdu.sender)
        && matches_rooms(filter.rooms.as_ref(), &filter.not_rooms, &pdu.room_id)
        && match &filter.url_filter {
            None => true,
            Some(wanted) => matches!(wanted, UrlFilter::EventsWithUrl) == has_url(event),
        }
}

fn has_url(event: &StoredEvent) -> bool {
    #[derive(serde::Deserialize)]
    struct Content {
        url: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_str::<Content>(event.pdu.content.get()).is_ok_and(|content| content.url.is_some())
}

#[cfg(test)]
mod tests {
    use ruma::room_id;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_a_room_has_beside_its_events_is_filtered_by_type_and_room() {
        for (filter, expected) in [
            (json!({}), true),
            (json!({ "types": ["m.tag"] }), true),
            (json!({ "types": ["m.*"], "not_types": ["m.tag"] }), false),
            (json!({ "types": [] }), false),
            (json!({ "rooms": ["!a:b"] }), true),
            (json!({ "rooms": ["!c:b"] }), false),
            (json!({ "not_rooms": ["!a:b"] }), false),
            (json!({ "rooms": ["!a:b"], "not_rooms": ["!a:b"] }), false),
            (json!({ "senders": ["@a:b"] }), false),
            (json!({ "not_senders": ["@a:b"] }), true),
            (json!({ "contains_url": true }), false),
            (json!({ "contains_url": false }), true),
            (json!({ "limit": 1 }), true),
        ] {
            let of_room: RoomEventFilter = serde_json::from_value(Value::clone(&filter)).unwrap();
            assert_eq!(matches_part(&of_room, room_id!("!a:b"), "m.tag"), expected, "{filter}");
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, word, expected) in [
            ("m.room.*", "m.room.message", true),
            ("m.room.message", "m.room.message", true),
            ("m.room.message", "m.room.messages", false),
            ("*", "anything", true),
            ("*.message", "m.room.message", true),
            ("m.*.mes*", "m.room.message", true),
            ("m.*.x*", "m.room.message", false),
            ("", "m", false),
        ] {
            assert_eq!(matches_pattern(pattern, word), expected, "{pattern} on {word}");
        }
    }
}
