//! Secrets that are given out, and what is kept of them.

use sha2::{Digest as _, Sha256};
use storage::SecretHash;

/// What is kept of a token.
pub(crate) fn hash(secret: &str) -> SecretHash {
    Sha256::digest(secret.as_bytes()).into()
}

/// Whether two secrets are the same, in a time that does not tell where they differ.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    use subtle::ConstantTimeEq as _;
    hash(one).ct_eq(&hash(other)).into()
}
