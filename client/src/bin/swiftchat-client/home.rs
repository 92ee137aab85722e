//! Where the store is, and what opens it.

use std::{
    env, fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use client::{Error, Store, StoreKey};
use rand::Rng as _;
use zeroize::Zeroizing;

use crate::{asking, failure::Failure};

const PASSPHRASE: &str = "SWIFTCHAT_CLIENT_PASSPHRASE";

/// The folder of one device.
pub(crate) struct Home {
    folder: PathBuf,
}

impl Home {
    /// The folder that the user names, or the usual one. XDG Base Directory Specification, "Environment variables".
    pub(crate) fn at(named: Option<PathBuf>) -> Result<Self, Failure> {
        let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let usual = || {
            let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
            Some(data.join("swiftchat-client"))
        };
        let folder = named.or_else(usual);
        let folder = folder.ok_or_else(|| {
            Failure::Usage("there is no home folder: --store says where to keep the device".to_owned())
        })?;
        Ok(Self { folder })
    }

    fn store_file(&self) -> PathBuf {
        self.folder.join("store.sqlite")
    }

    fn key_file(&self) -> PathBuf {
        self.folder.join("key")
    }

    /// Whether there is a store.
    pub(crate) fn exists(&self) -> bool {
        self.store_file().exists()
    }

    /// Opens the store that a login made.
    pub(crate) async fn open(&self) -> Result<Store, Failure> {
        if !self.exists() {
            return Err(Error::NotLoggedIn.into());
        }
        let file = self.key_file();
        let key = if file.exists() { read_key(&file)? } else { StoreKey::passphrase(&passphrase()?) };
        Ok(Store::open(&self.store_file(), &key).await?)
    }

    /// Makes a store, with a passphrase if there is one in the environment or `ask` wants one, else with a key file. Opens the one that is there.
    pub(crate) async fn make(&self, ask: bool) -> Result<Store, Failure> {
        if self.exists() {
            return self.open().await;
        }
        let failed = |source| Failure::File { action: "make the folder", path: self.folder.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(failed)?;
        let key = if ask {
            StoreKey::passphrase(&asking::new_passphrase()?)
        } else if let Some(passphrase) = from_environment() {
            StoreKey::passphrase(&passphrase)
        } else {
            make_key(&self.key_file())?
        };
        Ok(Store::open(&self.store_file(), &key).await?)
    }

    /// Deletes the store and its key.
    pub(crate) fn remove(&self) -> Result<(), Failure> {
        let store = self.store_file();
        let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", store.display()));
        // The key first: without it the rest is noise.
        for path in [self.key_file(), beside(""), beside("-wal"), beside("-shm")] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::File { action: "delete", path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn from_environment() -> Option<Zeroizing<String>> {
    env::var(PASSPHRASE).ok().filter(|passphrase| !passphrase.is_empty()).map(Zeroizing::new)
}

fn passphrase() -> Result<Zeroizing<String>, Failure> {
    from_environment().map_or_else(
        || asking::secret("Passphrase of the store: ", &format!("set {PASSPHRASE}: the store has a passphrase")),
        Ok,
    )
}

/// Makes a key by chance, in a file for this user only, which is durable before anything depends on it.
fn make_key(path: &Path) -> Result<StoreKey, Failure> {
    let mut key = Zeroizing::new([0; 32]);
    rand::rng().fill_bytes(key.as_mut());
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(key.as_ref())?;
        file.sync_all()
    };
    write().map_err(|source| Failure::File { action: "write the key", path: path.to_owned(), source })?;
    Ok(StoreKey::raw(*key))
}

fn read_key(path: &Path) -> Result<StoreKey, Failure> {
    let read = || {
        if fs::metadata(path)?.mode() & 0o077 != 0 {
            return Err(io::Error::other("others can read it; `chmod 600` keeps it to you"));
        }
        let bytes = Zeroizing::new(fs::read(path)?);
        let key: [u8; 32] = bytes.as_slice().try_into().map_err(|_| io::Error::other("it holds no key"))?;
        Ok(StoreKey::raw(*Zeroizing::new(key)))
    };
    read().map_err(|source| Failure::File { action: "use the key in", path: path.to_owned(), source })
}
