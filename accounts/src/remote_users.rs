//! What other servers are asked about their users. The door to them fills this; without one there are no others.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use ruma::{
    OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, UserId,
    api::federation::{
        device::get_devices,
        keys::{claim_keys, get_keys},
    },
};
use serde_json::{Map, Value};

/// An answer that takes its time.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, RemoteError>> + Send + 'a>>;

/// Asks other servers about their users, in the name of one of ours.
pub trait RemoteUsers: Send + Sync {
    /// Whether a server is asked and told anything at all.
    fn federates_with(&self, server: &ServerName) -> bool;

    /// All fields of a user's profile; nothing when there is no such user. Server-Server API, "GET /query/profile".
    fn profile<'a>(&'a self, as_server: &'a ServerName, user_id: &'a UserId) -> Asking<'a, Option<Map<String, Value>>>;

    /// All devices of a user, with the name of that state of the list. Server-Server API, "GET /user/devices/{userId}".
    fn devices<'a>(&'a self, as_server: &'a ServerName, user_id: &'a UserId) -> Asking<'a, get_devices::v1::Response>;

    /// Keys of users of one server. Server-Server API, "POST /user/keys/query".
    fn query_keys<'a>(
        &'a self,
        as_server: &'a ServerName,
        server: &'a ServerName,
        wanted: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
    ) -> Asking<'a, get_keys::v1::Response>;

    /// One-time keys of devices of users of one server, by algorithm. Server-Server API, "POST /user/keys/claim".
    fn claim_keys<'a>(
        &'a self,
        as_server: &'a ServerName,
        server: &'a ServerName,
        wanted: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
    ) -> Asking<'a, claim_keys::v1::Response>;
}

/// Why another server gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemoteError {
    /// It was not reached. Trying again later may help.
    #[error("{server} gave no answer")]
    Unavailable {
        /// The server.
        server: OwnedServerName,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// It was reached, and refused or made no sense.
    #[error("{server} did not say it")]
    Refused {
        /// The server.
        server: OwnedServerName,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// This server asks no others.
    #[error("this server does not federate")]
    NotFederating,
}

/// No other servers.
pub(crate) struct Nobody;

impl RemoteUsers for Nobody {
    fn federates_with(&self, _: &ServerName) -> bool {
        false
    }

    fn profile<'a>(&'a self, _: &'a ServerName, _: &'a UserId) -> Asking<'a, Option<Map<String, Value>>> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    fn devices<'a>(&'a self, _: &'a ServerName, _: &'a UserId) -> Asking<'a, get_devices::v1::Response> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    fn query_keys<'a>(
        &'a self,
        _: &'a ServerName,
        _: &'a ServerName,
        _: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
    ) -> Asking<'a, get_keys::v1::Response> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }

    fn claim_keys<'a>(
        &'a self,
        _: &'a ServerName,
        _: &'a ServerName,
        _: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
    ) -> Asking<'a, claim_keys::v1::Response> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }
}
