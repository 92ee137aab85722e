//! Federation: how servers find, know and ask each other.

mod keys;
mod requests;
mod resolution;
mod server_lists;
mod strangers;
mod well_known;
