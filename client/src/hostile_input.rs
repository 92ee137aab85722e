//! Whatever others send is read or refused, and never a panic.

use proptest::prelude::*;
use ruma::{device_id, user_id};
use serde_json::{Value, json};
use vodozemac::base64_encode;

use crate::{
    account::{Account, MEGOLM, OLM},
    devices::Device,
    megolm::{EncryptedContent, ExportedRoomKey, Inbound},
    olm::{Sessions, read_encrypted},
    signatures::Object,
};

/// Text as it could stand in the place of a key or message: base64 of anything, of about the right length or not, or no base64 at all.
fn text() -> impl Strategy<Value = String> {
    let bytes = prop_oneof![prop::collection::vec(any::<u8>(), 0..64), prop::collection::vec(any::<u8>(), 160..240)];
    // A version byte in front gets further.
    let versioned = (0_u8..5, bytes).prop_map(|(version, bytes)| base64_encode([vec![version], bytes].concat()));
    prop_oneof![versioned, "[A-Za-z0-9+/]{42,45}={0,2}", ".{0,80}"]
}

fn object(value: Value) -> Object {
    value.as_object().expect("an object").clone()
}

proptest! {
    #[test]
    fn any_olm_message_is_read_or_refused(key in text(), body in text(), message_type in 0..3) {
        let mut account = Account::new(user_id!("@me:example.org").to_owned(), device_id!("ME").to_owned());
        let own_key = account.curve25519().to_base64();
        let message = json!({ "type": message_type, "body": body });
        let content = json!({ "algorithm": OLM, "sender_key": key, "ciphertext": { own_key: message } });
        if let Ok((sender_key, message)) = read_encrypted(&account, &object(content)) {
            prop_assert!(Sessions::default().decrypt(&mut account, sender_key, &message).is_err());
        }
    }

    #[test]
    fn any_room_message_is_read_or_refused(session_id in text(), ciphertext in text()) {
        let content = json!({ "algorithm": MEGOLM, "session_id": session_id, "ciphertext": ciphertext });
        drop(EncryptedContent::read(&object(content)));
    }

    #[test]
    fn any_room_key_is_refused(session_id in text(), key in text(), sender_key in text()) {
        let content = json!({
            "algorithm": MEGOLM, "room_id": "!r:example.org", "session_id": session_id, "session_key": key, "sender_key": sender_key,
        });
        let sender = user_id!("@other:example.org");
        prop_assert!(Inbound::from_room_key(&object(content.clone()), sender, &sender_key, &sender_key).is_err());
        prop_assert!(Inbound::from_forwarded(&object(content.clone())).is_err());
        let exported: ExportedRoomKey = serde_json::from_value(content).expect("it has all that is needed");
        prop_assert!(Inbound::import(&exported).is_err());
    }

    #[test]
    fn any_device_keys_are_refused(curve25519 in text(), ed25519 in text(), signature in text()) {
        let keys = json!({
            "user_id": "@other:example.org",
            "device_id": "D",
            "algorithms": [OLM, MEGOLM],
            "keys": { "curve25519:D": curve25519, "ed25519:D": ed25519 },
            "signatures": { "@other:example.org": { "ed25519:D": signature } },
        });
        prop_assert!(Device::check(user_id!("@other:example.org"), device_id!("D"), keys, None).is_err());
    }
}
