//! One request: an endpoint, and how much of it is hostile.

use std::fmt;

use super::{
    dice::Dice,
    values::{hostile, hostile_id, string, write},
    world::World,
};
use crate::{
    conformance::{Operation, Parameter, Schema},
    encode,
};

/// Pieces of paths and queries that are broken as HTTP, or nearly.
const BROKEN_PIECES: [&str; 14] =
    ["%", "%z", "%zz", "%F", "%FF", "%ff%fe", "%C3%28", "%00", "%2F", "%2e%2e", "..", "%ED%A0%80", "%F0%9F%A6%80", "+"];
/// Paths that no server has.
const STRANGE_PATHS: [&str; 12] = [
    "/",
    "//",
    "/_matrix",
    "/_matrix/",
    "/_matrix/client",
    "/_matrix/client/v3/",
    "/_matrix/client/v3//sync",
    "/_matrix/client/v99/sync",
    "/_matrix/client/v3/rooms/%FF/messages",
    "/_matrix/client/../client/versions",
    "/_matrix/%zz",
    "/.well-known/%2e%2e/x",
];
/// Methods besides those that the specification uses.
const METHODS: [&str; 8] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "TRACE", "BREW"];
/// A token that no server gave.
const BAD_TOKENS: [&str; 5] = ["bad", "syt_YQ_AAAAAAAAAAAAAAAAAAAA_000000", "%00", "eyJhbGciOiJub25lIn0.e30.", " "];

/// A request of the fuzzer.
pub(super) struct Attempt<'a> {
    pub(super) operation: &'a Operation,
    pub(super) method: String,
    pub(super) path: Vec<u8>,
    pub(super) token: Option<String>,
    pub(super) who: Who,
    pub(super) content_type: Option<&'static str>,
    pub(super) body: Vec<u8>,
    /// Whether method and path are those of the operation, so that the table says what may be answered.
    pub(super) is_on_path: bool,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Nobody,
    User,
    Guest,
    Stranger,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(dice: &mut Dice, operations: &[&'a Operation], world: &World) -> Self {
        let operation = *dice.pick(operations);
        // Half of the requests mean well; they get where the others never come.
        let percent = *dice.pick(&[0, 0, 0, 2, 10, 30]);
        let (who, token) = match dice.below(100) {
            0..70 => (Who::User, Some(world.user.token().to_owned())),
            70..80 => (Who::Guest, world.guest.as_ref().map(|guest| guest.token().to_owned())),
            80..90 => (Who::Stranger, Some((*dice.pick(&BAD_TOKENS)).to_owned())),
            _ => (Who::Nobody, None),
        };
        let who = if token.is_none() { Who::Nobody } else { who };
        let has_right_method = !dice.chance(3);
        let method = if has_right_method { operation.method.as_str() } else { *dice.pick(&METHODS) };
        let (path, is_path_sound) = path(dice, operation, world, percent);
        let body = body(dice, operation, world, percent);
        let content_type = match dice.below(20) {
            0 => None,
            1 => Some("text/plain"),
            2 => Some("application/json; charset=utf-8"),
            _ => Some("application/json"),
        };
        Self {
            operation,
            method: method.to_owned(),
            path,
            token,
            who,
            content_type: if body.is_empty() { None } else { content_type },
            body,
            is_on_path: method == operation.method && is_path_sound,
        }
    }
}

fn path(dice: &mut Dice, operation: &Operation, world: &World, percent: usize) -> (Vec<u8>, bool) {
    if dice.chance(2) {
        return (dice.pick(&STRANGE_PATHS).as_bytes().to_vec(), false);
    }
    let mut is_sound = true;
    let mut path = operation.path.clone();
    for parameter in &operation.path_parameters {
        let value = if percent > 0 && dice.chance(percent) && dice.chance(40) {
            is_sound = false;
            (*dice.pick(&BROKEN_PIECES)).to_owned()
        } else {
            let value = parameter_value(dice, parameter, world, percent);
            // Nothing between two slashes is another path.
            is_sound &= !value.is_empty() && value != "." && value != "..";
            encode(&value)
        };
        path = path.replace(&format!("{{{}}}", parameter.name), &value);
    }
    if dice.chance(2) {
        path = path.replace("/v3/", dice.word(&["/r0/", "/unstable/", "/v1/"]));
        is_sound = false;
    }
    let mut separator = '?';
    for parameter in &operation.query_parameters {
        let keep = if parameter.required { !dice.chance(percent) } else { dice.chance(35) };
        if !keep {
            continue;
        }
        let value = if parameter.name == "timeout" {
            // Long waits are right answers to long timeouts.
            (*dice.pick(&["0", "1", "20", "-1", "x", "1.5", "99999999999999999999999"])).to_owned()
        } else if percent > 0 && dice.chance(percent) && dice.chance(40) {
            (*dice.pick(&BROKEN_PIECES)).to_owned()
        } else {
            encode(&parameter_value(dice, parameter, world, percent))
        };
        path.push(separator);
        path.push_str(&parameter.name);
        path.push('=');
        path.push_str(&value);
        separator = '&';
    }
    if percent > 0 && dice.chance(10) {
        path.push(separator);
        path.push_str(dice.word(&["x=1", "=", "&&", "a=%zz", "limit=1&limit=2", "access_token=bad", "%FF=%FF"]));
    }
    (path.into_bytes(), is_sound)
}

fn parameter_value(dice: &mut Dice, parameter: &Parameter, world: &World, percent: usize) -> String {
    let hostile_number = ["-1", "1.5", "x", "99999999999999999999", "1e3", "", "0x10"];
    let Schema { kind, format, allowed, .. } = &parameter.schema;
    if percent > 0 && dice.chance(percent) {
        return hostile_id(dice);
    }
    if let Some(text) = (!allowed.is_empty()).then(|| dice.pick(allowed).as_str().map(str::to_owned)).flatten() {
        return text;
    }
    match kind.all().first().map(String::as_str) {
        Some("integer" | "number") if percent > 0 && dice.chance(percent) => (*dice.pick(&hostile_number)).to_owned(),
        Some("integer" | "number") => (*dice.pick(&["0", "1", "5", "100", "9007199254740991"])).to_owned(),
        Some("boolean") => (*dice.pick(&["true", "false"])).to_owned(),
        _ if parameter.name == "filter" && dice.chance(50) => {
            let mut filter = String::new();
            let schema = serde_json::from_value(serde_json::json!({
                "type": "object",
                "properties": {
                    "room": { "type": "object", "properties": {
                        "timeline": { "type": "object", "properties": { "limit": { "type": "integer" }, "types": { "type": "array" } } },
                        "rooms": { "type": "array", "items": { "type": "string", "format": "mx-room-id" } },
                        "include_leave": { "type": "boolean" },
                    } },
                    "event_fields": { "type": "array", "items": { "type": "string" } },
                    "presence": { "type": "object", "properties": { "not_types": { "type": "array", "items": { "type": "string" } } } },
                },
            }));
            write(&mut filter, &schema.unwrap_or_default(), "filter", world, dice, percent, 0);
            filter
        }
        _ => string(format.as_deref(), &parameter.name, world, dice, percent),
    }
}

fn body(dice: &mut Dice, operation: &Operation, world: &World, percent: usize) -> Vec<u8> {
    let Some(expected) = &operation.body else {
        // Where nothing is expected something may come all the same.
        return if dice.chance(3) { hostile(dice).into_bytes() } else { Vec::new() };
    };
    let garbage = if percent == 0 { 2 } else { 20 };
    if dice.chance(garbage) {
        return match dice.below(14) {
            0 => Vec::new(),
            1 => b"{".to_vec(),
            2 => b"{\"a\":\"\xff\xfe\"}".to_vec(),
            3 => b"\xef\xbb\xbf{}".to_vec(),
            4 => [vec![b'['; 20_000], vec![b']'; 20_000]].concat(),
            5 => [b"{\"a\":".repeat(20_000), b"1".to_vec(), vec![b'}'; 20_000]].concat(),
            6 => b"{\"a\":1}{\"b\":2}".to_vec(),
            7 => b"\"text\"".to_vec(),
            8 => b"[]".to_vec(),
            9 => b"null".to_vec(),
            10 => vec![0; 1_000],
            // Beyond any limit of a body, but rarely, as it takes its time.
            11 if dice.chance(20) => [b"{\"a\":\"".to_vec(), vec![b'x'; 20_000_000], b"\"}".to_vec()].concat(),
            12 => [b"{\"a\":\"".to_vec(), vec![b'x'; 300_000], b"\"}".to_vec()].concat(),
            _ => hostile(dice).into_bytes(),
        };
    }
    let Some(schema) = &expected.schema else { return vec![b'x'; 1 + dice.below(3_000)] };
    let mut text = String::new();
    write(&mut text, schema, "", world, dice, percent, 0);
    text.into_bytes()
}

impl fmt::Display for Attempt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(600)]).into_owned();
        write!(
            f,
            "{} by {:?}: {} {}\n    {} bytes of {}: {}",
            self.operation.name(),
            self.who,
            self.method,
            start(&self.path),
            self.body.len(),
            self.content_type.unwrap_or("no type"),
            start(&self.body),
        )
    }
}
