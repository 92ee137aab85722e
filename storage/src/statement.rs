//! SQL texts for both databases, put together at compile time.

/// One statement: the same text for both databases but for the few words that differ.
pub(crate) struct Statement {
    /// Its name, for logs and for the test that prepares all.
    pub(crate) name: &'static str,
    /// The text for SQLite.
    pub(crate) sqlite: &'static str,
    /// The text for PostgreSQL.
    pub(crate) postgres: &'static str,
}

/// Declares statements: `NAME = ["text", (piece), "text"];`, and `ALL`, the list of them for the tests.
///
/// Pieces that differ between the databases:
/// - `(in_list 2)`: the value before it is one of the list bound as `$2`.
/// - `(rows [1 a bigint, 2 b text, 3 c bytea])`: many rows bound with [`crate::rows::Rows`], as a table named `r`.
///   Such a statement takes no other parameters; put a `WHERE TRUE` before its `ON CONFLICT`.
/// - `(packed "a, b")`: selects columns for [`crate::db::Db::read_packed`]; SQLite gives all rows in no order as one JSON text.
/// - `(for_update)`: locks the rows that are read; SQLite has locked everything already.
/// - `(either "for SQLite" "for PostgreSQL")`: whatever else differs.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = [$($piece:tt),+ $(,)?];)+) => {
        $(
            $(#[$doc])*
            const $name: $crate::statement::Statement = $crate::statement::Statement {
                name: concat!(module_path!(), "::", stringify!($name)),
                sqlite: concat!($($crate::statement::sqlite_piece!($piece)),+),
                postgres: concat!($($crate::statement::postgres_piece!($piece)),+),
            };
        )+
        #[cfg(test)]
        pub(crate) const ALL: &[$crate::statement::Statement] = &[$($name),+];
    };
}

macro_rules! sqlite_piece {
    ($text:literal) => { $text };
    ((in_list $n:literal)) => { concat!(" IN (SELECT value FROM json_each($", $n, "))") };
    ((packed $columns:literal)) => { concat!("SELECT json_group_array(json_array(", $columns, "))") };
    ((for_update)) => { "" };
    ((either $sqlite:literal $postgres:literal)) => { $sqlite };
    ((rows [$first:literal $name:ident $kind:ident $(, $n:literal $other:ident $other_kind:ident)* $(,)?])) => {
        concat!(
            " (SELECT ", $crate::statement::sqlite_column!($first $name $kind),
            $(", ", $crate::statement::sqlite_column!($n $other $other_kind),)*
            " FROM json_each($1)) AS r"
        )
    };
}

// A row is a JSON array whose first element is its ordinal; bytes are `[offset, length]` in the one blob bound as `$2`.
macro_rules! sqlite_column {
    ($n:literal $name:ident bytea) => {
        concat!("substr($2, value->>'$[", $n, "][0]', value->>'$[", $n, "][1]') AS ", stringify!($name))
    };
    ($n:literal $name:ident $kind:ident) => {
        concat!("value->>", $n, " AS ", stringify!($name))
    };
}

macro_rules! postgres_piece {
    ($text:literal) => { $text };
    ((in_list $n:literal)) => { concat!(" = ANY($", $n, ")") };
    ((packed $columns:literal)) => { concat!("SELECT ", $columns) };
    ((for_update)) => { " FOR UPDATE" };
    ((either $sqlite:literal $postgres:literal)) => { $postgres };
    ((rows [$first:literal $name:ident $kind:ident $(, $n:literal $other:ident $other_kind:ident)* $(,)?])) => {
        concat!(
            " UNNEST($", $first, "::", stringify!($kind), "[]",
            $(", $", $n, "::", stringify!($other_kind), "[]",)*
            ") AS r(", stringify!($name), $(", ", stringify!($other),)* ")"
        )
    };
}

pub(crate) use {postgres_piece, sqlite_column, sqlite_piece, statements};
