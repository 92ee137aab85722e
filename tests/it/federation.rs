//! Federation: how servers find, know and ask each other.

mod keys;
mod requests;
mod resolution;
