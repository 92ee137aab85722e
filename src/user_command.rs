//! `swiftchat user`: accounts from the command line, on the database itself, whether the server runs or not.

use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _, stderr, stdin},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use ruma::{OwnedUserId, ServerName};
use swiftchat::{Accounts, Tools, config::Config};

use crate::command_line::CreateUser;

/// Makes a user, or with `reset` gives one a new password and role.
pub(crate) async fn create(config: &Config, options: &CreateUser) -> anyhow::Result<()> {
    let tools = Tools::open(config).await?;
    let outcome = create_with(tools.accounts(), options).await;
    tools.close().await;
    outcome
}

async fn create_with(accounts: &Accounts, options: &CreateUser) -> anyhow::Result<()> {
    let user_id = user_id(accounts, &options.name)?;
    let exists = accounts.storage().get_user(&user_id).await?.is_some();
    if exists && !options.reset {
        bail!(
            "{user_id} exists already; --reset gives the account a new password and role, and logs all its devices out"
        );
    }
    let password = password(options.password_file.as_deref())?;
    accounts.create_user(&user_id, &password, options.admin).await?;
    let role = if options.admin { "an administrator" } else { "an ordinary user" };
    println!("{user_id} is {} {role}.", if exists { "now" } else { "here, as" });
    Ok(())
}

/// The id of a name: a local part means the first server name, a whole id one of them.
fn user_id(accounts: &Accounts, name: &str) -> anyhow::Result<OwnedUserId> {
    let servers = accounts.servers();
    let server = match name.strip_prefix('@').and_then(|id| id.split_once(':')) {
        Some((_, server)) => <&ServerName>::try_from(server).context("this is not a user id")?,
        None => servers.primary(),
    };
    ensure!(servers.is_local(server), "{server} is not a name of this server (`server.names`)");
    Ok(accounts.new_user_id(name, server)?)
}

fn password(file: Option<&Path>) -> anyhow::Result<String> {
    let text = match file {
        Some(path) if path != Path::new("-") => {
            fs::read_to_string(path).with_context(|| format!("cannot read the password from {}", path.display()))?
        }
        None if stdin().is_terminal() => return ask_twice(),
        _ => {
            let mut text = String::new();
            stdin().take(4_096).read_to_string(&mut text).context("cannot read the password")?;
            text
        }
    };
    // The line's end is not part of the password, other blanks are.
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    ensure!(!password.is_empty(), "the password is empty");
    Ok(password.to_owned())
}

fn ask_twice() -> anyhow::Result<String> {
    let password = ask("Password: ")?;
    ensure!(!password.is_empty(), "the password is empty");
    ensure!(password == ask("The same again: ")?, "the two passwords differ");
    Ok(password)
}

/// Asks on the terminal, without showing what is typed.
fn ask(question: &str) -> anyhow::Result<String> {
    eprint!("{question}");
    stderr().flush()?;
    let hidden = show_typing(false);
    let mut line = String::new();
    let read = stdin().lock().read_line(&mut line);
    if hidden.is_ok() {
        let _ = show_typing(true);
        eprintln!();
    }
    read.context("cannot read the password")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn show_typing(shown: bool) -> io::Result<()> {
    let status = Command::new("stty").arg(if shown { "echo" } else { "-echo" }).stdin(Stdio::inherit()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("stty failed")) }
}
