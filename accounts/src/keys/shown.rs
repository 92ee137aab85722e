//! The keys of a device as somebody is shown them: as they were uploaded, with what came later.
//!
//! Nothing but the outermost fields is taken apart: an answer may have the keys of thousands of devices.

use std::collections::BTreeMap;

use serde_json::{
    Map, Value, json,
    value::{RawValue, to_raw_value},
};

/// Who signed, with which key, the signature.
pub(super) type Signature = (String, String, String);

/// Keys of a device, without `unsigned`, with signatures that came later and the name of the device; nothing for what is no object.
pub(super) fn shown(keys: &str, more: Option<&Vec<Signature>>, name: Option<&str>) -> Option<Box<RawValue>> {
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_str(keys).ok()?;
    let mut object = Map::new();
    if let Some(signatures) = fields.get("signatures").filter(|_| more.is_some()) {
        object.insert("signatures".to_owned(), serde_json::from_str(signatures.get()).ok()?);
    }
    add_signatures(&mut object, more);
    let signatures = object.get("signatures").map(to_raw_value).transpose().ok()?;
    let unsigned = name.map(|name| to_raw_value(&json!({"device_display_name": name}))).transpose().ok()?;
    fields.extend(signatures.as_deref().map(|raw| ("signatures".to_owned(), raw)));
    fields.extend(unsigned.as_deref().map(|raw| ("unsigned".to_owned(), raw)));
    to_raw_value(&fields).ok()
}

/// Puts signatures that came later beside those that a key was uploaded with.
pub(super) fn add_signatures(key: &mut Map<String, Value>, more: Option<&Vec<Signature>>) {
    for (signer, key_id, signature) in more.into_iter().flatten() {
        let all = key.entry("signatures").or_insert_with(|| json!({}));
        let Some(all) = all.as_object_mut() else { return };
        let own = all.entry(signer).or_insert_with(|| json!({}));
        if let Some(own) = own.as_object_mut() {
            own.insert(key_id.clone(), Value::String(signature.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_shown_as_they_are_with_what_came_later() {
        let keys = r#"{"keys":{"a":"b"},"signatures":{"@a:x":{"ed25519:A":"1"}},"x\"y":[1]}"#;
        assert_eq!(shown(keys, None, None).unwrap().get(), keys);
        let more = vec![
            ("@a:x".to_owned(), "ed25519:B".to_owned(), "2".to_owned()),
            ("@b:x".to_owned(), "ed25519:C".to_owned(), "3".to_owned()),
        ];
        let expected = concat!(
            r#"{"keys":{"a":"b"},"signatures":{"@a:x":{"ed25519:A":"1","ed25519:B":"2"},"@b:x":{"ed25519:C":"3"}},"#,
            r#""unsigned":{"device_display_name":"\"desk\""},"x\"y":[1]}"#
        );
        assert_eq!(shown(keys, Some(&more), Some("\"desk\"")).unwrap().get(), expected);
        let added = r#"{"signatures":{"@a:x":{"ed25519:B":"2"},"@b:x":{"ed25519:C":"3"}}}"#;
        assert_eq!(shown("{}", Some(&more), None).unwrap().get(), added);
        for odd in ["[]", "", "null", r#"{"signatures":"#] {
            assert!(shown(odd, None, None).is_none(), "{odd}");
        }
    }
}
