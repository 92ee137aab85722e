//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ruma::{OwnedDeviceId, OwnedEventId, OwnedUserId};

const EXAMPLES: &str = "\
A room is named by its id, its alias, or its name if no other room has it.

Examples:
  swiftchat-client login @alice:example.org
  swiftchat-client rooms
  swiftchat-client chat Lunch
  df -h | swiftchat-client send --room '#alerts:example.org' -
  swiftchat-client listen --json --room Alerts | jq -r .body
  swiftchat-client verify @bob:example.org
  swiftchat-client backup enable

Exit codes:
  0  done
  1  refused or failed
  2  wrong usage
  3  not logged in
  4  the server was not reached, or had a fault of its own: trying again may help
  5  not trusted: a verification failed, a key is wrong, or something was changed on its way
  130  ended by Ctrl-C (`chat` and `listen` end by it with 0)

A store is one device, and one program uses it at a time: log in once more with another --store for a second one.
SWIFTCHAT_CLIENT_LOG=debug says on stderr what the program does.";

/// Chats on any Matrix homeserver, end-to-end encrypted
#[derive(Debug, Parser)]
#[command(name = "swiftchat-client", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The folder with the device's keys and what it knows [default: $XDG_DATA_HOME/swiftchat-client]
    #[arg(long, global = true, value_name = "FOLDER", env = "SWIFTCHAT_CLIENT_STORE")]
    pub(crate) store: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Log in as a new device
    ///
    /// The store is encrypted. Its key is in a file beside it that only you can read, unless you give it a passphrase, by --passphrase or in
    /// SWIFTCHAT_CLIENT_PASSPHRASE; then every command needs it, from there or from the terminal.
    Login(Login),
    /// Log out, and forget everything: messages that only this device could read nobody can read any more
    Logout,
    /// List the rooms that you are in or invited to
    Rooms(Rooms),
    /// Make a room, and print its id
    Create(Create),
    /// Join a room, or accept an invitation
    Join {
        /// The room
        room: String,
    },
    /// Invite people to a room
    Invite {
        /// The room
        room: String,
        /// Whom
        #[arg(required = true, value_name = "USER")]
        users: Vec<OwnedUserId>,
    },
    /// Leave a room, or decline an invitation
    Leave {
        /// The room
        room: String,
    },
    /// Have a conversation: what you type is sent, what others say is shown
    ///
    /// Before each message stands what is known of its sender:
    ///
    ///   ✓  encrypted by a device that is verified
    ///   ~  encrypted by a device of the sender that nobody has verified
    ///   ?  encrypted, but who wrote it is only the server's word
    ///   !  not encrypted, though the room is
    ///   ✗  encrypted, and cannot be read
    ///
    /// Lines that begin with a slash are commands: /file PATH, /members, /help, /quit. `//` sends a line that begins with a slash.
    #[command(verbatim_doc_comment)]
    Chat(Chat),
    /// Send a text, a file or both, and print the id of each event
    Send(Send),
    /// Get the file of a message
    Download(Download),
    /// Print what happens, until Ctrl-C
    ///
    /// Begins with what happened since the last time, or from now the first time. With --json each line is an object:
    ///
    ///   kind       "event"; "late": an event again that could not be read before; or "invite"
    ///   room, room_name, sender, event_id, time, type, state_key, content
    ///   body       the text of a message
    ///   encrypted  whether it was
    ///   trusted    whether a verified device of the sender wrote it
    ///   problem    why it is not trusted, or could not be read
    ///
    /// What was printed is not printed again the next time, except the last lines if the program was killed.
    #[command(verbatim_doc_comment)]
    Listen(Listen),
    /// List your devices or those of somebody else
    Devices {
        /// Whose [default: yours]
        user: Option<OwnedUserId>,
    },
    /// Make sure that somebody, or another device of yours, is who it claims to be
    ///
    /// Both sides see seven pictures and compare them by another way, such as a call. Without USER it waits for somebody to ask.
    Verify(Verify),
    /// Keep the keys to your messages on the server, encrypted, for your next device
    #[command(subcommand)]
    Backup(Backup),
}

/// `login`.
#[derive(Args, Debug)]
pub(crate) struct Login {
    /// Who: `@alice:example.org`, or `alice` with --homeserver
    pub(crate) user: String,
    /// Where the server is, such as `https://matrix.example.org` [default: what the server in the user's id says]
    #[arg(long, value_name = "URL")]
    pub(crate) homeserver: Option<String>,
    /// Read the password from stdin
    #[arg(long, conflicts_with = "password_file")]
    pub(crate) password_stdin: bool,
    /// Read the password from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// What the device is called among your devices
    #[arg(long, value_name = "NAME", default_value = "swiftchat-client")]
    pub(crate) device_name: String,
    /// Ask for a passphrase that opens the store
    #[arg(long)]
    pub(crate) passphrase: bool,
}

/// `rooms`.
#[derive(Args, Debug)]
pub(crate) struct Rooms {
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

/// `create`.
#[derive(Args, Debug)]
pub(crate) struct Create {
    /// What it is called
    pub(crate) name: Option<String>,
    /// Whom to invite; may be given several times
    #[arg(long, value_name = "USER")]
    pub(crate) invite: Vec<OwnedUserId>,
    /// It is a conversation with those who are invited
    #[arg(long)]
    pub(crate) direct: bool,
    /// Do not encrypt it: servers read everything
    #[arg(long)]
    pub(crate) unencrypted: bool,
}

/// `chat`.
#[derive(Args, Debug)]
pub(crate) struct Chat {
    /// The room
    pub(crate) room: String,
    /// How many events of the past are shown first
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) history: u32,
}

/// `send`.
#[derive(Args, Debug)]
pub(crate) struct Send {
    /// The room
    #[arg(long)]
    pub(crate) room: String,
    /// A file, sent before the text; may be given several times
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Vec<PathBuf>,
    /// The text, or `-` for all of stdin
    #[arg(required_unless_present = "file")]
    pub(crate) text: Option<String>,
}

/// `download`.
#[derive(Args, Debug)]
pub(crate) struct Download {
    /// The room
    pub(crate) room: String,
    /// The event with the file
    pub(crate) event: OwnedEventId,
    /// Where to put it [default: its own name, in this folder]
    #[arg(long, short, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// Refuse a file that is larger than so many MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(crate) max_size: u32,
}

/// `listen`.
#[derive(Args, Debug)]
pub(crate) struct Listen {
    /// Print JSON, an object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Only what happens in this room; may be given several times. The rest is passed over
    #[arg(long, value_name = "ROOM")]
    pub(crate) room: Vec<String>,
    /// End when everything is printed that has happened
    #[arg(long)]
    pub(crate) once: bool,
}

/// `verify`.
#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// Whom; yourself for your other devices
    #[arg(conflicts_with = "recovery_key")]
    pub(crate) user: Option<OwnedUserId>,
    /// This device only; `swiftchat-client devices USER` lists them
    pub(crate) device: Option<OwnedDeviceId>,
    /// Verify this device by your recovery key or its passphrase, from the terminal or stdin
    #[arg(long)]
    pub(crate) recovery_key: bool,
}

/// `backup`.
#[derive(Debug, Subcommand)]
pub(crate) enum Backup {
    /// Make a backup and a recovery key, which is printed this once: keep it where nobody else finds it
    Enable {
        /// Make new ones in place of those that are there; what was in the old backup only is lost
        #[arg(long)]
        replace: bool,
    },
    /// Get the keys of the past from the backup, by the recovery key, from the terminal or stdin
    Restore,
    /// Say whether there is a backup, and what it lacks
    Status {
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
}
