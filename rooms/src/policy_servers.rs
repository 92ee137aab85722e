//! Policy servers: a room may have one server look at each event before anybody sees it. Server-Server API, "Policy Servers".
//!
//! We ask the policy server of a room for its signature on what our users send, and on what came without one. It is asked in the room's turn
//! for the former, because what comes next builds upon the event; for the latter before the turn.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use model::{NodeNr, Pdu, limits};
use moka::sync::Cache;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, ServerName,
    events::{
        TimelineEventType,
        room::policy::{POLICY_SERVER_ED25519_SIGNING_KEY_ID, RoomPolicyEventContent},
    },
    room_version_rules::RoomVersionRules,
    serde::Base64,
    signatures::verify_policy_server_signature,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::RoomRow;

use crate::{Error, Rooms, head::Head, power::rules_of};

const EVENT_TYPE: &str = "m.room.policy";

/// Most received events of a room about which its policy server is asked at the same time.
const ASKED_AT_ONCE: usize = 8;

/// How long a policy server is not asked again that did not answer, in milliseconds: the room waits for it each time.
const REST_MS: i64 = 10_000;

/// Most policy servers that are known not to answer.
const RESTING_MAX: u64 = 10_000;

/// What a policy server answers who asks for its signature.
#[derive(Clone, Debug)]
pub enum PolicyAnswer {
    /// Its signature, in base64: it recommends the event.
    Signature(String),
    /// It does not, and says why.
    Refusal(Box<ruma::api::error::Error>),
}

/// Policy servers that did not answer, and when, in milliseconds since 1970.
pub(crate) struct RestingServers(Cache<OwnedServerName, i64>);

impl RestingServers {
    pub(crate) fn new() -> Self {
        Self(Cache::new(RESTING_MAX))
    }
}

/// What `m.room.policy` says, if it names a policy server. "Determining if a Policy Server is enabled in a room".
fn policy_of(content: &RawValue) -> Option<RoomPolicyEventContent> {
    #[derive(Deserialize)]
    struct Content {
        via: OwnedServerName,
        public_keys: Keys,
    }
    #[derive(Deserialize)]
    struct Keys {
        ed25519: String,
    }
    let Content { via, public_keys } = serde_json::from_str(content.get()).ok()?;
    // A text that is no key names a policy server, too: one whose signature can never be valid.
    let key = Base64::parse(&public_keys.ed25519).unwrap_or_else(|_| Base64::new(Vec::new()));
    Some(RoomPolicyEventContent::new(via, key))
}

/// Whether an event has the signature that a room's policy wants. "Validating Policy Server signatures".
fn is_recommended(policy: &RoomPolicyEventContent, pdu: &Pdu, rules: &RoomVersionRules) -> bool {
    let object = serde_json::from_str::<CanonicalJsonObject>(&pdu.json);
    object.is_ok_and(|object| verify_policy_server_signature(policy, &object, rules).is_ok())
}

/// The event with the signature of a policy server.
fn with_signature(
    pdu: &Pdu,
    policy_server: &ServerName,
    signature: String,
    rules: &RoomVersionRules,
) -> Result<Pdu, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::BadEvent(error.to_string());
    let mut object: CanonicalJsonObject = serde_json::from_str(&pdu.json).map_err(|error| bad(&error))?;
    let Some(CanonicalJsonValue::Object(signatures)) = object.get_mut("signatures") else {
        return Err(Error::BadEvent("an event without signatures".to_owned()));
    };
    // It may be the server of the sender, too.
    let own = signatures.entry(policy_server.to_string()).or_insert_with(|| CanonicalJsonObject::new().into());
    if let CanonicalJsonValue::Object(own) = own {
        own.insert(POLICY_SERVER_ED25519_SIGNING_KEY_ID.to_owned(), CanonicalJsonValue::String(signature));
    }
    let signed = Pdu::from_canonical(&object, rules).map_err(|error| bad(&error))?;
    if signed.json.len() > limits::EVENT_BYTES_MAX {
        return Err(Error::TooLarge);
    }
    Ok(signed)
}

impl Rooms {
    /// An event of ours with the signature of the room's policy server; nothing when it needs none.
    ///
    /// # Errors
    ///
    /// [`Error::RefusedByPolicyServer`], [`Error::Remote`]: the event is not to be sent.
    pub(crate) async fn signed_by_policy_server(&self, head: &Head, pdu: &Pdu) -> Result<Option<Arc<Pdu>>, Error> {
        let Some((_, event)) = head.only_state_event(self.storage(), EVENT_TYPE).await? else { return Ok(None) };
        let Some(policy) = self.policy_in_force(&head.row, &event.content).await? else { return Ok(None) };
        if pdu.is_state(&TimelineEventType::from(EVENT_TYPE), "") {
            return Ok(None);
        }
        self.ask_policy_server(pdu.sender.server_name(), &policy, pdu, &head.rules).await.map(Arc::new).map(Some)
    }

    /// The policy that a room has in a state, if it is in force.
    pub(crate) async fn policy_at(
        &self,
        room: &RoomRow,
        state: NodeNr,
    ) -> Result<Option<RoomPolicyEventContent>, Error> {
        match self.find_only_state_at(room, state, EVENT_TYPE).await? {
            Some(event) => self.policy_in_force(room, &event.pdu.content).await,
            None => Ok(None),
        }
    }

    /// Check 7 on receipt of events: why each is not recommended by the policy server of the room, if it is not. One that gets the signature
    /// that it lacked has it from then on.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub(crate) async fn judged_by_policy_server(
        &self,
        as_server: &ServerName,
        room: &RoomRow,
        policy: Option<&RoomPolicyEventContent>,
        pdus: Vec<Pdu>,
    ) -> Result<Vec<(Pdu, Option<String>)>, Error> {
        let Some(policy) = policy else { return Ok(pdus.into_iter().map(|pdu| (pdu, None)).collect()) };
        let rules = rules_of(&room.version)?;
        let judged = stream::iter(pdus).map(async |pdu| {
            if is_recommended(policy, &pdu, &rules) {
                return (pdu, None);
            }
            match self.ask_policy_server(as_server, policy, &pdu, &rules).await {
                Ok(signed) => (signed, None),
                Err(error) => (pdu, Some(format!("the policy server of the room does not recommend it: {error}"))),
            }
        });
        Ok(judged.buffered(ASKED_AT_ONCE).collect().await)
    }

    /// The policy of a room, if the server that it names has a joined user there.
    async fn policy_in_force(
        &self,
        room: &RoomRow,
        content: &RawValue,
    ) -> Result<Option<RoomPolicyEventContent>, Error> {
        let Some(policy) = policy_of(content) else { return Ok(None) };
        Ok(self.storage().has_joined_user(room.nr, &policy.via).await?.then_some(policy))
    }

    /// "Asking for a Policy Server signature on an event".
    async fn ask_policy_server(
        &self,
        as_server: &ServerName,
        policy: &RoomPolicyEventContent,
        pdu: &Pdu,
        rules: &RoomVersionRules,
    ) -> Result<Pdu, Error> {
        let (resting, now_ms) = (&self.0.resting_policy_servers.0, self.storage().clock().now_ms());
        if resting.get(&policy.via).is_some_and(|at_ms| now_ms - at_ms < REST_MS) {
            return Err(Error::PolicyServerSilent(policy.via.clone()));
        }
        let answer = self.remote().sign_by_policy_server(as_server, &policy.via, pdu).await.inspect_err(|_| {
            resting.insert(policy.via.clone(), now_ms);
        })?;
        match answer {
            PolicyAnswer::Signature(signature) => {
                let signed = with_signature(pdu, &policy.via, signature, rules)?;
                let is_valid = is_recommended(policy, &signed, rules);
                is_valid.then_some(signed).ok_or_else(|| Error::PolicyServerSilent(policy.via.clone()))
            }
            PolicyAnswer::Refusal(error) => Err(Error::RefusedByPolicyServer(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::{KeyPair, Random};
    use ruma::{RoomVersionId, signatures::hash_and_sign_event};
    use serde_json::json;

    use super::*;

    fn raw(content: serde_json::Value) -> Box<RawValue> {
        serde_json::value::to_raw_value(&content).unwrap()
    }

    #[test]
    fn a_policy_names_a_server_and_its_key() {
        for (content, is_one) in [
            (
                json!({"via": "policy.test", "public_keys": {"ed25519": "6yhHGKhCiXTSEN2ksjV7kX/N6rBQZ3Xb+M7LlC6NS+s"}}),
                true,
            ),
            (json!({"via": "policy.test", "public_keys": {"ed25519": "no key", "other": 5}}), true),
            (json!({"via": "policy.test", "public_keys": {"ed25519": 5}}), false),
            (json!({"via": "policy.test", "public_keys": {}}), false),
            (json!({"via": "policy.test"}), false),
            (json!({"via": 5, "public_keys": {"ed25519": ""}}), false),
            (json!({"via": "no server", "public_keys": {"ed25519": ""}}), false),
            (json!({}), false),
        ] {
            assert_eq!(policy_of(&raw(content.clone())).is_some(), is_one, "{content}");
        }
    }

    #[test]
    fn the_signature_is_that_of_the_key_in_the_policy_over_the_redacted_event() {
        let rules = RoomVersionId::V11.rules().unwrap();
        let (sender, key) = (KeyPair::generate(&Random::seeded(1)), KeyPair::generate(&Random::seeded(2)));
        let policy = policy_of(&raw(json!({"via": "a.test", "public_keys": {"ed25519": key.public_key()}}))).unwrap();
        let event = |event_type: &str| {
            let event = json!({
                "type": event_type, "content": {"body": "x"}, "sender": "@u:a.test", "room_id": "!r:a.test", "depth": 1,
                "origin_server_ts": 1, "prev_events": [], "auth_events": [], "state_key": "",
            });
            let mut object: CanonicalJsonObject = serde_json::from_value(event).unwrap();
            hash_and_sign_event("a.test", &sender, &mut object, &rules.redaction).unwrap();
            Pdu::from_canonical(&object, &rules).unwrap()
        };
        let pdu = event("m.room.topic");
        assert!(!is_recommended(&policy, &pdu, &rules));
        // The policy server signs the same bytes as the sender's server, with the key of the policy under the id that is always the same.
        let mut object: CanonicalJsonObject = serde_json::from_str(&pdu.json).unwrap();
        ruma::signatures::sign_event("other.test", &key, &mut object, &rules.redaction).unwrap();
        let signed = serde_json::to_value(&object).unwrap();
        let signatures = signed["signatures"]["other.test"].as_object().unwrap();
        let signature = signatures.values().next().unwrap().as_str().unwrap().to_owned();
        let signed = with_signature(&pdu, &policy.via, signature.clone(), &rules).unwrap();
        assert!(is_recommended(&policy, &signed, &rules));
        assert_eq!(signed.event_id, pdu.event_id);
        assert!(signed.json.contains(sender.id().as_str()), "the signature of the sender's server stays");
        // Of another event, or by another key, it is none.
        let other = with_signature(&event("m.room.name"), &policy.via, signature, &rules).unwrap();
        assert!(!is_recommended(&policy, &other, &rules));
        let another =
            policy_of(&raw(json!({"via": "a.test", "public_keys": {"ed25519": sender.public_key()}}))).unwrap();
        assert!(!is_recommended(&another, &signed, &rules));
        assert!(is_recommended(&policy, &event(EVENT_TYPE), &rules), "the policy itself needs no signature");
    }
}
