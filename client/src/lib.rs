//! A Matrix client library with end-to-end encryption.
//!
//! It stands for itself: nothing of the server is in it, and it speaks to any homeserver. Olm, Megolm and signatures are `vodozemac`'s, requests
//! and events are `ruma`'s.
//!
//! ```no_run
//! # async fn example() -> Result<(), client::Error> {
//! use client::{Client, Event, Login, Store, StoreKey};
//!
//! let store = Store::open("alice.store".as_ref(), &StoreKey::passphrase("correct horse battery staple")).await?;
//! let homeserver = "https://matrix.example.org".parse().expect("a URL");
//! let client = Client::login(store, Login { homeserver: &homeserver, user: "alice", password: "…", device_name: "bot" }).await?;
//! let mut events = client.events();
//! tokio::spawn({
//!     let client = client.clone();
//!     async move { client.sync().await }
//! });
//! while let Some(event) = events.next().await {
//!     if let Event::Room(event) = event
//!         && event.body() == Some("ping")
//!     {
//!         client.send_text(&event.room_id, "pong").await?;
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | what | where |
//! | --- | --- |
//! | login, sync, rooms, sending, history | [`Client`], `client.rs` |
//! | what the client knows and does by itself, without a server | `machine.rs` and the files below it |
//! | its own keys; those of others | `account.rs`; `devices.rs` |
//! | between devices; in rooms | `olm.rs`; `megolm.rs` |
//! | whose identity is to be believed | `cross_signing.rs`, `machine/identities.rs`, `client/identity.rs` |
//! | people compare pictures | [`verification`], `client/verifying.rs` |
//! | a new device gets the keys | [`secret_storage`], [`secret_sharing`], [`backup`], `client/recovery.rs`, `client/backing_up.rs` |
//! | files | [`attachments`], `client/files.rs` |
//! | what is on disk; what waits to be sent, or to be heard | [`Store`], `store.rs`; `outbox.rs`, `inbox.rs` |
//!
//! Whatever a ratchet gave is durable before it leaves the machine, together with what it is for: a client that is killed goes on where it was.

mod account;
mod api;
pub mod attachments;
pub mod backup;
mod client;
pub mod cross_signing;
mod devices;
mod error;
mod events;
#[cfg(test)]
mod hostile_input;
mod inbox;
mod machine;
mod media;
mod megolm;
mod olm;
mod outbox;
pub mod recovery_key;
mod rooms;
pub mod secret_sharing;
pub mod secret_storage;
pub mod signatures;
mod store;
pub mod verification;

pub use self::{
    account::Account,
    api::{Api, Patience, Request},
    client::{Client, History, Login, NewFile, NewRoom, Recovered},
    devices::{Device, LocalTrust},
    error::Error,
    events::{Event, Events, RoomEvent, Secrecy, ToDeviceEvent, Trust, VerificationChange},
    inbox::{KeptEvent, News},
    machine::ShareWith,
    megolm::{Claim, ExportedRoomKey, Inbound, Origin, Undecryptable},
    rooms::{Encryption, Member, Membership, Room},
    store::{Batch, Kind, Store, StoreKey},
};
