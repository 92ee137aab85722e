//! Federation: how servers find, know and ask each other.

mod handshakes;
mod invitations;
mod keys;
mod requests;
mod resolution;
mod sending;
