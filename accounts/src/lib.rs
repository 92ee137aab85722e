//! Users, devices, tokens, keys and account data.

mod requester;

pub use self::requester::Requester;
