//! The schema, brought up to date at start-up.

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};

use crate::{Error, db::Db};

/// One step of the schema. One text serves both databases, or one each.
struct Migration {
    version: i64,
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

macro_rules! migration {
    ($version:literal, $name:literal) => {
        Migration {
            version: $version,
            name: $name,
            sqlite: include_str!(concat!("../../migrations/", $name, ".sql")),
            postgres: include_str!(concat!("../../migrations/", $name, ".sql")),
        }
    };
    ($version:literal, $name:literal, each) => {
        Migration {
            version: $version,
            name: $name,
            sqlite: include_str!(concat!("../../migrations/", $name, ".sqlite.sql")),
            postgres: include_str!(concat!("../../migrations/", $name, ".postgres.sql")),
        }
    };
}

/// All steps, oldest first. A step that was released never changes.
const MIGRATIONS: &[Migration] = &[
    migration!(1, "0001_rooms"),
    migration!(2, "0002_bodies", each),
    migration!(3, "0003_accounts"),
    migration!(4, "0004_key_backups"),
    migration!(5, "0005_erased_users"),
    migration!(6, "0006_cluster"),
    migration!(7, "0007_room_states"),
    migration!(8, "0008_user_work"),
    migration!(9, "0009_stream"),
    migration!(10, "0010_network_directory"),
    migration!(11, "0011_unread"),
    migration!(12, "0012_bump_positions"),
    migration!(13, "0013_sync_connections"),
    migration!(14, "0014_relations"),
    migration!(15, "0015_reports"),
    migration!(16, "0016_redactions"),
    migration!(17, "0017_presence"),
    migration!(18, "0018_thread_subscriptions"),
    migration!(19, "0019_threads"),
    migration!(20, "0020_server_keys"),
    migration!(21, "0021_receiving"),
    migration!(22, "0022_outgoing"),
    migration!(23, "0023_remote_devices"),
    migration!(25, "0025_rooms_elsewhere"),
    migration!(26, "0026_openid_tokens"),
    migration!(27, "0027_server_keys_by_source"),
    migration!(28, "0028_partial_rooms"),
    migration!(30, "0030_media"),
    migration!(32, "0032_following_devices"),
    migration!(33, "0033_keys"),
    migration!(34, "0034_to_device_queues"),
];

/// Guards the migrations of a PostgreSQL database against a second process; the number means nothing.
const MIGRATION_LOCK: i64 = 0x7377_6966_7401;

const VERSIONS_TABLE: &str = "CREATE TABLE IF NOT EXISTS schema_versions (
    version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, at_ms BIGINT NOT NULL)";

/// Brings the schema up to date, each step in a transaction of its own, under a lock.
///
/// # Errors
///
/// [`Error::SchemaTooNew`] when a newer program was here before.
pub(crate) async fn migrate(db: &Db, now_ms: i64) -> Result<(), Error> {
    match db {
        Db::Sqlite { writer, .. } => {
            let mut connection = writer.acquire().await?;
            connection.execute(VERSIONS_TABLE).await?;
            loop {
                let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
                let found: i64 = tx.fetch_one("SELECT coalesce(max(version), 0) FROM schema_versions").await?.get(0);
                let Some(step) = next_step(found)? else { return Ok(()) };
                tx.execute(sqlx::raw_sql(AssertSqlSafe(for_sqlite(step.sqlite)))).await?;
                sqlx::query("INSERT INTO schema_versions (version, name, at_ms) VALUES ($1, $2, $3)")
                    .bind(step.version)
                    .bind(step.name)
                    .bind(now_ms)
                    .execute(&mut *tx)
                    .await?;
                tx.commit().await?;
                tracing::info!(schema.version = step.version, "upgraded the database to schema {}", step.name);
            }
        }
        Db::Postgres { pool } => loop {
            let mut tx = pool.begin().await?;
            tx.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0").await?;
            sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *tx).await?;
            tx.execute(VERSIONS_TABLE).await?;
            let found: i64 = tx.fetch_one("SELECT coalesce(max(version), 0) FROM schema_versions").await?.get(0);
            let Some(step) = next_step(found)? else { return Ok(tx.commit().await?) };
            tx.execute(sqlx::raw_sql(AssertSqlSafe(for_postgres(step.postgres)))).await?;
            sqlx::query("INSERT INTO schema_versions (version, name, at_ms) VALUES ($1, $2, $3)")
                .bind(step.version)
                .bind(step.name)
                .bind(now_ms)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            tracing::info!(schema.version = step.version, "upgraded the database to schema {}", step.name);
        },
    }
}

fn next_step(found: i64) -> Result<Option<&'static Migration>, Error> {
    let known = MIGRATIONS.last().map_or(0, |step| step.version);
    if found > known {
        return Err(Error::SchemaTooNew { found, known });
    }
    Ok(MIGRATIONS.iter().find(|step| step.version > found))
}

/// The words of `migrations/` that SQLite says otherwise.
fn for_sqlite(text: &str) -> String {
    text.replace("BYTEA", "BLOB")
        .replace("BIGINT PRIMARY KEY", "INTEGER PRIMARY KEY")
        .replace(") CLUSTERED;", ") WITHOUT ROWID;")
        .replace(") HOT;", ");")
}

/// The words of `migrations/` that PostgreSQL says otherwise.
fn for_postgres(text: &str) -> String {
    text.replace(") CLUSTERED;", ");").replace(") HOT;", ") WITH (fillfactor = 70);")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_in_migrations_is_run() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.split('.').next().unwrap().to_owned())
            .collect();
        let known: BTreeSet<String> = MIGRATIONS.iter().map(|step| step.name.to_owned()).collect();
        assert_eq!(files, known);
        assert!(MIGRATIONS.windows(2).all(|steps| steps[0].version < steps[1].version));
        assert!(MIGRATIONS.iter().all(|step| step.name.starts_with(&format!("{:04}_", step.version))));
    }
}
