//! Users, devices, tokens, keys and account data.
//!
//! [`Accounts`] is the one handle. What clients learn by stream (account data, to-device messages, device lists, profiles) goes
//! through `storage`'s committer; users, tokens and keys are short transactions of their own.

mod account_data;
mod app_services;
mod deactivate;
mod default_push_rules;
mod devices;
mod error;
mod filters;
mod guesses;
mod key_backups;
mod keys;
mod openid;
mod options;
mod outgoing_to_device;
mod passwords;
mod profiles;
mod push_rules;
mod register;
mod registration_tokens;
mod remote_profiles;
mod remote_users;
mod requester;
mod room_settings;
mod secrets;
mod sessions;
mod settings;
mod shared_secret;
pub mod to_device;
mod turns;
mod uiaa;
mod work;

use std::sync::Arc;

use model::LocalServers;
use ruma::ServerName;
use storage::Storage;
use tracing::warn;

pub use self::{
    app_services::{AppService, Namespace},
    deactivate::Departure,
    default_push_rules::default_push_rules,
    error::Error,
    filters::{check_filter, check_room_event_filter},
    key_backups::{BackedUpKey, KeyBackup, KeyBackupState, NewKeyBackup},
    keys::{
        Claimed, CrossSigningKeys, DehydratedMessages, DeviceListOfUser, KeyClaims, KeyUpload, NewDehydratedDevice,
        QueriedKeys, SignatureFailures,
    },
    options::{Options, Registration},
    register::{NewAccount, RegisteredUser},
    remote_users::{Asking, RemoteError, RemoteUsers},
    requester::Requester,
    sessions::{LoggedIn, SessionRequest},
    settings::{Settings, UserSettings, is_of_settings},
    shared_secret::SharedSecretRegistration,
    uiaa::Completed,
};
use self::{
    guesses::Guesses, keys::DeviceLists, passwords::Passwords, sessions::Sessions, shared_secret::Nonces, turns::Turns,
};

/// Accounts of this deployment. Cheap to clone.
#[derive(Clone)]
pub struct Accounts(Arc<Inner>);

struct Inner {
    storage: Storage,
    servers: LocalServers,
    options: Options,
    passwords: Passwords,
    sessions: Sessions,
    nonces: Nonces,
    guesses: Guesses,
    turns: Turns,
    remote: Arc<dyn RemoteUsers>,
    device_lists: DeviceLists,
    remote_profiles: remote_profiles::RemoteProfiles,
}

impl Accounts {
    /// The accounts in a database, of the server names that are ours; no other servers are asked.
    #[must_use]
    pub fn new(storage: Storage, servers: LocalServers, options: Options) -> Self {
        Self::federating(storage, servers, options, Arc::new(remote_users::Nobody))
    }

    /// The same, with other servers to ask.
    #[must_use]
    pub fn federating(storage: Storage, servers: LocalServers, options: Options, remote: Arc<dyn RemoteUsers>) -> Self {
        let passwords = Passwords::new(storage.random().clone(), options.cheap_password_hashing);
        let guesses = Guesses::new(options.limit_guesses);
        Self(Arc::new(Inner {
            storage,
            servers,
            passwords,
            options,
            sessions: Sessions::new(),
            nonces: Nonces::new(),
            guesses,
            turns: Turns::new(),
            remote,
            device_lists: DeviceLists::new(),
            remote_profiles: remote_profiles::RemoteProfiles::new(),
        }))
    }

    /// Does what is put off, until `stop` ends: what changes of users have still to cause, when devices were last heard of, forgetting
    /// tokens that another process of a cluster has revoked, and first of all what an earlier process left of deleted key backups. Run
    /// it as one task of the process.
    pub async fn run(&self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        // Taken first: what is committed for the work may come after what another process changed.
        let mut followed = self.0.storage.published();
        // At once, however soon `stop` ends: an earlier process may have left some.
        self.take_up_work().await;
        let mut deletion = std::pin::pin!(self.0.storage.empty_deleted_key_backups());
        let mut is_deleting = true;
        let mut write = tokio::time::interval(sessions::SEEN_WRITTEN_EVERY);
        let mut work = tokio::time::interval(work::TAKEN_UP_EVERY);
        let mut follow = tokio::time::interval(sessions::OTHERS_ASKED_EVERY);
        loop {
            tokio::select! {
                () = &mut stop => break,
                result = &mut deletion, if is_deleting => {
                    is_deleting = false;
                    if let Err(error) = result {
                        warn!(error = &error as &dyn std::error::Error, "deleted key backups keep their keys until the next start");
                    }
                }
                _ = write.tick() => self.write_seen().await,
                _ = work.tick() => self.take_up_work().await,
                _ = follow.tick(), if self.0.storage.is_shared() => followed = self.follow_others(followed).await,
            }
        }
        self.write_seen().await;
    }

    /// The database.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.0.storage
    }

    /// The server names that are ours.
    #[must_use]
    pub fn servers(&self) -> &LocalServers {
        &self.0.servers
    }

    /// The options in force.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// Which of our server names a request means by its `Host`: the one of that name, with or without a port, or else the first.
    #[must_use]
    pub fn server_of_host(&self, host: Option<&str>) -> &ServerName {
        let servers = &self.0.servers;
        let Some(host) = host.map(str::to_ascii_lowercase) else { return servers.primary() };
        let without_port = host.rsplit_once(':').map_or(&*host, |(name, _)| name);
        let is_meant = |name: &&ServerName| name.as_str() == host || name.as_str() == without_port;
        servers.iter().map(|server| &*server.name).find(is_meant).unwrap_or(servers.primary())
    }

    fn now_ms(&self) -> i64 {
        self.0.storage.clock().now_ms()
    }
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accounts").finish_non_exhaustive()
    }
}
