//! Push rules: what notifies whom. Client-Server API, "Push Rules".
//!
//! An event has a [`class`]: which of the default rules fit it, whoever reads it. It is stored with the event, so that a reader whose rules
//! are about classes, rooms and senders is answered from sums ([`plan`]). Only rules about anything else are applied to each event ([`fit`]).

pub(crate) mod class;
pub(crate) mod fit;
pub(crate) mod plan;
