//! Federation: how servers find, know and ask each other.

mod guest;
mod handshakes;
mod invitations;
mod invited;
mod joining;
mod joining_peers;
mod keys;
mod requests;
mod resolution;
mod transactions;
