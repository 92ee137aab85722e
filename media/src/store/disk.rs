//! Contents as files of a folder: `contents/7f/7f83b1…`, and `incoming/` for what is not whole yet.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use model::Random;
use sha2::{Digest as _, Sha256};
use storage::MediaContent;

use super::ContentHash;

/// The folder.
#[derive(Debug)]
pub(crate) struct Disk {
    contents: PathBuf,
    incoming: PathBuf,
    random: Random,
}

/// A file that is being written. Dropping it removes it.
pub(crate) struct Incoming {
    path: PathBuf,
    file: File,
    hash: Sha256,
    length: u64,
}

impl Disk {
    /// Opens the folder, and makes it if it is not there. Of what was left unfinished it removes what was not touched since `left_before`;
    /// without, everything: no other process has the folder then.
    pub(crate) fn open(folder: &Path, random: Random, left_before: Option<SystemTime>) -> io::Result<Self> {
        let disk = Self { contents: folder.join("contents"), incoming: folder.join("incoming"), random };
        let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
        make(&disk.incoming)?;
        // All at once, so that none of them can be lost with what is put into it first.
        for shard in 0..=u8::MAX {
            make(&disk.contents.join(format!("{shard:02x}")))?;
        }
        for path in [&disk.contents, folder, folder.parent().unwrap_or(folder)] {
            sync(path)?;
        }
        for entry in fs::read_dir(&disk.incoming)? {
            let entry = entry?;
            let is_left = match left_before {
                Some(left_before) => entry.metadata()?.modified()? < left_before,
                None => true,
            };
            if is_left {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(disk)
    }

    /// Writes more of a file, a new one if there is none yet.
    pub(super) fn append(&self, incoming: Option<Incoming>, bytes: &[u8]) -> io::Result<Incoming> {
        let mut incoming = match incoming {
            Some(incoming) => incoming,
            None => {
                let path = self.incoming.join(self.random.alphanumeric(20));
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                Incoming { path, file, hash: Sha256::new(), length: 0 }
            }
        };
        incoming.hash.update(bytes);
        incoming.length += bytes.len() as u64;
        incoming.file.write_all(bytes)?;
        Ok(incoming)
    }

    /// Puts a file in its place, durably. The same content that is there already is replaced: it may have been damaged since.
    pub(super) fn keep(&self, incoming: Incoming) -> io::Result<MediaContent> {
        let content = MediaContent { hash: incoming.hash.clone().finalize().into(), length: incoming.length };
        let path = self.path_of(content.hash);
        incoming.file.sync_all()?;
        fs::rename(&incoming.path, &path)?;
        sync(path.parent().unwrap_or(&self.contents))?;
        Ok(content)
    }

    /// A file, if it is there and as long as it was.
    pub(super) fn file(&self, content: MediaContent) -> io::Result<Option<File>> {
        match File::open(self.path_of(content.hash)) {
            Ok(file) => Ok((file.metadata()?.len() == content.length).then_some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn path_of(&self, hash: ContentHash) -> PathBuf {
        let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        self.contents.join(&name[..2]).join(name)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // It is not there when it was put in its place; what cannot be removed is at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// Fills `bytes` from a place in a file.
pub(super) fn read(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(bytes, offset)
}

/// Makes the names in a folder durable.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
