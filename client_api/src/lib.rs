//! The Matrix client-server API.
//!
//! A handler reads top to bottom: who asks, what they ask, one call to the rules, the answer. The rules are in the crates
//! below; one file a subject.

mod sync;

use accounts::Accounts;
use axum::{Router, extract::FromRef};
use event_bus::Typing;
use rooms::Rooms;
use storage::Storage;
use web::RateLimits;

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
    /// How much each may ask.
    pub rate_limits: RateLimits,
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
    rate_limits: RateLimits;
}

impl FromRef<ClientApi> for Storage {
    fn from_ref(api: &ClientApi) -> Self {
        api.accounts.storage().clone()
    }
}

/// All endpoints of this API.
pub fn router(api: ClientApi) -> Router {
    Router::new().merge(sync::routes()).with_state(api)
}
