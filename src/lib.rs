//! The SwiftChat homeserver as a library, for whole-server tests.
