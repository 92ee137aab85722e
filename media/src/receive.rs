//! From a body to the store, within bounds.

use std::{io, pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use storage::MediaContent;
use tokio::time::timeout;

use crate::store::Store;

/// What a body may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Its length, in bytes.
    pub(crate) bytes_max: u64,
    /// How long nothing of it may come.
    pub(crate) pause_max: Duration,
    /// How long all of it may take.
    pub(crate) time_max: Duration,
}

/// Why a body was not kept.
#[derive(Debug)]
pub(crate) enum Failure<E> {
    /// It is longer than it may be.
    TooLarge,
    /// It took too long.
    TooLate,
    /// It broke off.
    Body(E),
    /// The store failed.
    Store(io::Error),
}

/// Keeps a body; nothing of it is left when it fails.
pub(crate) async fn receive<E>(
    store: &Store,
    body: impl Stream<Item = Result<Bytes, E>>,
    bounds: Bounds,
) -> Result<MediaContent, Failure<E>> {
    let receiving = async {
        let (mut body, mut writing, mut length) = (pin!(body), store.write(), 0);
        while let Some(chunk) = timeout(bounds.pause_max, body.next()).await.map_err(|_| Failure::TooLate)? {
            let chunk = chunk.map_err(Failure::Body)?;
            length += chunk.len() as u64;
            if length > bounds.bytes_max {
                return Err(Failure::TooLarge);
            }
            writing.write(&chunk).await.map_err(Failure::Store)?;
        }
        writing.finish().await.map_err(Failure::Store)
    };
    timeout(bounds.time_max, receiving).await.unwrap_or(Err(Failure::TooLate))
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use futures_util::stream;
    use model::Random;

    use super::*;
    use crate::store::Disk;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    /// Whoever sends a byte now and then holds a place for so long only.
    #[tokio::test]
    async fn a_body_ends_within_its_bounds_or_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::Disk(Arc::new(Disk::open(folder.path(), Random::seeded(1), None).unwrap()));
        let bounds = Bounds { bytes_max: 1 << 20, pause_max: LONG, time_max: LONG };
        // Large enough to be on the disk before the end.
        let chunk = || Bytes::from(vec![1; 300 << 10]);
        let good = || stream::iter([Ok::<_, &str>(chunk()), Ok(chunk()), Ok(chunk())]);
        let kept = receive(&store, good(), Bounds { bytes_max: 900 << 10, ..bounds }).await.unwrap();
        assert_eq!(kept.length, 900 << 10);
        let kept = receive(&store, good(), Bounds { bytes_max: (900 << 10) - 1, ..bounds }).await;
        assert!(matches!(kept, Err(Failure::TooLarge)), "{kept:?}");
        let broken = stream::iter([Ok(chunk()), Err("broken")]);
        let kept = receive(&store, broken, bounds).await;
        assert!(matches!(kept, Err(Failure::Body("broken"))), "{kept:?}");
        let stalls = || stream::iter([Ok::<_, &str>(chunk())]).chain(stream::pending());
        let kept = receive(&store, stalls(), Bounds { pause_max: SHORT, ..bounds }).await;
        assert!(matches!(kept, Err(Failure::TooLate)), "{kept:?}");
        let drips = stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Some((Ok::<_, &str>(Bytes::from_static(b"x")), ()))
        });
        let kept = receive(&store, drips, Bounds { time_max: SHORT, ..bounds }).await;
        assert!(matches!(kept, Err(Failure::TooLate)), "{kept:?}");
        assert_eq!(fs::read_dir(folder.path().join("incoming")).unwrap().count(), 0);
    }
}
