//! The signing key of each server name, one file each in the data folder.
//!
//! The form is the one line that other homeservers use too, so that a server can be moved here with its key. `docs/decisions`
//! says why files.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use model::{KeyPair, LocalServer, LocalServers, OldKey, Random};
use ruma::{OwnedServerName, ServerName};
use tracing::info;

use crate::{Error, data_folder};

/// In the place of its end: the key was replaced, but a server that runs may still sign with it.
const NOT_ENDED: &str = "-";

/// Ends the keys of `names` that were replaced, as a server starts that signs with their successors. Not before: what a key signs after its
/// end counts for nothing.
///
/// # Errors
///
/// [`Error::File`].
pub(crate) fn end_replaced(
    folder: &Path,
    names: &[OwnedServerName],
    now_ms: i64,
    random: &Random,
) -> Result<(), Error> {
    let folder = data_folder::make(&folder.join("signing_keys"))?;
    for name in names {
        let lines = old_lines(&folder, name)?;
        if lines.iter().any(|line| line.ends_with(NOT_ENDED)) {
            let ended: String = lines.iter().map(|line| with_end(line, now_ms) + "\n").collect();
            replace(&folder, &format!("{name}.old_keys"), &ended, random)?;
        }
    }
    Ok(())
}

/// Reads the keys of `names`, and makes those that are not there.
pub(crate) fn open(folder: &Path, names: Vec<OwnedServerName>, random: &Random) -> Result<LocalServers, Error> {
    let folder = data_folder::make(&folder.join("signing_keys"))?;
    let servers = names.into_iter().map(|name| {
        let key = open_one(&folder, &name, random)?;
        let mut old_keys = read_old(&folder, &name)?;
        // A rotation that broke off half-way has the key in both places: it signs still.
        old_keys.retain(|old| old.id != *key.id());
        Ok(LocalServer { name, key, old_keys })
    });
    Ok(LocalServers::new(servers.collect::<Result<_, Error>>()?))
}

/// Gives a name a new key. A server that runs signs with the old one until it starts anew; see [`end_replaced`].
///
/// # Errors
///
/// [`Error::File`] or [`Error::SigningKey`]; the key is the old one then.
pub(crate) fn rotate(folder: &Path, name: &ServerName, random: &Random) -> Result<KeyPair, Error> {
    let folder = data_folder::make(&folder.join("signing_keys"))?;
    let old = open_one(&folder, name, random)?;
    let mut lines = old_lines(&folder, name)?;
    // What a rotation left that broke off half-way.
    lines.retain(|line| line.split_ascii_whitespace().nth(1) != Some(old.id().key_name().as_str()));
    let line = OldKey::of(&old, 0).to_text();
    lines.push(format!("{} {NOT_ENDED}", line.trim_end().trim_end_matches(" 0")));
    let text: String = lines.iter().map(|line| line.clone() + "\n").collect();
    replace(&folder, &format!("{name}.old_keys"), &text, random)?;
    let key = KeyPair::generate(random);
    replace(&folder, &format!("{name}.key"), &key.to_text(), random)?;
    Ok(key)
}

/// Writes a file whole, or not at all.
fn replace(folder: &Path, file: &str, text: &str, random: &Random) -> Result<(), Error> {
    let path = folder.join(file);
    let new = folder.join(format!("{file}.{}.new", random.alphanumeric(8)));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| Error::File { action: "write", path: path.clone(), source })
}

/// The keys of a name that sign no more, one a line.
fn read_old(folder: &Path, name: &ServerName) -> Result<Vec<OldKey>, Error> {
    let bad = |source| Error::SigningKey { path: folder.join(format!("{name}.old_keys")), source };
    // One that has not ended yet may be in use all the time.
    let lines = old_lines(folder, name)?;
    lines.iter().map(|line| OldKey::from_text(&with_end(line, i64::MAX)).map_err(bad)).collect()
}

fn old_lines(folder: &Path, name: &ServerName) -> Result<Vec<String>, Error> {
    let path = folder.join(format!("{name}.old_keys"));
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::File { action: "read the old signing keys", path, source }),
    }
}

/// The line of an old key with its end, if it has none yet.
fn with_end(line: &str, end_ms: i64) -> String {
    match line.strip_suffix(NOT_ENDED) {
        Some(rest) => format!("{rest}{end_ms}"),
        None => line.to_owned(),
    }
}

fn open_one(folder: &Path, name: &ServerName, random: &Random) -> Result<KeyPair, Error> {
    let path = folder.join(format!("{name}.key"));
    let failed = |action| {
        let path = path.clone();
        move |source| Error::File { action, path, source }
    };
    match fs::read_to_string(&path) {
        Ok(text) => return KeyPair::from_text(&text).map_err(|source| Error::SigningKey { path, source }),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read the signing key")(error)),
    }
    // Written whole under another name first: a crash, or a second process, must not leave or see half a key.
    let new = folder.join(format!("{name}.{}.new", random.alphanumeric(8)));
    let write = |key: &KeyPair| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(key.to_text().as_bytes())?;
        file.sync_all()?;
        let linked = fs::hard_link(&new, &path);
        fs::remove_file(&new)?;
        fs::File::open(folder)?.sync_all()?;
        linked
    };
    match write(&KeyPair::generate(random)) {
        Ok(()) => info!(server.name = %name, "made a signing key for {name}; keep it, and back up {}", path.display()),
        // Another process was faster: its key counts.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("write the signing key")(error)),
    }
    let text = fs::read_to_string(&path).map_err(failed("read the signing key"))?;
    KeyPair::from_text(&text).map_err(|source| Error::SigningKey { path, source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use ruma::{owned_server_name, server_name};

    use super::*;

    #[test]
    fn each_name_has_a_key_of_its_own_that_stays() {
        let folder = tempfile::tempdir().unwrap();
        let names = || vec![owned_server_name!("one.example"), owned_server_name!("[::1]:8448")];
        let random = Random::seeded(1);
        let ids = |servers: &LocalServers| -> Vec<String> {
            servers.iter().map(|server| format!("{} {}", server.name, server.key.public_key())).collect()
        };
        let made = open(folder.path(), names(), &random).unwrap();
        assert_eq!(ids(&made), ids(&open(folder.path(), names(), &random).unwrap()));
        assert_ne!(ids(&made)[0].split(' ').next_back(), ids(&made)[1].split(' ').next_back());
        assert_eq!(made.primary(), server_name!("one.example"));
        let files: Vec<_> = fs::read_dir(folder.path().join("signing_keys")).unwrap().map(Result::unwrap).collect();
        assert_eq!(files.len(), 2, "{files:?}");
        for file in files {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_name_gets_a_new_key_and_remembers_the_old_ones() {
        let (folder, random) = (tempfile::tempdir().unwrap(), Random::seeded(1));
        let name = server_name!("one.example");
        let read = || open(folder.path(), vec![name.to_owned()], &random).unwrap();
        let start = |now_ms| end_replaced(folder.path(), &[name.to_owned()], now_ms, &random).unwrap();
        let first = OldKey::of(&read().get(name).unwrap().key, 5);
        let second = rotate(folder.path(), name, &random).unwrap();
        // It signs until the server starts anew, however long that takes: then it has ended, once.
        start(5);
        start(6);
        let third = rotate(folder.path(), name, &random).unwrap();
        start(7);
        let servers = read();
        let server = servers.get(name).unwrap();
        assert_eq!(server.key.public_key(), third.public_key());
        assert_eq!(server.old_keys, [first.clone(), OldKey::of(&second, 7)]);
        // What a rotation that broke off leaves: the old keys are written, the new one is not.
        let path = folder.path().join("signing_keys/one.example.key");
        fs::write(path, second.to_text()).unwrap();
        let servers = read();
        assert_eq!(servers.get(name).unwrap().old_keys, [first]);
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("signing_keys")).unwrap();
        fs::write(folder.path().join("signing_keys/localhost.key"), "ed25519").unwrap();
        let opened = open(folder.path(), vec![owned_server_name!("localhost")], &Random::seeded(1));
        assert!(matches!(opened, Err(Error::SigningKey { .. })));
    }
}
