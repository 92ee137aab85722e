//! How a command may end badly: what the user is told, and the exit code.

use std::{
    error::Error as _,
    io::{self, ErrorKind},
    process::ExitCode,
};

use client::Error;

use crate::show::safe;

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Client(#[from] Error),
    /// It cannot be done; the text says what can.
    #[error("{0}")]
    Refused(String),
    /// The command line, or what was typed, makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Somebody or something is not what it claims to be.
    #[error("{0}")]
    NotTrusted(String),
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    File { action: &'static str, path: std::path::PathBuf, source: io::Error },
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    #[error("cannot read what is typed: {0}")]
    Input(io::Error),
    #[error("cannot start: {0}")]
    Threads(io::Error),
    /// By a signal.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    /// Tells the user, and how the program is to end.
    pub(crate) fn report(&self) -> ExitCode {
        // Whoever reads the results has seen enough: that is no failure.
        if matches!(self, Self::Output(error) if error.kind() == ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        if !matches!(self, Self::Interrupted) {
            let mut text = self.to_string();
            if let Self::Client(error) = self {
                let mut source = error.source();
                while let Some(error) = source {
                    text = format!("{text}: {error}");
                    source = error.source();
                }
                if let Some(hint) = hint(error) {
                    text = format!("{text}\n{hint}");
                }
            }
            // Part of it is what the server says.
            eprintln!("swiftchat-client: {}", safe(&text));
        }
        self.code().into()
    }

    fn code(&self) -> u8 {
        match self {
            Self::Client(error) => code(error),
            Self::Refused(_) | Self::File { .. } | Self::Output(_) | Self::Input(_) | Self::Threads(_) => 1,
            Self::Usage(_) => 2,
            Self::NotTrusted(_) => 5,
            Self::Interrupted => 130,
        }
    }
}

fn code(error: &Error) -> u8 {
    match error {
        Error::NotAServer(_) => 2,
        Error::NotLoggedIn | Error::LoggedOut => 3,
        error if error.is_temporary() => 4,
        Error::Forged(_)
        | Error::MistypedKey
        | Error::WrongSecretStorageKey
        | Error::WrongBackupKey
        | Error::NoIdentity
        | Error::AttachmentChanged => 5,
        _ => 1,
    }
}

/// What the user can do about it.
fn hint(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::NotAServer(_) => "The address of a server begins with https://.",
        Error::NotLoggedIn => "`swiftchat-client login USER` logs in.",
        Error::LoggedOut => "`swiftchat-client logout` forgets the session that has ended; then log in again.",
        Error::StoreTaken(_) => "`swiftchat-client logout` ends that session; --store keeps another one beside it.",
        Error::StoreInUse => "End it first, or log in with another --store: each program is a device of its own.",
        Error::WrongPassphrase => {
            "It comes from SWIFTCHAT_CLIENT_PASSPHRASE or the terminal, if there is no key file beside the store."
        }
        Error::UnknownRoom(_) => "`swiftchat-client rooms` lists those that you are in.",
        Error::IdentityExists | Error::NoIdentity => {
            "`swiftchat-client verify` beside another device of yours, or `verify --recovery-key`, brings them here."
        }
        Error::BackupExists => {
            "`swiftchat-client backup restore` reads it. If its recovery key is lost, `backup enable --replace` makes another."
        }
        Error::NotNow("there is no room with that user alone") => {
            "`swiftchat-client create --direct --invite USER` makes one; they have to join it."
        }
        _ => return None,
    })
}
