//! The other servers for administrators, on the paths that existing tooling uses.

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    routing::{get, post},
};
use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use storage::{DestinationRow, Storage};
use web::MatrixError;

use crate::{ClientApi, admin_registration_tokens::check_admin, requester::Requester};

const PATH: &str = "/_synapse/admin/v1/federation/destinations";
/// Most servers that one answer shows.
const SERVERS_MAX: u32 = 1_000;
/// How many it shows where nothing else is asked for.
const SERVERS_DEFAULT: u32 = 100;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .route(PATH, get(list_destinations))
        .route(&format!("{PATH}/{{destination}}"), get(get_destination))
        .route(&format!("{PATH}/{{destination}}/reset_connection"), post(reset_connection))
}

/// A server as tooling knows it, and what is known of it beyond that.
#[derive(Serialize)]
struct Destination {
    destination: OwnedServerName,
    failure_ts: Option<i64>,
    retry_last_ts: i64,
    retry_interval: i64,
    /// The position up to which a server was sent everything that is behind.
    last_successful_stream_ordering: Option<i64>,
    last_error: Option<String>,
    shared_rooms: u64,
    rooms_behind: u64,
    waiting_edus: u64,
}

impl From<DestinationRow> for Destination {
    fn from(row: DestinationRow) -> Self {
        let outage = row.outage.as_ref();
        Self {
            failure_ts: outage.map(|outage| outage.since_ms),
            retry_last_ts: outage.map_or(0, |outage| outage.changed_ms),
            retry_interval: outage.map_or(0, |outage| outage.next_try_ms - outage.changed_ms),
            last_successful_stream_ordering: row.behind.map(|(sent_upto, _)| sent_upto.0),
            last_error: outage.map(|outage| outage.last_error.clone()),
            shared_rooms: row.rooms,
            rooms_behind: row.behind.map_or(0, |(_, rooms)| rooms),
            waiting_edus: row.waiting_edus,
            destination: row.server,
        }
    }
}

fn unknown() -> MatrixError {
    MatrixError::not_found("there is no such server")
}

#[derive(Deserialize)]
struct ListQuery {
    /// Only servers after this one.
    #[serde(default)]
    from: String,
    limit: Option<u32>,
}

/// Lists servers by name.
async fn list_destinations(
    State(api): State<ClientApi>,
    requester: Requester,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, MatrixError> {
    check_admin(&requester)?;
    let limit = query.limit.unwrap_or(SERVERS_DEFAULT).clamp(1, SERVERS_MAX);
    let rows = api.accounts.storage().list_destinations(&query.from, limit).await?;
    let next = rows.last().filter(|_| rows.len() == limit as usize).map(|row| row.server.clone());
    let servers = rows.into_iter().filter(|row| !api.accounts.servers().is_local(&row.server));
    let mut answer = json!({"destinations": servers.map(Destination::from).collect::<Vec<_>>()});
    if let Some(next) = next {
        answer["next_token"] = json!(next);
    }
    Ok(Json(answer))
}

/// Shows a server.
async fn get_destination(
    State(storage): State<Storage>,
    requester: Requester,
    Path(server): Path<OwnedServerName>,
) -> Result<Json<Destination>, MatrixError> {
    check_admin(&requester)?;
    Ok(Json(storage.get_destination(&server).await?.ok_or_else(unknown)?.into()))
}

/// Tries a server again now.
async fn reset_connection(
    State(storage): State<Storage>,
    requester: Requester,
    Path(server): Path<OwnedServerName>,
) -> Result<Json<Value>, MatrixError> {
    check_admin(&requester)?;
    if storage.reset_outage(server.as_str()).await? || storage.get_destination(&server).await?.is_some() {
        Ok(Json(json!({})))
    } else {
        Err(unknown())
    }
}
