//! What a user's account data says of their rooms: direct chats and tags.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use model::{RoomNr, UserNr};
use ruma::OwnedRoomId;
use serde::{Deserialize, de::IgnoredAny};

use crate::{Error, Sync, remembered::Remembered};

const DIRECT: &str = "m.direct";
const TAG: &str = "m.tag";

/// How a user has marked their rooms.
#[derive(Debug, Default)]
pub(crate) struct RoomMarks {
    /// The direct chats. Client-Server API, "m.direct".
    pub(crate) direct: HashSet<OwnedRoomId>,
    /// The tags of each room. Client-Server API, "Room Tagging".
    pub(crate) tags: HashMap<RoomNr, BTreeSet<String>>,
}

impl RoomMarks {
    /// Reads the contents. What a client wrote in another shape marks nothing.
    fn of(rows: &[storage::AccountDataRow]) -> Self {
        #[derive(Default, Deserialize)]
        struct Tags {
            #[serde(default)]
            tags: BTreeMap<String, IgnoredAny>,
        }
        let mut marks = Self::default();
        for row in rows {
            match row.event_type.as_str() {
                DIRECT if row.room_nr == RoomNr(0) => {
                    let content: BTreeMap<String, serde_json::Value> =
                        serde_json::from_str(&row.content).unwrap_or_default();
                    let rooms =
                        content.into_values().filter_map(|rooms| serde_json::from_value::<Vec<String>>(rooms).ok());
                    marks.direct.extend(rooms.flatten().filter_map(|room| room.try_into().ok()));
                }
                TAG => {
                    let content: Tags = serde_json::from_str(&row.content).unwrap_or_default();
                    marks.tags.insert(row.room_nr, content.tags.into_keys().collect());
                }
                _ => {}
            }
        }
        marks
    }
}

impl Sync {
    /// How a user has marked their rooms, as of now.
    pub(crate) async fn room_marks(&self, user_nr: UserNr) -> Result<Arc<RoomMarks>, Error> {
        let remembered: Arc<Remembered<RoomMarks>> = self.0.room_marks.get_with(user_nr, Arc::default);
        match remembered.get() {
            Ok(marks) => Ok(marks),
            Err(forgotten) => {
                let rows = self.0.storage.list_account_data_of_types(user_nr, &[DIRECT, TAG]).await?;
                let marks = Arc::new(RoomMarks::of(&rows));
                remembered.keep(forgotten, &marks);
                Ok(marks)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use model::Position;
    use storage::AccountDataRow;

    use super::*;

    #[test]
    fn what_has_another_shape_marks_nothing() {
        let row = |room, event_type: &str, content: &str| AccountDataRow {
            room_nr: RoomNr(room),
            event_type: event_type.to_owned(),
            content: content.to_owned(),
            position: Position(1),
        };
        let marks = RoomMarks::of(&[
            row(0, DIRECT, r#"{"@a:x":["!a:x","no room"],"@b:x":7}"#),
            row(1, TAG, r#"{"tags":{"m.favourite":{"order":1},"u.x":null}}"#),
            row(2, TAG, r#"{"tags":[]}"#),
            row(3, TAG, "[]"),
        ]);
        assert_eq!(marks.direct.iter().map(|room| room.as_str()).collect::<Vec<_>>(), ["!a:x"]);
        assert_eq!(marks.tags[&RoomNr(1)], BTreeSet::from(["m.favourite".to_owned(), "u.x".to_owned()]));
        assert!(marks.tags[&RoomNr(2)].is_empty() && marks.tags[&RoomNr(3)].is_empty());
    }
}
