//! A whole server in this process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use model::{Clock, Random};
use storage::{Options, testing::TestDatabase};
use swiftchat::{
    Overrides, Server,
    config::{Config, Database, ListenerConfig, Registration},
};

use crate::{Http, TestUser};

/// The shared secret with which tests make administrators.
pub(crate) const SHARED_SECRET: &str = "the shared secret of the tests";

/// A server on a free port of loopback, with a database and a data folder of its own that are gone with it.
///
/// Anyone may register, guests are welcome, passwords are hashed cheaply and nothing is rate limited.
#[derive(Debug)]
pub struct TestServer {
    http: Http,
    options: ServerOptions,
    server: Option<Server>,
    database: Arc<TestDatabase>,
    folder: Arc<tempfile::TempDir>,
}

/// How a test wants its server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The configuration, but for listeners, data folder and database.
    pub config: Config,
    /// Listeners beside the one that the test's own requests go to.
    pub more_listeners: Vec<ListenerConfig>,
    /// Where time comes from.
    pub clock: Clock,
    /// Where chance comes from.
    pub random: Random,
    /// How often it asks the database what other processes wrote; nothing for the usual second.
    pub ask_every: Option<Duration>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        let mut config = Config::default();
        config.accounts.registration = Some(Registration::Open);
        config.accounts.guests = true;
        config.accounts.registration_shared_secret = Some(SHARED_SECRET.to_owned());
        config.unsafe_options.cheap_password_hashing = true;
        config.unsafe_options.rate_limits_off = true;
        config.client_api.public_url = Some("https://matrix.example.org".to_owned());
        Self { config, more_listeners: Vec::new(), clock: Clock::system(), random: Random::system(), ask_every: None }
    }
}

impl TestServer {
    /// One on SQLite.
    pub async fn start() -> Self {
        Self::with(ServerOptions::default()).await
    }

    /// One on SQLite, as `options` say.
    pub async fn with(options: ServerOptions) -> Self {
        Self::on(TestDatabase::sqlite(), options).await
    }

    /// One on PostgreSQL, if there is one for tests; says so when not.
    pub async fn on_postgres() -> Option<Self> {
        Some(Self::on(TestDatabase::postgres().await?, ServerOptions::default()).await)
    }

    /// One on this database.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn on(database: TestDatabase, options: ServerOptions) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::in_folder(Arc::new(database), Arc::new(folder), options).await
    }

    /// Another process of the same deployment: on the same database, with the same keys.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn beside(&self, options: ServerOptions) -> Self {
        Self::in_folder(self.database.clone(), self.folder.clone(), options).await
    }

    async fn in_folder(database: Arc<TestDatabase>, folder: Arc<tempfile::TempDir>, options: ServerOptions) -> Self {
        let server = start(&database, &folder, &options).await;
        let http = Http::new(&url(&server));
        Self { http, options, server: Some(server), database, folder }
    }

    /// Ends the server in order and starts it again on the same database and data folder, at another port.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.go_on().await;
    }

    /// Ends the server in order; [`go_on`](Self::go_on) starts it again.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
    }

    /// Starts the server again after [`stop`](Self::stop), at another port.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn go_on(&mut self) {
        let server = start(&self.database, &self.folder, &self.options).await;
        self.http = Http::new(&url(&server));
        self.server = Some(server);
    }

    /// A client for it.
    #[must_use]
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// The clock it runs by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.options.clock
    }

    /// Registers a user.
    pub async fn user(&self, name: &str) -> TestUser {
        crate::register(&self.http, name).await
    }

    /// Registers an administrator.
    ///
    /// # Panics
    ///
    /// When the database fails.
    pub async fn admin(&self, name: &str) -> TestUser {
        let user = self.user(name).await;
        let storage = self.database.open().await;
        let user_id = <&ruma::UserId>::try_from(user.id()).expect("a user id");
        let user_nr = storage.user_nr(user_id).await.expect("the number of a user");
        storage.update_admin(user_nr, true).await.expect("a change");
        storage.close().await;
        user
    }

    /// How it was started.
    #[must_use]
    pub fn options(&self) -> &ServerOptions {
        &self.options
    }

    /// How it will be started the next time.
    pub fn options_mut(&mut self) -> &mut ServerOptions {
        &mut self.options
    }

    /// Registers a guest.
    pub async fn guest(&self) -> TestUser {
        crate::register_guest(&self.http).await
    }

    /// Ends it in order.
    pub async fn shutdown(mut self) {
        self.stop().await;
    }
}

async fn start(database: &TestDatabase, folder: &tempfile::TempDir, options: &ServerOptions) -> Server {
    let mut config = options.config.clone();
    config.server.data_folder = folder.path().to_owned();
    config.listeners = vec![ListenerConfig { address: SocketAddr::from(([127, 0, 0, 1], 0)), ..Default::default() }];
    config.listeners.extend(options.more_listeners.iter().cloned());
    config.storage.database = match &database.options {
        // An absolute path stays what it is when it is joined to the data folder.
        Options::Sqlite { path, .. } => Database::Sqlite(path.clone()),
        Options::Postgres { url, .. } => Database::Postgres(url.clone()),
    };
    let ServerOptions { clock, random, ask_every, .. } = options.clone();
    let overrides = Overrides { clock, random, ask_every };
    Server::start(config, overrides).await.expect("the server starts")
}

fn url(server: &Server) -> String {
    server.addresses().first().expect("a listener").to_string()
}
