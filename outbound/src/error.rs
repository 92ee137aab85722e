//! What may go wrong on the way to the outside.

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host is, or resolves to, an address that may not be connected to. Nothing was sent.
    #[error("{host} is not on the public internet; `outbound.allowed_ranges` may allow its address")]
    NotPublic {
        /// The host as it was asked for.
        host: String,
    },
    /// The name servers gave no answer. Trying again later may help.
    #[error("the address of {name} could not be looked up")]
    Name {
        /// The name.
        name: String,
        /// What they said.
        source: Cause,
    },
    /// There is no such host.
    #[error("{name} has no address")]
    NoAddress {
        /// The name.
        name: String,
    },
    /// The host was not reached, has a wrong certificate, broke off, or took too long. Trying again later may help.
    #[error("{host} gave no answer")]
    Unreachable {
        /// The host.
        host: String,
        /// Why.
        source: Cause,
    },
    /// The answer is larger than was asked for.
    #[error("the answer of {host} is larger than {bytes_max} bytes")]
    TooLarge {
        /// The host.
        host: String,
        /// The bound.
        bytes_max: usize,
    },
    /// It is no request that could be sent: an address without host, or with another scheme than `http` and `https`.
    #[error("not a request: {0}")]
    BadRequest(String),
    /// The machine cannot do it: no certificate authorities, no name servers. Told at the start.
    #[error("requests to the outside cannot be made")]
    Setup(#[source] Cause),
}
