//! What other servers are asked about their users. The door to them fills this; without one there are no others.

use std::{pin::Pin, sync::Arc};

use ruma::{OwnedServerName, ServerName, UserId};
use serde_json::{Map, Value};

/// An answer that takes its time.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, RemoteError>> + Send + 'a>>;

/// Asks other servers about their users, in the name of one of ours.
pub trait RemoteUsers: Send + Sync {
    /// All fields of a user's profile; nothing when there is no such user. Server-Server API, "GET /query/profile".
    fn profile<'a>(&'a self, as_server: &'a ServerName, user_id: &'a UserId) -> Asking<'a, Option<Map<String, Value>>>;
}

/// Why another server gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemoteError {
    /// It was not reached, or made no sense. Trying again later may help.
    #[error("{server} gave no answer")]
    Unavailable {
        /// The server.
        server: OwnedServerName,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// It was reached, and refused.
    #[error("{server} refused")]
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
    fn profile<'a>(&'a self, _: &'a ServerName, _: &'a UserId) -> Asking<'a, Option<Map<String, Value>>> {
        Box::pin(async { Err(RemoteError::NotFederating) })
    }
}
