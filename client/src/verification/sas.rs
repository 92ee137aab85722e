//! The short authentication string: what is agreed upon, what people compare, and what they then vouch for. Client-Server API,
//! "Short Authentication String (SAS) verification".

use std::collections::BTreeMap;

use ruma::{
    OwnedDeviceId, OwnedUserId,
    events::key::verification::{
        HashAlgorithm, KeyAgreementProtocol, MessageAuthenticationCode, ShortAuthenticationString, accept,
        cancel::CancelCode, start,
    },
    serde::Base64,
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use vodozemac::{
    Curve25519PublicKey,
    sas::{EstablishedSas, Mac},
};

use super::{
    emoji::{EMOJI, Emoji},
    messages::Macs,
};
use crate::signatures::{Object, canonical_json};

/// One side of a verification, with the keys that it vouches for, or that the other side has of it. They do not change while it lasts
/// ("Key and signature security").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device that takes part.
    pub device_id: OwnedDeviceId,
    /// Public keys by their ids: `ed25519:` and the device's id, or the master key itself.
    pub keys: BTreeMap<String, String>,
}

/// What people compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShortCode {
    /// Three numbers of four digits.
    pub numbers: [u16; 3],
    /// Seven pictures, when both sides can show them.
    pub emoji: Option<[Emoji; 7]>,
}

/// What we offer when we begin. The deprecated MAC is for old clients, which know no other.
#[expect(deprecated)]
pub(super) fn offer() -> start::SasV1Content {
    start::SasV1ContentInit {
        key_agreement_protocols: vec![KeyAgreementProtocol::Curve25519HkdfSha256],
        hashes: vec![HashAlgorithm::Sha256],
        message_authentication_codes: vec![
            MessageAuthenticationCode::HkdfHmacSha256V2,
            MessageAuthenticationCode::HkdfHmacSha256,
        ],
        short_authentication_string: vec![ShortAuthenticationString::Emoji, ShortAuthenticationString::Decimal],
    }
    .into()
}

/// Chooses from what the other side offers, and commits to our key.
///
/// # Errors
///
/// [`CancelCode::UnknownMethod`] when there is nothing that both know.
#[expect(deprecated)]
pub(super) fn accept(
    offer: &start::SasV1Content,
    start: &Object,
    our_key: Curve25519PublicKey,
) -> Result<accept::SasV1Content, CancelCode> {
    let mac = [MessageAuthenticationCode::HkdfHmacSha256V2, MessageAuthenticationCode::HkdfHmacSha256]
        .into_iter()
        .find(|mac| offer.message_authentication_codes.contains(mac));
    let strings: Vec<_> = [ShortAuthenticationString::Emoji, ShortAuthenticationString::Decimal]
        .into_iter()
        .filter(|string| offer.short_authentication_string.contains(string))
        .collect();
    match mac {
        Some(message_authentication_code)
            if offer.key_agreement_protocols.contains(&KeyAgreementProtocol::Curve25519HkdfSha256)
                && offer.hashes.contains(&HashAlgorithm::Sha256)
                && !strings.is_empty() =>
        {
            Ok(accept::SasV1ContentInit {
                key_agreement_protocol: KeyAgreementProtocol::Curve25519HkdfSha256,
                hash: HashAlgorithm::Sha256,
                message_authentication_code,
                short_authentication_string: strings,
                commitment: Base64::new(commitment(our_key, start)?.to_vec()),
            }
            .into())
        }
        _ => Err(CancelCode::UnknownMethod),
    }
}

/// Whether the other side chose from what we offered.
///
/// # Errors
///
/// [`CancelCode::UnknownMethod`] when it did not.
pub(super) fn check_choice(choice: &accept::SasV1Content) -> Result<(), CancelCode> {
    let offer = offer();
    let offered = offer.key_agreement_protocols.contains(&choice.key_agreement_protocol)
        && offer.hashes.contains(&choice.hash)
        && offer.message_authentication_codes.contains(&choice.message_authentication_code)
        && !choice.short_authentication_string.is_empty()
        && choice.short_authentication_string.iter().all(|string| offer.short_authentication_string.contains(string));
    if offered { Ok(()) } else { Err(CancelCode::UnknownMethod) }
}

/// Whether the key is the one that the other side committed to before it saw ours.
///
/// # Errors
///
/// [`CancelCode::MismatchedCommitment`] when it is another one.
pub(super) fn check_commitment(
    choice: &accept::SasV1Content,
    start: &Object,
    their_key: Curve25519PublicKey,
) -> Result<(), CancelCode> {
    let same = commitment(their_key, start)?.ct_eq(choice.commitment.as_bytes());
    if bool::from(same) { Ok(()) } else { Err(CancelCode::MismatchedCommitment) }
}

fn commitment(key: Curve25519PublicKey, start: &Object) -> Result<[u8; 32], CancelCode> {
    let start = canonical_json(start.clone()).map_err(|_| CancelCode::InvalidMessage)?;
    Ok(Sha256::new().chain_update(key.to_base64()).chain_update(start).finalize().into())
}

/// A shared secret with what was chosen for it.
pub(super) struct Agreement<'a> {
    pub(super) secret: &'a EstablishedSas,
    pub(super) choice: &'a accept::SasV1Content,
    pub(super) flow_id: &'a str,
    pub(super) ours: &'a Party,
    pub(super) theirs: &'a Party,
    /// Whether we sent the message that began it.
    pub(super) we_started: bool,
}

impl Agreement<'_> {
    /// "SAS HKDF calculation".
    pub(super) fn short_code(&self) -> ShortCode {
        let ours = (self.ours, self.secret.our_public_key());
        let theirs = (self.theirs, self.secret.their_public_key());
        let [(starter, starter_key), (accepter, accepter_key)] =
            if self.we_started { [ours, theirs] } else { [theirs, ours] };
        let bytes = self.secret.bytes(&format!(
            "MATRIX_KEY_VERIFICATION_SAS|{}|{}|{}|{}|{}|{}|{}",
            starter.user_id,
            starter.device_id,
            starter_key.to_base64(),
            accepter.user_id,
            accepter.device_id,
            accepter_key.to_base64(),
            self.flow_id
        ));
        let with_emoji = self.choice.short_authentication_string.contains(&ShortAuthenticationString::Emoji);
        ShortCode {
            numbers: bytes.decimals().into(),
            emoji: with_emoji.then(|| bytes.emoji_indices().map(|number| EMOJI[usize::from(number)])),
        }
    }

    /// Vouches for all keys of ours. "MAC calculation".
    pub(super) fn macs(&self) -> Macs {
        let mac = |key_id: &str, text: &str| self.mac(self.ours, self.theirs, key_id, text);
        Macs {
            of_keys: self.ours.keys.iter().map(|(key_id, key)| (key_id.clone(), mac(key_id, key))).collect(),
            of_key_ids: mac("KEY_IDS", &list(self.ours.keys.keys())),
        }
    }

    /// The keys of the other side that it vouches for and that are the ones that we have of it.
    ///
    /// # Errors
    ///
    /// [`CancelCode::KeyMismatch`] when one of them is another one, or when there are none.
    pub(super) fn check_macs(&self, macs: &Macs) -> Result<BTreeMap<String, String>, CancelCode> {
        let is = |key_id: &str, text: &str, mac: &str| self.is_mac(key_id, text, mac);
        if !is("KEY_IDS", &list(macs.of_keys.keys()), &macs.of_key_ids) {
            return Err(CancelCode::KeyMismatch);
        }
        let mut verified = BTreeMap::new();
        for (key_id, mac) in &macs.of_keys {
            // A key that we do not know is not verified, which is nobody's fault.
            let Some(key) = self.theirs.keys.get(key_id) else { continue };
            if !is(key_id, key, mac) {
                return Err(CancelCode::KeyMismatch);
            }
            verified.insert(key_id.clone(), key.clone());
        }
        if verified.is_empty() { Err(CancelCode::KeyMismatch) } else { Ok(verified) }
    }

    fn mac(&self, from: &Party, to: &Party, key_id: &str, text: &str) -> String {
        let info = self.mac_info(from, to, key_id);
        match self.choice.message_authentication_code {
            MessageAuthenticationCode::HkdfHmacSha256V2 => self.secret.calculate_mac(text, &info).to_base64(),
            // The only other one that is ever chosen.
            _ => self.secret.calculate_mac_invalid_base64(text, &info),
        }
    }

    fn is_mac(&self, key_id: &str, text: &str, mac: &str) -> bool {
        match self.choice.message_authentication_code {
            MessageAuthenticationCode::HkdfHmacSha256V2 => {
                let info = self.mac_info(self.theirs, self.ours, key_id);
                Mac::from_base64(mac).is_ok_and(|mac| self.secret.verify_mac(text, &info, &mac).is_ok())
            }
            _ => self.mac(self.theirs, self.ours, key_id, text).as_bytes().ct_eq(mac.as_bytes()).into(),
        }
    }

    fn mac_info(&self, from: &Party, to: &Party, key_id: &str) -> String {
        format!(
            "MATRIX_KEY_VERIFICATION_MAC{}{}{}{}{}{key_id}",
            from.user_id, from.device_id, to.user_id, to.device_id, self.flow_id
        )
    }
}

/// Key ids in order, as they are MACed.
fn list<'a>(key_ids: impl Iterator<Item = &'a String>) -> String {
    let mut key_ids: Vec<&str> = key_ids.map(String::as_str).collect();
    key_ids.sort_unstable();
    key_ids.join(",")
}
