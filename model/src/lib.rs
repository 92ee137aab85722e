//! The vocabulary of the house: identifiers, limits, events, clock and randomness; no I/O.
//!
//! Every other crate speaks in these words. Nothing here reads a file, a socket or a database.

mod bump;
mod canonical;
mod clock;
mod event_format;
mod json;
mod json_shape;
pub mod limits;
mod local_servers;
mod membership;
mod numbers;
mod pdu;
mod random;
mod relation;
mod room_versions;
mod server_patterns;
mod site;
mod sliding_token;
mod stream_token;
mod thread;

pub use bump::is_bump;
pub use canonical::{CanonicalError, canonical_object};
pub use clock::Clock;
pub use event_format::{ClientEvent, ReadyEvent, Unsigned};
pub use json::{ContentError, check_depth, content_object};
pub use json_shape::JsonShape;
pub use local_servers::{KeyPair, KeyPairError, LocalServer, LocalServers, OldKey};
pub use membership::Membership;
pub use numbers::{EventNr, NodeNr, Position, RoomNr, StateKeyNr, TypeNr, UserNr};
pub use pdu::{Pdu, PduError};
pub use random::Random;
pub use relation::Relation;
pub use room_versions::ROOM_VERSIONS;
pub use server_patterns::ServerPatterns;
pub use site::{network_of, site_of};
pub use sliding_token::SlidingToken;
pub use stream_token::{EphemeralPosition, StreamToken, TokenError};
pub use thread::Thread;
