//! Several statements that write, in one hand-over to the database.
//!
//! Each statement costs a hop to the thread of the SQLite connection, or a round trip to PostgreSQL. A batch costs one: SQLite runs
//! the statements one after the other, PostgreSQL as the parts of one `WITH`.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use sqlx::{AssertSqlSafe, Postgres, Sqlite, postgres::PgArguments, query::Query, sqlite::SqliteArguments};

use crate::{
    Error,
    db::{Args, Tx, bind_args_postgres, bind_args_sqlite},
    rows::Rows,
    statement::Statement,
};

/// Most texts of batches that are remembered; which statements come together varies little.
const TEXTS_KEPT: usize = 400;

/// The texts of batches, by the names of their statements.
static TEXTS: LazyLock<Mutex<HashMap<Vec<&'static str>, Text>>> = LazyLock::new(Mutex::default);

#[derive(Clone)]
struct Text {
    sqlite: Arc<str>,
    postgres: Arc<str>,
}

/// Statements that write, each with the rows that it writes.
#[derive(Default)]
pub(crate) struct Batch {
    /// Statements that make room for what the others write.
    first: Vec<(&'static Statement, Args)>,
    statements: Vec<(&'static Statement, Rows)>,
    /// Statements that must see what the others wrote.
    then: Vec<(&'static Statement, Args)>,
}

impl Batch {
    /// Adds a statement, unless there are no rows. No other statement of the batch may touch the same rows of a table or read them.
    pub(crate) fn add(&mut self, statement: &'static Statement, rows: Rows) {
        if rows.len() > 0 {
            self.statements.push((statement, rows));
        }
    }

    /// Adds a statement with single parameters that comes before those of [`Batch::add`].
    pub(crate) fn first_with(&mut self, statement: &'static Statement, args: impl Into<Args>) {
        self.first.push((statement, args.into()));
    }

    /// Adds a statement that sees what those of [`Batch::add`] wrote, unless there are no rows.
    pub(crate) fn then(&mut self, statement: &'static Statement, rows: Rows) {
        if rows.len() > 0 {
            self.then.push((statement, rows.into()));
        }
    }

    /// Adds a statement with single parameters that sees what those of [`Batch::add`] wrote.
    pub(crate) fn then_with(&mut self, statement: &'static Statement, args: impl Into<Args>) {
        self.then.push((statement, args.into()));
    }
}

impl Tx {
    /// Runs the statements of a batch. When it fails the transaction is of no more use: roll it back.
    pub(crate) async fn run(&mut self, batch: Batch) -> Result<(), Error> {
        for (statement, args) in batch.first {
            self.execute(statement, args).await?;
        }
        if !batch.statements.is_empty() {
            let names: Vec<_> = batch.statements.iter().map(|(statement, _)| statement.name).collect();
            let text = text_of(&names, &batch.statements);
            let failed = |source| Error::Statement { statement: "storage::batch", source };
            match self {
                Self::Sqlite(tx) => {
                    let query: Query<'_, Sqlite, SqliteArguments> = sqlx::query(AssertSqlSafe(text.sqlite));
                    let query = batch
                        .statements
                        .into_iter()
                        .fold(query, |query, (_, rows)| bind_args_sqlite(query, rows.into()));
                    query.execute(&mut **tx).await.map_err(failed)?;
                }
                Self::Postgres(tx) => {
                    let query: Query<'_, Postgres, PgArguments> = sqlx::query(AssertSqlSafe(text.postgres));
                    let query = batch
                        .statements
                        .into_iter()
                        .fold(query, |query, (_, rows)| bind_args_postgres(query, rows.into()));
                    query.execute(&mut **tx).await.map_err(failed)?;
                }
            }
        }
        for (statement, args) in batch.then {
            self.execute(statement, args).await?;
        }
        Ok(())
    }
}

fn text_of(names: &[&'static str], statements: &[(&'static Statement, Rows)]) -> Text {
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(text) = texts.get(names) {
        return text.clone();
    }
    if texts.len() >= TEXTS_KEPT {
        texts.clear();
    }
    let (mut sqlite, mut postgres) = (String::new(), String::from("WITH "));
    let (mut sqlite_bound, mut postgres_bound) = (0, 0);
    for (index, (statement, rows)) in statements.iter().enumerate() {
        push_renumbered(&mut sqlite, statement.sqlite, sqlite_bound);
        sqlite.push_str(";\n");
        sqlite_bound += rows.sqlite_parameters();
        let separator = if index == 0 { "" } else { ",\n" };
        write!(postgres, "{separator}s{index} AS (").expect("a text takes more text");
        push_renumbered(&mut postgres, statement.postgres, postgres_bound);
        postgres.push(')');
        postgres_bound += rows.columns.len();
    }
    postgres.push_str(" SELECT 1");
    let text = Text { sqlite: sqlite.into(), postgres: postgres.into() };
    texts.insert(names.to_vec(), text.clone());
    text
}

/// Adds the text of a statement whose parameters come after `bound` others.
fn push_renumbered(text: &mut String, statement: &str, bound: usize) {
    let mut parts = statement.split('$');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        text.push('$');
        if let Ok(number) = part[..digits].parse::<usize>() {
            write!(text, "{}", number + bound).expect("a text takes more text");
        }
        text.push_str(&part[digits..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_counted_on_and_paths_into_json_left_alone() {
        let mut text = String::new();
        push_renumbered(&mut text, "SELECT substr($2, value->>'$[1][0]'), $10 FROM json_each($1)", 3);
        assert_eq!(text, "SELECT substr($5, value->>'$[1][0]'), $13 FROM json_each($4)");
    }
}
