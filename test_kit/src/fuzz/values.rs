//! JSON texts: of the shape that a schema asks for, or hostile. Written as text, because much of what is hostile is no JSON value.

use serde_json::{Value, json};

use super::{dice::Dice, world::World};
use crate::conformance::Schema;

/// JSON that a careless server trips over.
const HOSTILE: [&str; 34] = [
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "-0",
    "1e2",
    "1e400",
    "9007199254740991",
    "9007199254740992",
    "-9007199254740992",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "-9223372036854775809",
    "99999999999999999999999999999999999999999",
    "\"\"",
    "\" \"",
    "\"\\u0000\"",
    "\"a\\u0000b\"",
    "\"\\ud800\"",
    "\"\\udc00\\ud800\"",
    "\"\\u202e\\u2066\"",
    "\"%s%n\"",
    "\"'; DROP TABLE events; --\"",
    "\"../../etc/passwd\"",
    "[]",
    "{}",
    "[null]",
    "{\"\":null}",
    "{\"a\":1,\"a\":2}",
    "[[[[[[[[]]]]]]]]",
    "NaN",
    "\"\\x\"",
];
/// Ids that are wrong in some way.
const HOSTILE_IDS: [&str; 26] = [
    "",
    "@",
    "!",
    "#",
    "$",
    ":",
    "@:",
    "!:",
    "@a",
    "@a:",
    "@:localhost",
    "!:localhost",
    "@a:b:c:d",
    "@a b:localhost",
    "@A:localhost",
    "@a:local host",
    "@\u{0}:localhost",
    "!\u{0}:localhost",
    "@ü:localhost",
    "!a:[::1",
    "@a:localhost:999999",
    "!nowhere",
    "#nowhere:",
    "$",
    "*",
    "@_system_:localhost",
];
/// Event types with meaning, and some without.
const EVENT_TYPES: [&str; 24] = [
    "m.room.message",
    "m.room.name",
    "m.room.topic",
    "m.room.power_levels",
    "m.room.member",
    "m.room.create",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.canonical_alias",
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.tombstone",
    "m.room.pinned_events",
    "m.room.redaction",
    "m.room.third_party_invite",
    "m.room.aliases",
    "m.reaction",
    "m.space.child",
    "m.room.encrypted",
    "m.direct",
    "m.push_rules",
    "m.fully_read",
    "org.example.other",
];

/// Writes a JSON value of the shape of `schema`; each part is hostile in `percent` of a hundred cases.
pub(super) fn write(
    out: &mut String,
    schema: &Schema,
    name: &str,
    world: &World,
    dice: &mut Dice,
    percent: usize,
    depth: usize,
) {
    if percent > 0 && dice.chance(percent) {
        return out.push_str(&hostile(dice));
    }
    if name == "auth" {
        return out.push_str(&auth(world, dice));
    }
    if !schema.allowed.is_empty() {
        return out.push_str(&dice.pick(&schema.allowed).to_string());
    }
    if !schema.one_of.is_empty() {
        let one = dice.pick(&schema.one_of).clone();
        return write(out, &one, name, world, dice, percent, depth + 1);
    }
    let kinds = schema.kind.all();
    let kind = if kinds.is_empty() { "any" } else { dice.pick(kinds).as_str() };
    match kind {
        "object" if schema.properties.is_empty() && schema.values.is_none() => {
            out.push_str(&content(world, dice, percent))
        }
        "object" => object(out, schema, world, dice, percent, depth),
        "array" => {
            let items = schema.items.as_deref().cloned().unwrap_or_default();
            let length = if depth > 8 { 0 } else { dice.below(3) };
            out.push('[');
            for at in 0..length {
                out.push_str(if at == 0 { "" } else { "," });
                write(out, &items, name, world, dice, percent, depth + 1);
            }
            out.push(']');
        }
        "string" => {
            let text = string(schema.format.as_deref(), name, world, dice, percent);
            out.push_str(&Value::from(text).to_string());
        }
        "integer" | "number" => out.push_str(dice.word(&["0", "1", "10", "50", "1000"])),
        "boolean" => out.push_str(dice.word(&["true", "false"])),
        "null" => out.push_str("null"),
        _ => out.push_str(&content(world, dice, percent)),
    }
}

fn object(out: &mut String, schema: &Schema, world: &World, dice: &mut Dice, percent: usize, depth: usize) {
    out.push('{');
    let mut first = true;
    let mut key = |out: &mut String, name: &str| {
        out.push_str(if first { "" } else { "," });
        first = false;
        out.push_str(&Value::from(name).to_string());
        out.push(':');
    };
    for (name, field) in &schema.properties {
        let is_required = schema.required.contains(name);
        let keep = if is_required { !dice.chance(percent) } else { depth < 6 && dice.chance(40) };
        if keep {
            key(out, name);
            write(out, field, name, world, dice, percent, depth + 1);
        }
    }
    if let Some(values) = &schema.values
        && depth < 6
    {
        for _ in 0..dice.below(3) {
            let format = schema.names.as_ref().and_then(|names| names.format.as_deref());
            let name = string(format, "", world, dice, percent);
            key(out, &name);
            write(out, values, &name, world, dice, percent, depth + 1);
        }
    }
    out.push('}');
}

/// A string that stands for what `format` says, or for what a parameter or field called `name` usually holds.
pub(super) fn string(format: Option<&str>, name: &str, world: &World, dice: &mut Dice, percent: usize) -> String {
    if percent > 0 && dice.chance(percent) {
        return hostile_id(dice);
    }
    let known = |kind: &str, dice: &mut Dice| world.known(kind, dice).map(str::to_owned);
    let kind = match (format, name) {
        (Some("mx-user-id"), _) | (_, "userId" | "user_id" | "user") => "user",
        (Some("mx-room-id"), _) | (_, "roomId" | "room_id") => "room",
        (_, "roomIdOrAlias") => *dice.pick(&["room", "alias"]),
        (Some("mx-room-alias"), _) | (_, "roomAlias") => "alias",
        (Some("mx-event-id"), _) | (_, "eventId" | "event_id") => "event",
        (_, "deviceId" | "device_id") => "device",
        (_, "filterId" | "filter") => "filter",
        (_, "since" | "from" | "to" | "next_batch") => "stream",
        (_, "session") => "session",
        (_, "refresh_token") => "refresh",
        (_, "token") => "login",
        (_, "version") => "version",
        _ => "",
    };
    if !kind.is_empty()
        && dice.chance(90)
        && let Some(value) = known(kind, dice)
    {
        return value;
    }
    match (format, name) {
        (Some("mx-server-name"), _) | (_, "serverName" | "server_name" | "server" | "via") => {
            (*dice.pick(&[world.server_name(), "localhost", "nowhere.invalid"])).to_owned()
        }
        (Some("mx-mxc-uri" | "uri"), _) => "mxc://localhost/nothing".to_owned(),
        (Some("mx-user-id"), _) => "@nobody:localhost".to_owned(),
        (Some("mx-room-id"), _) => "!nowhere:localhost".to_owned(),
        (Some("mx-event-id"), _) => "$nothing".to_owned(),
        (Some("mx-unpadded-base64" | "mx-urlsafe-unpadded-base64"), _) => "AAAA".to_owned(),
        (_, "eventType" | "type") if dice.chance(90) => (*dice.pick(&EVENT_TYPES)).to_owned(),
        (_, "kind") => (*dice.pick(&["override", "underride", "sender", "room", "content"])).to_owned(),
        (_, "receiptType") => (*dice.pick(&["m.read", "m.read.private", "m.fully_read"])).to_owned(),
        (_, "room_version" | "new_version") => {
            (*dice.pick(&["1", "3", "6", "9", "10", "11", "12", "12", "11", "10", "99"])).to_owned()
        }
        (_, "preset") => "public_chat".to_owned(),
        (_, "username" | "room_alias_name" | "txnId") => format!("n{}", dice.below(100_000)),
        (_, "stateKey" | "state_key") => (*dice.pick(&["", world.user.id(), world.other.id(), "key"])).to_owned(),
        (_, "membership") => (*dice.pick(&["join", "invite", "leave", "ban", "knock"])).to_owned(),
        (_, "keyName") => (*dice.pick(&["displayname", "avatar_url", "org.example.field"])).to_owned(),
        _ => (*dice.pick(&["text", "x", "m.something", "Grüße 🦀"])).to_owned(),
    }
}

/// The content of some event or piece of account data.
fn content(world: &World, dice: &mut Dice, percent: usize) -> String {
    let (user, other) = (world.user.id(), world.other.id());
    let event = world.known("event", dice).unwrap_or("$nothing").to_owned();
    let number =
        dice.pick(&[json!(0), json!(50), json!(100), json!("50"), json!(-1), json!(9_007_199_254_740_991_i64)]).clone();
    let one = match dice.below(16) {
        0 => json!({ "msgtype": "m.text", "body": "hello" }),
        1 => json!({ "membership": *dice.pick(&["join", "invite", "leave", "ban", "knock", "other"]) }),
        2 => json!({ "users": { user: 100, other: number }, "events": { "m.room.name": number }, "state_default": 50 }),
        3 => json!({ "join_rule": *dice.pick(&["public", "invite", "knock", "restricted", "private", "other"]) }),
        4 => json!({ "history_visibility": *dice.pick(&["shared", "joined", "invited", "world_readable", "other"]) }),
        5 => json!({ "name": "a name", "topic": "a topic" }),
        6 => json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": event, "key": "👍" } }),
        7 => {
            json!({ "m.relates_to": { "rel_type": "m.replace", "event_id": event }, "m.new_content": { "body": "b" } })
        }
        8 => json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": event } }),
        9 => json!({ "allow": ["*"], "deny": ["nowhere.invalid"] }),
        10 => json!({ "pinned": [event] }),
        11 => json!({ "redacts": event }),
        12 => json!({ "algorithm": "m.megolm.v1.aes-sha2" }),
        13 => json!({ "alias": "#nowhere:localhost", "alt_aliases": ["#x:localhost"] }),
        14 => json!({ "creator": user, "room_version": "9", "predecessor": { "room_id": "!a:b", "event_id": "$a" } }),
        _ => json!({}),
    };
    let mut text = one.to_string();
    if percent > 0 && dice.chance(percent) {
        text = format!("{{\"body\":{},\"msgtype\":\"m.text\"}}", hostile(dice));
    }
    if percent > 0 && dice.chance(percent) {
        // Between any two values something else.
        if let Some(colon) = text.find(':') {
            let end = text[colon..].find([',', '}']).map_or(text.len(), |end| colon + end);
            text.replace_range(colon + 1..end, &hostile(dice));
        }
    }
    text
}

/// What user-interactive authentication may be told. Client-Server API, "User-Interactive Authentication API".
fn auth(world: &World, dice: &mut Dice) -> String {
    let session = world.known("session", dice).unwrap_or("none").to_owned();
    let user = &world.user;
    let password = format!("{}'s password", user.localpart());
    let identifier = json!({ "type": "m.id.user", "user": user.id() });
    match dice.below(6) {
        0 | 1 => json!({ "type": "m.login.dummy" }),
        2 => json!({ "type": "m.login.dummy", "session": session }),
        3 => json!({ "type": "m.login.password", "identifier": identifier, "password": password }),
        4 => json!({ "type": "m.login.password", "identifier": identifier, "password": "wrong", "session": session }),
        _ => json!({ "type": "m.login.other", "session": session }),
    }
    .to_string()
}

/// Something that is hardly ever right.
pub(super) fn hostile(dice: &mut Dice) -> String {
    match dice.below(40) {
        0 => format!("\"{}\"", "x".repeat(70_000)),
        1 => format!("{}{}", "[".repeat(200), "]".repeat(200)),
        2 => format!("{}1{}", "{\"a\":".repeat(150), "}".repeat(150)),
        3 => format!("[{}1]", "1,".repeat(2_000)),
        4 => format!("\"@{}:localhost\"", "a".repeat(250)),
        5 => format!("\"!{}:localhost\"", "a".repeat(300)),
        6 => Value::from(hostile_id(dice)).to_string(),
        _ => (*dice.pick(&HOSTILE)).to_owned(),
    }
}

/// An id, or another short text, that is hardly ever right.
pub(super) fn hostile_id(dice: &mut Dice) -> String {
    match dice.below(30) {
        0 => format!("@{}:localhost", "a".repeat(250)),
        1 => format!("!{}:localhost", "a".repeat(300)),
        2 => format!("${}", "a".repeat(300)),
        3 => format!("#{}:localhost", "ä".repeat(200)),
        4 => "x".repeat(2_000),
        _ => (*dice.pick(&HOSTILE_IDS)).to_owned(),
    }
}
