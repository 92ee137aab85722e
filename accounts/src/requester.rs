//! Who asks.

use model::UserNr;
use ruma::{OwnedDeviceId, OwnedUserId};

/// Somebody who has shown a valid access token. Exists only after that check.
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
}

impl Requester {
    /// The device in the form that transaction ids use: empty for an application service without one.
    #[must_use]
    pub fn device(&self) -> &str {
        self.device_id.as_ref().map_or("", |id| id.as_str())
    }
}
