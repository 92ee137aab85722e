//! Whether a request was signed by who says to have made it. Server-Server API, "Request Authentication".

use http::Request;
use ruma::{
    ServerName,
    api::federation::authentication::XMatrix,
    signatures::{PublicKeyMap, verify_canonical_json_bytes},
};
use serde::Serialize;

use super::signed_text::{self, Unsigned};

/// Checks the signature of a request to `destination` against the keys of its origin.
///
/// Servers sign the canonical form of the body and send that: then the bytes that came are the ones that were signed, and nothing of them is
/// taken apart. So the body may have what has no canonical form, such as a float in an event of an old room: that concerns the event, not
/// the request. Of any other body the canonical form is made.
///
/// # Errors
///
/// As [`signed_text::verify`].
pub(super) fn check(
    header: &XMatrix,
    request: &Request<&[u8]>,
    destination: &ServerName,
    keys: &PublicKeyMap,
) -> Result<(), Unsigned> {
    if is_signed_as_sent(header, request, destination, keys) {
        return Ok(());
    }
    signed_text::verify(header, request, destination, keys)
}

fn is_signed_as_sent(
    header: &XMatrix,
    request: &Request<&[u8]>,
    destination: &ServerName,
    keys: &PublicKeyMap,
) -> bool {
    let (body, uri) = (request.body(), request.uri().path_and_query());
    let key = keys.get(header.origin.as_str()).and_then(|keys| keys.get(header.key.as_str()));
    let (Some(key), Some(uri), false) = (key, uri, body.is_empty()) else { return false };
    let rest = Rest {
        destination: destination.as_str(),
        method: request.method().as_str(),
        origin: header.origin.as_str(),
        uri: uri.as_str(),
    };
    let Ok(rest) = serde_json::to_vec(&rest) else { return false };
    // In the order of canonical JSON the content comes first.
    let signed = [b"{\"content\":", *body, b",", &rest[1..]].concat();
    let algorithm = header.key.algorithm();
    verify_canonical_json_bytes(&algorithm, key.as_bytes(), header.sig.as_bytes(), &signed).is_ok()
}

/// What is signed of a request beside its body, in the order of canonical JSON.
#[derive(Serialize)]
struct Rest<'a> {
    destination: &'a str,
    method: &'a str,
    origin: &'a str,
    uri: &'a str,
}

#[cfg(test)]
mod tests {
    use model::{KeyPair, Random};
    use ruma::{
        OwnedServerName,
        serde::{Base64, base64::Standard},
        server_name,
        signatures::{KeyPair as _, PublicKeySet},
    };

    use super::*;

    fn request(body: &str) -> Request<&[u8]> {
        Request::put("https://hs1/_matrix/federation/v1/send/%22t%22?a=b").body(body.as_bytes()).unwrap()
    }

    /// A header for these bytes, and the keys to check it.
    fn sign(signed: &str) -> (XMatrix, PublicKeyMap) {
        let key = KeyPair::generate(&Random::seeded(1));
        let origin: OwnedServerName = server_name!("peer.test").to_owned();
        let signature = Base64::new(key.sign(signed.as_bytes()).as_bytes().to_vec());
        let header = XMatrix::new(origin.clone(), server_name!("hs1").to_owned(), key.id().clone(), signature);
        let public = Base64::<Standard>::parse(key.public_key()).unwrap();
        let keys = PublicKeySet::from([(key.id().to_string(), public)]);
        (header, PublicKeyMap::from([(origin.to_string(), keys)]))
    }

    fn signed(content: &str) -> String {
        let (uri, to) = (r#"/_matrix/federation/v1/send/%22t%22?a=b"#, "hs1");
        format!(r#"{{"content":{content},"destination":"{to}","method":"PUT","origin":"peer.test","uri":"{uri}"}}"#)
    }

    #[test]
    fn what_was_signed_is_what_was_sent_or_its_canonical_form() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for (sent, is_content) in [
            (r#"{"a":1,"b":"ä"}"#, r#"{"a":1,"b":"ä"}"#),
            ("{ \"b\": \"\\u00e4\",\n\"a\": 1 }", r#"{"a":1,"b":"ä"}"#),
            (r#"{"a":1.5,"b":1e+300,"c":9007199254740993}"#, r#"{"a":1.5,"b":1e+300,"c":9007199254740993}"#),
            (&deep, &deep),
        ] {
            let (header, keys) = sign(&signed(is_content));
            assert_eq!(check(&header, &request(sent), server_name!("hs1"), &keys), Ok(()), "{sent}");
            // Nothing else, and not for anybody else.
            for other in [r#"{"a":2}"#, r#"{"a":1.25}"#, r#"{"a":1,"b":"a"}"#, ""] {
                assert!(check(&header, &request(other), server_name!("hs1"), &keys).is_err(), "{other}");
            }
            assert!(check(&header, &request(sent), server_name!("hs2"), &keys).is_err());
        }
    }

    #[test]
    fn a_body_cannot_say_for_whom_it_is() {
        let (header, keys) = sign(&signed(r#"{}"#).replace("hs1", "hs2"));
        let body = r#"{},"destination":"hs2","method":"PUT","origin":"peer.test""#;
        assert!(check(&header, &request(body), server_name!("hs1"), &keys).is_err());
    }
}
