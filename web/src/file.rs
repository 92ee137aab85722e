//! Files as answers: what browsers may do with them, parts of them, and whether the client has them already.

use std::ops::Range;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use media::File;
use ruma::http_headers::{ContentDisposition, ContentDispositionType};
use storage::ContentHash;

/// A page from here runs no scripts and loads nothing. Client-Server API, "Content repository".
const CONTENT_SECURITY_POLICY: &str = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
                                       style-src 'unsafe-inline'; object-src 'self';";

/// A file does not change; who may not have it may get it from no cache of others.
const CACHE_CONTROL: &str = "private, max-age=86400, immutable";

/// Which part of a file a client wants, and which version it has. RFC 9110, "Range Requests" and "Conditional Requests".
#[derive(Clone, Debug, Default)]
pub struct FileConditions {
    range: Option<String>,
    if_range: Option<String>,
    if_none_match: Option<String>,
}

/// How a file of this type and name is to be shown. Client-Server API, "Serving inline content".
#[must_use]
pub fn disposition_of(content_type: &str, file_name: Option<String>) -> ContentDisposition {
    let inline = media::is_inline(content_type);
    let kind = if inline { ContentDispositionType::Inline } else { ContentDispositionType::Attachment };
    ContentDisposition::new(kind).with_filename(file_name)
}

impl FileConditions {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self {
            range: text(header::RANGE),
            if_range: text(header::IF_RANGE),
            if_none_match: text(header::IF_NONE_MATCH),
        }
    }

    /// The file, or what of it is wanted.
    #[must_use]
    pub fn answer(&self, file: &File) -> Response {
        let tag = tag_of(file.content.hash);
        let length = file.content.length;
        let mut headers = HeaderMap::new();
        let mut insert = |name, value: Result<HeaderValue, _>| {
            if let Ok(value) = value {
                headers.insert(name, value);
            }
        };
        let disposition = disposition_of(&file.content_type, file.file_name.clone());
        insert(header::CONTENT_TYPE, HeaderValue::try_from(&file.content_type));
        insert(header::CONTENT_DISPOSITION, HeaderValue::try_from(disposition.to_string()));
        insert(header::CONTENT_SECURITY_POLICY, Ok(HeaderValue::from_static(CONTENT_SECURITY_POLICY)));
        insert(header::X_CONTENT_TYPE_OPTIONS, Ok(HeaderValue::from_static("nosniff")));
        insert(HeaderName::from_static("cross-origin-resource-policy"), Ok(HeaderValue::from_static("cross-origin")));
        insert(header::CACHE_CONTROL, Ok(HeaderValue::from_static(CACHE_CONTROL)));
        insert(header::ETAG, HeaderValue::try_from(&tag));
        insert(header::ACCEPT_RANGES, Ok(HeaderValue::from_static("bytes")));
        if self.if_none_match.as_deref().is_some_and(|tags| has_tag(tags, &tag)) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        let range = self.range.as_deref().filter(|_| self.if_range.as_deref().is_none_or(|wanted| wanted == tag));
        let (status, range) = match range.map(|range| range_of(range, length)) {
            None | Some(Wanted::Whole) => (StatusCode::OK, 0..length),
            Some(Wanted::Part(range)) => {
                let part = format!("bytes {}-{}/{length}", range.start, range.end - 1);
                insert(header::CONTENT_RANGE, HeaderValue::try_from(part));
                (StatusCode::PARTIAL_CONTENT, range)
            }
            Some(Wanted::Nothing) => {
                let part = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
                return (StatusCode::RANGE_NOT_SATISFIABLE, part).into_response();
            }
        };
        insert(header::CONTENT_LENGTH, Ok(HeaderValue::from(range.end - range.start)));
        (status, headers, Body::from_stream(file.read(range))).into_response()
    }
}

/// What a `Range` header comes to.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// It asks for several parts or is none that we know: a server may then give everything.
    Whole,
    Part(Range<u64>),
    /// It lies behind the end.
    Nothing,
}

fn range_of(text: &str, length: u64) -> Wanted {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Wanted::Whole;
    };
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    let range = match (first, last) {
        ("", last) => number(last).map(|last| length - last.min(length)..length),
        (first, "") => number(first).map(|first| first..length),
        (first, last) => number(first)
            .zip(number(last))
            .filter(|(first, last)| first <= last)
            .map(|(first, last)| first..last.saturating_add(1).min(length)),
    };
    match range {
        None => Wanted::Whole,
        Some(range) if range.start >= range.end => Wanted::Nothing,
        Some(range) => Wanted::Part(range),
    }
}

/// The file's version: what its bytes are.
fn tag_of(hash: ContentHash) -> String {
    let hash: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hash}\"")
}

fn has_tag(tags: &str, tag: &str) -> bool {
    tags.split(',').map(|tag| tag.trim().trim_start_matches("W/")).any(|known| known == tag || known == "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_a_part_everything_or_nothing() {
        for (text, wanted) in [
            ("bytes=0-", Wanted::Part(0..10)),
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=2-4", Wanted::Part(2..5)),
            ("bytes=8-99", Wanted::Part(8..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-99", Wanted::Part(0..10)),
            ("bytes=0-18446744073709551615", Wanted::Part(0..10)),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=99-100", Wanted::Nothing),
            ("bytes=4-2", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=99999999999999999999-", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=", Wanted::Whole),
            ("lines=1-2", Wanted::Whole),
        ] {
            assert_eq!(range_of(text, 10), wanted, "{text}");
        }
        assert_eq!(range_of("bytes=0-", 0), Wanted::Nothing);
    }

    #[test]
    fn a_version_is_found_among_others() {
        let tag = tag_of([7; 32]);
        assert!(has_tag(&format!("\"x\", W/{tag}"), &tag) && has_tag("*", &tag) && has_tag(&tag, &tag));
        assert!(!has_tag("\"x\"", &tag) && !has_tag("", &tag));
    }

    #[test]
    fn scripts_are_saved_and_names_are_quoted() {
        let of = |content_type: &str, name: &str| disposition_of(content_type, Some(name.to_owned())).to_string();
        assert_eq!(of("image/png", "a.png"), "inline; filename=a.png");
        assert_eq!(of("text/html", "a b\".html"), r#"attachment; filename="a b\".html""#);
        assert_eq!(of("image/svg+xml", "ä.svg"), "attachment; filename*=utf-8''%C3%A4.svg");
        assert_eq!(disposition_of("audio/ogg", None).to_string(), "inline");
    }
}
