//! The SwiftChat homeserver.
fn main() {}
