//! Our keys, and those of other servers as a notary. Server-Server API, "Retrieving server keys".

use std::collections::BTreeMap;

use axum::{Router, extract::State};
use http::{HeaderMap, Uri, request::Parts};
use model::LocalServer;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName,
    api::federation::discovery::{
        ServerSigningKeys, get_remote_server_keys, get_remote_server_keys_batch, get_server_keys,
    },
    serde::Raw,
};
use web::{MatrixError, RateLimits, Ruma, RumaRoutes as _};

use super::{FederationApi, meant};
use crate::{Federation, keys::Wanted, published};

/// Most servers that may be asked for at once.
const SERVERS_MAX: usize = 500;

/// Most of them whom we ask in turn: strangers could have us ask the whole world otherwise. Of others it is told what is known.
const ASKED_MAX: usize = 20;

/// Most of what is told at once, in bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

pub(super) fn routes() -> Router<FederationApi> {
    Router::new()
        .ruma_route(get_server_keys)
        .ruma_route(get_remote_server_keys)
        .ruma_route(get_remote_server_keys_batch)
}

/// `GET /_matrix/key/v2/server`.
async fn get_server_keys(
    State(federation): State<Federation>,
    headers: HeaderMap,
    uri: Uri,
    Ruma(_): Ruma<get_server_keys::v2::Request>,
) -> Result<Ruma<get_server_keys::v2::Response>, MatrixError> {
    let server = meant(&federation, &headers, &uri);
    let keys = published::own_keys(server, federation.now_ms()).map_err(|error| MatrixError::internal(&error))?;
    Ok(Ruma(get_server_keys::v2::Response::new(keys)))
}

/// `GET /_matrix/key/v2/query/{serverName}`.
async fn get_remote_server_keys(
    State(federation): State<Federation>,
    State(limits): State<RateLimits>,
    parts: Parts,
    Ruma(request): Ruma<get_remote_server_keys::v2::Request>,
) -> Result<Ruma<get_remote_server_keys::v2::Response>, MatrixError> {
    limits.check_stranger(&parts)?;
    let wanted = Wanted { valid_at_ms: i64::from(request.minimum_valid_until_ts.0), ..Wanted::default() };
    let wanted = BTreeMap::from([(request.server_name, wanted)]);
    let keys = attest(&federation, meant(&federation, &parts.headers, &parts.uri), wanted).await?;
    Ok(Ruma(get_remote_server_keys::v2::Response::new(keys)))
}

/// `POST /_matrix/key/v2/query`.
async fn get_remote_server_keys_batch(
    State(federation): State<Federation>,
    State(limits): State<RateLimits>,
    parts: Parts,
    Ruma(request): Ruma<get_remote_server_keys_batch::v2::Request>,
) -> Result<Ruma<get_remote_server_keys_batch::v2::Response>, MatrixError> {
    limits.check_stranger(&parts)?;
    if request.server_keys.len() > SERVERS_MAX {
        return Err(MatrixError::invalid_param(format!("ask for at most {SERVERS_MAX} servers at once")));
    }
    let now_ms = federation.now_ms();
    let wanted = request.server_keys.into_iter().map(|(server, keys)| {
        let until = keys.values().filter_map(|criteria| criteria.minimum_valid_until_ts).max();
        let valid_at_ms = until.map_or(now_ms, |MilliSecondsSinceUnixEpoch(until)| until.into());
        (server, Wanted { key_ids: keys.into_keys().collect(), valid_at_ms })
    });
    let keys = attest(&federation, meant(&federation, &parts.headers, &parts.uri), wanted.collect()).await?;
    Ok(Ruma(get_remote_server_keys_batch::v2::Response::new(keys)))
}

/// The newest answers of servers with our signature beside theirs; of those that never gave one, nothing.
async fn attest(
    federation: &Federation,
    notary: &LocalServer,
    wanted: BTreeMap<OwnedServerName, Wanted>,
) -> Result<Vec<Raw<ServerSigningKeys>>, MatrixError> {
    let failed = |error: crate::Error| MatrixError::internal(&error);
    let local = wanted.keys().filter_map(|name| federation.servers().get(name));
    let mut answers = Vec::new();
    for server in local {
        let own = published::own_keys(server, federation.now_ms()).map_err(failed)?;
        answers.push(published::countersigned(own.json().get(), notary).map_err(failed)?);
    }
    let mut bytes = 0;
    for known in federation.keys().get_as_notary(wanted, ASKED_MAX).await.map_err(failed)?.values() {
        let Some(answer) = known.answer() else { continue };
        bytes += answer.len();
        if bytes > ANSWER_BYTES_MAX {
            break;
        }
        answers.push(published::countersigned(answer, notary).map_err(failed)?);
    }
    Ok(answers)
}
