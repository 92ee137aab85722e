//! Keys for end-to-end encryption. Client-Server API, "End-to-End Encryption".
//!
//! The server keeps what devices upload and gives it to others. It checks signatures so that mistakes are seen by who makes them;
//! clients check again and trust nothing that the server says.

mod asking;
mod claim;
mod cross_signing;
mod dehydrated;
mod elsewhere;
mod for_servers;
mod query;
mod shown;
mod signatures;
mod updates;
mod upload;
mod uploaded;
mod verify;

pub(crate) use self::asking::DeviceLists;
pub use self::{
    claim::{Claimed, KeyClaims},
    cross_signing::CrossSigningKeys,
    dehydrated::{DehydratedMessages, NewDehydratedDevice},
    for_servers::DeviceListOfUser,
    query::QueriedKeys,
    signatures::SignatureFailures,
    uploaded::KeyUpload,
};
