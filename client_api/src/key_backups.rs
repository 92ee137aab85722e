//! Server-side key backups. Client-Server API, "Server-side key backups".

use std::collections::BTreeMap;

use accounts::{Accounts, BackedUpKey, KeyBackupState, NewKeyBackup, Requester as Who};
use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, header};
use ruma::{
    OwnedRoomId,
    api::client::backup::{
        BackupAlgorithm, KeyBackupData, add_backup_keys, add_backup_keys_for_room, add_backup_keys_for_session,
        create_backup_version, delete_backup_keys, delete_backup_keys_for_room, delete_backup_keys_for_session,
        delete_backup_version, get_backup_info, get_backup_keys, get_backup_keys_for_room, get_backup_keys_for_session,
        get_latest_backup_info, update_backup_version,
    },
    serde::Raw,
};
use storage::BackedUpKeys;
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{ClientApi, requester::Requester};

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(create_backup_version)
        .ruma_route(get_latest_backup_info)
        .ruma_route(get_backup_info)
        .ruma_route(update_backup_version)
        .ruma_route(delete_backup_version)
        .ruma_route(add_backup_keys)
        .ruma_route(add_backup_keys_for_room)
        .ruma_route(add_backup_keys_for_session)
        .ruma_route(get_backup_keys)
        .ruma_route(get_backup_keys_for_room)
        .ruma_route(get_backup_keys_for_session)
        .ruma_route(delete_backup_keys)
        .ruma_route(delete_backup_keys_for_room)
        .ruma_route(delete_backup_keys_for_session)
}

fn new_backup(raw: &Raw<BackupAlgorithm>) -> Result<NewKeyBackup, MatrixError> {
    raw.deserialize_as_unchecked().map_err(|error| MatrixError::bad_json(error.to_string()))
}

/// `POST /room_keys/version`.
async fn create_backup_version(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<create_backup_version::v3::Request>,
) -> Result<Ruma<create_backup_version::v3::Response>, MatrixError> {
    let version = accounts.create_key_backup(&requester, &new_backup(&request.algorithm)?).await?;
    Ok(Ruma(create_backup_version::v3::Response::new(version)))
}

/// `GET /room_keys/version`.
async fn get_latest_backup_info(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(_request): Ruma<get_latest_backup_info::v3::Request>,
) -> Result<Ruma<get_latest_backup_info::v3::Response>, MatrixError> {
    let backup = accounts.key_backup(&requester, None).await?;
    let KeyBackupState { etag, count } = backup.state;
    let algorithm = Raw::from_json(backup.algorithm);
    Ok(Ruma(get_latest_backup_info::v3::Response::new(algorithm, count, etag, backup.version)))
}

/// `GET /room_keys/version/{version}`.
async fn get_backup_info(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<get_backup_info::v3::Request>,
) -> Result<Ruma<get_backup_info::v3::Response>, MatrixError> {
    let backup = accounts.key_backup(&requester, Some(&request.version)).await?;
    let KeyBackupState { etag, count } = backup.state;
    let algorithm = Raw::from_json(backup.algorithm);
    Ok(Ruma(get_backup_info::v3::Response::new(algorithm, count, etag, backup.version)))
}

/// `PUT /room_keys/version/{version}`.
async fn update_backup_version(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<update_backup_version::v3::Request>,
) -> Result<Ruma<update_backup_version::v3::Response>, MatrixError> {
    accounts.update_key_backup(&requester, &request.version, &new_backup(&request.algorithm)?).await?;
    Ok(Ruma(update_backup_version::v3::Response::new()))
}

/// `DELETE /room_keys/version/{version}`.
async fn delete_backup_version(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<delete_backup_version::v3::Request>,
) -> Result<Ruma<delete_backup_version::v3::Response>, MatrixError> {
    accounts.delete_key_backup(&requester, &request.version).await?;
    Ok(Ruma(delete_backup_version::v3::Response::new()))
}

fn keys_of_room(room_id: &OwnedRoomId, sessions: BTreeMap<String, Raw<KeyBackupData>>) -> Vec<BackedUpKey> {
    let key = |(session_id, data)| BackedUpKey { room_id: room_id.clone(), session_id, data };
    sessions.into_iter().map(key).collect()
}

/// `PUT /room_keys/keys`.
async fn add_backup_keys(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<add_backup_keys::v3::Request>,
) -> Result<Ruma<add_backup_keys::v3::Response>, MatrixError> {
    let keys = request.rooms.into_iter().flat_map(|(room_id, room)| keys_of_room(&room_id, room.sessions)).collect();
    let KeyBackupState { etag, count } = accounts.back_up_keys(&requester, &request.version, keys).await?;
    Ok(Ruma(add_backup_keys::v3::Response::new(etag, count)))
}

/// `PUT /room_keys/keys/{roomId}`.
async fn add_backup_keys_for_room(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<add_backup_keys_for_room::v3::Request>,
) -> Result<Ruma<add_backup_keys_for_room::v3::Response>, MatrixError> {
    let keys = keys_of_room(&request.room_id, request.sessions);
    let KeyBackupState { etag, count } = accounts.back_up_keys(&requester, &request.version, keys).await?;
    Ok(Ruma(add_backup_keys_for_room::v3::Response::new(etag, count)))
}

/// `PUT /room_keys/keys/{roomId}/{sessionId}`.
async fn add_backup_keys_for_session(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<add_backup_keys_for_session::v3::Request>,
) -> Result<Ruma<add_backup_keys_for_session::v3::Response>, MatrixError> {
    let key = BackedUpKey { room_id: request.room_id, session_id: request.session_id, data: request.session_data };
    let KeyBackupState { etag, count } = accounts.back_up_keys(&requester, &request.version, vec![key]).await?;
    Ok(Ruma(add_backup_keys_for_session::v3::Response::new(etag, count)))
}

/// `GET /room_keys/keys`.
async fn get_backup_keys(
    State(accounts): State<Accounts>,
    Requester(requester): Requester,
    Ruma(request): Ruma<get_backup_keys::v3::Request>,
) -> Result<Response, MatrixError> {
    KeysAnswer { accounts, requester, version: request.version, room_id: None, last: None }.start().await
}

/// `GET /room_keys/keys/{roomId}`.
async fn get_backup_keys_for_room(
    State(accounts): State<Accounts>,
    Requester(requester): Requester,
    Ruma(request): Ruma<get_backup_keys_for_room::v3::Request>,
) -> Result<Response, MatrixError> {
    let room_id = Some(request.room_id);
    KeysAnswer { accounts, requester, version: request.version, room_id, last: None }.start().await
}

/// `GET /room_keys/keys/{roomId}/{sessionId}`.
async fn get_backup_keys_for_session(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<get_backup_keys_for_session::v3::Request>,
) -> Result<Ruma<get_backup_keys_for_session::v3::Response>, MatrixError> {
    let key = accounts.backed_up_key(&requester, &request.version, &request.room_id, &request.session_id).await?;
    Ok(Ruma(get_backup_keys_for_session::v3::Response::new(key)))
}

/// `DELETE /room_keys/keys`.
async fn delete_backup_keys(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<delete_backup_keys::v3::Request>,
) -> Result<Ruma<delete_backup_keys::v3::Response>, MatrixError> {
    let deleted = accounts.delete_backed_up_keys(&requester, &request.version, BackedUpKeys::All).await?;
    Ok(Ruma(delete_backup_keys::v3::Response::new(deleted.etag, deleted.count)))
}

/// `DELETE /room_keys/keys/{roomId}`.
async fn delete_backup_keys_for_room(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<delete_backup_keys_for_room::v3::Request>,
) -> Result<Ruma<delete_backup_keys_for_room::v3::Response>, MatrixError> {
    let which = BackedUpKeys::OfRoom(request.room_id.as_str());
    let deleted = accounts.delete_backed_up_keys(&requester, &request.version, which).await?;
    Ok(Ruma(delete_backup_keys_for_room::v3::Response::new(deleted.etag, deleted.count)))
}

/// `DELETE /room_keys/keys/{roomId}/{sessionId}`.
async fn delete_backup_keys_for_session(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<delete_backup_keys_for_session::v3::Request>,
) -> Result<Ruma<delete_backup_keys_for_session::v3::Response>, MatrixError> {
    let which = BackedUpKeys::OfSession(request.room_id.as_str(), &request.session_id);
    let deleted = accounts.delete_backed_up_keys(&requester, &request.version, which).await?;
    Ok(Ruma(delete_backup_keys_for_session::v3::Response::new(deleted.etag, deleted.count)))
}

/// The answer with the keys of a backup, written piece by piece: there may be hundreds of megabytes of them, and the specification
/// has no pages here.
struct KeysAnswer {
    accounts: Accounts,
    requester: Who,
    version: String,
    room_id: Option<OwnedRoomId>,
    /// The key that was written last.
    last: Option<BackedUpKey>,
}

impl KeysAnswer {
    /// The answer. What is wrong is known before its first piece; when the database fails later it ends before it is complete, which
    /// no client takes for the whole.
    async fn start(mut self) -> Result<Response, MatrixError> {
        let (first, has_more) = self.next_piece().await?;
        let rest = stream::unfold(has_more.then_some(self), async |answer| {
            let mut answer = answer?;
            match answer.next_piece().await {
                Ok((piece, has_more)) => Some((Ok(piece), has_more.then_some(answer))),
                Err(error) => Some((Err(error), None)),
            }
        });
        let body = Body::from_stream(stream::iter([Ok(first)]).chain(rest));
        Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
    }

    /// The next piece, and whether another one follows.
    async fn next_piece(&mut self) -> Result<(Bytes, bool), MatrixError> {
        let (accounts, room_id) = (&self.accounts, self.room_id.as_deref());
        let keys = accounts.backed_up_keys(&self.requester, &self.version, room_id, self.last.as_ref()).await?;
        let mut text = String::new();
        if self.last.is_none() {
            text.push_str(if room_id.is_some() { r#"{"sessions":{"# } else { r#"{"rooms":{"# });
        }
        let has_more = !keys.is_empty();
        for key in keys {
            let last_room = self.last.as_ref().map(|last| &last.room_id);
            if last_room == Some(&key.room_id) {
                text.push(',');
            } else if room_id.is_none() {
                text.push_str(if last_room.is_some() { "}}," } else { "" });
                push_name(&mut text, key.room_id.as_str());
                text.push_str(r#"{"sessions":{"#);
            }
            push_name(&mut text, &key.session_id);
            text.push_str(key.data.json().get());
            self.last = Some(key);
        }
        if !has_more {
            text.push_str(if room_id.is_none() && self.last.is_some() { "}}}}" } else { "}}" });
        }
        Ok((text.into(), has_more))
    }
}

/// A name in an object, with its colon.
fn push_name(text: &mut String, name: &str) {
    text.push_str(&serde_json::Value::from(name).to_string());
    text.push(':');
}
