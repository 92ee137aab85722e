//! Running programs: what they are told, what they say, how they end.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use test_kit::{TestServer, TestUser, encode};

/// How long anything may take.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A store, and who is logged in with it.
pub(crate) struct Device {
    folder: tempfile::TempDir,
    passphrase: Option<&'static str>,
    pub(crate) user: TestUser,
    homeserver: String,
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// What it said, if it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout.trim_end().to_owned()
    }

    /// Why it failed, if it did so with this code.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stderr.contains("swiftchat-client: "), "it says why: {self:?}");
        self.stderr
    }

    /// Its lines as JSON, if it succeeded.
    #[track_caller]
    pub(crate) fn json_lines(self) -> Vec<Value> {
        self.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Device {
    /// An empty store for a new user.
    pub(crate) async fn empty(server: &TestServer, name: &str) -> Self {
        let user = server.user(name).await;
        user.put(&format!("/profile/{}/displayname", encode(user.id())), &json!({ "displayname": name })).await.ok();
        Self::of(server, user)
    }

    fn of(server: &TestServer, user: TestUser) -> Self {
        let homeserver = server.http().base().to_owned();
        Self { folder: tempfile::tempdir().unwrap(), passphrase: None, user, homeserver }
    }

    /// A new user, who is logged in.
    pub(crate) async fn new(server: &TestServer, name: &str) -> Self {
        let device = Self::empty(server, name).await;
        device.login(&device.password()).ok();
        device
    }

    /// Another device of the same user, logged in.
    pub(crate) fn another(&self, server: &TestServer) -> Self {
        let device = Self::of(server, self.user.clone());
        device.login(&device.password()).ok();
        device
    }

    /// The same store, opened by this passphrase.
    pub(crate) fn with_passphrase(self, passphrase: &'static str) -> Self {
        Self { passphrase: Some(passphrase), ..self }
    }

    pub(crate) fn password(&self) -> String {
        format!("{}'s password", self.user.localpart())
    }

    pub(crate) fn login(&self, password: &str) -> Ended {
        self.told(&["login", self.user.localpart(), "--homeserver", &self.homeserver, "--password-stdin"], password)
    }

    pub(crate) fn id(&self) -> &str {
        self.user.id()
    }

    /// Where the store is.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// A folder for files of the test.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.told(arguments, "")
    }

    /// Runs a command to its end, with this on stdin.
    pub(crate) fn told(&self, arguments: &[&str], stdin: &str) -> Ended {
        let mut program = self.start(arguments);
        program.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap_or_default();
        program.ends()
    }

    /// Starts a command.
    pub(crate) fn start(&self, arguments: &[&str]) -> Program {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swiftchat-client"));
        command.args(arguments).arg("--store").arg(self.store()).current_dir(self.folder.path()).env("TZ", "UTC");
        command
            .env_remove("SWIFTCHAT_CLIENT_PASSPHRASE")
            .envs(self.passphrase.map(|it| ("SWIFTCHAT_CLIENT_PASSPHRASE", it)));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (sender, lines) = channel();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            let mut line = String::new();
            while stdout.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                if sender.send(std::mem::take(&mut line)).is_err() {
                    return;
                }
            }
        });
        let mut stderr = child.stderr.take().unwrap();
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        Program { stdin: child.stdin.take(), child, lines, stderr: Some(stderr) }
    }

    /// An encrypted room with these members, by its id.
    pub(crate) fn room_with(&self, name: &str, others: &[&Self]) -> String {
        let invited = others.iter().flat_map(|other| ["--invite", other.id()]);
        let arguments: Vec<&str> = ["create", name].into_iter().chain(invited).collect();
        let room = self.run(&arguments).ok();
        for other in others {
            assert_eq!(other.run(&["join", name]).ok(), room, "an invitation is found by the room's name");
        }
        room
    }
}

/// A command that runs.
pub(crate) struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
}

impl Program {
    /// Types a line.
    pub(crate) fn types(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").expect("it reads");
    }

    /// Closes its stdin.
    pub(crate) fn is_told_no_more(&mut self) {
        self.stdin = None;
    }

    /// Waits for a line of stdout that contains this.
    #[track_caller]
    pub(crate) fn says(&mut self, text: &str) -> String {
        let end = Instant::now() + WAIT_MAX;
        let mut heard = String::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return line.trim_end().to_owned(),
                Ok(line) => heard += &line,
                Err(RecvTimeoutError::Timeout) => panic!("it does not say `{text}`, but: {heard}"),
                Err(RecvTimeoutError::Disconnected) => {
                    let stderr = self.stderr.take().unwrap().join().unwrap();
                    panic!("it ended before it said `{text}`; it said: {heard}{stderr}");
                }
            }
        }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end. What it said since the last [`says`](Self::says) is in the answer.
    #[track_caller]
    pub(crate) fn ends(mut self) -> Ended {
        let end = Instant::now() + WAIT_MAX;
        let mut stdout = String::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => stdout += &line,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end; it said: {stdout}"),
            }
        }
        let status = self.child.wait().unwrap();
        let stderr = self.stderr.take().unwrap().join().unwrap();
        Ended { code: status.code().unwrap_or(-1), stdout, stderr }
    }
}

impl Drop for Program {
    /// A test that failed leaves nothing behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
