//! What other servers may ask.

mod discovery;
mod event_lists;
mod events;
mod invites;
mod joins;
mod keys;
mod leaves_and_knocks;
mod media;
mod openid;
mod public_rooms;
mod query;
mod request_signature;
mod signed;
mod signed_text;
mod spaces;
mod transactions;
mod user_keys;
mod wholes;

use ::media::Media;
use accounts::Accounts;
use axum::{Router, extract::FromRef};
use event_bus::Typing;
use http::{HeaderMap, Uri, header};
use model::LocalServer;
use rooms::{Presences, Rooms};
use web::RateLimits;

pub(crate) use self::{
    signed::{BODIES_KIB, BODIES_KIB_OF_ADDRESS, Signed},
    wholes::{WHOLES_AT_ONCE, WHOLES_AT_ONCE_OF_SITE},
};
use crate::Federation;

/// What the handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct FederationApi {
    /// Other servers.
    pub federation: Federation,
    /// Users and their profiles.
    pub accounts: Accounts,
    /// Rooms and events.
    pub rooms: Rooms,
    /// Files.
    pub media: Media,
    /// Who is typing.
    pub typing: Typing,
    /// Who is there.
    pub presences: Presences,
    /// How much strangers may ask.
    pub rate_limits: RateLimits,
}

macro_rules! parts {
    ($($field:ident: $part:ty;)+) => {$(
        impl FromRef<FederationApi> for $part {
            fn from_ref(api: &FederationApi) -> Self {
                api.$field.clone()
            }
        }
    )+};
}

parts! {
    federation: Federation;
    accounts: Accounts;
    rooms: Rooms;
    media: Media;
    rate_limits: RateLimits;
}

/// All endpoints of this API.
pub fn router(api: FederationApi) -> Router {
    Router::new()
        .merge(discovery::routes())
        .merge(events::routes())
        .merge(invites::routes())
        .merge(joins::routes())
        .merge(keys::routes())
        .merge(leaves_and_knocks::routes())
        .merge(media::routes())
        .merge(openid::routes())
        .merge(public_rooms::routes())
        .merge(query::routes())
        .merge(spaces::routes())
        .merge(transactions::routes())
        .merge(user_keys::routes())
        .with_state(api)
}

/// Which of our names a request without a signature means, by its host: the name, or the host that it is delegated to.
pub(crate) fn meant<'a>(federation: &'a Federation, headers: &HeaderMap, uri: &Uri) -> &'a LocalServer {
    // HTTP/2 has the host in the URI.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| Some(uri.authority()?.as_str())).unwrap_or_default();
    federation.local_server_of_host(host)
}
