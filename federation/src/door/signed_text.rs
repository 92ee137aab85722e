//! What the signature of a request is made over. Server-Server API, "Request Authentication".
//!
//! It is canonical JSON, for which a body is taken apart: 13 MB of it may be 1 GB of values. A body that would be large is put together again
//! piece by piece, and refused when a single piece of it would be larger than any honest server's.

use std::{collections::BTreeMap, fmt::Write as _};

use http::Request;
use model::JsonShape;
use ruma::{
    CanonicalJsonValue, ServerName,
    api::federation::authentication::XMatrix,
    signatures::{PublicKeyMap, verify_canonical_json_bytes},
};
use serde_json::{json, value::RawValue};

/// Up to so much a body is taken apart as a whole, in bytes of memory.
const WHOLE_WEIGHT_MAX: usize = 16 << 20;

/// What a piece of a larger one may be, in bytes of memory: the densest event there can be, with what it replaced beside it, is half of it.
const PIECE_WEIGHT_MAX: usize = 40 << 20;

/// Most pieces of a larger one: a transaction has 150.
const PIECES_MAX: usize = 1_000;

/// Why a request is not one that its server has signed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unsigned {
    /// It would take too much memory to tell.
    TooLarge,
    /// The signature is wrong, or there is no JSON to be signed.
    Wrong(String),
}

/// Verifies that the server of a header has signed a request to `destination`, by one of `keys`.
pub(super) fn verify(
    header: &XMatrix,
    request: &Request<&[u8]>,
    destination: &ServerName,
    keys: &PublicKeyMap,
) -> Result<(), Unsigned> {
    if JsonShape::of(request.body()).weight <= WHOLE_WEIGHT_MAX {
        return header.verify_http_request(request, destination, keys).map_err(wrong);
    }
    let content = in_pieces(request.body())?;
    let uri = request.uri().path_and_query().map_or("/", |uri| uri.as_str());
    let rest = json!({
        "destination": destination, "method": request.method().as_str(), "origin": header.origin, "uri": uri,
    });
    // The first field by the order of their names is the content.
    let text = format!("{{\"content\":{content},{}", &rest.to_string()[1..]);
    let key = keys.get(header.origin.as_str()).and_then(|keys| keys.get(header.key.as_str()));
    let key = key.ok_or_else(|| wrong("the key is not known"))?;
    let algorithm = header.key.algorithm();
    verify_canonical_json_bytes(&algorithm, key.as_bytes(), header.sig.as_bytes(), text.as_bytes()).map_err(wrong)
}

/// The canonical form of an object, of which one piece at a time is taken apart: each of its fields, of a list each element.
fn in_pieces(body: &[u8]) -> Result<String, Unsigned> {
    if JsonShape::of(body).members > PIECES_MAX {
        return Err(Unsigned::TooLarge);
    }
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(body).map_err(wrong)?;
    let mut text = String::with_capacity(body.len());
    text.push('{');
    for (index, (name, value)) in fields.into_iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(text, "{comma}{}:", json!(name)).map_err(wrong)?;
        if value.get().starts_with('[') {
            let elements: Vec<&RawValue> = serde_json::from_str(value.get()).map_err(wrong)?;
            text.push('[');
            for (index, element) in elements.into_iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "," });
                push_canonical(&mut text, element)?;
            }
            text.push(']');
        } else {
            push_canonical(&mut text, value)?;
        }
    }
    text.push('}');
    Ok(text)
}

fn push_canonical(text: &mut String, piece: &RawValue) -> Result<(), Unsigned> {
    if JsonShape::of(piece.get().as_bytes()).weight > PIECE_WEIGHT_MAX {
        return Err(Unsigned::TooLarge);
    }
    let value: CanonicalJsonValue = serde_json::from_str(piece.get()).map_err(wrong)?;
    text.push_str(&serde_json::to_string(&value).map_err(wrong)?);
    Ok(())
}

fn wrong(error: impl ToString) -> Unsigned {
    Unsigned::Wrong(error.to_string())
}

#[cfg(test)]
mod tests {
    use model::{KeyPair, Random};
    use ruma::{
        serde::Base64,
        server_name,
        signatures::{KeyPair as _, PublicKeySet},
    };

    use super::*;

    /// Both ways come to the same text, whatever the order and the spaces.
    #[test]
    fn a_body_in_pieces_has_the_canonical_form_of_the_whole() {
        for body in [
            r#"{ "pdus" : [ {"b":1, "a":[{}, [] ,null]}, 2 ], "edus": [], "a\u0000\"é\n": {"z":"\u00e9\/","y":-1} }"#,
            r#"{"a":[],"a":[1]}"#,
            "{}",
        ] {
            let whole: CanonicalJsonValue = serde_json::from_str(body).unwrap();
            assert_eq!(in_pieces(body.as_bytes()).unwrap(), serde_json::to_string(&whole).unwrap());
        }
        for body in ["[]", "{", r#"{"a":1.5}"#, r#"{"a":[1.5]}"#, "null", ""] {
            assert!(matches!(in_pieces(body.as_bytes()), Err(Unsigned::Wrong(_))), "{body}");
        }
    }

    #[test]
    fn a_large_request_is_verified_like_a_small_one() {
        let key = KeyPair::generate(&Random::seeded(1));
        let (origin, destination) = (server_name!("a.test"), server_name!("b.test"));
        let element = format!("{{\"b\":[{}0]}}", r#"{"":0},"#.repeat(9_000));
        let body = format!("{{\"pdus\":[{}1],\"a\":\"\\u00e9\"}}", format!("{element},").repeat(20));
        let request = Request::put("https://b.test/_matrix/x?y=%C3%A9").body(body.as_bytes()).unwrap();
        let object = XMatrix::request_object(&request, origin, destination).unwrap();
        let signature = key.sign(&serde_json::to_vec(&object).unwrap());
        let sig = Base64::new(signature.as_bytes().to_vec());
        let header = XMatrix::new(origin.to_owned(), destination.to_owned(), key.id().clone(), sig);
        let public = Base64::parse(key.public_key()).unwrap();
        let keys = PublicKeyMap::from([(origin.to_string(), PublicKeySet::from([(key.id().to_string(), public)]))]);
        assert!(JsonShape::of(request.body()).weight > WHOLE_WEIGHT_MAX);
        assert_eq!(verify(&header, &request, destination, &keys), Ok(()));
        assert!(matches!(verify(&header, &request, origin, &keys), Err(Unsigned::Wrong(_))));
        let other = Request::put("https://b.test/_matrix/x?y=").body(*request.body()).unwrap();
        assert!(matches!(verify(&header, &other, destination, &keys), Err(Unsigned::Wrong(_))));
    }
}
