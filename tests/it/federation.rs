//! Federation: how servers find, know and ask each other.

mod directory;
mod keys;
mod openid;
mod profiles;
mod requests;
mod resolution;
mod spaces;
