//! A client library in a process of its own, which does what it is told: one JSON object a line each way.
//!
//! An actor says who it is when it starts, `{"library": "matrix-nio", "version": "0.26.0"}`, and then answers each command with one of
//! `{"ok": {…}}`, `{"failed": "why"}` or `{"impossible": "which library cannot do this, and since when or why"}`. It plays one device, ends
//! when its input ends, and waits 30 seconds at most for what a command waits for. `do` is one of
//!
//! | `do` | with | what | `ok` has |
//! | --- | --- | --- | --- |
//! | `login` | `url`, `user`, `password` | logs a new device in and syncs from now on | `device` |
//! | `create_room` | `invite` (a user) | makes an encrypted room that one is invited to | `room` |
//! | `invite` | `room`, `user` | | |
//! | `join` | `room` | waits for the invitation, joins, and waits until the room is there | |
//! | `leave` | `room` | | |
//! | `sees_member` | `room`, `user`, `membership` | waits until this is so | |
//! | `knows_device` | `user`, `device` | waits until the device is in the list that is kept of the user | |
//! | `send` | `room`, `body` | | `event` |
//! | `receives` | `room`, `event` | waits for the event in the timeline, decrypted | `body`, `sender` |
//! | `read` | `room`, `event` | asks the server for the event and decrypts it | `body`, or why not: `unreadable` |
//! | `send_file` | `room`, `name`, `data` (base64) | | `event` |
//! | `fetch_file` | `room`, `event` | waits for the event and fetches its file | `data` (base64) |
//! | `has_fallback_key` | | whether the library makes fallback keys | |
//! | `set_up_backup` | `password` | makes cross-signing keys, a secret storage and a key backup in it, and uploads all room keys | `recovery_key` |
//! | `restore_backup` | `recovery_key`, `room` | fetches the room keys of the backup | |
//! | `request_verification` | `user`, `device` | asks another device to verify each other | |
//! | `accept_verification` | `user`, `device` | waits to be asked by it, and accepts | |
//! | `compare` | | waits until there is something to compare; who asked begins | `emoji`: seven |
//! | `confirm` | | says that they are equal, and waits until the other did | |
//! | `trusts` | `user`, `device` | | `trusted` |

use std::{
    env, fmt,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// How long an actor may take for a command: longer than it waits itself.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(75);

/// Why a case did not come to its good end.
#[derive(Debug)]
pub(crate) enum Halt {
    /// A library cannot do what the case needs.
    Impossible(String),
    /// It went wrong.
    Failed(String),
}

/// A step of a case.
pub(crate) type Step<T> = Result<T, Halt>;

/// A step that went wrong.
pub(crate) fn failed<T>(why: impl fmt::Display) -> Step<T> {
    Err(Halt::Failed(why.to_string()))
}

/// A client library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Client {
    Ours,
    MatrixSdk,
    MatrixJsSdk,
    MatrixNio,
}

impl Client {
    pub(crate) const ALL: [Self; 4] = [Self::Ours, Self::MatrixSdk, Self::MatrixJsSdk, Self::MatrixNio];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "swiftchat",
            Self::MatrixSdk => "matrix-rust-sdk",
            Self::MatrixJsSdk => "matrix-js-sdk",
            Self::MatrixNio => "matrix-nio",
        }
    }

    /// The variable of the environment that has the command of its actor, for a shell.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::Ours => "SWIFTCHAT_ACTOR_OURS",
            Self::MatrixSdk => "SWIFTCHAT_ACTOR_MATRIX_SDK",
            Self::MatrixJsSdk => "SWIFTCHAT_ACTOR_MATRIX_JS_SDK",
            Self::MatrixNio => "SWIFTCHAT_ACTOR_MATRIX_NIO",
        }
    }

    pub(crate) fn command(self) -> Option<String> {
        env::var(self.variable()).ok().filter(|command| !command.is_empty())
    }
}

/// A running actor; it ends with this.
pub(crate) struct Actor {
    /// The library and its version, in its own words.
    pub(crate) library: String,
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    log: Option<PathBuf>,
}

impl Actor {
    /// Starts one; what it writes to its standard error goes to `log` in the folder of `SWIFTCHAT_TEST_LOGS`, or nowhere.
    pub(crate) async fn start(client: Client, log: &str) -> Step<Self> {
        let Some(command) = client.command() else { return failed(format!("{} is not set", client.variable())) };
        let log = env::var_os("SWIFTCHAT_TEST_LOGS").map(|folder| Path::new(&folder).join(log));
        let errors = log.as_ref().map_or_else(Stdio::null, |log| File::create(log).map_or(Stdio::null(), Stdio::from));
        let mut process = Command::new("sh")
            .arg("-c")
            .arg(format!("exec {command}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .or_else(|error| failed(format!("`{command}`: {error}")))?;
        let input = process.stdin.take().expect("a pipe");
        let output = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let mut actor = Self { library: client.name().to_owned(), _process: process, input, output, log };
        let hello = actor.line().await?;
        let (Some(library), Some(version)) = (hello["library"].as_str(), hello["version"].as_str()) else {
            return failed(format!("`{command}` does not say who it is: {hello}"));
        };
        actor.library = format!("{library} {version}");
        Ok(actor)
    }

    /// Gives it a command, and gives what it answered under `ok`.
    pub(crate) async fn ask(&mut self, command: &Value) -> Step<Value> {
        let line = format!("{command}\n");
        if let Err(error) = self.input.write_all(line.as_bytes()).await {
            return failed(format!("{} has ended: {error}{}", self.library, self.where_log()));
        }
        let mut answer = self.line().await?;
        let why = |key: &str| answer[key].as_str().map(str::to_owned);
        if let Some(why) = why("impossible") {
            return Err(Halt::Impossible(why));
        }
        if let Some(why) = why("failed") {
            return failed(format!("{} at `{}`: {why}", self.library, command["do"].as_str().unwrap_or_default()));
        }
        Ok(answer["ok"].take())
    }

    async fn line(&mut self) -> Step<Value> {
        let line = match timeout(ANSWER_WAIT_MAX, self.output.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(_) => return failed(format!("{} has ended{}", self.library, self.where_log())),
            Err(_) => return failed(format!("{} does not answer{}", self.library, self.where_log())),
        };
        serde_json::from_str(&line).or_else(|error| failed(format!("{} said `{line}`: {error}", self.library)))
    }

    fn where_log(&self) -> String {
        self.log.as_ref().map_or_else(String::new, |log| format!(", see {}", log.display()))
    }
}
