//! Account data as events. Client-Server API, "Client Config".

use accounts::{Requester, UserSettings, default_push_rules};
use serde_json::{json, value::RawValue};
use storage::AccountDataRow;

use crate::Sync;

/// Account data as an event.
pub(crate) fn account_data_event(event_type: &str, content: &str) -> String {
    let content: Option<Box<RawValue>> = RawValue::from_string(content.to_owned()).ok();
    json!({"type": event_type, "content": content}).to_string()
}

impl Sync {
    /// Account data of a user in no room, as a client gets it.
    pub(crate) fn global_account_data_event(
        &self,
        requester: &Requester,
        settings: &UserSettings,
        row: &AccountDataRow,
    ) -> String {
        match row.event_type.as_str() {
            "m.push_rules" => self.push_rules_event(requester, settings),
            event_type => account_data_event(event_type, &row.content),
        }
    }

    /// The rules that hold for a user, which may be more than are stored: default rules come with newer programs, and whoever never
    /// changed any has only those. Client-Server API, "m.push_rules".
    pub(crate) fn push_rules_event(&self, requester: &Requester, settings: &UserSettings) -> String {
        let default = || default_push_rules(&requester.user_id, self.0.rooms.has_thread_subscriptions());
        let rules = settings.push_rules.as_deref().cloned().unwrap_or_else(default);
        json!({"type": "m.push_rules", "content": {"global": rules}}).to_string()
    }
}
