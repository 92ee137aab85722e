//! The SwiftChat homeserver as a library: the program runs one server, a test several.

mod client_address;
pub mod config;
mod data_folder;
mod error;
mod listener;
pub mod log;
mod server;
mod signing_keys;
mod tls;
pub mod welcome;
mod wiring;

pub use self::{
    error::Error,
    listener::ListenerAddress,
    server::{Overrides, Server},
    wiring::open_storage,
};
