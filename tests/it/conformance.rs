//! The conformance page and the advertised releases are those of the server as it is.

use std::fs;

use test_kit::conformance::{generate, probe, probed, repository, table};

/// What the page says was true when somebody wrote it; this says that it is true now. It fails as well when a marker names an
/// operation that the specification does not have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conformance_page_and_the_advertised_releases_are_those_of_the_server() {
    let federation = Box::pin(probed()).await;
    let probes = probe(federation.server("hs1").http(), table()).await;
    for (file, text) in generate(&probes).unwrap_or_else(|wrong| panic!("{wrong}")) {
        let is_fresh = fs::read_to_string(repository().join(file)).is_ok_and(|old| old == text);
        assert!(is_fresh, "{file} is stale: run `cargo run -p test_kit --bin conformance -- --write`");
    }
}
