//! Account data as events. Client-Server API, "Client Config".

use accounts::default_push_rules;
use ruma::UserId;
use serde_json::{json, value::RawValue};

/// Account data as an event.
pub(crate) fn account_data_event(event_type: &str, content: &str) -> String {
    let content: Option<Box<RawValue>> = RawValue::from_string(content.to_owned()).ok();
    json!({"type": event_type, "content": content}).to_string()
}

/// The rules of whoever never changed them. Client-Server API, "m.push_rules".
pub(crate) fn default_push_rules_event(user_id: &UserId) -> String {
    json!({"type": "m.push_rules", "content": {"global": default_push_rules(user_id)}}).to_string()
}
