//! Federation: how servers find, know and ask each other.

mod devices;
mod directory;
mod edus;
mod guest;
mod handshakes;
mod invitations;
mod invited;
mod joining;
mod joining_peers;
mod keys;
mod openid;
mod profiles;
mod requests;
mod resolution;
mod serving;
mod spaces;
mod transactions;
