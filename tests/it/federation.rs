//! Federation: how servers find, know and ask each other.

mod keys;
mod openid;
mod profiles;
mod requests;
mod resolution;
