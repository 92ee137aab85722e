//! The database: all SQL, the committer and the migrations.
