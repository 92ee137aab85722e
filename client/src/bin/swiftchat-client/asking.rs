//! What is read from the user. Questions go to stderr.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _, stderr, stdin},
    thread,
};

use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::failure::Failure;

/// Longest password or key, in bytes.
const SECRET_BYTES_MAX: u64 = 4_096;
/// Lines that wait to be worked off; the rest waits outside.
const LINES_MAX: usize = 16;

/// Asks on the terminal, without showing what is typed. Where there is none, `otherwise` says what to do.
pub(crate) fn secret(question: &str, otherwise: &str) -> Result<Zeroizing<String>, Failure> {
    if !stdin().is_terminal() {
        return Err(Failure::Usage(otherwise.to_owned()));
    }
    Ok(Zeroizing::new(rpassword::prompt_password(question).map_err(Failure::Input)?))
}

/// The same, or from stdin where that is no terminal.
pub(crate) fn secret_or_stdin(question: &str) -> Result<Zeroizing<String>, Failure> {
    if stdin().is_terminal() { secret(question, "") } else { secret_from(stdin()) }
}

/// A secret that all of this is.
pub(crate) fn secret_from(source: impl io::Read) -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::new());
    source.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(Failure::Input)?;
    // The line's end is no part of it, other blanks are.
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(Failure::Usage("nothing was given on stdin or in the file".to_owned()));
    }
    Ok(Zeroizing::new(secret.to_owned()))
}

/// Asks for a passphrase twice.
pub(crate) fn new_passphrase() -> Result<Zeroizing<String>, Failure> {
    let otherwise = "a passphrase is asked for on a terminal only; SWIFTCHAT_CLIENT_PASSPHRASE sets one without";
    let passphrase = secret("Passphrase for the store: ", otherwise)?;
    if passphrase.is_empty() || passphrase != secret("The same again: ", otherwise)? {
        return Err(Failure::Usage("the passphrase is empty, or was not the same twice".to_owned()));
    }
    Ok(passphrase)
}

/// The lines of stdin, until its end.
pub(crate) struct Lines(mpsc::Receiver<String>);

impl Lines {
    /// Begins to read. Done once: two readers would take each other's lines.
    pub(crate) fn of_stdin() -> Self {
        let (sender, lines) = mpsc::channel(LINES_MAX);
        // A thread of its own, which the program does not wait for: nothing else ends a read from a terminal.
        thread::spawn(move || {
            let mut line = Vec::new();
            while stdin().lock().read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
                line.clear();
                if sender.blocking_send(text).is_err() {
                    return;
                }
            }
        });
        Self(lines)
    }

    /// The next line; nothing at the end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        self.0.recv().await
    }

    /// Asks a question that only a clear yes answers with yes.
    pub(crate) async fn agrees(&mut self, question: &str) -> bool {
        loop {
            eprint!("{question} [yes/no] ");
            let _ = stderr().flush();
            let Some(answer) = self.next().await else { return false };
            match answer.trim().to_lowercase().as_str() {
                "y" | "yes" => return true,
                "n" | "no" => return false,
                _ => {}
            }
        }
    }
}
