//! Where this server is, and what it is. Server-Server API, "Server discovery".

use axum::{Router, extract::State};
use http::{HeaderMap, Uri};
use ruma::api::federation::discovery::{
    discover_homeserver,
    get_server_version::{self, v1::Server},
};
use web::{MatrixError, Ruma, RumaRoutes as _};

use super::{FederationApi, meant};
use crate::Federation;

pub(super) fn routes() -> Router<FederationApi> {
    Router::new().ruma_route(discover_homeserver).ruma_route(get_server_version)
}

/// `GET /.well-known/matrix/server`: the host that a name is delegated to, if it is.
async fn discover_homeserver(
    State(federation): State<Federation>,
    headers: HeaderMap,
    uri: Uri,
    Ruma(_): Ruma<discover_homeserver::Request>,
) -> Result<Ruma<discover_homeserver::Response>, MatrixError> {
    let name = &meant(&federation, &headers, &uri).name;
    let delegate = federation.options().delegates.get(name);
    let delegate =
        delegate.ok_or_else(|| MatrixError::not_found(format!("{name} is not delegated to another host")))?;
    Ok(Ruma(discover_homeserver::Response::new(delegate.clone())))
}

/// `GET /_matrix/federation/v1/version`.
async fn get_server_version(Ruma(_): Ruma<get_server_version::v1::Request>) -> Ruma<get_server_version::v1::Response> {
    let mut server = Server::new();
    server.name = Some("SwiftChat".to_owned());
    server.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    let mut response = get_server_version::v1::Response::new();
    response.server = Some(server);
    Ruma(response)
}
