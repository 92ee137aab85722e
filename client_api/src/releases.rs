//! Written by `cargo run -p test_kit --bin conformance -- --write`; a test fails when it is stale.

/// The releases of the specification whose endpoints all exist, oldest first. Client-Server API, "API Versions".
#[rustfmt::skip]
pub(crate) const RELEASES: &[&str] = &[
    "v1.1",
    "v1.2",
    "v1.3",
    "v1.4",
    "v1.5",
    "v1.6",
];
