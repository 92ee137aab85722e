//! Who asks.

use std::sync::Arc;

use model::UserNr;
use ruma::{OwnedDeviceId, OwnedUserId};

use crate::AppService;

/// Somebody who has shown a valid access token. Exists only after that check, and as [`crate::Departure`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Requester {
    /// The user.
    pub user_id: OwnedUserId,
    /// The user's number.
    pub user_nr: UserNr,
    /// The device of the token; application services may have none.
    pub device_id: Option<OwnedDeviceId>,
    /// Whether the user is a guest. Client-Server API, "Guest Access".
    pub is_guest: bool,
    /// Whether the user administers this server.
    pub is_admin: bool,
    /// The application service that asks in the user's name.
    pub app_service: Option<Arc<AppService>>,
}

impl Requester {
    /// The device in the form that transaction ids use: empty for an application service without one.
    #[must_use]
    pub fn device(&self) -> &str {
        self.device_id.as_ref().map_or("", |id| id.as_str())
    }
}
