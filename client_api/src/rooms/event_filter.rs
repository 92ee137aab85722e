//! Which events of a room a client asked for. Client-Server API, "Filtering".

use ruma::{
    RoomId,
    api::client::filter::{LazyLoadOptions, RoomEventFilter, UrlFilter},
};
use serde::Deserialize;
use storage::StoredEvent;

/// Whether the client asked for this event.
pub(super) fn wants(filter: &RoomEventFilter, room_id: &RoomId, event: &StoredEvent) -> bool {
    let pdu = &event.pdu;
    let event_type = pdu.event_type.to_string();
    let has_type = |types: &[String]| types.iter().any(|pattern| matches(pattern, &event_type));
    filter.types.as_deref().is_none_or(has_type)
        && !has_type(&filter.not_types)
        && filter.senders.as_ref().is_none_or(|senders| senders.contains(&pdu.sender))
        && !filter.not_senders.contains(&pdu.sender)
        && filter.rooms.as_ref().is_none_or(|rooms| rooms.iter().any(|room| room == room_id))
        && !filter.not_rooms.iter().any(|room| room == room_id)
        && filter.url_filter.is_none_or(|wanted| (wanted == UrlFilter::EventsWithUrl) == has_url(pdu.content.get()))
}

/// Whether the members are loaded as they are needed. Client-Server API, "Lazy-loading room members".
pub(super) fn is_lazy(filter: &RoomEventFilter) -> bool {
    matches!(filter.lazy_load_options, LazyLoadOptions::Enabled { .. })
}

fn has_url(content: &str) -> bool {
    #[derive(Deserialize)]
    struct Content {
        url: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_str::<Content>(content).is_ok_and(|content| content.url.is_some())
}

/// Whether a type fits a pattern, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    // Each part is taken where it comes first; the last one must end the text.
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return text.ends_with(part);
        }
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_in_a_type_stands_for_any_text() {
        for (pattern, text, expected) in [
            ("m.room.name", "m.room.name", true),
            ("m.room.name", "m.room.names", false),
            ("m.*", "m.room.name", true),
            ("*", "", true),
            ("*.name", "m.room.name", true),
            ("m.*.name", "m.name", false),
            ("m.*room*", "m.room", true),
            ("a*a", "a", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("**", "x", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_url_counts_wherever_the_content_has_one() {
        assert!(has_url(r#"{"url":"mxc://a/b"}"#));
        assert!(!has_url(r#"{"body":"url"}"#));
        assert!(!has_url(r#"{"url":null}"#));
    }
}
