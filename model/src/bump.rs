//! What counts as activity in a room.

use ruma::events::TimelineEventType;

/// The types of events that raise a room's `bump_stamp`: "proper" activity. MSC4186, "Common fields".
///
/// With them the name under which clients still send the start of a poll.
const BUMP_TYPES: [&str; 8] = [
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "org.matrix.msc3381.poll.start",
    "m.beacon_info",
];

/// Whether an event of a type counts as activity in its room.
#[must_use]
pub fn is_bump(event_type: &TimelineEventType) -> bool {
    match event_type {
        TimelineEventType::RoomMessage | TimelineEventType::RoomEncrypted => true,
        other => BUMP_TYPES.contains(&other.to_string().as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_polls_are_activity_and_names_and_members_are_not() {
        for event_type in BUMP_TYPES {
            assert!(is_bump(&event_type.into()), "{event_type}");
        }
        for event_type in ["m.room.member", "m.room.name", "m.reaction", "m.room.redaction", "m.poll.response"] {
            assert!(!is_bump(&event_type.into()), "{event_type}");
        }
    }
}
