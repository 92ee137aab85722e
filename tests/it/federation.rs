//! Federation: how servers find, know and ask each other.

mod guest;
mod joining;
mod keys;
mod requests;
mod resolution;
mod transactions;
