//! What may go wrong between servers.

use ruma::OwnedServerName;

/// Why there is no answer of another server, or none for one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was not reached. Trying again later may help.
    #[error("{server} cannot be reached")]
    Unreachable {
        /// The server.
        server: OwnedServerName,
        /// Why.
        source: outbound::Error,
    },
    /// It gave no answer the last times, and is not asked again yet.
    #[error("{server} gives no answer, and is tried again later")]
    Down {
        /// The server.
        server: OwnedServerName,
    },
    /// It answered with an error.
    #[error("{server} refused")]
    Refused {
        /// The server.
        server: OwnedServerName,
        /// What it said.
        #[source]
        error: Box<ruma::api::error::Error>,
    },
    /// It broke the protocol. Asking it again will not help.
    #[error("{server} broke the protocol: {what}")]
    Misbehaved {
        /// The server.
        server: OwnedServerName,
        /// How.
        what: String,
    },
    /// Something answered in its place that speaks no Matrix: a page, or a redirect to one. Trying again later may help.
    #[error("what answers for {server} is no Matrix server (status {status})")]
    NoMatrix {
        /// The server.
        server: OwnedServerName,
        /// What it answered.
        status: http::StatusCode,
    },
    /// The server is ours: nobody is to be asked.
    #[error("{0} is this server")]
    Ours(OwnedServerName),
    /// The server is not ours: we cannot speak for it.
    #[error("{0} is not this server")]
    NotOurs(OwnedServerName),
    /// The configuration wants nothing to do with that server.
    #[error("the configuration does not let this server federate with {0}")]
    Denied(OwnedServerName),
    /// Too much is under way already. Trying again later may help.
    #[error("too much is under way to other servers")]
    Busy,
    /// What we wanted to ask cannot be said in a request.
    #[error("not a request: {0}")]
    BadRequest(String),
    /// Ours.
    #[error("storage failed")]
    Storage(#[from] storage::Error),
}
