//! Federation: how servers find, know and ask each other.

mod joining;
mod keys;
mod requests;
mod resolution;
