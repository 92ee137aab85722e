//! Tests of whole servers, and of the house itself.

mod conformance;
mod fuzz_routes;
mod levels;
mod two_names;
