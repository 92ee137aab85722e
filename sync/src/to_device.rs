//! Messages to the device that asks. Client-Server API, "Send-to-Device messaging".

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use accounts::{Requester, UserSettings};
use model::Position;
use ruma::UserId;
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::Item;

use crate::{Error, Sync};

/// Most messages in one answer; the next answer has the others.
pub(crate) const MESSAGES_MAX: u32 = 100;

/// Messages of an answer.
#[derive(Default)]
pub(crate) struct ToDevice {
    /// The messages, oldest first.
    pub(crate) events: Vec<Box<RawValue>>,
    /// Where the others begin, if these are not all.
    pub(crate) more_after: Option<Position>,
}

impl Sync {
    /// The messages that wait for the requester's device after a position and up to another, at most `limit`.
    ///
    /// Where there are more, some are in the answer: who has read nothing has read all.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub(crate) async fn to_device(
        &self,
        requester: &Requester,
        settings: &UserSettings,
        (mut after, upto): (Position, Position),
        limit: u32,
    ) -> Result<ToDevice, Error> {
        let Some(device_id) = &requester.device_id else { return Ok(ToDevice::default()) };
        loop {
            let user_nr = requester.user_nr;
            let found = self.0.storage.list_new_to_device(user_nr, device_id.as_str(), after, upto, limit).await?;
            let last = found.last().map(|(position, _)| *position);
            let more_after = last.filter(|_| found.len() == limit as usize);
            let shown = found.into_iter().map(|(_, message)| message).filter(|message| is_shown(message, settings));
            let events: Vec<_> = shown.filter_map(|message| RawValue::from_string(message).ok()).collect();
            match more_after {
                Some(last) if events.is_empty() => after = last,
                _ => return Ok(ToDevice { events, more_after }),
            }
        }
    }

    /// Deletes the messages that the device says it has. A device that had none waiting costs nothing.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub(crate) async fn acknowledge(&self, requester: &Requester, upto: Position) -> Result<(), Error> {
        let (user_nr, Some(device_id)) = (requester.user_nr, &requester.device_id) else { return Ok(()) };
        // Nothing is known of a device of which nothing was heard: it may have messages from the first position on.
        let before_all = || Arc::new(AtomicI64::new(i64::MIN));
        let acknowledged = self.0.acknowledged.get_with((user_nr, device_id.to_string()), before_all);
        let known = Position(acknowledged.load(Ordering::Acquire));
        let mut has_new = false;
        let has_none = known >= upto
            || self.0.ring.scan(known, upto, |_, item| {
                has_new |= matches!(item, Item::ToDevice(user, to) if *user == user_nr && device_id == to);
            }) && !has_new;
        if !has_none {
            self.0.storage.delete_to_device(user_nr, device_id.as_str(), upto).await?;
        }
        acknowledged.fetch_max(upto.0, Ordering::AcqRel);
        Ok(())
    }
}

/// Whether a device is shown a message. Client-Server API, "Ignoring Users": it gets no events of those whom its user ignores.
///
/// But keys must not get lost, which come encrypted: with them the user reads what was sent meanwhile, once they ignore the sender no
/// more. What comes in the clear wants something of the user, as a verification, or of the device.
fn is_shown(message: &str, settings: &UserSettings) -> bool {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow)]
        sender: Cow<'a, str>,
        #[serde(borrow)]
        r#type: Cow<'a, str>,
    }
    if settings.ignored.is_empty() {
        return true;
    }
    let Ok(message) = serde_json::from_str::<Message<'_>>(message) else { return true };
    matches!(&*message.r#type, "m.room.encrypted" | "m.room_key.withheld")
        || <&UserId>::try_from(&*message.sender).is_ok_and(|sender| !settings.ignores(sender))
}

#[cfg(test)]
mod tests {
    use ruma::owned_user_id;
    use serde_json::json;

    use super::*;

    #[test]
    fn of_ignored_users_nothing_comes_but_keys() {
        let mut settings = UserSettings::default();
        settings.ignored.insert(owned_user_id!("@eve:x"));
        for (sender, event_type, expected) in [
            ("@eve:x", "m.key.verification.request", false),
            ("@eve:x", "m.room_key_request", false),
            ("@eve:x", "m.room.encrypted", true),
            ("@eve:x", "m.room_key.withheld", true),
            ("@bob:x", "m.key.verification.request", true),
        ] {
            let message = json!({ "content": {}, "sender": sender, "type": event_type }).to_string();
            assert_eq!(is_shown(&message, &settings), expected, "{message}");
            assert!(is_shown(&message, &UserSettings::default()), "{message}");
        }
    }
}
