//! A server and people who talk through it with the Rust matrix-sdk. The scenarios are in `tests/`.

mod person;
mod server;

pub use person::{Person, id_of, text_of};
pub use server::{Server, Signal};
