//! What a user has set for one room: tags, whom it is a direct chat with, chosen image packs, rules of push. Client-Server API,
//! "Room Upgrades".

use model::RoomNr;
use ruma::RoomId;
use serde_json::{Map, Value, json};
use storage::{Commit, NewAccountData};

use crate::{
    Accounts, Error, Requester,
    account_data::{GLOBAL, TAG},
    push_rules::{PUSH_RULES, RULESET_BYTES_MAX},
};

const DIRECT: &str = "m.direct";
/// The image packs that a user has chosen, by room, as the specification has them and as clients in use write them. Client-Server API,
/// "Image packs", and MSC2545.
const CHOSEN_PACKS: [&str; 2] = ["m.image_pack.rooms", "im.ponies.emote_rooms"];
/// The kinds of rules that can be about one room. Client-Server API, "Push Rules".
const KINDS_OF_ROOMS: [&str; 3] = ["override", "room", "underride"];

impl Accounts {
    /// Takes what a user has set for a room over to the one that replaces it. What is set for the new one already stays.
    ///
    /// # Errors
    ///
    /// When the database fails: nothing was taken over.
    pub async fn copy_room_settings(
        &self,
        requester: &Requester,
        old: (RoomNr, &RoomId),
        new: (RoomNr, &RoomId),
    ) -> Result<(), Error> {
        let user_nr = requester.user_nr;
        let _turn = self.0.turns.of(user_nr).await;
        let mut changed = Vec::new();
        let mut change = |room_nr: RoomNr, event_type: &str, content: Value| {
            let (event_type, content) = (event_type.to_owned(), content.to_string());
            changed.push(NewAccountData { user_nr, room_nr, event_type, content });
        };

        let (old_tags, mut tags) = (self.tags(user_nr, old.0).await?, self.tags(user_nr, new.0).await?);
        let missing: Map<String, Value> = old_tags.into_iter().filter(|(tag, _)| !tags.contains_key(tag)).collect();
        if !missing.is_empty() {
            tags.extend(missing);
            change(new.0, TAG, json!({"tags": tags}));
        }

        let content = async |event_type: &str| -> Result<Option<Map<String, Value>>, Error> {
            let content = self.0.storage.get_account_data(user_nr, GLOBAL, event_type).await?;
            Ok(content.and_then(|content| serde_json::from_str(&content).ok()))
        };
        if let Some(direct) = content(DIRECT).await?.and_then(|direct| direct_with(direct, old.1, new.1)) {
            change(GLOBAL, DIRECT, Value::Object(direct));
        }
        for event_type in CHOSEN_PACKS {
            if let Some(packs) = content(event_type).await?.and_then(|packs| packs_with(packs, old.1, new.1)) {
                change(GLOBAL, event_type, Value::Object(packs));
            }
        }

        let rules = json!({"global": self.push_rules(&requester.user_id, user_nr).await?});
        if let Some(rules) = rules_with(rules, old.1, new.1) {
            // A ruleset that is full stays as it is.
            if rules.to_string().len() <= RULESET_BYTES_MAX {
                change(GLOBAL, PUSH_RULES, rules);
            }
        }
        if !changed.is_empty() {
            self.0.storage.commit(Commit { account_data: changed, ..Commit::default() }).await?;
        }
        Ok(())
    }
}

/// The direct chats with the new room beside the old one, if that changes them.
fn direct_with(mut direct: Map<String, Value>, old: &RoomId, new: &RoomId) -> Option<Map<String, Value>> {
    let mut is_changed = false;
    for rooms in direct.values_mut().filter_map(Value::as_array_mut) {
        if rooms.iter().any(|room| room == old.as_str()) && !rooms.iter().any(|room| room == new.as_str()) {
            rooms.push(json!(new));
            is_changed = true;
        }
    }
    is_changed.then_some(direct)
}

/// The chosen image packs with those of the new room beside the old one's, if that changes them.
fn packs_with(mut packs: Map<String, Value>, old: &RoomId, new: &RoomId) -> Option<Map<String, Value>> {
    let rooms = packs.get_mut("rooms")?.as_object_mut()?;
    let chosen = rooms.get(old.as_str())?.clone();
    let is_new = !rooms.contains_key(new.as_str());
    rooms.entry(new.as_str()).or_insert(chosen);
    is_new.then_some(packs)
}

/// The rules with those about the old room once more for the new one, if that changes them.
fn rules_with(mut rules: Value, old: &RoomId, new: &RoomId) -> Option<Value> {
    let mut is_changed = false;
    for kind in KINDS_OF_ROOMS {
        let list = rules.get_mut("global").and_then(|global| global.get_mut(kind)).and_then(Value::as_array_mut);
        let Some(list) = list else { continue };
        if list.iter().any(|rule| rule["rule_id"] == new.as_str()) {
            continue;
        }
        let Some(place) = list.iter().position(|rule| is_about(rule, kind, old)) else { continue };
        let mut rule = list[place].clone();
        rule["rule_id"] = json!(new);
        for condition in rule.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if is_condition(condition, old) {
                condition["pattern"] = json!(new);
            }
        }
        list.insert(place + 1, rule);
        is_changed = true;
    }
    is_changed.then_some(rules)
}

fn is_about(rule: &Value, kind: &str, room: &RoomId) -> bool {
    let is_own = rule["default"] != true;
    let by_condition = || rule["conditions"].as_array().into_iter().flatten().any(|one| is_condition(one, room));
    is_own && if kind == "room" { rule["rule_id"] == room.as_str() } else { by_condition() }
}

fn is_condition(condition: &Value, room: &RoomId) -> bool {
    condition["kind"] == "event_match" && condition["key"] == "room_id" && condition["pattern"] == room.as_str()
}

#[cfg(test)]
mod tests {
    use ruma::room_id;

    use super::*;

    #[test]
    fn rules_about_a_room_are_copied_beside_it() {
        let (old, new) = (room_id!("!old:hs"), room_id!("!new:hs"));
        let muted = |room: &RoomId| {
            json!({"rule_id": room, "default": false, "enabled": true, "actions": [],
                   "conditions": [{"kind": "event_match", "key": "room_id", "pattern": room}]})
        };
        let loud = |room: &RoomId| json!({"rule_id": room, "default": false, "enabled": false, "actions": ["notify"]});
        let other = json!({"rule_id": "!other:hs", "default": false, "enabled": true, "actions": []});
        let rules =
            json!({"global": {"override": [muted(old), other], "room": [other, loud(old)], "sender": [loud(old)]}});
        let copied = rules_with(rules, old, new).unwrap();
        assert_eq!(
            copied,
            json!({"global": {"override": [muted(old), muted(new), other], "room": [other, loud(old), loud(new)],
                              "sender": [loud(old)]}})
        );
        assert_eq!(rules_with(copied, old, new), None, "once is enough");
        assert_eq!(rules_with(json!({"global": {"room": [other]}}), old, new), None);
    }

    #[test]
    fn chosen_image_packs_stay_chosen() {
        let packs = |rooms: Value| json!({"rooms": rooms, "x": 1}).as_object().unwrap().clone();
        let (old, new) = (room_id!("!old:hs"), room_id!("!new:hs"));
        let copied = packs_with(packs(json!({"!old:hs": {"cats": {}}, "!x:hs": {}})), old, new).unwrap();
        assert_eq!(copied, packs(json!({"!old:hs": {"cats": {}}, "!new:hs": {"cats": {}}, "!x:hs": {}})));
        assert_eq!(packs_with(copied, old, new), None);
        assert_eq!(packs_with(packs(json!({"!x:hs": {}})), old, new), None);
        assert_eq!(packs_with(packs(json!([])), old, new), None);
    }

    #[test]
    fn a_direct_chat_stays_one() {
        let direct = |rooms: Value| json!({"@bob:hs": rooms, "@eve:hs": ["!x:hs"]}).as_object().unwrap().clone();
        let (old, new) = (room_id!("!old:hs"), room_id!("!new:hs"));
        let copied = direct_with(direct(json!(["!old:hs"])), old, new).unwrap();
        assert_eq!(copied, direct(json!(["!old:hs", "!new:hs"])));
        assert_eq!(direct_with(copied, old, new), None);
        assert_eq!(direct_with(direct(json!([])), old, new), None);
    }
}
