//! Invitations of users of other servers. Server-Server API, "Inviting to a room".

use model::canonical_object;
use rooms::OutgoingInvite;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerSigningKeyId, RoomVersionId, ServerName,
    api::federation::membership::{RawStrippedState, create_invite},
    canonical_json::redact,
    signatures::{PublicKeyMap, verify_json},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{Error, Federation, client::SMALL, invite_v1, keys::Wanted};

impl Federation {
    /// Asks the server of an invited user for its signature, and verifies it; gives the invitation with it.
    ///
    /// # Errors
    ///
    /// Those of [`Error`].
    pub(crate) async fn ask_for_signature(
        &self,
        as_server: &ServerName,
        destination: &ServerName,
        invite: &OutgoingInvite,
    ) -> Result<CanonicalJsonObject, Error> {
        let misbehaved = |what: &str| Error::Misbehaved { server: destination.to_owned(), what: what.to_owned() };
        let answer = self.send_invite(as_server, destination, invite).await?;
        let answer = canonical_object(&answer).map_err(|error| misbehaved(&error.to_string()))?;
        // Its signature is all that we take.
        let signatures = answer.get("signatures").and_then(CanonicalJsonValue::as_object);
        let theirs = signatures.and_then(|signatures| signatures.get(destination.as_str()));
        let theirs = theirs.ok_or_else(|| misbehaved("it did not sign the invitation"))?.clone();

        let mut signed: CanonicalJsonObject =
            serde_json::from_str(&invite.event.json).map_err(|error| Error::BadRequest(error.to_string()))?;
        self.verify_signature(destination, &signed, &theirs, &invite.version).await?;
        let signatures =
            signed.entry("signatures".to_owned()).or_insert_with(|| CanonicalJsonValue::Object(Default::default()));
        if let CanonicalJsonValue::Object(signatures) = signatures {
            signatures.insert(destination.to_string(), theirs);
        }
        Ok(signed)
    }

    async fn verify_signature(
        &self,
        server: &ServerName,
        event: &CanonicalJsonObject,
        signature: &CanonicalJsonValue,
        version: &RoomVersionId,
    ) -> Result<(), Error> {
        let misbehaved = |what: String| Error::Misbehaved { server: server.to_owned(), what };
        let rules = version.rules().ok_or_else(|| Error::BadRequest(format!("unknown room version {version}")))?;
        let mut redacted =
            redact(event.clone(), &rules.redaction, None).map_err(|error| misbehaved(error.to_string()))?;
        let signatures = CanonicalJsonObject::from([(server.to_string(), signature.clone())]);
        redacted.insert("signatures".to_owned(), CanonicalJsonValue::Object(signatures));
        let ids = signature.as_object().into_iter().flat_map(|signatures| signatures.keys());
        let key_ids = ids.filter_map(|id| OwnedServerSigningKeyId::try_from(id.as_str()).ok()).collect();
        let now_ms = self.now_ms();
        let known = self.keys().get(server, Wanted { key_ids, valid_at_ms: now_ms }).await?;
        let keys = PublicKeyMap::from([(server.to_string(), known.current_at(now_ms))]);
        verify_json(&keys, &redacted).map_err(|error| misbehaved(format!("its signature is none: {error}")))
    }

    /// Sends the invitation, in the way of before 1.1 to a server that knows no other.
    async fn send_invite(
        &self,
        as_server: &ServerName,
        destination: &ServerName,
        invite: &OutgoingInvite,
    ) -> Result<Box<RawValue>, Error> {
        let OutgoingInvite { version, event, room_state } = invite;
        let bad = |error: serde_json::Error| Error::BadRequest(error.to_string());
        let request = create_invite::v2::Request::new(
            event.room_id.clone(),
            event.event_id.clone(),
            version.clone(),
            RawValue::from_string(event.json.to_string()).map_err(bad)?,
            room_state.iter().cloned().map(RawStrippedState::Pdu).collect(),
        );
        match self.client().send(as_server, destination, request, SMALL).await {
            Ok(response) => Ok(response.event),
            Err(Error::Refused { error, .. })
                if matches!(error.status_code.as_u16(), 400 | 404)
                    && matches!(version, RoomVersionId::V1 | RoomVersionId::V2) =>
            {
                let request = invite_v1::Request::outgoing(event, room_state).map_err(bad)?;
                let response = self.client().send(as_server, destination, request, SMALL).await?;
                #[derive(Deserialize)]
                struct Answer {
                    event: Box<RawValue>,
                }
                let answer: Answer = serde_json::from_str(response.event.get())
                    .map_err(|error| Error::Misbehaved { server: destination.to_owned(), what: error.to_string() })?;
                Ok(answer.event)
            }
            Err(error) => Err(error),
        }
    }
}
