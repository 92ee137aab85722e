//! Tests of whole servers, and of the house itself.

mod accounts;
mod app_services;
mod bad_input;
mod cluster;
mod command_line;
mod conformance;
mod durability;
mod erasure;
mod fuzz_routes;
mod key_backups;
mod keys;
mod levels;
mod push_rules;
mod rooms;
mod shutdown;
mod sync;
mod sync_state;
mod two_names;
