//! The SwiftChat homeserver as a library: the program runs one server, a test several.

mod address_limit;
mod client_address;
mod client_stream;
pub mod config;
mod data_folder;
mod error;
mod listener;
pub mod log;
mod open_files;
mod server;
mod signing_keys;
mod tls;
mod tools;
pub mod welcome;
mod wiring;

pub use accounts::Accounts;
pub use storage::DestinationRow;

pub use self::{
    error::Error,
    listener::ListenerAddress,
    server::{Overrides, Server},
    tools::{Tools, check_federation, rotate_signing_key},
};
