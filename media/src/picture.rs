//! Pictures in place of their thumbnails, which are not made yet.
//!
//! Client-Server API, "Thumbnails": one may be larger than what is asked for, has one of few types, and is no animation when none is wanted.
//! The original of a picture is all that.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use ruma::ServerName;

use crate::{Error, File, Media, MediaUri};

/// Of so many bytes at the start of a file it is seen what it is.
const START_BYTES: u64 = 64 << 10;

/// What a file is, by its own bytes: its uploader is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Picture {
    content_type: &'static str,
    /// Whether it moves, as far as that can be seen.
    may_move: bool,
}

impl Media {
    /// Opens what may stand for the thumbnail of a picture; with `animated` as the client wants it.
    ///
    /// # Errors
    ///
    /// Those of [`Media::open`]; [`Error::NoThumbnail`] when it is no picture, or moves and must not.
    pub async fn open_thumbnail(
        &self,
        as_server: &ServerName,
        uri: &MediaUri,
        wait: Duration,
        animated: Option<bool>,
    ) -> Result<File, Error> {
        let mut file = self.open(as_server, uri, wait).await?;
        let start: Vec<_> = file.read(0..file.content.length.min(START_BYTES)).try_collect().await?;
        let picture = picture_of(&start.concat()).ok_or(Error::NoThumbnail)?;
        if picture.may_move && animated == Some(false) {
            return Err(Error::NoThumbnail);
        }
        file.content_type = picture.content_type.to_owned();
        Ok(file)
    }
}

fn picture_of(start: &[u8]) -> Option<Picture> {
    let still = |content_type| Some(Picture { content_type, may_move: false });
    match start {
        [0xff, 0xd8, 0xff, ..] => still("image/jpeg"),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', chunks @ ..] => {
            Some(Picture { content_type: "image/png", may_move: is_animated_png(chunks) })
        }
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Picture { content_type: "image/gif", may_move: true }),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', chunk @ ..] => {
            // The flags of an extended file. WebP Container Specification, "Extended File Format".
            let may_move = chunk.starts_with(b"VP8X") && chunk.get(8).is_none_or(|flags| flags & 0x02 != 0);
            Some(Picture { content_type: "image/webp", may_move })
        }
        _ => None,
    }
}

/// Whether the chunk that tells of an animation comes before the picture itself, or neither is in sight. PNG Specification, "acTL".
fn is_animated_png(mut chunks: &[u8]) -> bool {
    while let [a, b, c, d, name @ ..] = chunks {
        match name.get(..4) {
            Some(b"IDAT") => return false,
            Some(b"acTL") | None => return true,
            Some(_) => {}
        }
        // Its name, its bytes and their checksum.
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        chunks = name.get(length.saturating_add(8)..).unwrap_or_default();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_known_by_its_bytes() {
        let png = |names: &[&[u8; 4]]| {
            let chunks = names.iter().flat_map(|name| [&[0, 0, 0, 3], &name[..], b"abc", b"crc!"].concat());
            [&b"\x89PNG\r\n\x1a\n"[..], &chunks.collect::<Vec<u8>>()].concat()
        };
        let webp = |rest: &[u8]| [&b"RIFF\x10\0\0\0WEBP"[..], rest].concat();
        let (still, moving) = (false, true);
        for (bytes, content_type, may_move) in [
            (b"\xff\xd8\xff\xe0\0\x10JFIF".to_vec(), "image/jpeg", still),
            (png(&[b"IHDR", b"iCCP", b"IDAT", b"acTL"]), "image/png", still),
            (png(&[b"IHDR", b"acTL", b"IDAT"]), "image/png", moving),
            (png(&[b"IHDR"]), "image/png", moving),
            (png(&[]), "image/png", moving),
            ([&png(&[])[..], &[0xff; 9]].concat(), "image/png", moving),
            (b"GIF89a\x01\0".to_vec(), "image/gif", moving),
            (webp(b"VP8 \0\0\0\0"), "image/webp", still),
            (webp(b"VP8X\x0a\0\0\0\x10"), "image/webp", still),
            (webp(b"VP8X\x0a\0\0\0\x12"), "image/webp", moving),
            (webp(b"VP8X"), "image/webp", moving),
            (webp(b""), "image/webp", still),
        ] {
            assert_eq!(picture_of(&bytes), Some(Picture { content_type, may_move }), "{bytes:?}");
        }
        for no_picture in [&b""[..], b"<svg>", b"\x89PN", b"RIFF\0\0\0\0WAVE", b"%PDF"] {
            assert_eq!(picture_of(no_picture), None);
        }
    }
}
