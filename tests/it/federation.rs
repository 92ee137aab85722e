//! Federation: how servers find, know and ask each other.

mod devices;
mod edus;
mod guest;
mod keys;
mod openid;
mod profiles;
mod requests;
mod resolution;
mod transactions;
