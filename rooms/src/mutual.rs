//! The rooms that two users share. Client-Server API, "Mutual Rooms".

use accounts::Requester;
use model::RoomNr;
use ruma::{OwnedRoomId, UserId};

use crate::{Error, Rooms};

/// Most rooms of one page.
const MUTUAL_ROOMS_MAX: u32 = 100;

/// A page of the rooms that two users share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MutualRooms {
    /// The rooms.
    pub rooms: Vec<OwnedRoomId>,
    /// How many there are on all pages.
    pub count: u64,
    /// Where the next page starts, if there is one.
    pub next: Option<String>,
}

impl Rooms {
    /// A page of the rooms that the requester and another user are both joined to. Client-Server API, "GET /mutual_rooms".
    ///
    /// Whom nobody here knows shares none.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] for the requester's own id, an id of the historical grammar, and a token that is none.
    pub async fn mutual_rooms(
        &self,
        requester: &Requester,
        user_id: &UserId,
        from: Option<&str>,
    ) -> Result<MutualRooms, Error> {
        if user_id == requester.user_id {
            return Err(Error::InvalidParam("these are your own rooms: see `/joined_rooms`".to_owned()));
        }
        if user_id.validate_strict().is_err() {
            return Err(Error::InvalidParam("this is not an id that a user can have".to_owned()));
        }
        let after = from.map_or(Ok(RoomNr(0)), read_token)?;
        let mut page = MutualRooms { rooms: Vec::new(), count: 0, next: None };
        let Some(theirs) = self.storage().find_user_nr(user_id).await? else { return Ok(page) };
        let (mine, storage) = (requester.user_nr, self.storage());
        // One more tells whether there is another page.
        let mut numbers = storage.list_mutual_rooms(mine, theirs, after, MUTUAL_ROOMS_MAX + 1).await?;
        if numbers.len() > MUTUAL_ROOMS_MAX as usize {
            numbers.truncate(MUTUAL_ROOMS_MAX as usize);
            page.next = numbers.last().copied().map(write_token);
        }
        let is_all = from.is_none() && page.next.is_none();
        page.count = if is_all { numbers.len() as u64 } else { storage.count_mutual_rooms(mine, theirs).await? };
        let rooms = storage.get_rooms(&numbers).await?;
        page.rooms = numbers.iter().filter_map(|nr| rooms.get(nr)).map(|room| room.id.clone()).collect();
        Ok(page)
    }
}

fn write_token(after: RoomNr) -> String {
    format!("m1_{after}")
}

fn read_token(token: &str) -> Result<RoomNr, Error> {
    let number = token.strip_prefix("m1_").and_then(|number| number.parse().ok()).map(RoomNr);
    number
        .filter(|number| token == write_token(*number))
        .ok_or_else(|| Error::InvalidParam("this is not a token that this server gave out".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_as_it_was_written() {
        assert_eq!(read_token(&write_token(RoomNr(7))).unwrap(), RoomNr(7));
        for bad in ["", "m1_", "m1_x", "m1_+7", "m1_07", "h1_7", "m1_99999999999999999999"] {
            assert!(matches!(read_token(bad), Err(Error::InvalidParam(_))), "{bad}");
        }
    }
}
