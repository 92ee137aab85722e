//! Written by `cargo run -p test_kit --bin conformance -- --write`; a test fails when it is stale.

/// The releases of the specification whose endpoints all exist, oldest first. Client-Server API, "API Versions".
pub(crate) const RELEASES: &[&str] = &[];
