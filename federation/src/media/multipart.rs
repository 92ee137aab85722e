//! A body of two parts, read as it comes. RFC 2046, "Multipart Media Type"; Server-Server API, "GET /media/download/{mediaId}".

use std::{pin::Pin, sync::Arc};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, stream};
use media::RemoteError;
use memchr::memmem::Finder;
use ruma::{OwnedServerName, ServerName};

use crate::Error;

/// Longest boundary, in bytes. RFC 2046, "Common Syntax".
const BOUNDARY_BYTES_MAX: usize = 70;

/// What may stand before the file, in bytes: preamble, metadata, headers.
const BEFORE_BYTES_MAX: usize = 64 << 10;

/// A body as it comes.
type Body = Pin<Box<dyn Stream<Item = Result<Bytes, RemoteError>> + Send>>;

/// A body that is read up to the bytes of its second part.
pub(super) struct Multipart {
    body: Body,
    /// What has come and is not given on yet.
    buffer: BytesMut,
    /// A line break, two hyphens and the boundary.
    delimiter: Finder<'static>,
    /// How many bytes came until the second part's began.
    before: usize,
    is_over: bool,
}

/// What the headers of the second part say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) content_type: Option<String>,
    pub(super) content_disposition: Option<String>,
    /// Where the file is, if it is not here.
    pub(super) location: Option<String>,
}

/// Why a body is not read.
#[derive(Debug)]
pub(super) enum Failure {
    /// It broke off.
    Body(RemoteError),
    /// It has another form.
    Form(&'static str),
}

impl Failure {
    /// The same, as what the server did.
    pub(super) fn of(self, server: &ServerName) -> RemoteError {
        match self {
            Self::Body(error) => error,
            Self::Form(what) => {
                let (server, what) = (server.to_owned(), what.to_owned());
                RemoteError::Unavailable {
                    server: server.clone(),
                    source: Arc::new(Error::Misbehaved { server, what }),
                }
            }
        }
    }
}

impl Multipart {
    /// Reads up to where the second part's bytes begin.
    pub(super) async fn begin(content_type: Option<&str>, body: Body) -> Result<(Part, Self), Failure> {
        let boundary = content_type.and_then(boundary_of).ok_or(Failure::Form("an answer that is not multipart"))?;
        let delimiter = Finder::new(&format!("\r\n--{boundary}")).into_owned();
        // The first delimiter may do without a line before it.
        let mut this = Self { body, buffer: BytesMut::from(&b"\r\n"[..]), delimiter, before: 0, is_over: false };
        this.skip_to_delimiter().await?;
        this.headers().await?;
        // The metadata: an object in which nothing is defined.
        this.skip_to_delimiter().await?;
        let part = this.headers().await?;
        Ok((part, this))
    }

    /// The bytes of the second part.
    pub(super) fn content(
        self,
        server: OwnedServerName,
    ) -> impl Stream<Item = Result<Bytes, RemoteError>> + Send + 'static {
        stream::try_unfold((self, server), async |(mut this, server)| match this.chunk().await {
            Ok(chunk) => Ok(chunk.map(|chunk| (chunk, (this, server)))),
            Err(failure) => Err(failure.of(&server)),
        })
    }

    /// The next bytes of the second part; nothing at its end, which is where the next delimiter is.
    async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        while !self.is_over {
            if let Some(at) = self.delimiter.find(&self.buffer) {
                self.is_over = true;
                return Ok(Some(self.buffer.split_to(at).freeze()));
            }
            // A delimiter may have begun in what is kept.
            let kept = self.delimiter.needle().len() - 1;
            if self.buffer.len() > kept {
                return Ok(Some(self.buffer.split_to(self.buffer.len() - kept).freeze()));
            }
            self.read().await?;
        }
        Ok(None)
    }

    /// Skips a delimiter and what stands before it.
    async fn skip_to_delimiter(&mut self) -> Result<(), Failure> {
        loop {
            if let Some(at) = self.delimiter.find(&self.buffer) {
                self.buffer.advance(at + self.delimiter.needle().len());
                return Ok(());
            }
            let kept = self.buffer.len().min(self.delimiter.needle().len() - 1);
            self.buffer.advance(self.buffer.len() - kept);
            self.read_before().await?;
        }
    }

    /// Reads the headers of a part, from behind its delimiter up to its bytes.
    async fn headers(&mut self) -> Result<Part, Failure> {
        // The rest of the delimiter's line: blanks, or the sign of the end.
        if self.line().await?.starts_with("--") {
            return Err(Failure::Form("a multipart answer of less than two parts"));
        }
        let mut part = Part::default();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(part);
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = Some(value.trim().to_owned());
            match name.trim().to_ascii_lowercase().as_str() {
                "content-type" => part.content_type = value,
                "content-disposition" => part.content_disposition = value,
                "location" => part.location = value,
                _ => {}
            }
        }
    }

    /// The next line, without its end.
    async fn line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let line = self.buffer.split_to(end + 1);
                return Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned());
            }
            self.read_before().await?;
        }
    }

    /// Reads more of what is not the file.
    async fn read_before(&mut self) -> Result<(), Failure> {
        if self.before > BEFORE_BYTES_MAX {
            return Err(Failure::Form("a multipart answer whose file does not begin"));
        }
        self.before += self.read().await?;
        Ok(())
    }

    async fn read(&mut self) -> Result<usize, Failure> {
        match self.body.next().await {
            Some(Ok(chunk)) => {
                self.buffer.extend_from_slice(&chunk);
                Ok(chunk.len())
            }
            Some(Err(error)) => Err(Failure::Body(error)),
            None => Err(Failure::Form("a multipart answer that ends too early")),
        }
    }
}

/// The boundary that a `multipart/mixed` type names.
fn boundary_of(content_type: &str) -> Option<String> {
    let mut parts = content_type.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case("multipart/mixed") {
        return None;
    }
    let boundary = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    })?;
    (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len()).then_some(boundary)
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;
    use ruma::owned_server_name;

    use super::*;

    const TYPE: Option<&str> = Some("multipart/mixed; boundary=abc");

    /// Reads a body that comes in pieces of such a size.
    async fn read(content_type: Option<&str>, body: &[u8], piece: usize) -> Result<(Part, Vec<u8>), String> {
        let pieces: Vec<_> = body.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let begun = Multipart::begin(content_type, Box::pin(stream::iter(pieces))).await;
        let (part, multipart) = begun.map_err(|failure| format!("{failure:?}"))?;
        let content = multipart.content(owned_server_name!("peer.test")).try_collect::<Vec<_>>().await;
        Ok((part, content.map_err(|error| format!("{error:?}"))?.concat()))
    }

    async fn content(body: &[u8]) -> Vec<u8> {
        let whole = read(TYPE, body, usize::MAX).await.unwrap();
        for piece in 1..20 {
            assert_eq!(read(TYPE, body, piece).await.as_ref(), Ok(&whole), "in pieces of {piece}");
        }
        whole.1
    }

    #[tokio::test]
    async fn the_second_part_is_read_however_it_comes() {
        let head = b"--abc\r\nContent-Type: application/json\r\n\r\n{}\r\n--abc\r\nContent-Type: image/png\r\n\r\n";
        for file in [&b""[..], b"file", b"\r\n--ab", b"\r\n--ab\r\n--ax\r\n\r\n--", b"--abc--", b"\n--abc\r", b"\0\xff"]
        {
            let body = [&head[..], file, b"\r\n--abc--\r\n"].concat();
            assert_eq!(content(&body).await, file);
        }
        let body = [&head[..], b"file\r\n--abc--"].concat();
        let (part, _) = read(TYPE, &body, 5).await.unwrap();
        assert_eq!((part.content_type.as_deref(), part.location), (Some("image/png"), None));
    }

    /// As servers in use write it: Conduit and its kin have a line break first and no hyphens last, Synapse has both.
    #[tokio::test]
    async fn the_ways_of_servers_in_use_are_understood() {
        for body in [
            "\r\n--abc\r\nContent-Type: application/json\r\n\r\n{}\r\n--abc\r\nContent-Type: a/b\r\n\r\nfile\r\n--abc",
            "--abc\r\n\r\n{}\r\n--abc\r\n\r\nfile\r\n--abc--\r\n\r\n",
            "preamble --abc\r\n--abc  \r\nContent-Type:application/json\r\n\r\n{}\r\n--abc\r\n\r\nfile\r\n--abc--",
            "--abc\ncontent-type: application/json\n\n{}\r\n--abc\ncontent-type: a/b\n\nfile\r\n--abc--",
        ] {
            assert_eq!(content(body.as_bytes()).await, b"file", "{body}");
        }
        let quoted = Some("Multipart/Mixed;charset=utf-8; Boundary=\"abc\"");
        let body = b"--abc\r\n\r\n{}\r\n--abc\r\nLOCATION:  https://cdn.test/x \r\n\r\n\r\n--abc--";
        let (part, _) = read(quoted, body, 9).await.unwrap();
        assert_eq!(part.location.as_deref(), Some("https://cdn.test/x"));
    }

    /// What is cut off must not be kept as if it were the file.
    #[tokio::test]
    async fn what_is_not_two_whole_parts_is_refused() {
        let good = b"--abc\r\n\r\n{}\r\n--abc\r\n\r\nfile\r\n--abc";
        assert!(read(TYPE, good, 7).await.is_ok());
        for length in 0..good.len() {
            assert!(read(TYPE, &good[..length], 7).await.is_err(), "{length} bytes");
        }
        assert!(read(TYPE, b"--abc\r\n\r\n{}\r\n--abc--\r\nepilogue\r\n\r\n--abc", 7).await.is_err());
        let long = format!("multipart/mixed; boundary={}", "a".repeat(BOUNDARY_BYTES_MAX + 1));
        for content_type in
            [None, Some("text/html"), Some("multipart/mixed"), Some("multipart/mixed; boundary="), Some(&long)]
        {
            assert!(read(content_type, good, 7).await.is_err(), "{content_type:?}");
        }
    }

    #[tokio::test]
    async fn a_head_without_an_end_is_given_up() {
        for start in ["", "--abc\r\n", "--abc\r\n\r\n{}\r\n--abc\r\nX: "] {
            let start = stream::iter([Ok(Bytes::from(start))]);
            let endless = start.chain(stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 1_000]))));
            assert!(matches!(Multipart::begin(TYPE, Box::pin(endless)).await, Err(Failure::Form(_))));
        }
    }
}
