//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
    /// Look for a server as other servers do, and say what they find: names, addresses, certificate, keys
    CheckFederation {
        /// The name of the server [default: the first of this one]
        name: Option<String>,
    },
    /// Manage the keys that sign the server's events and requests
    #[command(subcommand)]
    SigningKey(SigningKeyCommand),
    /// Manage users, on the database itself; the server may run or not
    #[command(subcommand)]
    User(UserCommand),
    /// List the servers that share rooms with this one, and how it stands with each
    ///
    /// A server that gives no answer is tried again after a second, two, four, up to two days; an answer or a request of it ends
    /// that, and so does `reset`. It gets all that it missed, or after long outages the newest messages of each room, upon which it
    /// asks for the rest. The server may run or not.
    Destinations {
        /// Only those that give no answer or have not got everything
        #[arg(long)]
        failing: bool,
        /// What to do about one of them.
        #[command(subcommand)]
        command: Option<DestinationsCommand>,
    },
}

/// What to do about another server.
#[derive(Debug, Subcommand)]
pub(crate) enum DestinationsCommand {
    /// Try a server again now that gives no answer
    Reset {
        /// The server's name
        name: String,
    },
}

/// What to do about signing keys.
#[derive(Debug, Subcommand)]
pub(crate) enum SigningKeyCommand {
    /// Make a new key; the server uses it from its next start on, and publishes the old one as ended then
    Rotate {
        /// Which of the server's names [default: the first]
        name: Option<String>,
    },
}

/// What to do about users.
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Make a user; asks for the password
    Create(CreateUser),
}

/// The user to make.
#[derive(Debug, Args)]
pub(crate) struct CreateUser {
    /// The user's name: `alice`, or `@alice:example.org` on a server with several names
    pub(crate) name: String,
    /// Make the user an administrator
    #[arg(long)]
    pub(crate) admin: bool,
    /// Read the password from this file, or with `-` from standard input, instead of asking for it
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// If there is such a user, set the password and role anew
    #[arg(long)]
    pub(crate) reset: bool,
}
