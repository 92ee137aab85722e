//! A Matrix client with end-to-end encryption.

pub mod attachments;
pub mod backup;
pub mod cross_signing;
mod error;
pub mod recovery_key;
pub mod secret_sharing;
pub mod secret_storage;
pub mod signatures;
pub mod verification;

pub use error::Error;
