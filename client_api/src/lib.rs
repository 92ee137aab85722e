//! The Matrix client-server API.
//!
//! A handler reads top to bottom: who asks, what they ask, one call to the rules, the answer. The rules are in the crates
//! below; one file a subject, which registers its endpoints in its own `routes()`.

mod account;
mod account_data;
mod admin_destinations;
mod admin_register;
mod admin_registration_tokens;
mod dehydrated_devices;
mod departures;
mod devices;
mod discovery;
mod filter;
mod host;
mod key_backups;
mod keys;
mod login;
mod logout;
mod media;
mod openid;
mod presence;
mod profile;
mod push_rules;
mod register;
mod releases;
mod requester;
mod rooms;
mod sliding_sync;
mod sync;
mod third_party;
mod to_device;
mod uiaa;

use std::sync::Arc;

use ::media::Media;
use ::rooms::{Presences, Rooms};
use accounts::Accounts;
use axum::{Router, extract::FromRef};
use event_bus::Typing;
use storage::Storage;
use web::RateLimits;

pub use self::departures::follow_departures;

/// What the handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct ClientApi {
    /// Users, devices, tokens and keys.
    pub accounts: Accounts,
    /// Rooms and events.
    pub rooms: Rooms,
    /// What is new.
    pub sync: ::sync::Sync,
    /// Who is typing where.
    pub typing: Typing,
    /// Files.
    pub media: Media,
    /// How much each may ask.
    pub rate_limits: RateLimits,
    /// What the configuration says.
    pub options: Arc<Options>,
}

/// What can be chosen about this API.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where clients reach this server, for `/.well-known/matrix/client`; without, that is not there.
    pub public_url: Option<String>,
}

macro_rules! parts {
    ($($field:ident: $part:ty;)+) => {$(
        impl FromRef<ClientApi> for $part {
            fn from_ref(api: &ClientApi) -> Self {
                api.$field.clone()
            }
        }
    )+};
}

parts! {
    accounts: Accounts;
    rooms: Rooms;
    sync: ::sync::Sync;
    typing: Typing;
    media: Media;
    rate_limits: RateLimits;
    options: Arc<Options>;
}

impl FromRef<ClientApi> for Storage {
    fn from_ref(api: &ClientApi) -> Self {
        api.accounts.storage().clone()
    }
}

impl FromRef<ClientApi> for Presences {
    fn from_ref(api: &ClientApi) -> Self {
        api.sync.presences().clone()
    }
}

/// All endpoints of this API.
pub fn router(api: ClientApi) -> Router {
    Router::new()
        .merge(discovery::routes())
        .merge(register::routes())
        .merge(login::routes())
        .merge(logout::routes())
        .merge(account::routes())
        .merge(account_data::routes())
        .merge(dehydrated_devices::routes())
        .merge(devices::routes())
        .merge(filter::routes())
        .merge(key_backups::routes())
        .merge(keys::routes())
        .merge(media::routes())
        .merge(openid::routes())
        .merge(presence::routes())
        .merge(profile::routes())
        .merge(push_rules::routes())
        .merge(third_party::routes())
        .merge(to_device::routes())
        .merge(rooms::routes())
        .merge(sliding_sync::routes())
        .merge(sync::routes())
        .with_state(api)
}

/// What of the administration API is here: registration with the shared secret, registration tokens, other servers.
pub fn admin_router(api: ClientApi) -> Router {
    admin_register::routes()
        .merge(admin_registration_tokens::routes())
        .merge(admin_destinations::routes())
        .with_state(api)
}
