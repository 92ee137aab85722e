//! The few calls of the Matrix client-server API that a benchmark needs.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderValue, Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use sha1::Sha1;

use crate::client::{Connection, bearer};

/// The password of every user of a benchmark.
const PASSWORD: &str = "a password for benchmarks only";
/// What marks the text of a numbered message, so that a listener finds it without reading all of the JSON.
const MARK: &[u8] = b"bench-number-";

/// A registered user.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: String,
    pub(crate) authorization: HeaderValue,
}

#[derive(Deserialize)]
struct Registered {
    user_id: String,
    access_token: String,
}

#[derive(Deserialize)]
struct LoggedIn {
    access_token: String,
    device_id: String,
}

#[derive(Deserialize)]
struct WantsAuthentication {
    session: String,
}

#[derive(Deserialize)]
struct Nonce {
    nonce: String,
}

#[derive(Deserialize)]
struct CreatedRoom {
    room_id: String,
}

/// The event id that a send was answered with.
#[derive(Deserialize)]
pub(crate) struct Sent {
    pub(crate) event_id: String,
}

#[derive(Deserialize)]
struct NextBatch {
    next_batch: String,
}

/// Registers a user: with the shared secret if there is one, else through the dummy stage of user-interactive authentication.
pub(crate) async fn register(connection: &mut Connection, name: &str, shared_secret: Option<&str>) -> Result<User> {
    let registered: Registered = match shared_secret {
        Some(secret) => register_with_secret(connection, name, secret).await,
        None => register_with_dummy_stage(connection, name).await,
    }
    .with_context(|| format!("cannot register {name}"))?;
    Ok(User { authorization: bearer(&registered.access_token)?, id: registered.user_id })
}

/// Logs a user in on another device; gives the device's id.
pub(crate) async fn log_in(connection: &mut Connection, user_id: &str) -> Result<(User, String)> {
    let identifier = json!({ "type": "m.id.user", "user": user_id });
    let body = to_bytes(&json!({ "type": "m.login.password", "identifier": identifier, "password": PASSWORD }));
    let answer = connection.request(Method::POST, "/_matrix/client/v3/login", None, Some(body)).await?;
    let LoggedIn { access_token, device_id } = serde_json::from_slice(&answer.ok().context("cannot log in")?)?;
    Ok((User { authorization: bearer(&access_token)?, id: user_id.to_owned() }, device_id))
}

/// A request to an endpoint, such as `keys/query`.
pub(crate) async fn post(connection: &mut Connection, user: &User, endpoint: &str, body: Bytes) -> Result<Bytes> {
    let path = format!("/_matrix/client/v3/{endpoint}");
    connection.request(Method::POST, &path, Some(&user.authorization), Some(body)).await?.ok()
}

async fn register_with_dummy_stage(connection: &mut Connection, name: &str) -> Result<Registered> {
    let path = "/_matrix/client/v3/register";
    let mut body = json!({ "username": name, "password": PASSWORD, "initial_device_display_name": "bench" });
    let answer = connection.request(Method::POST, path, None, Some(to_bytes(&body))).await?;
    if answer.status != StatusCode::UNAUTHORIZED {
        return Ok(serde_json::from_slice(&answer.ok()?)?);
    }
    let wanted: WantsAuthentication = serde_json::from_slice(&answer.body).context("registration is not open")?;
    body["auth"] = json!({ "type": "m.login.dummy", "session": wanted.session });
    let answer = connection.request(Method::POST, path, None, Some(to_bytes(&body))).await?;
    Ok(serde_json::from_slice(&answer.ok()?)?)
}

async fn register_with_secret(connection: &mut Connection, name: &str, secret: &str) -> Result<Registered> {
    let path = "/_synapse/admin/v1/register";
    let nonce = connection.request(Method::GET, path, None, None).await?.ok()?;
    let Nonce { nonce } = serde_json::from_slice(&nonce)?;
    let mac = registration_mac(secret, &nonce, name)?;
    let body = json!({ "nonce": nonce, "username": name, "password": PASSWORD, "admin": false, "mac": mac });
    let answer = connection.request(Method::POST, path, None, Some(to_bytes(&body))).await?;
    Ok(serde_json::from_slice(&answer.ok()?)?)
}

/// The proof of the shared-secret registration, in lowercase hexadecimal.
fn registration_mac(secret: &str, nonce: &str, name: &str) -> Result<String> {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes())?;
    mac.update([nonce, name, PASSWORD, "notadmin"].join("\0").as_bytes());
    Ok(mac.finalize().into_bytes().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// Creates a room that everybody may join.
pub(crate) async fn create_public_room(connection: &mut Connection, creator: &User, name: &str) -> Result<String> {
    let body = to_bytes(&json!({ "preset": "public_chat", "name": name }));
    let path = "/_matrix/client/v3/createRoom";
    let answer = connection.request(Method::POST, path, Some(&creator.authorization), Some(body)).await?;
    let created: CreatedRoom = serde_json::from_slice(&answer.ok().context("cannot create a room")?)?;
    Ok(created.room_id)
}

/// Joins a room.
pub(crate) async fn join(connection: &mut Connection, user: &User, room_id: &str) -> Result<()> {
    let path = format!("/_matrix/client/v3/rooms/{}/join", encode(room_id));
    let body = Some(Bytes::from_static(b"{}"));
    connection.request(Method::POST, &path, Some(&user.authorization), body).await?.ok().context("cannot join")?;
    Ok(())
}

/// Joins a room that another server is in.
pub(crate) async fn join_via(connection: &mut Connection, user: &User, room_id: &str, server: &str) -> Result<()> {
    let path = format!("/_matrix/client/v3/join/{}?via={}", encode(room_id), encode(server));
    let body = Some(Bytes::from_static(b"{}"));
    connection.request(Method::POST, &path, Some(&user.authorization), body).await?.ok().context("cannot join")?;
    Ok(())
}

/// The path of a send into a room, up to the transaction id.
pub(crate) fn send_path(room_id: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/send/m.room.message/", encode(room_id))
}

/// Sends a message; `path` comes from [`send_path`].
pub(crate) async fn send(
    connection: &mut Connection,
    user: &User,
    path: &str,
    transaction_id: &str,
    body: Bytes,
) -> Result<String> {
    let path = format!("{path}{transaction_id}");
    let answer = connection.request(Method::PUT, &path, Some(&user.authorization), Some(body)).await?;
    let sent: Sent = serde_json::from_slice(&answer.ok()?)?;
    Ok(sent.event_id)
}

/// Sends a message to all devices of some users at once.
pub(crate) async fn send_to_devices(
    connection: &mut Connection,
    user: &User,
    transaction_id: &str,
    body: Bytes,
) -> Result<()> {
    let path = format!("/_matrix/client/v3/sendToDevice/org.example.bench/{transaction_id}");
    connection.request(Method::PUT, &path, Some(&user.authorization), Some(body)).await?.ok()?;
    Ok(())
}

/// What [`send_to_devices`] sends: a numbered message to every device of the users, to each user another one, as encrypted ones are.
pub(crate) fn message_to_devices(users: &[User], number: u64, text_bytes: usize) -> Bytes {
    let content = |user: &User| json!({ "*": { "body": numbered_text(number, text_bytes), "for": user.id } });
    let messages: serde_json::Map<_, _> = users.iter().map(|user| (user.id.clone(), content(user))).collect();
    to_bytes(&json!({ "messages": messages }))
}

/// The content of a text message that carries a number and has a text of about `text_bytes`.
pub(crate) fn numbered_message(number: u64, text_bytes: usize) -> Bytes {
    to_bytes(&json!({ "msgtype": "m.text", "body": numbered_text(number, text_bytes) }))
}

fn numbered_text(number: u64, text_bytes: usize) -> String {
    let mark = String::from_utf8_lossy(MARK);
    let mut text = format!("{mark}{number} ");
    while text.len() < text_bytes {
        text.push_str("lorem ipsum dolor sit amet ");
    }
    text.truncate(text_bytes.max(mark.len() + 21));
    text
}

/// The numbers of all numbered messages in an answer, in their order.
pub(crate) fn numbers_in(answer: &[u8]) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut rest = answer;
    while let Some(at) = rest.windows(MARK.len()).position(|window| window == MARK) {
        rest = &rest[at + MARK.len()..];
        let digits = rest.iter().take(20).take_while(|byte| byte.is_ascii_digit()).count();
        if let Some(number) = std::str::from_utf8(&rest[..digits]).ok().and_then(|digits| digits.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers
}

/// Says how a user is.
pub(crate) async fn set_presence(connection: &mut Connection, user: &User, presence: &str) -> Result<()> {
    let path = format!("/_matrix/client/v3/presence/{}/status", encode(&user.id));
    let body = Some(to_bytes(&json!({ "presence": presence })));
    connection.request(Method::PUT, &path, Some(&user.authorization), body).await?.ok()?;
    Ok(())
}

/// An answer to `/sync`: its bytes and the token for the next.
#[derive(Debug)]
pub(crate) struct Synced {
    pub(crate) body: Bytes,
    pub(crate) next_batch: String,
}

/// Syncs; `query` is what stands before `timeout` and `since`, empty or ending in `&`.
pub(crate) async fn sync(
    connection: &mut Connection,
    user: &User,
    query: &str,
    timeout_ms: u64,
    since: Option<&str>,
) -> Result<Synced> {
    let mut path = format!("/_matrix/client/v3/sync?{query}timeout={timeout_ms}");
    if let Some(since) = since {
        path.push_str("&since=");
        path.push_str(&encode(since));
    }
    let answer = connection.request(Method::GET, &path, Some(&user.authorization), None).await?;
    let body = answer.ok().context("cannot sync")?;
    let NextBatch { next_batch } = serde_json::from_slice(&body)?;
    Ok(Synced { body, next_batch })
}

/// Waits until the server answers `/versions`, at most `tries` times with `pause` between.
pub(crate) async fn wait_until_ready(
    connection: &mut Connection,
    tries: u32,
    pause: std::time::Duration,
) -> Result<()> {
    for _ in 0..tries {
        let answer = connection.request(Method::GET, "/_matrix/client/versions", None, None).await;
        if answer.is_ok_and(|answer| answer.status == StatusCode::OK) {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
    }
    bail!("the server does not answer /_matrix/client/versions")
}

/// Percent-encodes everything but the unreserved characters of RFC 3986.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn to_bytes(value: &serde_json::Value) -> Bytes {
    Bytes::from(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_percent_encoded() {
        assert_eq!(encode("!a-b_c.d~e:f/g ü"), "%21a-b_c.d~e%3Af%2Fg%20%C3%BC");
    }

    #[test]
    fn the_numbers_of_messages_are_found_in_their_order() {
        let mut answer = b"{\"events\":[".to_vec();
        for number in [7, 0, u64::MAX] {
            answer.extend_from_slice(&numbered_message(number, 60));
        }
        answer.extend_from_slice(b"bench-number-x bench-number-");
        assert_eq!(numbers_in(&answer), [7, 0, u64::MAX]);
        assert_eq!(numbers_in(b"{}"), [0_u64; 0]);
    }

    #[test]
    fn a_message_has_the_size_asked_for_but_never_loses_its_number() {
        let long: serde_json::Value = serde_json::from_slice(&numbered_message(5, 200)).unwrap();
        assert_eq!(long["body"].as_str().unwrap().len(), 200);
        assert_eq!(numbers_in(&numbered_message(u64::MAX, 1)), [u64::MAX]);
    }

    /// The value comes from the algorithm as Synapse documents it, computed with Python's `hmac`.
    #[test]
    fn the_registration_mac_is_hmac_sha1_over_the_parts_with_zero_bytes_between() {
        assert_eq!(registration_mac("secret", "nonce", "alice").unwrap(), MAC_OF_ALICE);
    }

    const MAC_OF_ALICE: &str = "fa3f0f9fe47c3c5368eb1cffca9de5472f3443f7";
}
