//! Federation: how servers find, know and ask each other.

mod by_time;
mod directory;
mod handshakes;
mod invitations;
mod keys;
mod openid;
mod profiles;
mod requests;
mod resolution;
mod serving;
mod spaces;
