//! Federation: how servers find, know and ask each other.

mod joining;
mod joining_peers;
mod keys;
mod requests;
mod resolution;
