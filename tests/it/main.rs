//! Tests of whole servers, and of the house itself.

mod accounts;
mod aliases;
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
mod knocking;
mod levels;
mod peeking;
mod push_rules;
mod rooms;
mod shutdown;
mod sliding_model;
mod sliding_sync;
mod spaces;
mod sync;
mod sync_state;
mod two_names;
mod unread;
mod upgrades;
