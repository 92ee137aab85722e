//! Whole servers in a test: spawn, drive, break.

mod authority;
pub mod conformance;
mod eventually;
mod federation;
pub mod fuzz;
mod http;
mod link;
mod media;
mod memory;
mod peer;
mod peer_body;
mod peer_host;
mod peer_resident;
mod peer_room;
mod raw_peer;
mod server;
mod synapse;
mod user;

use self::user::register_anyone;
pub use self::{
    authority::{Authority, loopback_address},
    federation::TestFederation,
    http::{Answer, Failure, Http, encode},
    link::{Link, may_listen},
    media::download_path,
    memory::growth_during,
    peer::{Asked, Peer},
    peer_body::PeerBody,
    peer_room::{PeerEvent, PeerRoom, event_id},
    raw_peer::{RawAnswer, RawPeer},
    server::{ServerOptions, TestServer},
    synapse::Synapse,
    user::{TestUser, register, register_guest},
};
#[doc(hidden)]
pub use tokio;
pub use {
    event_bus::testing::{RedisProxy, redis_url},
    outbound::testing::TestDns,
    storage::testing::{Saboteur, TestDatabase},
};
