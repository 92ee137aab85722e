//! What is said of a file: its type and its name. Nothing of it is trusted.

use storage::MediaDescription;

use crate::Error;

/// Longest type, in bytes.
const TYPE_BYTES_MAX: usize = 255;

/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 1_024;

/// The type of a file of which nobody said one.
pub const TYPE_UNKNOWN: &str = "application/octet-stream";

/// Types that no browser takes for a page with scripts. Client-Server API, "Serving inline content".
const INLINE_TYPES: &[&str] = &[
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

/// Whether a file of this type may be shown by a browser, rather than saved.
#[must_use]
pub fn is_inline(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    INLINE_TYPES.iter().any(|inline| essence.eq_ignore_ascii_case(inline))
}

/// What an uploader says. A type that cannot be one counts as none.
///
/// # Errors
///
/// [`Error::NameTooLong`]: a name has to be given back as it was.
pub(crate) fn of_uploader(content_type: Option<&str>, file_name: Option<&str>) -> Result<MediaDescription, Error> {
    if file_name.is_some_and(|name| name.len() > NAME_BYTES_MAX) {
        return Err(Error::NameTooLong(NAME_BYTES_MAX));
    }
    Ok(of_stranger(content_type, file_name))
}

/// What another server says. What cannot be is left out.
pub(crate) fn of_stranger(content_type: Option<&str>, file_name: Option<&str>) -> MediaDescription {
    let is_type = |text: &&str| {
        (1..=TYPE_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
    };
    let name = file_name.map(|name| name.chars().filter(|char| !char.is_control()).collect::<String>());
    MediaDescription {
        content_type: content_type.filter(is_type).map(str::to_owned),
        file_name: name.filter(|name| (1..=NAME_BYTES_MAX).contains(&name.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_run_is_shown() {
        for shown in ["image/png", "IMAGE/PNG", "text/plain; charset=utf-8", "audio/x-flac"] {
            assert!(is_inline(shown), "{shown}");
        }
        for saved in ["text/html", "image/svg+xml", "text/html;image/png", "application/pdf", "", "image/png x"] {
            assert!(!is_inline(saved), "{saved}");
        }
    }

    #[test]
    fn what_cannot_stand_in_a_header_is_left_out() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let said = of_stranger(Some("image/png\r\nx: y"), Some("a\r\nb\0.png"));
        assert_eq!((said.content_type.as_deref(), said.file_name.as_deref()), (None, Some("ab.png")));
        assert_eq!(of_stranger(Some(""), Some("\n")), MediaDescription::default());
        assert_eq!(of_stranger(None, Some(&long)).file_name, None);
        assert!(matches!(of_uploader(None, Some(&long)), Err(Error::NameTooLong(_))));
    }
}
