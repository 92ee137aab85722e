//! What clients need to write so that only the other one reads it.

use serde_json::{Value, json};
use test_kit::{encode, eventually};

use super::Scene;
use crate::keys::Device;

pub(super) async fn devices_are_found_and_sent_messages(scene: Scene) {
    let (_, mut maker, mut guest) = scene.shared_room().await;
    for turned in [false, true] {
        let (one, other) = if turned { (&mut guest, &mut maker) } else { (&mut maker, &mut guest) };
        let (id, device) = (one.user.id().to_owned(), Device::of(&one.user));
        let one_time = device.sign(json!({"key": "A".repeat(43)}));
        let keys = json!({"device_keys": device.keys(), "one_time_keys": {"signed_curve25519:1": one_time}});
        one.user.post("/keys/upload", &keys).await.ok();
        let is_changed = |answer: &Value| {
            let changed = answer["device_lists"]["changed"].as_array()?;
            changed.iter().find(|user| **user == *id).map(|_| ())
        };
        other.until("that the devices of the other changed", is_changed).await;
        eventually!({
            let query = other.user.post("/keys/query", &json!({"device_keys": {&id: []}})).await.ok();
            query["device_keys"][&id][one.user.device_id()]["keys"] == device.keys()["keys"]
        });
        let claim = json!({"one_time_keys": {&id: {one.user.device_id(): "signed_curve25519"}}});
        let claimed = other.user.post("/keys/claim", &claim).await.ok();
        assert_eq!(claimed["one_time_keys"][&id][one.user.device_id()]["signed_curve25519:1"], one_time, "{claimed}");
        let message = json!({"messages": {&id: {one.user.device_id(): {"hello": "from the other server"}}}});
        let path = format!("/sendToDevice/m.test/{}", encode(other.user.id()));
        other.user.put(&path, &message).await.ok();
        let got = one
            .until("a message to the device", |answer| {
                let mut events = answer["to_device"]["events"].as_array()?.iter();
                events.find(|event| event["type"] == "m.test").cloned()
            })
            .await;
        assert_eq!(
            (&got["sender"], &got["content"]["hello"]),
            (&json!(other.user.id()), &json!("from the other server"))
        );
    }
}
