//! Accounts on each database.

mod account_data;
mod key_backups;
mod keys;
mod sessions;
mod to_device;
mod uiaa;
mod users;
mod work;

use accounts::{Accounts, NewAccount, Options, Requester, SessionRequest};
use model::{Clock, KeyPair, LocalServer, LocalServers, Random};
use ruma::{UserId, server_name};
use storage::{Storage, testing::TestDatabase};

/// Two processes of one deployment on one database, with one clock.
struct World {
    accounts: Accounts,
    other: Accounts,
    clock: Clock,
    _database: TestDatabase,
}

/// When the tests begin, in milliseconds since 1970.
const START_MS: i64 = 1_700_000_000_000;

impl World {
    async fn on(database: TestDatabase, options: Options) -> Self {
        let (clock, random) = (Clock::manual(START_MS), Random::system());
        let options = Options { cheap_password_hashing: true, ..options };
        let key = || KeyPair::generate(&Random::seeded(1));
        let names = [server_name!("one.test"), server_name!("two.test")];
        let servers = names.map(|name| LocalServer::new(name.to_owned(), key()));
        let servers = LocalServers::new(servers.into());
        let open = async || {
            let storage = Storage::open(database.options.clone(), clock.clone(), random.clone()).await.unwrap();
            Accounts::new(storage, servers.clone(), options.clone())
        };
        Self { accounts: open().await, other: open().await, clock: clock.clone(), _database: database }
    }

    /// A world on each database that is there.
    async fn each(options: Options) -> Vec<Self> {
        let mut worlds = Vec::new();
        for database in TestDatabase::each().await {
            worlds.push(Self::on(database, options.clone()).await);
        }
        worlds
    }

    /// Registers a user with the password `secret`, and logs a device in.
    async fn user(&self, user_id: &UserId) -> Requester {
        let account = NewAccount { password: Some("secret".to_owned()), ..NewAccount::default() };
        let user = self.accounts.register(user_id, account).await.unwrap();
        let session = self.accounts.log_in(&user, SessionRequest::default()).await.unwrap();
        self.accounts.authenticate(&session.access_token, None).await.unwrap()
    }
}
