//! Who asks, under the names that the handlers use.

pub(crate) use web::{Requester, RequesterOrGuest as GuestOrRequester};
