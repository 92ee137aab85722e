//! The two databases behind one face: connections, transactions, parameters and rows.

use std::{str::FromStr, time::Duration};

use futures_util::TryStreamExt as _;
use serde::de::DeserializeOwned;
use sqlx::{
    Connection as _, Decode, Executor as _, PgPool, Postgres, Row as _, Sqlite, SqlitePool, Type,
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow},
    query::Query,
    sqlite::{
        SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};

use crate::{
    Error, Options,
    rows::{Column, Rows},
    statement::{Statement, statements},
};

/// How long a connection to PostgreSQL is idle before it is tested when it is used again.
const IDLE_UNTESTED_MAX: Duration = Duration::from_millis(500);
/// A process that hangs in the midst of a transaction must not stop the others, who wait for its locks: PostgreSQL ends its connection.
/// Who waits for a lock waits longer than that. Migrations have all the time that they need.
const TIMEOUTS: &str =
    "SET idle_in_transaction_session_timeout = '5s'; SET lock_timeout = '15s'; SET statement_timeout = '60s'";
/// All statements go by keys, so one plan by indexes serves for whatever is asked, however little PostgreSQL knows of a table yet. Left to
/// itself it plans some of them anew each time, which costs several times what they do, and reads whole tables while they are new.
const PLANS: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off;
    SET enable_mergejoin = off; SET jit = off";
/// How long a checkpoint waits for readers; a writer may wait as long.
const CHECKPOINT_WAIT: Duration = Duration::from_millis(200);
/// Most prepared statements that one connection keeps.
const STATEMENTS_CACHED: usize = 500;

/// The number in it is that of the order lock of a database; it means nothing.
const BEGIN_ORDERED: &str = "BEGIN; SET LOCAL synchronous_commit = off; SELECT pg_advisory_xact_lock(126956706624514)";

statements! {
    DURABLE = [(either "SELECT 1" "SELECT pg_logical_emit_message(true, 'swiftchat', '')::text")];
}

/// The database.
#[derive(Clone)]
pub(crate) enum Db {
    /// One file: one connection writes, the others read.
    Sqlite { writer: SqlitePool, readers: SqlitePool, checkpointer: SqlitePool },
    /// A server.
    Postgres { pool: PgPool },
}

/// A text as both databases take it: PostgreSQL stores no zero byte in a text, so that one becomes the replacement character.
///
/// What must be told apart to the letter refuses zero bytes before it comes here. Event bodies are bytes and keep theirs.
pub(crate) fn storable(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{FFFD}") } else { text }
}

/// A parameter of a statement.
#[derive(Clone, Debug)]
pub(crate) enum Arg {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    Bool(bool),
    /// For the piece `(in_list n)`.
    Ints(Vec<i64>),
    /// For the piece `(in_list n)`.
    Texts(Vec<String>),
}

macro_rules! arg_from {
    ($($from:ty => |$value:ident| $arg:expr;)*) => {$(
        impl From<$from> for Arg {
            fn from($value: $from) -> Self {
                $arg
            }
        }
    )*};
}

arg_from! {
    i64 => |value| Self::Int(Some(value));
    Option<i64> => |value| Self::Int(value);
    &str => |value| Self::Text(Some(storable(value.to_owned())));
    &String => |value| Self::Text(Some(storable(value.clone())));
    String => |value| Self::Text(Some(storable(value)));
    Option<String> => |value| Self::Text(value.map(storable));
    Option<&str> => |value| Self::Text(value.map(|value| storable(value.to_owned())));
    Vec<u8> => |value| Self::Bytes(Some(value));
    Option<Vec<u8>> => |value| Self::Bytes(value);
    bool => |value| Self::Bool(value);
    Vec<i64> => |value| Self::Ints(value);
    Vec<String> => |value| Self::Texts(value.into_iter().map(storable).collect());
    model::EventNr => |value| Self::Int(Some(value.0));
    model::RoomNr => |value| Self::Int(Some(value.0));
    model::UserNr => |value| Self::Int(Some(value.0));
    model::TypeNr => |value| Self::Int(Some(value.0));
    model::StateKeyNr => |value| Self::Int(Some(value.0));
    model::NodeNr => |value| Self::Int(Some(value.0));
    model::Position => |value| Self::Int(Some(value.0));
}

/// The parameters of a statement, in order: `args![user_nr, "text", Some(3)]`.
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::db::Arg::from($value)),*] };
}
pub(crate) use args;

/// The parameters of a statement: single values, or many rows.
pub(crate) enum Args {
    Values(Vec<Arg>),
    Rows(Rows),
}

impl From<Vec<Arg>> for Args {
    fn from(values: Vec<Arg>) -> Self {
        Self::Values(values)
    }
}

impl From<Rows> for Args {
    fn from(rows: Rows) -> Self {
        Self::Rows(rows)
    }
}

/// A row of an answer.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// The columns of a row that comes with many others.
pub(crate) trait Packed: DeserializeOwned {
    /// The columns of a row that came by itself.
    fn from_row(row: &Row) -> Result<Self, Error>;
}

macro_rules! packed {
    ($($column:ident $index:literal),+) => {
        impl<$($column: FromColumn + DeserializeOwned),+> Packed for ($($column,)+) {
            fn from_row(row: &Row) -> Result<Self, Error> {
                Ok(($(row.get::<$column>($index)?,)+))
            }
        }
    };
}

packed!(A 0, B 1);
packed!(A 0, B 1, C 2);
packed!(A 0, B 1, C 2, D 3);
packed!(A 0, B 1, C 2, D 3, E 4, F 5);

/// A Rust type that both databases give.
pub(crate) trait FromColumn:
    for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl<T> FromColumn for T where
    T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl Row {
    /// The value of the column at `index`, counted from zero.
    pub(crate) fn get<T: FromColumn>(&self, index: usize) -> Result<T, Error> {
        Ok(match self {
            Self::Sqlite(row) => row.try_get_unchecked(index)?,
            Self::Postgres(row) => row.try_get(index)?,
        })
    }

    /// A column of numbers as one of the number types.
    pub(crate) fn nr<T: From<i64>>(&self, index: usize) -> Result<T, Error> {
        self.get::<i64>(index).map(T::from)
    }

    /// The same, or nothing.
    pub(crate) fn maybe_nr<T: From<i64>>(&self, index: usize) -> Result<Option<T>, Error> {
        Ok(self.get::<Option<i64>>(index)?.map(T::from))
    }
}

impl Db {
    /// Opens the database and its pools; runs no migrations.
    pub(crate) async fn open(options: &Options) -> Result<Self, Error> {
        match options {
            Options::Sqlite { path, read_connections } => {
                let connect = SqliteConnectOptions::new()
                    .filename(path)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .busy_timeout(Duration::from_secs(10))
                    .statement_cache_capacity(STATEMENTS_CACHED)
                    .row_buffer_size(200)
                    .pragma("temp_store", "memory")
                    .pragma("mmap_size", "268435456");
                // Checkpoints are a task of their own: a commit must not wait for one.
                let write = connect.clone().create_if_missing(true).pragma("wal_autocheckpoint", "0");
                let writer = SqlitePoolOptions::new()
                    .max_connections(1)
                    .min_connections(1)
                    .acquire_timeout(Duration::from_secs(30))
                    .idle_timeout(None)
                    .max_lifetime(None)
                    .test_before_acquire(false)
                    .connect_with(write)
                    .await?;
                let readers = SqlitePoolOptions::new()
                    .max_connections(*read_connections)
                    .acquire_timeout(Duration::from_secs(30))
                    .test_before_acquire(false)
                    .connect_lazy_with(connect.clone().read_only(true));
                let checkpointer = SqlitePoolOptions::new()
                    .max_connections(1)
                    .connect_lazy_with(connect.busy_timeout(CHECKPOINT_WAIT).pragma("wal_autocheckpoint", "0"));
                Ok(Self::Sqlite { writer, readers, checkpointer })
            }
            Options::Postgres { url, connections } => {
                let connect = PgConnectOptions::from_str(url)?
                    .application_name("swiftchat")
                    .statement_cache_capacity(STATEMENTS_CACHED);
                let pool = PgPoolOptions::new()
                    .max_connections(*connections)
                    .acquire_timeout(Duration::from_secs(30))
                    .after_connect(|connection, _| {
                        Box::pin(async move {
                            connection.execute(TIMEOUTS).await?;
                            connection.execute(PLANS).await?;
                            Ok(())
                        })
                    })
                    // Asking the server whether it is there costs a round trip: not for a connection in constant use.
                    .test_before_acquire(false)
                    .before_acquire(|connection, meta| {
                        Box::pin(async move {
                            if meta.idle_for > IDLE_UNTESTED_MAX {
                                connection.ping().await?;
                            }
                            Ok(true)
                        })
                    })
                    .connect_with(connect)
                    .await?;
                Ok(Self::Postgres { pool })
            }
        }
    }

    /// Runs one statement that only reads, on a connection of its own.
    pub(crate) async fn read(&self, statement: &Statement, args: impl Into<Args>) -> Result<Vec<Row>, Error> {
        match self {
            Self::Sqlite { readers, .. } => fetch_sqlite(readers, statement, args.into()).await,
            Self::Postgres { pool } => fetch_postgres(pool, statement, args.into()).await,
        }
    }

    /// Many rows in one hand-over, in no order: those of a statement that begins with the piece `packed`.
    ///
    /// The driver of SQLite wakes its reader for each row, which costs several times what reading the row does.
    pub(crate) async fn read_packed<T: Packed>(
        &self,
        statement: &Statement,
        args: impl Into<Args>,
    ) -> Result<Vec<T>, Error> {
        let rows = self.read(statement, args).await?;
        match self {
            Self::Sqlite { .. } => {
                let json: String = rows.first().map_or_else(|| Ok("[]".to_owned()), |row| row.get(0))?;
                serde_json::from_str(&json)
                    .map_err(|error| Error::Damaged(format!("statement {}: {error}", statement.name)))
            }
            Self::Postgres { .. } => rows.iter().map(T::from_row).collect(),
        }
    }

    /// The first row of [`Db::read`].
    pub(crate) async fn read_one(&self, statement: &Statement, args: impl Into<Args>) -> Result<Option<Row>, Error> {
        Ok(self.read(statement, args).await?.into_iter().next())
    }

    /// Runs one statement that writes, durable when it returns; gives how many rows it touched.
    pub(crate) async fn write(&self, statement: &Statement, args: impl Into<Args>) -> Result<u64, Error> {
        match self {
            Self::Sqlite { writer, .. } => Ok(bind_sqlite(statement, args.into())
                .execute(writer)
                .await
                .map_err(|e| named(statement, e))?
                .rows_affected()),
            Self::Postgres { pool } => Ok(bind_postgres(statement, args.into())
                .execute(pool)
                .await
                .map_err(|e| named(statement, e))?
                .rows_affected()),
        }
    }

    /// Runs one statement that writes, durable when it returns; gives the first of the rows that it returns.
    pub(crate) async fn write_one(&self, statement: &Statement, args: impl Into<Args>) -> Result<Option<Row>, Error> {
        let rows = match self {
            Self::Sqlite { writer, .. } => fetch_sqlite(writer, statement, args.into()).await,
            Self::Postgres { pool } => fetch_postgres(pool, statement, args.into()).await,
        };
        Ok(rows?.into_iter().next())
    }

    /// Starts a transaction that writes. On SQLite it holds the one writer: keep it under 10 ms and 500 rows.
    pub(crate) async fn begin(&self) -> Result<Tx, Error> {
        Ok(match self {
            Self::Sqlite { writer, .. } => Tx::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres { pool } => Tx::Postgres(pool.begin().await?),
        })
    }

    /// Starts a transaction in the order of all transactions of all processes: what was committed before it is seen, what is
    /// committed later comes after it. PostgreSQL frees the order before it flushes: see [`Db::make_durable`].
    pub(crate) async fn begin_ordered(&self) -> Result<Tx, Error> {
        Ok(match self {
            Self::Sqlite { writer, .. } => Tx::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?),
            // One round trip. The lock is a statement of its own: what follows sees all that was committed before it was had.
            Self::Postgres { pool } => Tx::Postgres(pool.begin_with(BEGIN_ORDERED).await?),
        })
    }

    /// Makes all that is visible durable. PostgreSQL's log is sequential: one durable transaction flushes what came before it.
    /// SQLite shows nothing that is not durable.
    pub(crate) async fn make_durable(&self) -> Result<(), Error> {
        if let Self::Postgres { pool } = self {
            bind_postgres(&DURABLE, Args::Values(Vec::new())).execute(pool).await.map_err(|e| named(&DURABLE, e))?;
        }
        Ok(())
    }

    /// Closes all connections when they are idle.
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers, checkpointer } => {
                readers.close().await;
                checkpointer.close().await;
                writer.close().await;
            }
            Self::Postgres { pool } => pool.close().await,
        }
    }
}

/// A transaction; dropping it rolls it back.
pub(crate) enum Tx {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Tx {
    /// Runs a statement and gives its rows.
    pub(crate) async fn fetch(&mut self, statement: &Statement, args: impl Into<Args>) -> Result<Vec<Row>, Error> {
        match self {
            Self::Sqlite(tx) => fetch_sqlite(&mut **tx, statement, args.into()).await,
            Self::Postgres(tx) => fetch_postgres(&mut **tx, statement, args.into()).await,
        }
    }

    /// The first row of [`Tx::fetch`].
    pub(crate) async fn fetch_one(
        &mut self,
        statement: &Statement,
        args: impl Into<Args>,
    ) -> Result<Option<Row>, Error> {
        Ok(self.fetch(statement, args).await?.into_iter().next())
    }

    /// Runs a statement and gives how many rows it touched.
    pub(crate) async fn execute(&mut self, statement: &Statement, args: impl Into<Args>) -> Result<u64, Error> {
        Ok(match self {
            Self::Sqlite(tx) => bind_sqlite(statement, args.into())
                .execute(&mut **tx)
                .await
                .map_err(|e| named(statement, e))?
                .rows_affected(),
            Self::Postgres(tx) => bind_postgres(statement, args.into())
                .execute(&mut **tx)
                .await
                .map_err(|e| named(statement, e))?
                .rows_affected(),
        })
    }

    /// Makes it count; durable when it returns, unless the transaction itself chose otherwise.
    pub(crate) async fn commit(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }

    /// Undoes it.
    pub(crate) async fn rollback(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(tx) => tx.rollback().await?,
            Self::Postgres(tx) => tx.rollback().await?,
        }
        Ok(())
    }
}

async fn fetch_sqlite<'e, E>(on: E, statement: &Statement, args: Args) -> Result<Vec<Row>, Error>
where
    E: sqlx::Executor<'e, Database = Sqlite>,
{
    let rows = bind_sqlite(statement, args).fetch(on).map_ok(Row::Sqlite);
    rows.try_collect().await.map_err(|error| named(statement, error))
}

async fn fetch_postgres<'e, E>(on: E, statement: &Statement, args: Args) -> Result<Vec<Row>, Error>
where
    E: sqlx::Executor<'e, Database = Postgres>,
{
    let rows = bind_postgres(statement, args).fetch(on).map_ok(Row::Postgres);
    rows.try_collect().await.map_err(|error| named(statement, error))
}

fn named(statement: &Statement, error: sqlx::Error) -> Error {
    Error::Statement { statement: statement.name, source: error }
}

fn bind_sqlite(statement: &Statement, args: Args) -> Query<'static, Sqlite, SqliteArguments> {
    bind_args_sqlite(sqlx::query(statement.sqlite), args)
}

/// Binds more parameters.
pub(crate) fn bind_args_sqlite(
    query: Query<'_, Sqlite, SqliteArguments>,
    args: Args,
) -> Query<'_, Sqlite, SqliteArguments> {
    match args {
        Args::Values(values) => values.into_iter().fold(query, |query, value| match value {
            Arg::Int(value) => query.bind(value),
            Arg::Text(value) => query.bind(value),
            Arg::Bytes(value) => query.bind(value),
            Arg::Bool(value) => query.bind(value),
            Arg::Ints(values) => query.bind(serde_json::to_string(&values).expect("numbers serialize")),
            Arg::Texts(values) => query.bind(serde_json::to_string(&values).expect("texts serialize")),
        }),
        Args::Rows(rows) => match rows.to_sqlite() {
            (json, None) => query.bind(json),
            (json, Some(blob)) => query.bind(json).bind(blob),
        },
    }
}

fn bind_postgres(statement: &Statement, args: Args) -> Query<'static, Postgres, PgArguments> {
    bind_args_postgres(sqlx::query(statement.postgres), args)
}

/// Binds more parameters.
pub(crate) fn bind_args_postgres(
    query: Query<'_, Postgres, PgArguments>,
    args: Args,
) -> Query<'_, Postgres, PgArguments> {
    match args {
        Args::Values(values) => values.into_iter().fold(query, |query, value| match value {
            Arg::Int(value) => query.bind(value),
            Arg::Text(value) => query.bind(value),
            Arg::Bytes(value) => query.bind(value),
            Arg::Bool(value) => query.bind(value),
            Arg::Ints(values) => query.bind(values),
            Arg::Texts(values) => query.bind(values),
        }),
        Args::Rows(rows) => rows.columns.into_iter().fold(query, |query, column| match column {
            Column::Bigint(values) => query.bind(values),
            Column::Text(values) => query.bind(values),
            Column::Boolean(values) => query.bind(values),
            Column::Bytea(values) => query.bind(values),
        }),
    }
}
