//! The keys that events were signed with. Server-Server API, "Validating hashes and signatures on received events".

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, OwnedServerSigningKeyId,
    room_version_rules::RoomVersionRules,
    signatures::{PublicKeyMap, required_server_signatures_to_verify_event},
};

use crate::{Error, Federation, keys::Wanted};

impl Federation {
    /// The keys of the servers that must have signed an event, as far as they give any: those that were valid when the event was made, where
    /// its room version asks for that.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`]. Who has no keys, and what is no event, is found when the event is verified.
    pub(crate) async fn keys_of_event(
        &self,
        event: &CanonicalJsonObject,
        rules: &RoomVersionRules,
    ) -> Result<PublicKeyMap, Error> {
        let servers = required_server_signatures_to_verify_event(event, &rules.signatures).unwrap_or_default();
        let valid_at_ms = match rules.enforce_key_validity {
            true => event.get("origin_server_ts").and_then(|ts| ts.as_integer()).map_or(0, i64::from),
            false => 0,
        };
        let signatures = event.get("signatures").and_then(|signatures| signatures.as_object());
        let wanted = servers.into_iter().map(|server| {
            let signed = signatures.and_then(|signatures| signatures.get(server.as_str())?.as_object());
            let ids = signed.into_iter().flat_map(|signed| signed.keys());
            let key_ids = ids.filter_map(|id| OwnedServerSigningKeyId::try_from(id.as_str()).ok()).collect();
            (server, Wanted { key_ids, valid_at_ms })
        });
        let known = self.keys().get_all(wanted.collect::<BTreeMap<_, _>>()).await?;
        Ok(known.into_iter().map(|(server, known)| (server.to_string(), known.valid_at(valid_at_ms))).collect())
    }
}
