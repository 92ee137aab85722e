//! The load and benchmark command.
fn main() {}
