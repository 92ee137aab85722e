//! Puts the crates together: opens the services from the bottom up and hands each what it needs.

use std::{path::Path, sync::Arc};

use accounts::Accounts;
use axum::Router;
use client_api::ClientApi;
use event_bus::{Bus, Presence, Typing};
use federation::{Federation, FederationApi, Sender};
use media::{Media, RemoteMedia};
use model::{Clock, LocalServers, Random};
use outbound::Outbound;
use rooms::{EncryptionPolicy, Rooms};
use storage::Storage;
use sync::{Ephemeral, Sync};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;
use web::{Rate, RateLimitOptions, RateLimits};

use crate::{
    Error, Overrides,
    config::{Api, Config, Database, Encryption, EventBusUrl, Registration},
    tls,
};

/// The services of a running server.
pub(crate) struct Services {
    storage: Storage,
    accounts: Accounts,
    rooms: Rooms,
    media: Media,
    typing: Typing,
    sync: Sync,
    limits: RateLimits,
    federation: Option<Federation>,
    sender_task: Option<JoinHandle<()>>,
    public_url: Option<String>,
    accounts_task: JoinHandle<()>,
    devices_task: Option<JoinHandle<()>>,
    profiles_task: JoinHandle<()>,
    completing_task: Option<JoinHandle<()>>,
    departures_task: JoinHandle<()>,
    redactions_task: JoinHandle<()>,
    maintenance: JoinHandle<()>,
}

impl Services {
    /// Opens them; what waits and what runs beside requests ends with `stopping`.
    pub(crate) async fn start(
        config: &Config,
        data_folder: &Path,
        local_servers: LocalServers,
        accounts_options: accounts::Options,
        overrides: Overrides,
        stopping: CancellationToken,
    ) -> Result<Self, Error> {
        let Overrides { clock, random, ask_every } = overrides;
        // Before the database: what is wrong with it needs nothing of it.
        let outbound = config.federates().then(|| open_outbound(config, &random)).transpose()?;
        let storage = open_storage(config, data_folder, clock.clone(), random.clone()).await?;
        let federation = match &outbound {
            Some(outbound) => Some(open_federation(config, outbound, &storage, &local_servers)?),
            None => None,
        };
        let accounts = match &federation {
            Some(federation) => Accounts::federating(
                storage.clone(),
                local_servers.clone(),
                accounts_options,
                Arc::new(federation.clone()),
            ),
            None => Accounts::new(storage.clone(), local_servers.clone(), accounts_options),
        };
        let options = rooms::Options {
            default_version: config.rooms.default_version.clone(),
            thread_subscriptions: config.rooms.thread_subscriptions,
            encryption: match config.rooms.encryption {
                Encryption::Off => EncryptionPolicy::Off,
                Encryption::DirectChats => EncryptionPolicy::DirectChats,
                Encryption::All => EncryptionPolicy::All,
            },
        };
        let media = open_media(config, data_folder, &storage, &local_servers, federation.as_ref(), stopping.clone())?;
        let rooms = match &federation {
            Some(federation) => {
                Rooms::federating(storage.clone(), local_servers, options, Arc::new(federation.clone()))
            }
            None => Rooms::new(storage.clone(), local_servers, options),
        };
        let (bus, typing, presence) = match &config.event_bus.url {
            EventBusUrl::Memory => {
                (Bus::memory(), Typing::new(clock.clone(), &random), Presence::new(clock.clone(), &random))
            }
            EventBusUrl::Redis(url) => {
                let name = format!("swiftchat:{}", storage.deployment_id().await?);
                let bus = Bus::redis(url, &format!("{name}:notices"), &random.alphanumeric(12))?;
                let typing = Typing::redis(url, &name, clock.clone(), &random)?;
                (bus, typing, Presence::redis(url, &name, clock.clone(), &random)?)
            }
        };
        let presence = config.presence.enabled.then_some(presence);
        let (of_storage, of_rooms) = (storage.clone(), rooms.clone());
        let ephemeral = Ephemeral { typing: typing.clone(), presence };
        let sync = match ask_every {
            Some(every) => Sync::start_asking(every, of_storage, of_rooms, ephemeral, bus, stopping.clone()),
            None => Sync::start(of_storage, of_rooms, ephemeral, bus, stopping.clone()),
        };
        let sender_task = federation.as_ref().map(|federation| {
            let presence = sync.presence().cloned();
            let sender = Sender::new(federation.clone(), storage.clone(), sync.clone(), typing.clone(), presence);
            tokio::spawn(sender.run(stopping.clone().cancelled_owned()))
        });
        let limits = RateLimits::new(rate_limits(config), &clock);
        let accounts_task = tokio::spawn({
            let (accounts, stopping) = (accounts.clone(), stopping.clone());
            async move { accounts.run(stopping.cancelled()).await }
        });
        let devices_task = federation.as_ref().map(|_| {
            let (accounts, stopping) = (accounts.clone(), stopping.clone());
            tokio::spawn(async move { accounts.follow_remote_devices(stopping.cancelled()).await })
        });
        let profiles_task = tokio::spawn({
            let (rooms, stopping) = (rooms.clone(), stopping.clone());
            async move { rooms.follow_profiles(stopping.cancelled()).await }
        });
        let completing_task = federation.as_ref().map(|_| {
            let (rooms, stopping) = (rooms.clone(), stopping.clone());
            tokio::spawn(async move { rooms.complete_partial_rooms(stopping.cancelled()).await })
        });
        let redactions_task = tokio::spawn({
            let (rooms, stopping) = (rooms.clone(), stopping.clone());
            async move { rooms.follow_redactions(stopping.cancelled()).await }
        });
        let departures_task = tokio::spawn({
            let (accounts, rooms, stopping) = (accounts.clone(), rooms.clone(), stopping.clone());
            async move { client_api::follow_departures(accounts, rooms, stopping.cancelled()).await }
        });
        let maintenance = tokio::spawn({
            let (storage, stopping) = (storage.clone(), stopping.clone());
            async move { storage.maintain(stopping).await }
        });
        let public_url = config.client_api.public_url.clone();
        Ok(Self {
            storage,
            accounts,
            rooms,
            media,
            typing,
            sync,
            limits,
            federation,
            sender_task,
            public_url,
            accounts_task,
            devices_task,
            profiles_task,
            completing_task,
            departures_task,
            redactions_task,
            maintenance,
        })
    }

    /// What one listener serves: those of `apis` that exist.
    pub(crate) fn router(&self, apis: &[Api]) -> Router {
        let api = ClientApi {
            accounts: self.accounts.clone(),
            rooms: self.rooms.clone(),
            sync: self.sync.clone(),
            typing: self.typing.clone(),
            media: self.media.clone(),
            rate_limits: self.limits.clone(),
            options: Arc::new(client_api::Options { public_url: self.public_url.clone() }),
        };
        let mut router = Router::new();
        if apis.contains(&Api::Client) {
            router = router.merge(client_api::router(api.clone()));
        }
        if let Some(federation) = self.federation.as_ref().filter(|_| apis.contains(&Api::Federation)) {
            router = router.merge(federation::router(FederationApi {
                federation: federation.clone(),
                accounts: self.accounts.clone(),
                rooms: self.rooms.clone(),
                media: self.media.clone(),
                typing: self.typing.clone(),
                presences: self.sync.presences().clone(),
                rate_limits: self.limits.clone(),
            }));
        }
        if apis.contains(&Api::Admin) {
            router = router.merge(client_api::admin_router(api));
        }
        web::finish(router)
    }

    /// Waits for the tasks, which `stopping` has ended, writes what is queued and closes the database.
    pub(crate) async fn close(self) {
        // Its last words go into the database.
        let _ = self.accounts_task.await;
        if let Some(task) = self.devices_task {
            let _ = task.await;
        }
        let _ = self.profiles_task.await;
        if let Some(task) = self.completing_task {
            let _ = task.await;
        }
        let _ = self.departures_task.await;
        let _ = self.redactions_task.await;
        let _ = self.maintenance.await;
        self.media.close().await;
        if let Some(task) = self.sender_task {
            let _ = task.await;
        }
        self.storage.close().await;
    }
}

/// The way to other servers.
///
/// # Errors
///
/// [`Error::Outbound`] when the system has neither certificate authorities nor name servers, [`Error::Authorities`].
pub(crate) fn open_outbound(config: &Config, random: &Random) -> Result<Outbound, Error> {
    let options = &config.unsafe_options;
    let mut authorities = Vec::new();
    for path in &options.federation_extra_authorities {
        authorities.extend(tls::authorities(path)?);
    }
    let options = outbound::Options {
        allowed_ranges: options.outgoing_private_networks.iter().copied().map(Into::into).collect(),
        denied_ranges: Vec::new(),
        name_servers: options.federation_dns_server.into_iter().collect(),
        certificate_authorities: authorities,
        user_agent: concat!("SwiftChat/", env!("CARGO_PKG_VERSION")).to_owned(),
        random: random.clone(),
    };
    Ok(Outbound::new(options)?)
}

fn open_federation(
    config: &Config,
    outbound: &Outbound,
    storage: &Storage,
    servers: &LocalServers,
) -> Result<Federation, Error> {
    let options = federation::Options {
        notaries: config.federation.notaries.clone(),
        delegates: config.federation.delegates.clone(),
        lists: config.federation.server_lists(),
    };
    Ok(Federation::new(outbound, storage.clone(), servers.clone(), options)?)
}

/// Opens the folder of files.
///
/// # Errors
///
/// [`Error::File`] when it cannot be used.
fn open_media(
    config: &Config,
    data_folder: &Path,
    storage: &Storage,
    servers: &LocalServers,
    federation: Option<&Federation>,
    stopping: CancellationToken,
) -> Result<Media, Error> {
    let folder = data_folder.join(&config.media.folder);
    let is_shared = matches!(config.storage.database, Database::Postgres(_));
    if is_shared {
        info!(folder = %folder.display(), "files are kept in {}, which all processes have to share", folder.display());
    }
    let options = media::Options {
        folder: folder.clone(),
        is_shared,
        upload_bytes_max: config.media.upload_bytes_max.get(),
        remote_bytes_max: config.media.remote_bytes_max.get(),
    };
    let remote = federation.map(|federation| Arc::new(federation.clone()) as Arc<dyn RemoteMedia>);
    let opened = Media::open_store(storage.clone(), servers.clone(), options, remote, stopping);
    opened.map_err(|source| Error::File { action: "use the folder of files", path: folder, source })
}

/// Opens the configured database; an SQLite file lies in `data_folder`.
///
/// # Errors
///
/// [`Error::Storage`] when it cannot be reached, or a newer version of swiftchat wrote it.
pub(crate) async fn open_storage(
    config: &Config,
    data_folder: &Path,
    clock: Clock,
    random: Random,
) -> Result<Storage, Error> {
    let options = match &config.storage.database {
        Database::Sqlite(file) => storage::Options::Sqlite {
            path: data_folder.join(file),
            read_connections: config.storage.sqlite_read_connections.get(),
        },
        Database::Postgres(url) => {
            storage::Options::Postgres { url: url.clone(), connections: config.storage.postgres_connections.get() }
        }
    };
    Ok(Storage::open(options, clock, random).await?)
}

/// What the configuration says about accounts.
///
/// # Errors
///
/// [`Error::Config`] when a registration file of an application service is wrong.
pub(crate) fn accounts_options(config: &Config) -> Result<accounts::Options, Error> {
    let registration = match config.registration() {
        Registration::Open => accounts::Registration::Open,
        Registration::Token => accounts::Registration::Token,
        Registration::Closed => accounts::Registration::Closed,
    };
    Ok(accounts::Options {
        registration,
        guests: config.accounts.guests,
        registration_shared_secret: config.accounts.registration_shared_secret.clone(),
        access_token_lifetime_ms: i64::from(config.accounts.access_token_lifetime_seconds.get()) * 1_000,
        login_tokens: config.accounts.login_tokens,
        limit_guesses: !config.unsafe_options.rate_limits_off,
        cheap_password_hashing: config.unsafe_options.cheap_password_hashing,
        thread_subscriptions: config.rooms.thread_subscriptions,
        app_services: config.application_services.read()?,
    })
}

fn rate_limits(config: &Config) -> Option<RateLimitOptions> {
    let (options, federation) = (&config.client_api, &config.federation);
    let limits = RateLimitOptions {
        user: Rate { per_second: options.user_requests_per_second, burst: options.user_requests_burst },
        address: Rate { per_second: options.address_requests_per_second, burst: options.address_requests_burst },
        address_reads: Rate { per_second: options.address_reads_per_second, burst: options.address_reads_burst },
        server: Rate { per_second: federation.server_requests_per_second, burst: federation.server_requests_burst },
        stranger: Rate {
            per_second: federation.stranger_requests_per_second,
            burst: federation.stranger_requests_burst,
        },
    };
    (!config.unsafe_options.rate_limits_off).then_some(limits)
}
