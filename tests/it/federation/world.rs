//! What many of these tests begin with.

use test_kit::{Peer, ServerOptions, TestDatabase, TestFederation, TestUser};

/// Our server `hs1` on this database, a server in the test's hands that finds it and is found, and alice, who is a user of ours.
pub(crate) async fn server_and_peer(database: TestDatabase) -> (TestFederation, Peer, TestUser) {
    let mut federation = TestFederation::empty();
    federation.add("hs1", database, ServerOptions::default()).await;
    let (alice, peer) = (federation.user("hs1", "alice").await, federation.peer("peer.test").await);
    (federation, peer, alice)
}
