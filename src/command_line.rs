//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// SwiftChat, a federated Matrix homeserver.
///
/// Without a command it serves. Without a configuration it is a server called "localhost" on http://127.0.0.1:8008 for this machine
/// alone, with its data in ./data.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct CommandLine {
    /// The configuration file [default: config.toml in the working folder, if it is there]
    #[arg(long, short, global = true, value_name = "FILE", env = "SWIFTCHAT_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server (the default)
    Serve,
    /// Say whether the configuration can be used, and start nothing
    CheckConfig,
}
