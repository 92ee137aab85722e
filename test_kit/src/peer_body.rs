//! What a [`crate::Peer`] says that no honest server would: more than anybody can hold, or never to its end.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::{Interval, interval};

/// About so many bytes go out at once.
const FRAME_BYTES: usize = 64 << 10;

/// The body of an answer.
#[derive(Clone, Debug)]
pub enum PeerBody {
    /// `start`, then `piece` so many times, then `end`: no more of it is in memory than one frame.
    Repeated {
        /// How it begins.
        start: String,
        /// What comes again and again.
        piece: String,
        /// How often.
        times: usize,
        /// How it ends.
        end: String,
    },
    /// White space, one byte a second, without an end.
    Dripping,
    /// Not even the head of an answer comes.
    Withheld,
}

impl PeerBody {
    /// `start`, then `piece` for ever.
    #[must_use]
    pub fn endless(start: &str, piece: &str) -> Self {
        Self::Repeated { start: start.to_owned(), piece: piece.to_owned(), times: usize::MAX, end: String::new() }
    }

    /// `start`, then `piece` until there are so many bytes, then `end`.
    #[must_use]
    pub fn of_bytes(bytes: usize, start: &str, piece: &str, end: &str) -> Self {
        let times = bytes / piece.len();
        Self::Repeated { start: start.to_owned(), piece: piece.to_owned(), times, end: end.to_owned() }
    }
}

/// A body on its way out.
pub(crate) enum Given {
    Whole(Option<Bytes>),
    Repeated { edges: [Bytes; 2], frame: Bytes, piece_bytes: usize, left: usize, at: u8, given: Arc<AtomicUsize> },
    Dripping(Interval),
}

impl Given {
    pub(crate) fn whole(body: Bytes) -> Self {
        Self::Whole(Some(body))
    }

    /// The body; `given` counts its bytes. Waits for ever for one that is withheld.
    pub(crate) async fn of(body: PeerBody, given: Arc<AtomicUsize>) -> Self {
        match body {
            PeerBody::Repeated { start, piece, times, end } => Self::Repeated {
                edges: [start.into(), end.into()],
                frame: piece.repeat((FRAME_BYTES / piece.len()).max(1)).into(),
                piece_bytes: piece.len(),
                left: times,
                at: 0,
                given,
            },
            PeerBody::Dripping => Self::Dripping(interval(Duration::from_secs(1))),
            PeerBody::Withheld => std::future::pending().await,
        }
    }
}

impl Body for Given {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let bytes = match self.get_mut() {
            Self::Whole(body) => body.take().filter(|body| !body.is_empty()),
            Self::Repeated { edges: [start, end], frame, piece_bytes, left, at, given } => {
                let bytes = if *at == 0 {
                    *at = 1;
                    Some(start.clone())
                } else if *left > 0 {
                    let pieces = (frame.len() / *piece_bytes).min(*left);
                    *left -= pieces;
                    Some(frame.slice(..pieces * *piece_bytes))
                } else if *at == 1 {
                    *at = 2;
                    Some(end.clone()).filter(|end| !end.is_empty())
                } else {
                    None
                };
                given.fetch_add(bytes.as_ref().map_or(0, Bytes::len), Ordering::SeqCst);
                bytes
            }
            Self::Dripping(each) => {
                ready!(each.poll_tick(cx));
                Some(Bytes::from_static(b" "))
            }
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
