//! Who is in a room, and all of its state. Client-Server API, "GET /rooms/{roomId}/members", "GET /rooms/{roomId}/state".
//!
//! A room may have tens of thousands of members: the list is made in pieces of ready-made JSON, each while the one before is on its way.

use std::{ops::Range, sync::Arc};

use accounts::Requester;
use model::{EventNr, Membership, NodeNr, Position};
use ruma::RoomId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use storage::{ListedEvent, StoredEvent, TimelineDirection};

use crate::{Error, Page, PageRequest, Reader, Rooms, head::membership_in};

/// State events of a piece.
const PIECE: usize = 500;
/// Events before a place that are looked at for one that is a part of the room.
const EVENTS_LOOKED_AT: u32 = 20;

/// Which members are asked for: those who are `only`, those who are not `but`, and given both, whoever is either.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemberKinds {
    /// What they are.
    pub only: Option<Membership>,
    /// What they are not.
    pub but: Option<Membership>,
}

impl MemberKinds {
    fn include(self, content: &RawValue) -> bool {
        match (self.only, self.but) {
            (None, None) => true,
            (only, but) => membership_in(content)
                .is_some_and(|membership| only == Some(membership) || but.is_some_and(|but| but != membership)),
        }
    }
}

/// State events of a room, as a reader sees them.
#[derive(Clone, Debug)]
pub struct StateList {
    rooms: Rooms,
    reader: Reader,
    kinds: MemberKinds,
    /// The events in the order in which they came to us.
    numbers: Vec<EventNr>,
}

/// A member as `/joined_members` shows them.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar_url: Option<&'a str>,
}

impl Rooms {
    /// The whole state: of now, or of when the requester stopped being joined. Client-Server API, "GET /rooms/{roomId}/state".
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`].
    pub async fn full_state(&self, requester: &Requester, room_id: &RoomId) -> Result<StateList, Error> {
        let reader = self.reader(requester, room_id).await?;
        self.wait_for_members_of(&reader).await?;
        let state = self.state_for(&reader).await?;
        self.state_list(reader, state).await
    }

    /// The newest messages of a room, newest first, and its state of then. Client-Server API, "GET /rooms/{roomId}/initialSync".
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`].
    pub async fn snapshot(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        limit: u32,
    ) -> Result<(Page, StateList), Error> {
        let asked = PageRequest { direction: TimelineDirection::Backward, from: None, to: None, limit };
        let page = self.messages(requester, room_id, asked, |_| true).await?;
        self.wait_for_members_of(&page.reader).await?;
        let at = self.storage().whole_position(page.reader.room.nr, page.start.position()).await?;
        let state = self.storage().get_state_at(page.reader.room.nr, at).await?;
        let list = self.state_list(page.reader.clone(), state).await?;
        Ok((page, list))
    }

    async fn state_list(&self, reader: Reader, state: NodeNr) -> Result<StateList, Error> {
        let entries = self.storage().list_state(reader.room.nr, state).await?;
        let mut numbers: Vec<EventNr> = entries.into_iter().map(|(_, nr)| nr).collect();
        numbers.sort_unstable();
        Ok(StateList { rooms: self.clone(), reader, kinds: MemberKinds::default(), numbers })
    }

    /// The members of a room now, or at a place in its timeline. Client-Server API, "GET /rooms/{roomId}/members".
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`], also for a time of which the requester may not see anything.
    pub async fn members(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        at: Option<Position>,
        kinds: MemberKinds,
    ) -> Result<StateList, Error> {
        let reader = self.reader(requester, room_id).await?;
        self.member_list(reader, at, kinds).await
    }

    /// The state at a position, if the reader may see the room as it was then: anybody can write a token of any time.
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`].
    async fn state_seen_at(&self, reader: &Reader, at: Position) -> Result<NodeNr, Error> {
        let (storage, room_nr) = (self.storage(), reader.room.nr);
        let at = at.min(storage.published_for(at).await?);
        let (from, stop) = ((at, i64::MAX), (Position(i64::MIN), 0));
        let rows = storage.list_timeline(room_nr, TimelineDirection::Backward, from, stop, EVENTS_LOOKED_AT).await?;
        let numbers: Vec<EventNr> = rows.iter().map(|(nr, _)| *nr).collect();
        let found = storage.get_events(&numbers).await?;
        // What was soft-failed, rejected or is held back is no part of the room.
        let is_part =
            |event: &&Arc<StoredEvent>| !event.outlier && !event.soft_failed && !event.held && !event.pdu.rejected;
        let newest = numbers.iter().filter_map(|nr| found.get(nr)).find(is_part);
        // Before its first event a room has no state that anybody could be kept from.
        let may_see = match newest {
            Some(event) => self.may_see_state_after(reader, event).await?,
            None => rows.is_empty(),
        };
        if !may_see {
            return Err(Error::NotMember);
        }
        let at = storage.whole_position(room_nr, at).await?;
        Ok(storage.get_state_at(room_nr, at).await?)
    }

    /// The joined members. Client-Server API, "GET /rooms/{roomId}/joined_members".
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`] for all but joined members.
    pub async fn joined_members(&self, requester: &Requester, room_id: &RoomId) -> Result<StateList, Error> {
        let reader = self.reader(requester, room_id).await?;
        if !reader.is_joined() {
            return Err(Error::NotMember);
        }
        let kinds = MemberKinds { only: Some(Membership::Join), but: None };
        self.member_list(reader, None, kinds).await
    }

    async fn member_list(&self, reader: Reader, at: Option<Position>, kinds: MemberKinds) -> Result<StateList, Error> {
        self.wait_for_members_of(&reader).await?;
        let state = match at {
            Some(at) if reader.left_at().is_none_or(|left| at < left) => self.state_seen_at(&reader, at).await?,
            _ => self.state_for(&reader).await?,
        };
        let members = self.state_of_type(reader.room.nr, state, "m.room.member").await?;
        let mut numbers: Vec<EventNr> = members.events().collect();
        numbers.sort_unstable();
        Ok(StateList { rooms: self.clone(), reader, kinds, numbers })
    }
}

impl StateList {
    /// The pieces of the list.
    pub fn pieces(&self) -> impl Iterator<Item = Range<usize>> + Send + use<> {
        let count = self.numbers.len();
        (0..count).step_by(PIECE).map(move |start| start..count.min(start + PIECE))
    }

    /// The events of a piece, in JSON, each with a comma behind it.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn events(&self, piece: Range<usize>) -> Result<Vec<u8>, Error> {
        let storage = self.rooms.storage();
        let events = storage.list_events(&self.numbers[piece]).await?;
        // What the state was before is in the timeline: a list of the state does without.
        let whole = events.iter().filter_map(ListedEvent::whole);
        let seen = self.rooms.seen(&self.reader, whole, true, false).await?;
        let mut json = Vec::with_capacity(600 * events.len());
        for event in &events {
            match event {
                ListedEvent::Body(body) => {
                    let event = body.event()?;
                    if !self.kinds.include(event.content()) {
                        continue;
                    }
                    let unsigned = seen.unsigned_of(event.sent_ms(), body.state, body.position);
                    event.write_json(&mut json, &body.event_id, seen.room_id, &unsigned);
                }
                ListedEvent::Whole(event) => {
                    if !self.kinds.include(&event.pdu.content) {
                        continue;
                    }
                    seen.shown(event).ready()?.write_json(&mut json, seen.room_id, &seen.unsigned(event)?);
                }
            }
            json.push(b',');
        }
        Ok(json)
    }

    /// The members of a piece by their ids, with name and picture in the room, in JSON, each with a comma behind it.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn profiles(&self, piece: Range<usize>) -> Result<Vec<u8>, Error> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Content {
            displayname: Option<String>,
            avatar_url: Option<String>,
        }
        let events = self.rooms.storage().list_events(&self.numbers[piece]).await?;
        let mut json = Vec::with_capacity(100 * events.len());
        for event in &events {
            let event = match event {
                ListedEvent::Body(body) => body.event()?,
                ListedEvent::Whole(event) => event.client_event()?,
            };
            let Some(user_id) = event.state_key().filter(|_| self.kinds.include(event.content())) else { continue };
            // A JSON text already.
            json.extend_from_slice(user_id.get().as_bytes());
            json.push(b':');
            let content: Content = serde_json::from_str(event.content().get()).unwrap_or_default();
            let shown =
                Shown { display_name: content.displayname.as_deref(), avatar_url: content.avatar_url.as_deref() };
            serde_json::to_writer(&mut json, &shown).expect("texts serialize");
            json.push(b',');
        }
        Ok(json)
    }
}
