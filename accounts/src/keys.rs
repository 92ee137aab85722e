//! Keys for end-to-end encryption. Client-Server API, "End-to-End Encryption".
//!
//! The server keeps what devices upload and gives it to others. It checks signatures so that mistakes are seen by who makes them;
//! clients check again and trust nothing that the server says.

mod claim;
mod cross_signing;
mod query;
mod signatures;
mod upload;
mod verify;

pub use self::{
    claim::Claimed, cross_signing::CrossSigningKeys, query::QueriedKeys, signatures::SignatureFailures,
    upload::KeyUpload,
};
