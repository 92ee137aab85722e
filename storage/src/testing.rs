//! Databases for tests: a fresh one each.

use std::collections::BTreeMap;

use model::{Clock, EventNr, Membership, Random, RoomNr};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::{Error, Options, Storage, db::args, statement::statements};

/// The number of the committers' order lock.
const ORDER_LOCK: i64 = 0x7377_6966_7402;

/// The variable with the URL of a PostgreSQL superuser; without it tests run on SQLite only, and say so.
pub const POSTGRES_VARIABLE: &str = "SWIFTCHAT_TEST_POSTGRES";

/// A database of its own for one test; its files are gone when it is dropped.
#[derive(Debug)]
pub struct TestDatabase {
    /// How to open it.
    pub options: Options,
    _folder: Option<tempfile::TempDir>,
}

impl TestDatabase {
    /// An empty SQLite database in a temporary folder.
    ///
    /// # Panics
    ///
    /// When there is no temporary folder to be had.
    #[must_use]
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = Options::Sqlite { path: folder.path().join("test.db"), read_connections: 4 };
        Self { options, _folder: Some(folder) }
    }

    /// An empty PostgreSQL database, if there is a server for tests.
    ///
    /// # Panics
    ///
    /// When the server cannot be reached.
    pub async fn postgres() -> Option<Self> {
        let Ok(server) = std::env::var(POSTGRES_VARIABLE) else {
            eprintln!("SKIPPED on PostgreSQL: {POSTGRES_VARIABLE} is not set");
            return None;
        };
        let name = format!("test_{}", Random::system().alphanumeric(12).to_lowercase());
        let mut connection = PgConnection::connect(&server).await.expect("the PostgreSQL server for tests");
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("a new database");
        let (address, query) = server.split_once('?').unwrap_or((&server, ""));
        let host = address.rsplit_once('/').map_or(address, |(host, _)| host);
        let url = format!("{host}/{name}{}{query}", if query.is_empty() { "" } else { "?" });
        Some(Self { options: Options::Postgres { url, connections: 8 }, _folder: None })
    }

    /// One database of each kind that is there.
    pub async fn each() -> Vec<Self> {
        let mut databases = vec![Self::sqlite()];
        databases.extend(Self::postgres().await);
        databases
    }

    /// Opens it.
    ///
    /// # Panics
    ///
    /// When that fails.
    pub async fn open(&self) -> crate::Storage {
        crate::Storage::open(self.options.clone(), Clock::system(), Random::system())
            .await
            .expect("the test database opens")
    }
}

/// Somebody who breaks what the processes on a PostgreSQL database rely on.
#[derive(Debug)]
pub struct Saboteur {
    connection: PgConnection,
}

impl Saboteur {
    /// One who works against this database; nothing on SQLite.
    ///
    /// # Panics
    ///
    /// When the database cannot be reached.
    pub async fn of(database: &TestDatabase) -> Option<Self> {
        let Options::Postgres { url, .. } = &database.options else { return None };
        let connection = PgConnection::connect(url).await.expect("the PostgreSQL server for tests");
        Some(Self { connection })
    }

    /// Ends a connection of a server that runs a statement like `pattern` right now, if there is one.
    ///
    /// # Panics
    ///
    /// When the database fails.
    pub async fn end_connection(&mut self, pattern: &str) -> bool {
        let text = "SELECT count(pg_terminate_backend(pid)) FROM (
                        SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                           AND state <> 'idle' AND query LIKE $1 LIMIT 1) AS a";
        let count: i64 =
            sqlx::query_scalar(text).bind(pattern).fetch_one(&mut self.connection).await.expect("an answer");
        count > 0
    }

    /// Holds the lock that orders the commits of all processes, as one that hangs in the midst of a commit.
    ///
    /// # Panics
    ///
    /// When the database fails.
    pub async fn hold_order(&mut self) {
        let lock = sqlx::query("SELECT pg_advisory_lock($1)").bind(ORDER_LOCK);
        lock.execute(&mut self.connection).await.expect("the lock");
    }

    /// Gives it back.
    ///
    /// # Panics
    ///
    /// When it was not held.
    pub async fn release_order(&mut self) {
        let unlock = sqlx::query_scalar::<_, bool>("SELECT pg_advisory_unlock($1)").bind(ORDER_LOCK);
        assert!(unlock.fetch_one(&mut self.connection).await.expect("an answer"), "it was held");
    }

    /// How many processes have the order lock (one or none) and how many wait for it.
    ///
    /// # Panics
    ///
    /// When the database fails.
    pub async fn order(&mut self) -> (i64, i64) {
        let text = "SELECT count(*) FILTER (WHERE l.granted), count(*) FILTER (WHERE NOT l.granted)
                      FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
                     WHERE l.locktype = 'advisory' AND l.classid::bigint = $1 >> 32 AND l.objid::bigint = $1 & 4294967295";
        sqlx::query_as(text).bind(ORDER_LOCK).fetch_one(&mut self.connection).await.expect("an answer")
    }
}

statements! {
    LIST_MEMBERS = ["
        SELECT m.user_nr, u.user_id, m.membership, m.event_nr
          FROM memberships m JOIN user_numbers u ON u.user_nr = m.user_nr WHERE m.room_nr = $1 ORDER BY m.user_nr"];
    LIST_SERVERS = ["SELECT server, joined, told FROM room_servers WHERE room_nr = $1 ORDER BY server"];
    LIST_LOG = ["SELECT user_nr, membership FROM membership_log WHERE room_nr = $1 ORDER BY position"];
}

impl Storage {
    /// What is derived from the current state of a room and is not as the state says: who its members are, how many, and of which servers.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn wrong_projections(&self, room_nr: RoomNr) -> Result<Vec<String>, Error> {
        let mut wrong = Vec::new();
        let head = self.get_head(room_nr).await?.ok_or_else(|| Error::Damaged("no such room".to_owned()))?;
        let member = self.type_nr("m.room.member").await?;
        let entries = self.list_state(room_nr, head.state).await?;
        let numbers: Vec<EventNr> = entries.iter().filter(|(key, _)| key.0 == member).map(|(_, nr)| *nr).collect();
        let mut wanted: BTreeMap<String, (i64, EventNr)> = BTreeMap::new();
        for event in self.get_events(&numbers).await?.values() {
            let content: serde_json::Value = serde_json::from_str(event.pdu.content.get()).unwrap_or_default();
            let membership =
                content["membership"].as_str().and_then(Membership::from_word).map_or(-1, Membership::code);
            wanted.insert(event.pdu.state_key.clone().unwrap_or_default(), (membership, event.nr));
        }
        let mut log: BTreeMap<i64, i64> = BTreeMap::new();
        for row in self.db().read(&LIST_LOG, args![room_nr]).await? {
            log.insert(row.get(0)?, row.get(1)?);
        }
        let (mut joined, mut invited, mut servers) = (0, 0, BTreeMap::<String, i64>::new());
        for row in self.db().read(&LIST_MEMBERS, args![room_nr]).await? {
            let (user_id, membership): (String, i64) = (row.get(1)?, row.get(2)?);
            let is = (membership, row.nr(3)?);
            match wanted.remove(&user_id) {
                Some(said) if said == is => {}
                said => wrong.push(format!("{user_id} is {is:?}, and the state says {said:?}")),
            }
            if log.get(&row.get::<i64>(0)?) != Some(&membership) {
                wrong.push(format!("the log says something else of {user_id}"));
            }
            joined += u64::from(membership == Membership::Join.code());
            invited += u64::from(membership == Membership::Invite.code());
            if membership == Membership::Join.code() {
                let server = user_id.split_once(':').map_or("", |(_, server)| server);
                *servers.entry(server.to_owned()).or_default() += 1;
            }
        }
        wrong.extend(
            wanted.into_iter().map(|(user_id, said)| format!("{user_id} is nothing, and the state says {said:?}")),
        );
        let counts =
            self.get_summaries(&[room_nr]).await?.remove(&room_nr).map(|(_, joined, invited)| (joined, invited));
        if counts != Some((joined, invited)) {
            wrong.push(format!("{joined} are joined and {invited} invited, and the counts are {counts:?}"));
        }
        for row in self.db().read(&LIST_SERVERS, args![room_nr]).await? {
            let (server, count): (String, i64) = (row.get(0)?, row.get(1)?);
            let of_server = servers.remove(&server).unwrap_or(0);
            if of_server != count || (count == 0 && !row.get::<bool>(2)?) {
                wrong.push(format!("{server} has {of_server} members, and the count is {count}"));
            }
        }
        wrong.extend(servers.into_iter().map(|(server, count)| format!("{server} has {count} members and is missing")));
        Ok(wrong)
    }
}
