//! Whole servers in a test: spawn, drive, break.

pub mod conformance;
mod eventually;
pub mod fuzz;
mod http;
mod server;
mod user;

use self::user::register_anyone;
pub use self::{
    http::{Answer, Failure, Http, encode},
    server::{ServerOptions, TestServer},
    user::{TestUser, register, register_guest},
};
#[doc(hidden)]
pub use tokio;
pub use {
    event_bus::testing::{RedisProxy, redis_url},
    storage::testing::{Saboteur, TestDatabase},
};
