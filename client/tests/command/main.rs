//! The program `swiftchat-client` at whole servers, as people and scripts run it.

mod backup;
mod conversation;
mod exit_codes;
mod files;
mod listening;
mod program;
mod verification;
