//! `swiftchat-client`: chats with end-to-end encryption, for people and scripts.
//!
//! | what | where |
//! | --- | --- |
//! | what can be asked for; how it may end | `arguments.rs`; `failure.rs` |
//! | where the store is and what opens it | `home.rs` |
//! | what is read from the user; what the user is shown | `asking.rs`; `show.rs` |
//! | login, logout | `session.rs` |
//! | rooms and devices, as lists; who is in them | `rooms.rs`, `devices.rs` |
//! | conversations | `chat.rs` |
//! | for scripts | `send.rs`, `download.rs`, `listen.rs` |
//! | whom to trust; what a new device reads | `verify.rs`, `backup.rs` |
//!
//! Results go to stdout, everything else to stderr. Each command syncs first: it knows what the server knew when it began.

mod arguments;
mod asking;
mod backup;
mod chat;
mod devices;
mod download;
mod failure;
mod home;
mod listen;
mod rooms;
mod send;
mod session;
mod show;
mod verify;

use std::{io::stderr, pin::Pin, process::ExitCode, time::Duration};

use clap::Parser as _;
use client::Client;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use self::{
    arguments::{Arguments, Command},
    failure::Failure,
    home::Home,
};

/// How long `listen` may take to end: whoever reads what it prints may have stopped reading.
const END_WAIT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let level = EnvFilter::try_from_env("SWIFTCHAT_CLIENT_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(level).with_writer(stderr).init();
    let outcome = tokio::runtime::Runtime::new().map_err(Failure::Threads).and_then(|runtime| {
        let outcome = runtime.block_on(run(arguments));
        // A reader of stdout that has stopped reading must not keep us.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let home = Home::at(arguments.store)?;
    match arguments.command {
        Command::Login(options) => session::login(&home, options).await,
        Command::Logout => session::logout(&home).await,
        command => {
            let client = Client::restore(home.open().await?).await?;
            let outcome = unless_interrupted(&client, command).await;
            client.close().await;
            outcome
        }
    }
}

/// Does it until it is done, or the user or the system wants the program to end.
async fn unless_interrupted(client: &Client, command: Command) -> Result<(), Failure> {
    let mut interrupts = Interrupts::new()?;
    let (is_chat, is_listening) = (matches!(command, Command::Chat(_)), matches!(command, Command::Listen(_)));
    let mut work = Box::pin(perform(client, command));
    tokio::select! {
        outcome = &mut work => return outcome,
        () = interrupts.next() => {}
    }
    match (is_chat, is_listening) {
        // It ends by itself, so that what it printed last is not printed again.
        (_, true) => tokio::time::timeout(END_WAIT, work).await.unwrap_or(Ok(())),
        (true, _) => Ok(()),
        _ => Err(Failure::Interrupted),
    }
}

async fn perform(client: &Client, command: Command) -> Result<(), Failure> {
    client.sync_once(Duration::ZERO).await?;
    match command {
        Command::Login(_) | Command::Logout => unreachable!("they have no client yet, or none afterwards"),
        Command::Rooms(options) => rooms::list(client, &options).await,
        Command::Create(options) => rooms::create(client, options).await,
        Command::Join { room } => rooms::join(client, &room).await,
        Command::Invite { room, users } => rooms::invite(client, &room, &users).await,
        Command::Leave { room } => rooms::leave(client, &room).await,
        Command::Chat(options) => chat::chat(client, &options).await,
        Command::Send(options) => send::send(client, options).await,
        Command::Download(options) => download::download(client, &options).await,
        Command::Listen(options) => listen::listen(client, options).await,
        Command::Devices { user } => devices::list(client, user).await,
        Command::Verify(options) => verify::verify(client, options).await,
        Command::Backup(command) => backup::perform(client, command).await,
    }
}

/// Follows what happens while `work` is done.
async fn while_syncing<T>(
    client: &Client,
    work: Pin<Box<impl Future<Output = Result<T, Failure>>>>,
) -> Result<T, Failure> {
    tokio::select! {
        outcome = work => outcome,
        stopped = Box::pin(client.sync()) => match stopped { Err(error) => Err(error.into()) },
    }
}

/// The signals by which the user or the system wants the program to end.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Those from now on.
    fn new() -> Result<Self, Failure> {
        let of = |kind| signal(kind).map_err(Failure::Threads);
        Ok(Self { interrupt: of(SignalKind::interrupt())?, terminate: of(SignalKind::terminate())? })
    }

    /// Waits for the next.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
