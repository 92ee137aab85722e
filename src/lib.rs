//! The SwiftChat homeserver as a library, for whole-server tests.

pub mod config;
