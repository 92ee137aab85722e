//! Federation: how servers find, know and ask each other.

mod devices;
mod edus;
mod keys;
mod requests;
mod resolution;
