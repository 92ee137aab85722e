//! What people are shown: events as lines, and texts of strangers made harmless.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write as _, stderr, stdout},
};

use client::{Member, Membership, Room, RoomEvent, Secrecy, Trust};
use jiff::{Timestamp, Zoned, tz::TimeZone};
use ruma::UserId;
use serde_json::Value;

/// A text of somebody else's for a terminal: control characters, which could move the cursor or change what is shown, and those that turn the
/// direction of writing become visible marks. Ends of lines stay.
pub(crate) fn safe(text: &str) -> String {
    let is_harmful = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}')
    };
    text.chars().map(|c| if is_harmful(c) { '\u{fffd}' } else { c }).collect()
}

/// The same on one line.
pub(crate) fn safe_line(text: &str) -> String {
    safe(text).replace(['\n', '\t'], " ")
}

/// What somebody is called: by their name in the room if nobody else there has it. Client-Server API, "Calculating the display name for a user".
pub(crate) fn name_of(room: &Room, user_id: &UserId) -> String {
    let name = |member: &Member| member.display_name.as_deref().map(safe_line).filter(|name| !name.trim().is_empty());
    let Some(own) = room.members.get(user_id).and_then(name) else { return user_id.to_string() };
    let is_present = |member: &Member| matches!(member.membership, Membership::Join | Membership::Invite);
    let is_unique = room
        .members
        .iter()
        .all(|(id, other)| id == user_id || !is_present(other) || name(other).as_ref() != Some(&own));
    // A name that looks like an id is somebody else's.
    if is_unique && !own.contains('@') { own } else { format!("{own} ({user_id})") }
}

/// When it was, in the user's time zone; with the day if that is not today.
fn time(timestamp_ms: u64, zone: &TimeZone, today: &Zoned) -> String {
    let timestamp = i64::try_from(timestamp_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let time = timestamp.unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(zone.clone());
    let form = if time.date() == today.date() { "%H:%M" } else { "%Y-%m-%d %H:%M" };
    time.strftime(form).to_string()
}

/// An event as a line for people; nothing for what they need not see. What goes over several lines is indented, so that nobody can write a line
/// that looks like somebody else's.
pub(crate) fn line(event: &RoomEvent, room: &Room) -> Option<String> {
    line_at(event, room, &Zoned::now())
}

fn line_at(event: &RoomEvent, room: &Room, now: &Zoned) -> Option<String> {
    let name = name_of(room, &event.sender);
    let text = match &event.secrecy {
        Secrecy::Undecryptable(reason) => format!("{name}: (cannot be read: {})", safe_line(&reason.to_string())),
        _ => said(event, room, &name)?,
    };
    let time = time(event.timestamp_ms, now.time_zone(), now);
    Some(format!("{time} {} {}", mark(event, room), text.replace('\n', "\n      | ")))
}

/// What is known of the sender; `chat --help` explains it.
fn mark(event: &RoomEvent, room: &Room) -> char {
    match &event.secrecy {
        Secrecy::Encrypted(Trust::Verified { .. }) => '✓',
        Secrecy::Encrypted(Trust::Unverified { .. }) => '~',
        Secrecy::Encrypted(Trust::UnknownDevice | Trust::Imported) => '?',
        Secrecy::Undecryptable(_) => '✗',
        Secrecy::Clear if room.encryption.is_some() && event.state_key.is_none() => '!',
        Secrecy::Clear => ' ',
    }
}

fn said(event: &RoomEvent, room: &Room, name: &str) -> Option<String> {
    let text = |key: &str| event.content.get(key).and_then(Value::as_str);
    match (event.event_type.as_str(), &event.state_key) {
        ("m.room.message", None) => message(event, name),
        ("m.reaction", None) => {
            let key = event.content.get("m.relates_to")?.get("key")?.as_str()?;
            Some(format!("* {name} reacts with {}", safe_line(key)))
        }
        ("m.room.redaction", None) => Some(format!("* {name} took a message back")),
        ("m.room.member", Some(user)) => {
            let of = name_of(room, <&UserId>::try_from(user.as_str()).ok()?);
            Some(match text("membership")? {
                "join" => format!("* {of} is in the room"),
                "invite" => format!("* {name} invited {of}"),
                "leave" if event.sender == *user => format!("* {of} left"),
                "leave" => format!("* {name} removed {of}"),
                "ban" => format!("* {name} banned {of}"),
                "knock" => format!("* {of} would like to join"),
                _ => return None,
            })
        }
        ("m.room.encryption", Some(_)) => Some("* from here on, messages are encrypted".to_owned()),
        ("m.room.name", Some(_)) => {
            Some(format!("* {name} called the room \"{}\"", safe_line(text("name").unwrap_or_default())))
        }
        ("m.room.topic", Some(_)) => {
            Some(format!("* {name} set the topic: {}", safe_line(text("topic").unwrap_or_default())))
        }
        _ => None,
    }
}

/// Client-Server API, "m.room.message msgtypes".
fn message(event: &RoomEvent, name: &str) -> Option<String> {
    let body = safe(event.body()?);
    let edited = || event.content.get("m.new_content")?.get("body")?.as_str().map(safe);
    Some(match event.content.get("msgtype").and_then(Value::as_str)? {
        "m.emote" => format!("* {name} {body}"),
        "m.image" | "m.file" | "m.audio" | "m.video" => {
            let file = event.content.get("filename").and_then(Value::as_str).map_or_else(|| body.clone(), safe_line);
            format!("{name}: [file {file}, {}]", event.event_id)
        }
        "m.key.verification.request" => format!("* {name} asks to verify: `swiftchat-client verify` answers"),
        _ => edited().map_or_else(|| format!("{name}: {body}"), |edited| format!("{name} (edited): {edited}")),
    })
}

/// Prints a result.
pub(crate) fn print(text: impl Display) -> io::Result<()> {
    writeln!(stdout(), "{text}")
}

/// Rows as a table with a heading, its columns aligned; the last column is not padded.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heading[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let row = |cells: [&str; N]| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let lines = rows.iter().map(|cells| row(std::array::from_fn(|column| cells[column].as_str())));
    std::iter::once(row(heading)).chain(lines).collect::<Vec<_>>().join("\n")
}

/// Says on a terminal how much of a file has been sent; elsewhere it says nothing.
pub(crate) fn progress(name: &str, bytes: u64) -> impl Fn(u64) + Send + 'static {
    let name = safe_line(name);
    let is_shown = stderr().is_terminal();
    let shown = std::sync::atomic::AtomicU64::new(u64::MAX);
    move |sent| {
        let percent = (sent.min(bytes) * 100).checked_div(bytes).unwrap_or(100);
        if is_shown && shown.swap(percent, std::sync::atomic::Ordering::Relaxed) != percent {
            let end = if percent == 100 { "\n" } else { "" };
            let _ = write!(stderr(), "\r{name}: {percent} %{end}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use client::Undecryptable;
    use ruma::{event_id, room_id, user_id};
    use serde_json::json;

    use super::*;

    fn room(names: &[(&UserId, &str)]) -> Room {
        let member = |name: &str| Member { membership: Membership::Join, display_name: Some(name.to_owned()) };
        Room {
            room_id: room_id!("!room:example.org").to_owned(),
            membership: Membership::Join,
            inviter: None,
            name: None,
            topic: None,
            alias: None,
            encryption: None,
            history_visibility: "shared".to_owned(),
            unread: 0,
            members: names.iter().map(|(id, name)| ((*id).to_owned(), member(name))).collect::<BTreeMap<_, _>>(),
        }
    }

    fn says(content: Value, secrecy: Secrecy) -> RoomEvent {
        RoomEvent {
            room_id: room_id!("!room:example.org").to_owned(),
            event_id: event_id!("$event").to_owned(),
            sender: user_id!("@alice:example.org").to_owned(),
            timestamp_ms: 1_000 * 60 * 61,
            event_type: "m.room.message".to_owned(),
            state_key: None,
            content: content.as_object().unwrap().clone(),
            secrecy,
        }
    }

    fn shown(event: &RoomEvent) -> String {
        let alice = user_id!("@alice:example.org");
        line_at(event, &room(&[(alice, "Alice")]), &Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC)).unwrap()
    }

    #[test]
    fn a_message_cannot_move_the_cursor_nor_pass_for_somebody_elses() {
        let text = json!({ "msgtype": "m.text", "body": "a\x1b[2J\u{9b}1A\r\u{202e}b\n01:02 ✓ Bob: yes" });
        assert_eq!(
            shown(&says(text, Secrecy::Clear)),
            "01:01   Alice: a\u{fffd}[2J\u{fffd}1A\u{fffd}\u{fffd}b\n      | 01:02 ✓ Bob: yes"
        );
    }

    #[test]
    fn the_mark_says_what_is_known_of_the_sender() {
        let text = || json!({ "msgtype": "m.text", "body": "hi" });
        let device_id = || "DEVICE".into();
        for (secrecy, mark) in [
            (Secrecy::Encrypted(Trust::Verified { device_id: device_id() }), "✓"),
            (Secrecy::Encrypted(Trust::Unverified { device_id: device_id() }), "~"),
            (Secrecy::Encrypted(Trust::Imported), "?"),
        ] {
            assert_eq!(shown(&says(text(), secrecy)), format!("01:01 {mark} Alice: hi"));
        }
        let unread = shown(&says(text(), Secrecy::Undecryptable(Undecryptable::NoKey)));
        assert_eq!(unread, "01:01 ✗ Alice: (cannot be read: this device has not got the key)");
    }

    #[test]
    fn two_people_of_one_name_are_told_apart_by_their_ids() {
        let (alice, mallory) = (user_id!("@alice:example.org"), user_id!("@mallory:example.org"));
        assert_eq!(name_of(&room(&[(alice, "Alice"), (mallory, "Mallory")]), alice), "Alice");
        let room_of_two = room(&[(alice, "Alice"), (mallory, "Alice")]);
        assert_eq!(name_of(&room_of_two, alice), "Alice (@alice:example.org)");
        assert_eq!(
            name_of(&room(&[(mallory, "@alice:example.org")]), mallory),
            "@alice:example.org (@mallory:example.org)"
        );
        assert_eq!(name_of(&room(&[]), alice), "@alice:example.org");
    }

    #[test]
    fn a_table_has_aligned_columns() {
        let rows = [["a".to_owned(), "bb".to_owned()], ["ccc".to_owned(), String::new()]];
        assert_eq!(table(["X", "YY"], &rows), "X    YY\na    bb\nccc");
    }
}
