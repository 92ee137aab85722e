//! What is sent to another server at once. Server-Server API, "Transactions".

use bytes::Bytes;
use ruma::ServerName;
use sha2::{Digest as _, Sha256};

/// Most PDUs of a transaction.
pub(crate) const PDUS_MAX: usize = 50;
/// Most EDUs of a transaction.
pub(crate) const EDUS_MAX: usize = 100;
/// Where a transaction ends before it has as many as it may, in bytes: one more of the largest may be added to less.
pub(crate) const BYTES_MAX: usize = 2 << 20;

/// A transaction: it stays the same however often it is sent.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// Its id: another content has another one.
    pub(crate) id: String,
    /// The body, in canonical JSON.
    pub(crate) body: Bytes,
}

impl Transaction {
    /// A transaction of events and EDUs that are canonical JSON each: nothing is parsed, so that the body is, too.
    pub(crate) fn new<'a>(
        origin: &ServerName,
        now_ms: i64,
        pdus: impl Iterator<Item = &'a str>,
        edus: impl Iterator<Item = &'a str>,
    ) -> Self {
        let mut body = String::from("{\"edus\":[");
        push_list(&mut body, edus);
        body.push_str("],\"origin\":\"");
        body.push_str(origin.as_str());
        body.push_str("\",\"origin_server_ts\":");
        body.push_str(&now_ms.to_string());
        body.push_str(",\"pdus\":[");
        push_list(&mut body, pdus);
        body.push_str("]}");
        let hash = Sha256::digest(body.as_bytes());
        let id = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { id, body: body.into() }
    }

    pub(crate) fn path(&self) -> String {
        format!("/_matrix/federation/v1/send/{}", self.id)
    }

    /// What is signed of the request, in canonical JSON. Server-Server API, "Request Authentication".
    pub(crate) fn signed_object(&self, origin: &ServerName, destination: &ServerName) -> Vec<u8> {
        // Names and path have no letters that JSON writes otherwise.
        let rest = format!(
            ",\"destination\":\"{destination}\",\"method\":\"PUT\",\"origin\":\"{origin}\",\"uri\":\"{}\"}}",
            self.path()
        );
        [b"{\"content\":", &*self.body, rest.as_bytes()].concat()
    }
}

fn push_list<'a>(body: &mut String, parts: impl Iterator<Item = &'a str>) {
    for (index, part) in parts.enumerate() {
        if index > 0 {
            body.push(',');
        }
        body.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use ruma::{CanonicalJsonObject, server_name};
    use serde_json::json;

    use super::*;

    /// What we sign without parsing must be what the other side verifies after it has.
    #[test]
    fn the_spliced_body_is_canonical_and_so_is_what_is_signed() {
        let pdus = [r#"{"content":{"body":"ä\n\"","n":1},"type":"m.room.message"}"#, r#"{"type":"x"}"#];
        let edus = [r#"{"content":{},"edu_type":"m.typing"}"#];
        let (origin, destination) = (server_name!("hs1"), server_name!("[::1]:8448"));
        let transaction = Transaction::new(origin, 1_234, pdus.into_iter(), edus.into_iter());
        let body: CanonicalJsonObject = serde_json::from_slice(&transaction.body).unwrap();
        assert_eq!(serde_json::to_string(&body).unwrap().as_bytes(), &*transaction.body);
        assert_eq!(body["pdus"].as_array().unwrap().len(), 2);
        let expected: CanonicalJsonObject = serde_json::from_value(json!({
            "content": body, "destination": destination, "method": "PUT", "origin": origin, "uri": transaction.path(),
        }))
        .unwrap();
        let signed = transaction.signed_object(origin, destination);
        assert_eq!(signed, serde_json::to_vec(&expected).unwrap());
    }

    #[test]
    fn the_same_content_has_the_same_id_and_another_has_another() {
        let of = |pdu: &'static str, at_ms| {
            Transaction::new(server_name!("hs1"), at_ms, [pdu].into_iter(), [].into_iter()).id
        };
        assert_eq!(of("{}", 1), of("{}", 1));
        assert_ne!(of("{}", 1), of("[]", 1));
        assert_ne!(of("{}", 1), of("{}", 2));
    }
}
