//! Federation: how servers find, know and ask each other.

mod backfill;
mod faults;
mod guest;
mod joining;
mod keys;
mod missing_events;
mod requests;
mod resolution;
mod transactions;
