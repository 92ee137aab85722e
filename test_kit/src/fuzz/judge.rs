//! What may be answered to a request of the fuzzer.

use serde_json::Value;

use super::request::{Attempt, Who};
use crate::{Answer, Failure, conformance::violation};

/// A body from here on may be refused before it is read, which a client can see as a closed connection.
const BODY_READ_MIN: usize = 60_000;
/// A path from here on may be refused by the HTTP library, without a body.
const PATH_READ_MIN: usize = 4_000;

/// What is wrong with an answer, in words.
pub(super) fn judge(attempt: &Attempt<'_>, answer: &Result<Answer, Failure>) -> Option<String> {
    match answer {
        // What HTTP cannot carry was not sent.
        Err(Failure::NotHttp(_)) => None,
        Err(Failure::Connection(_)) if attempt.body.len() >= BODY_READ_MIN => None,
        Err(Failure::Connection(cause)) => Some(format!("the connection ended: {cause}")),
        Err(Failure::Hang) => Some("no answer came".to_owned()),
        Ok(answer) => match answer.status.as_u16() {
            200..300 => success(attempt, answer),
            300..400 => None,
            400..500 if attempt.method == "HEAD" => None,
            414 | 431 if attempt.path.len() >= PATH_READ_MIN => None,
            400..500 => error(attempt, answer),
            // Some endpoints ask other servers, and may say that these failed.
            502 | 504 if attempt.is_on_path && attempt.operation.responses.contains_key(answer.status.as_str()) => None,
            status => Some(format!("status {status}")),
        },
    }
}

fn success(attempt: &Attempt<'_>, answer: &Answer) -> Option<String> {
    if !attempt.is_on_path {
        return None;
    }
    let operation = attempt.operation;
    let needs_token = !operation.auth.starts_with("none") && !operation.auth.ends_with("(optional)");
    if needs_token && matches!(attempt.who, Who::Nobody | Who::Stranger) {
        return Some("a success without a valid token".to_owned());
    }
    let shape = operation.responses.get(answer.status.as_str()).and_then(Option::as_ref)?;
    let schema = shape.schema.as_ref()?;
    if !answer.content_type.starts_with("application/json") {
        return Some(format!("a success of type `{}` instead of JSON", answer.content_type));
    }
    match serde_json::from_slice(&answer.bytes) {
        Ok(value) => violation(schema, &value).map(|wrong| format!("a success of the wrong shape: {wrong}")),
        Err(error) => Some(format!("a success that is no JSON: {error}")),
    }
}

fn error(attempt: &Attempt<'_>, answer: &Answer) -> Option<String> {
    let status = answer.status.as_u16();
    let body: Value = match serde_json::from_slice(&answer.bytes) {
        Ok(body) => body,
        Err(error) => return Some(format!("status {status} with a body that is no JSON: {error}")),
    };
    if !answer.content_type.starts_with("application/json") {
        return Some(format!("status {status} of type `{}` instead of JSON", answer.content_type));
    }
    // User-interactive authentication asks for the next stage. Client-Server API, "User-Interactive Authentication API".
    let is_stage = status == 401 && body["flows"].is_array() && body["session"].is_string();
    let Some(code) = body["errcode"].as_str() else {
        return (!is_stage).then(|| format!("status {status} without `errcode`"));
    };
    if is_stage {
        return None;
    }
    if !body["error"].is_string() {
        return Some(format!("status {status} {code} without `error`"));
    }
    let allowed: &[u16] = match code {
        "M_UNKNOWN_TOKEN" | "M_MISSING_TOKEN" => &[401],
        "M_FORBIDDEN" => &[403],
        "M_GUEST_ACCESS_FORBIDDEN" | "M_USER_DEACTIVATED" | "M_WRONG_ROOM_KEYS_VERSION" => &[403],
        "M_NOT_FOUND" => &[404],
        "M_UNRECOGNIZED" => &[404, 405],
        "M_LIMIT_EXCEEDED" => &[429],
        "M_TOO_LARGE" => &[413],
        // Account data that the server keeps itself.
        "M_BAD_JSON" if attempt.operation.responses.contains_key("405") => &[400, 405],
        "M_BAD_JSON" | "M_NOT_JSON" | "M_MISSING_PARAM" | "M_INVALID_PARAM" | "M_USER_IN_USE"
        | "M_INVALID_USERNAME" => &[400],
        "M_ROOM_IN_USE" => &[400, 409],
        "M_INVALID_ROOM_STATE" | "M_UNSUPPORTED_ROOM_VERSION" | "M_INCOMPATIBLE_ROOM_VERSION" => &[400],
        "M_BAD_STATE" => &[400, 403],
        "M_WEAK_PASSWORD" | "M_EXCLUSIVE" | "M_BAD_ALIAS" | "M_DUPLICATE_ANNOTATION" => &[400],
        _ => return (!code.starts_with("M_") && !code.contains('.')).then(|| format!("an unknown errcode `{code}`")),
    };
    if !allowed.contains(&status) {
        return Some(format!("{code} with status {status} instead of {allowed:?}"));
    }
    // The users of the fuzzer do nothing fast: nothing is rate limited in a test.
    (code == "M_LIMIT_EXCEEDED" && attempt.who == Who::User).then(|| "rate limited".to_owned())
}
