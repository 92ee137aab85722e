//! The SwiftChat homeserver.

mod command_line;
mod destinations_command;
mod user_command;

use std::{
    io::{Write as _, stdout},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use command_line::{Command, CommandLine, SigningKeyCommand, UserCommand};
use swiftchat::{
    Overrides, Server,
    config::{self, Config},
    log, welcome,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let outcome = tokio::runtime::Runtime::new().context("cannot start threads").and_then(|runtime| {
        let outcome = runtime.block_on(run(command_line));
        // Whatever still runs has been waited for long enough.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("swiftchat: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command_line: CommandLine) -> anyhow::Result<()> {
    let config = load(command_line.config.as_deref())?;
    match command_line.command.unwrap_or(Command::Serve) {
        Command::Serve => serve(config).await,
        Command::CheckConfig => {
            config.application_services.read()?;
            println!("The configuration is good.");
            Ok(())
        }
        Command::CheckFederation { name } => check_federation(&config, name.as_deref()).await,
        Command::SigningKey(SigningKeyCommand::Rotate { name }) => {
            let (name, key) = swiftchat::rotate_signing_key(&config, name.as_deref())?;
            println!(
                "{name} signs with the key {key} from its next start on: start the server (all its processes) anew now, and back up the key."
            );
            Ok(())
        }
        Command::User(UserCommand::Create(options)) => user_command::create(&config, &options).await,
        Command::Destinations { failing, command } => destinations_command::run(&config, command, failing).await,
    }
}

async fn check_federation(config: &Config, name: Option<&str>) -> anyhow::Result<()> {
    let found = swiftchat::check_federation(config, name).await?;
    for finding in found.findings() {
        let mark = match finding.verdict {
            federation::Verdict::Good => "ok",
            federation::Verdict::Plain => "--",
            federation::Verdict::Bad => "!!",
        };
        println!("{mark}  {}", finding.text);
    }
    anyhow::ensure!(found.is_healthy(), "federation does not work as it should");
    Ok(())
}

fn load(file: Option<&Path>) -> anyhow::Result<Config> {
    // A variable that is not UTF-8 is none of ours.
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(config::load(file, environment)?)
}

async fn serve(config: Config) -> anyhow::Result<()> {
    log::start(&config.server).map_err(anyhow::Error::msg)?;
    // Before anything else: a signal during the start must not be missed.
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let server = tokio::select! {
        server = Server::start(config.clone(), Overrides::default()) => server?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let program = std::env::args().next().unwrap_or_else(|| "swiftchat".to_owned());
    // Nobody may be reading: that is no reason to end.
    let _ = writeln!(stdout(), "{}", welcome::text(&server, &config, &program));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("ending");
    tokio::select! {
        () = server.shutdown() => Ok(()),
        _ = terminate.recv() => anyhow::bail!("ended at once by a second signal"),
        _ = interrupt.recv() => anyhow::bail!("ended at once by a second signal"),
    }
}
