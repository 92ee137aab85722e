//! Account data, for all rooms or for one, and tags. Client-Server API, "Client Config" and "Room Tagging".

use model::{RoomNr, UserNr, content_object, limits::is_name};
use serde_json::{Map, Value};
use storage::{Commit, NewAccountData};

use crate::{
    Accounts, Error,
    push_rules::PUSH_RULES,
    settings::{IGNORED_USERS, ignored_users},
};

/// The room number of what belongs to no room.
pub(crate) const GLOBAL: RoomNr = RoomNr(0);
/// Longest type, in bytes. Client-Server API, "Size limits" has it for events.
const TYPE_BYTES_MAX: usize = 255;
/// Largest content of a type in a room or in none, in bytes of JSON.
const CONTENT_BYTES_MAX: usize = 65_536;
/// Most pieces of a user, in all rooms together.
const PIECES_MAX: u64 = 10_000;
/// Most bytes of JSON of all pieces of a user together: all of them are in an initial sync.
const TOTAL_BYTES_MAX: u64 = 4_194_304;
/// Types that are set by endpoints of their own. Client-Server API, "Client Config", "Server behaviour".
const OWN_ENDPOINT: [&str; 2] = ["m.fully_read", PUSH_RULES];
pub(crate) const TAG: &str = "m.tag";
/// Longest tag, in bytes. Client-Server API, "Room Tagging".
const TAG_BYTES_MAX: usize = 255;
/// Most tags of a room.
const TAGS_MAX: usize = 100;

impl Accounts {
    /// Account data of a type, in a room or in none.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn account_data(&self, user: UserNr, room: Option<RoomNr>, event_type: &str) -> Result<String, Error> {
        let content = self.0.storage.get_account_data(user, room.unwrap_or(GLOBAL), event_type).await?;
        content.ok_or(Error::NotFound("account data"))
    }

    /// Sets account data of a type, in a room or in none.
    ///
    /// # Errors
    ///
    /// [`Error::OwnEndpoint`], [`Error::BadJson`] when the content is no object that clients can read, [`Error::InvalidParam`],
    /// [`Error::TooLarge`], [`Error::TooMuch`].
    pub async fn set_account_data(
        &self,
        user: UserNr,
        room: Option<RoomNr>,
        event_type: &str,
        content: &str,
    ) -> Result<(), Error> {
        if OWN_ENDPOINT.contains(&event_type) {
            return Err(Error::OwnEndpoint);
        }
        if !is_name(event_type, TYPE_BYTES_MAX) {
            return Err(Error::InvalidParam(format!("a type has 1 to {TYPE_BYTES_MAX} bytes, none of them zero")));
        }
        let is_list = || ignored_users(content).is_some();
        if event_type == IGNORED_USERS && room.is_none() && !is_list() {
            return Err(Error::BadJson("`ignored_users` is an object whose keys are user ids".to_owned()));
        }
        let content = content_object(content)?;
        let _turn = self.0.turns.of(user).await;
        self.write_bounded(user, room.unwrap_or(GLOBAL), event_type, &content).await
    }

    /// Commits account data if the user may have so much: the caller has the user's turn.
    async fn write_bounded(
        &self,
        user: UserNr,
        room: RoomNr,
        event_type: &str,
        content: &impl serde::Serialize,
    ) -> Result<(), Error> {
        let content = to_json(content)?;
        if content.len() > CONTENT_BYTES_MAX {
            return Err(Error::TooLarge(CONTENT_BYTES_MAX));
        }
        let before = self.0.storage.get_account_data(user, room, event_type).await?;
        let (pieces, bytes) = self.0.storage.count_account_data(user).await?;
        let (old, new) = (before.as_ref().map_or(0, String::len) as u64, content.len() as u64);
        if before.is_none() && pieces >= PIECES_MAX || new > old && bytes - old + new > TOTAL_BYTES_MAX {
            return Err(Error::TooMuch("you have too much account data"));
        }
        self.commit_account_data(user, room, event_type, content).await
    }

    /// Commits account data that is bounded elsewhere: the caller has the user's turn.
    pub(crate) async fn write_account_data(
        &self,
        user_nr: UserNr,
        room_nr: RoomNr,
        event_type: &str,
        content: &impl serde::Serialize,
    ) -> Result<(), Error> {
        self.commit_account_data(user_nr, room_nr, event_type, to_json(content)?).await
    }

    async fn commit_account_data(
        &self,
        user_nr: UserNr,
        room_nr: RoomNr,
        event_type: &str,
        content: String,
    ) -> Result<(), Error> {
        let data = NewAccountData { user_nr, room_nr, event_type: event_type.to_owned(), content };
        self.0.storage.commit(Commit { account_data: vec![data], ..Commit::default() }).await?;
        Ok(())
    }

    /// The tags of a room with what is known of each.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn tags(&self, user: UserNr, room: RoomNr) -> Result<Map<String, Value>, Error> {
        let content = self.0.storage.get_account_data(user, room, TAG).await?;
        let content: Option<Map<String, Value>> = content.and_then(|content| serde_json::from_str(&content).ok());
        match content.and_then(|mut content| content.remove("tags")) {
            Some(Value::Object(tags)) => Ok(tags),
            _ => Ok(Map::new()),
        }
    }

    /// Gives a room a tag.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when the tag is too long or there are too many, [`Error::TooLarge`], [`Error::TooMuch`].
    pub async fn set_tag(&self, user: UserNr, room: RoomNr, tag: &str, info: Value) -> Result<(), Error> {
        if tag.is_empty() || tag.len() > TAG_BYTES_MAX {
            return Err(Error::InvalidParam(format!("a tag has 1 to {TAG_BYTES_MAX} bytes")));
        }
        let _turn = self.0.turns.of(user).await;
        let mut tags = self.tags(user, room).await?;
        tags.insert(tag.to_owned(), info);
        if tags.len() > TAGS_MAX {
            return Err(Error::InvalidParam(format!("a room has at most {TAGS_MAX} tags")));
        }
        self.write_bounded(user, room, TAG, &serde_json::json!({"tags": tags})).await
    }

    /// Takes a tag from a room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn delete_tag(&self, user: UserNr, room: RoomNr, tag: &str) -> Result<(), Error> {
        let _turn = self.0.turns.of(user).await;
        let mut tags = self.tags(user, room).await?;
        if tags.remove(tag).is_none() {
            return Ok(());
        }
        self.write_account_data(user, room, TAG, &serde_json::json!({"tags": tags})).await
    }
}

fn to_json(content: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(content).map_err(|error| Error::BadJson(error.to_string()))
}
