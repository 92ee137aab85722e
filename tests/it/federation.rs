//! Federation: how servers find, know and ask each other.

mod examination;
mod guest;
mod keys;
mod policy_servers;
mod requests;
mod resolution;
mod server_lists;
mod strangers;
mod transactions;
mod well_known;
