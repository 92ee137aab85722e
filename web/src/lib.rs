//! The axum pieces that the doors share: requests and answers in ruma's types, errors, who asks, rate limits, routing.
//!
//! A handler reads top to bottom: who asks, what they ask, one call to the rules, the answer. Everything that is the same for all
//! endpoints (bodies, tokens, limits, CORS, panics, unknown routes) is done here, once.

mod body;
mod client_address;
mod error;
mod file;
mod finish;
mod json;
mod rate_limits;
mod requester;
mod routes;
mod ruma_types;
mod streamed;

pub use body::read_body;
pub use client_address::ClientAddress;
pub use error::MatrixError;
pub use file::{FileConditions, disposition_of};
pub use finish::finish;
pub use json::{JsonBody, ReadyJson};
pub use rate_limits::{Rate, RateLimitOptions, RateLimits};
pub use requester::{AccessToken, OptionalRequester, Requester, RequesterOrGuest};
pub use routes::{RumaArgument, RumaHandler, RumaRoutes};
pub use ruma_types::{Ruma, path_arguments, request_of};
pub use streamed::{Downloading, Uploading};
