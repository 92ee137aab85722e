//! The bounds that the specification sets, and those that we set where it is silent.

/// Largest event, in bytes of canonical JSON. Client-Server API, "Size limits".
pub const EVENT_BYTES_MAX: usize = 65_536;

/// Longest text that is looked at as an event of another server, in bytes: it need not be canonical, and has what servers add to it.
pub const TOLD_EVENT_BYTES_MAX: usize = 4 * EVENT_BYTES_MAX;

/// Longest identifier (user, room, event id, alias), event type and state key, in bytes. Client-Server API, "Size limits".
pub const ID_BYTES_MAX: usize = 255;

/// Largest request body of an endpoint that does not say otherwise, in bytes.
///
/// Room for an event of the largest size, escaped and with its wrapping, and for a large key upload.
pub const BODY_BYTES_MAX: usize = 1_048_576;

/// Largest request body of messages to devices, in bytes: an encrypted room key for each of 2,000 devices, and as many names.
pub const TO_DEVICE_BODY_BYTES_MAX: usize = 5 * 1_048_576;

/// Deepest nesting of JSON that we read. `serde_json` refuses more.
pub const JSON_DEPTH_MAX: usize = 128;

/// Deepest nesting of what one client writes and others are sent: of the content of an event, of a message to a device. Less than
/// what can be read: it is shown inside of answers, a redaction in `/sync` nine levels down, and every reader of those has a bound
/// like ours.
pub const CONTENT_DEPTH_MAX: usize = 100;

/// Most `prev_events` of an event. Server-Server API, "PDUs".
pub const PREV_EVENTS_MAX: usize = 20;

/// Most `auth_events` of an event. Server-Server API, "PDUs".
pub const AUTH_EVENTS_MAX: usize = 10;

/// Largest depth of an event: the largest integer of canonical JSON. Server-Server API, "PDUs".
pub const DEPTH_MAX: i64 = (1 << 53) - 1;

/// Most events that one answer of `/messages`, `/context` and one room of `/sync` carry.
pub const TIMELINE_EVENTS_MAX: usize = 1_000;

/// Longest transaction id, in bytes.
pub const TRANSACTION_ID_BYTES_MAX: usize = 255;

/// Whether a text from outside may be stored as a name that is looked up: it is there, fits into an index and has no zero byte, which
/// PostgreSQL would give back as another character.
#[must_use]
pub fn is_name(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len()) && !text.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_bound_and_no_zero_byte() {
        assert!(is_name("a", 1));
        assert!(is_name(&"ä".repeat(127), ID_BYTES_MAX));
        for text in ["", "a\0", "\0", &"ä".repeat(128)] {
            assert!(!is_name(text, ID_BYTES_MAX), "{text:?}");
        }
    }
}
