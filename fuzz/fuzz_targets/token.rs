//! Bytes as a token of `/sync`. The other tokens are read by rooms/tests/tokens.rs.

#![no_main]

#[path = "../src/token.rs"]
mod token;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    token::read::<model::StreamToken>(data);
});
