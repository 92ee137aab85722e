//! The TCP connection of a client, which is given up when the client stops reading.

use std::{
    future::Future as _,
    io,
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// With these bytes HTTP/2 begins. RFC 9113, "HTTP/2 Connection Preface".
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The connection of a client, below TLS if there is any.
///
/// A write of which the client takes nothing for `write_timeout` fails with [`io::ErrorKind::TimedOut`].
#[derive(Debug)]
pub(crate) struct ClientStream<I> {
    inner: I,
    /// What was read ahead and is still to be given.
    start: Vec<u8>,
    write_timeout: Duration,
    /// When the client must have taken something. Only there while it takes nothing: most connections never need it.
    write_deadline: Option<Pin<Box<Sleep>>>,
}

impl<I: AsyncRead + Unpin> ClientStream<I> {
    pub(crate) fn new(inner: I, write_timeout: Duration) -> Self {
        Self { inner, start: Vec::new(), write_timeout, write_deadline: None }
    }

    /// Reads ahead until it is clear whether the client speaks HTTP/2 without having agreed on it. False when it closes before.
    ///
    /// Takes as long as the client does.
    pub(crate) async fn starts_http2(&mut self) -> io::Result<bool> {
        let mut start = [0; HTTP2_PREFACE.len()];
        let mut filled = 0;
        while filled < start.len() && start[..filled] == HTTP2_PREFACE[..filled] {
            match self.inner.read(&mut start[filled..]).await? {
                0 => break,
                read => filled += read,
            }
        }
        self.start = start[..filled].to_vec();
        Ok(start == *HTTP2_PREFACE)
    }
}

impl<I> ClientStream<I> {
    /// Passes on what a write came to, unless it has come to nothing for too long.
    fn in_time(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if outcome.is_ready() {
            self.write_deadline = None;
            return outcome;
        }
        let deadline = self.write_deadline.get_or_insert_with(|| Box::pin(sleep(self.write_timeout)));
        deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for ClientStream<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.start.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        let given = this.start.len().min(buf.remaining());
        buf.put_slice(&this.start[..given]);
        this.start.drain(..given);
        if this.start.is_empty() {
            // Its memory would stay as long as the connection.
            this.start = Vec::new();
            // With the rest, if it is there: a reader that gets less than a request makes its buffer larger, and keeps it so. An error
            // comes again, or the end does.
            if buf.remaining() > 0 {
                let _ = Pin::new(&mut this.inner).poll_read(cx, buf);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for ClientStream<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.in_time(cx, outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.in_time(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    // TCP does not wait in the other two.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncWriteExt as _, duplex},
        time::timeout,
    };

    use super::*;

    /// So long that running into it means that nothing happens.
    const HANG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (stream, _client) = duplex(1_000);
        let mut stream = ClientStream::new(stream, Duration::from_millis(10));
        let sent = timeout(HANG, stream.write_all(&[0; 2_000])).await.expect("it ends");
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    /// Somebody on a bad line gets a large answer in the end: the wait begins anew with each byte taken.
    #[tokio::test]
    async fn a_client_that_takes_a_little_is_waited_for_anew() {
        let (stream, mut client) = duplex(1_000);
        let mut stream = ClientStream::new(stream, HANG);
        stream.write_all(&[0; 1_000]).await.unwrap();
        let waiting = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_write(cx, &[0]).is_pending()));
        assert!(waiting.await);
        assert!(stream.write_deadline.is_some());
        client.read_u8().await.unwrap();
        stream.write_all(&[0]).await.unwrap();
        assert!(stream.write_deadline.is_none());
    }

    /// HTTP's buffer of each connection would have twice the size.
    #[tokio::test]
    async fn what_was_read_ahead_comes_together_with_the_rest() {
        let (stream, mut client) = duplex(1_000);
        let mut stream = ClientStream::new(stream, HANG);
        let request = b"GET /a/path/that/is/longer/than/what/is/read/ahead HTTP/1.1\r\n\r\n";
        client.write_all(request).await.unwrap();
        assert!(!stream.starts_http2().await.unwrap());
        let mut buffer = [0; 1_000];
        assert_eq!(stream.read(&mut buffer).await.unwrap(), request.len());
    }

    #[tokio::test]
    async fn what_was_read_ahead_is_given_again() {
        for (sent, is_http2) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand more"[..], true),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true),
            (b"GET / HTTP/1.1\r\n\r\n", false),
            (b"PRI * HT", false),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r_and more", false),
            (b"", false),
        ] {
            // Byte by byte, as a slow network may bring it, and at once.
            for buffer in [1, 1_000] {
                let (stream, mut client) = duplex(buffer);
                let mut stream = ClientStream::new(stream, HANG);
                let reading = async {
                    let found = stream.starts_http2().await.unwrap();
                    let mut read = Vec::new();
                    stream.read_to_end(&mut read).await.unwrap();
                    (found, read)
                };
                let sending = async {
                    client.write_all(sent).await.unwrap();
                    drop(client);
                };
                let ((found, read), ()) = tokio::join!(reading, sending);
                assert_eq!((found, &read[..]), (is_http2, sent), "{buffer}");
            }
        }
    }
}
