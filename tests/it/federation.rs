//! Federation: how servers find, know and ask each other.

mod guest;
mod joining;
mod joining_peers;
mod keys;
mod requests;
mod resolution;
mod transactions;
