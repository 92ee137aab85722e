//! Federation: how servers find, know and ask each other.

mod keys;
mod openid;
mod requests;
mod resolution;
