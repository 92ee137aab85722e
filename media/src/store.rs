//! Where contents are kept: each once, under the hash of its bytes.
//!
//! Content is in the store, durably, before a row of the database speaks of it. What a crash leaves behind is content without a row.

mod disk;

use std::{io, mem, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use storage::{ContentHash, MediaContent};
use tokio::task::spawn_blocking;
use tracing::error;

pub(crate) use self::disk::Disk;
use self::disk::Incoming;

/// What is gathered before it is hashed and written, in bytes: so much memory an upload takes.
const WRITE_BYTES: usize = 256 << 10;

/// What is read at once, in bytes: so much memory a download takes.
const READ_BYTES: u64 = 64 << 10;

/// A store of contents. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    /// A folder of this machine, or one that all processes of a deployment share.
    Disk(Arc<Disk>),
}

/// Content that is on its way into the store. Dropping it leaves nothing behind.
pub(crate) struct Writing {
    disk: Arc<Disk>,
    /// Begun with the first write: a small file takes one hop to a thread that may block.
    incoming: Option<Incoming>,
    gathered: Vec<u8>,
}

impl Store {
    /// Begins with new content.
    pub(crate) fn write(&self) -> Writing {
        let Self::Disk(disk) = self;
        Writing { disk: disk.clone(), incoming: None, gathered: Vec::new() }
    }

    /// Opens content; nothing when it is not here, or not whole.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub(crate) async fn open(&self, content: MediaContent) -> io::Result<Option<Reader>> {
        let Self::Disk(disk) = self;
        let disk = disk.clone();
        let file = blocking(move || disk.file(content)).await?;
        Ok(file.map(|file| Reader(Arc::new(file))))
    }
}

impl Writing {
    /// Adds to the content.
    ///
    /// # Errors
    ///
    /// When the store fails; the content is given up then.
    pub(crate) async fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.gathered.extend_from_slice(chunk);
        if self.gathered.len() >= WRITE_BYTES {
            let (disk, incoming, mut gathered) =
                (self.disk.clone(), self.incoming.take(), mem::take(&mut self.gathered));
            let write = move || {
                let incoming = disk.append(incoming, &gathered)?;
                gathered.clear();
                Ok((incoming, gathered))
            };
            let (incoming, gathered) = blocking(write).await?;
            (self.incoming, self.gathered) = (Some(incoming), gathered);
        }
        Ok(())
    }

    /// Keeps the content: it survives a power loss when this returns.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub(crate) async fn finish(self) -> io::Result<MediaContent> {
        let Self { disk, incoming, gathered } = self;
        blocking(move || disk.keep(disk.append(incoming, &gathered)?)).await
    }
}

/// Content that can be read, also when it is removed from the store meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Reader(Arc<std::fs::File>);

impl Reader {
    /// The bytes of a range, which lies within the content.
    pub(crate) fn read(&self, range: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        stream::try_unfold((self.0.clone(), range), async |(file, range)| {
            if range.is_empty() {
                return Ok(None);
            }
            let end = range.end.min(range.start + READ_BYTES);
            let read = move || {
                let mut bytes = BytesMut::zeroed((end - range.start) as usize);
                disk::read(&file, &mut bytes, range.start)?;
                Ok((bytes.freeze(), (file, end..range.end)))
            };
            let read = blocking(read).await;
            // Who reads is told by the end of the connection only.
            read.inspect_err(|error| error!(%error, "a file of the media store cannot be read")).map(Some)
        })
    }
}

/// Runs what waits for a disk where it stops nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use futures_util::TryStreamExt as _;
    use model::Random;
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn store(folder: &Path) -> Store {
        Store::Disk(Arc::new(Disk::open(folder, Random::seeded(1), None).unwrap()))
    }

    async fn keep(store: &Store, bytes: &[u8], at_once: usize) -> MediaContent {
        let mut writing = store.write();
        for chunk in bytes.chunks(at_once) {
            writing.write(chunk).await.unwrap();
        }
        writing.finish().await.unwrap()
    }

    async fn read(reader: &Reader, range: Range<u64>) -> Vec<u8> {
        reader.read(range).try_collect::<Vec<_>>().await.unwrap().concat()
    }

    fn files(folder: &Path) -> Vec<fs::DirEntry> {
        let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
        entries
            .flat_map(|entry| if entry.file_type().unwrap().is_dir() { files(&entry.path()) } else { vec![entry] })
            .collect()
    }

    #[tokio::test]
    async fn what_was_kept_is_read_again_whole_and_in_parts() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        for length in [0, 1, WRITE_BYTES - 1, WRITE_BYTES, WRITE_BYTES + 1, bytes.len()] {
            let content = keep(&store, &bytes[..length], 100_001).await;
            assert_eq!(content, MediaContent { hash: Sha256::digest(&bytes[..length]).into(), length: length as u64 });
            let reader = store.open(content).await.unwrap().unwrap();
            assert!(read(&reader, 0..content.length).await == bytes[..length], "{length}");
        }
        let content = keep(&store, &bytes, 1 << 20).await;
        let reader = store.open(content).await.unwrap().unwrap();
        assert!(read(&reader, 5..READ_BYTES + 7).await == bytes[5..READ_BYTES as usize + 7]);
        assert!(read(&reader, 9..9).await.is_empty());
    }

    #[tokio::test]
    async fn the_same_content_is_kept_once_and_what_is_given_up_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        assert_eq!(keep(&store, b"same", 4).await, keep(&store, b"same", 1).await);
        let mut given_up = store.write();
        given_up.write(&vec![1; 2 * WRITE_BYTES]).await.unwrap();
        assert_eq!(files(folder.path()).len(), 2, "it is on the disk already");
        drop(given_up);
        assert_eq!(files(folder.path()).len(), 1);
    }

    /// A file that was cut off is not served as if it were whole: from another server it is fetched again.
    #[tokio::test]
    async fn what_is_missing_or_cut_off_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let content = keep(&store, b"content", 7).await;
        let missing = MediaContent { hash: [0; 32], ..content };
        assert!(store.open(missing).await.unwrap().is_none());
        fs::write(files(folder.path())[0].path(), "cont").unwrap();
        assert!(store.open(content).await.unwrap().is_none());
        assert_eq!(keep(&store, b"content", 7).await, content);
        assert!(store.open(content).await.unwrap().is_some(), "whole again");
    }

    #[tokio::test]
    async fn what_a_crash_left_unfinished_is_removed_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let content = keep(&store(folder.path()), b"content", 7).await;
        fs::write(folder.path().join("incoming/left"), "half").unwrap();
        let hour_ago_ms = model::Clock::system().now_ms().unsigned_abs() - 3_600_000;
        let hour_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(hour_ago_ms);
        Disk::open(folder.path(), Random::seeded(1), Some(hour_ago)).unwrap();
        assert_eq!(files(folder.path()).len(), 2, "another process may be at it");
        let store = store(folder.path());
        assert_eq!(files(folder.path()).len(), 1);
        assert!(store.open(content).await.unwrap().is_some());
    }
}
