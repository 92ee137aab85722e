//! The published directory of rooms. Client-Server API, "Published room directory".

use std::{fmt, str::FromStr};

use accounts::Requester;
use model::{RoomNr, limits};
use ruma::{RoomId, ServerName, directory::PublicRoomsChunk};
use storage::{ListedOn, ListedRooms};

use crate::{Error, Rooms, preview::shown};

/// Most rooms of one page.
pub const PUBLIC_ROOMS_MAX: u32 = 500;
/// What stands between the id of an application service and its name of a network, in the id under which clients know the network.
const NETWORK_ID_SEPARATOR: char = '|';
/// Longest text to search for, in bytes.
const SEARCH_BYTES_MAX: usize = 500;

/// A place in the directory as clients hold it: after, or before, a room with so many members.
///
/// The directory is ordered by members, most first, then by room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryToken {
    /// Whether the page goes on towards rooms with fewer members.
    pub forward: bool,
    /// The number of members of the room at the edge of the page.
    pub joined: i64,
    /// That room.
    pub room_nr: RoomNr,
}

impl fmt::Display for DirectoryToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d1_{}_{}_{}", if self.forward { 'n' } else { 'p' }, self.joined, self.room_nr)
    }
}

impl FromStr for DirectoryToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let read = || {
            let mut parts = text.strip_prefix("d1_")?.split('_');
            let forward = match parts.next()? {
                "n" => true,
                "p" => false,
                _ => return None,
            };
            let (joined, room_nr) = (parts.next()?.parse().ok()?, RoomNr(parts.next()?.parse().ok()?));
            parts.next().is_none().then_some(Self { forward, joined, room_nr })
        };
        read()
            .filter(|token| token.to_string() == text)
            .ok_or_else(|| Error::InvalidParam("this is not a token that this server gave out".to_owned()))
    }
}

/// A page of the directory.
#[derive(Clone, Debug)]
pub struct PublicRooms {
    /// The rooms, those with most members first.
    pub rooms: Vec<PublicRoomsChunk>,
    /// The token of the page after this one, if there may be one.
    pub next: Option<String>,
    /// The token of the page before this one, if there may be one.
    pub previous: Option<String>,
    /// How many rooms there are on all pages, if the server says so.
    pub total: Option<u64>,
}

/// Which rooms of a directory are asked for. Client-Server API, "POST /publicRooms".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Networks {
    /// Those that people have published.
    Matrix,
    /// Those of a network of an application service, by the id under which clients know the network.
    ThirdParty(String),
    /// All of them.
    All,
}

/// What is asked of a directory.
#[derive(Clone, Debug)]
pub struct PublicRoomsRequest<'a> {
    /// The server whose directory it is.
    pub server: &'a ServerName,
    /// Which of its rooms are asked for.
    pub networks: Networks,
    /// Most rooms to give.
    pub limit: u32,
    /// The token of the page before.
    pub since: Option<&'a str>,
    /// What is looked for in name, topic and canonical alias.
    pub search: Option<&'a str>,
    /// The types of room to give; the empty text stands for a room without one.
    pub room_types: Option<Vec<String>>,
}

impl Rooms {
    /// A page of the directory of a server name of ours, or of another server, which is asked. Client-Server API, "POST /publicRooms".
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] for a token that is none; [`Error::Remote`] when another server gives no answer.
    pub async fn public_rooms(
        &self,
        as_server: &ServerName,
        mut request: PublicRoomsRequest<'_>,
    ) -> Result<PublicRooms, Error> {
        request.search = request.search.map(str::trim).filter(|text| !text.is_empty());
        if request.search.is_some_and(|text| text.len() > SEARCH_BYTES_MAX) {
            return Err(Error::InvalidParam(format!("a search term has at most {SEARCH_BYTES_MAX} bytes")));
        }
        if self.servers().is_local(request.server) {
            return self.local_public_rooms(request).await;
        }
        Ok(self.remote().public_rooms(as_server, &request).await?)
    }

    async fn local_public_rooms(&self, request: PublicRoomsRequest<'_>) -> Result<PublicRooms, Error> {
        let PublicRoomsRequest { server, networks, limit, since, search, room_types } = request;
        let since = since.map(DirectoryToken::from_str).transpose()?;
        let limit = limit.clamp(1, PUBLIC_ROOMS_MAX);
        let forward = since.is_none_or(|token| token.forward);
        let query = ListedRooms {
            server,
            on: match &networks {
                Networks::Matrix => ListedOn::Matrix,
                Networks::All => ListedOn::All,
                Networks::ThirdParty(id) => {
                    let (service, network) = id.rsplit_once(NETWORK_ID_SEPARATOR).unwrap_or((id, ""));
                    ListedOn::Network { service, network }
                }
            },
            forward,
            from: since.map(|token| (token.joined, token.room_nr)),
            search,
            room_types,
            // One more tells whether there is another page.
            limit: limit + 1,
        };
        let (mut rows, total) = (self.storage().list_listed(&query).await?, self.storage().count_listed(&query).await?);
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        if !forward {
            rows.reverse();
        }
        let token = |row: Option<&storage::ListedRoom>, forward| {
            row.map(|row| DirectoryToken { forward, joined: row.joined, room_nr: row.room.nr }.to_string())
        };
        let (has_next, has_previous) = if forward { (more, since.is_some()) } else { (true, more) };
        Ok(PublicRooms {
            next: token(rows.last(), true).filter(|_| has_next),
            previous: token(rows.first(), false).filter(|_| has_previous),
            total: Some(total),
            rooms: rows
                .into_iter()
                .map(|row| shown(&row.room, row.summary, u64::try_from(row.joined).unwrap_or(0), Vec::new()).into())
                .collect(),
        })
    }

    /// Whether a directory of ours shows the room. Client-Server API, "GET /directory/list/room/{roomId}".
    ///
    /// # Errors
    ///
    /// [`Error::RoomUnknown`].
    pub async fn is_listed(&self, room_id: &RoomId) -> Result<bool, Error> {
        let room = self.room(room_id).await?;
        for server in self.servers().iter() {
            if self.storage().is_listed(server.name.as_str(), room.nr).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Shows a room in the directory of the requester's server, or hides it. Client-Server API, "PUT /directory/list/room/{roomId}".
    ///
    /// Members who may change `m.room.canonical_alias` may, and administrators of the server.
    ///
    /// # Errors
    ///
    /// [`Error::RoomUnknown`], [`Error::NotAllowed`].
    pub async fn set_listed(&self, requester: &Requester, room_id: &RoomId, listed: bool) -> Result<(), Error> {
        let room = self.room(room_id).await?;
        if !requester.is_admin && !self.may_send_state(requester, &room, "m.room.canonical_alias").await? {
            return Err(Error::NotAllowed("a room is published by who may change its canonical alias".to_owned()));
        }
        self.storage().set_listed(requester.user_id.server_name().as_str(), room.nr, listed).await?;
        Ok(())
    }

    /// Shows a room in the directory that an application service has for one of its networks, or hides it. Application Service API,
    /// "Application service room directory management".
    ///
    /// # Errors
    ///
    /// [`Error::RoomUnknown`]; [`Error::NotAllowed`] for who is no application service; [`Error::InvalidParam`] for a network that cannot
    /// be named.
    pub async fn set_listed_on_network(
        &self,
        requester: &Requester,
        network: &str,
        room_id: &RoomId,
        listed: bool,
    ) -> Result<(), Error> {
        let Some(service) = &requester.app_service else {
            return Err(Error::NotAllowed("only an application service has networks".to_owned()));
        };
        if network.len() > limits::ID_BYTES_MAX || network.contains(['\0', NETWORK_ID_SEPARATOR]) {
            return Err(Error::InvalidParam(format!(
                "a network has at most {} bytes, and no `|`",
                limits::ID_BYTES_MAX
            )));
        }
        let room = self.room(room_id).await?;
        let server = requester.user_id.server_name().as_str();
        Ok(self.storage().set_listed_on_network(server, (&service.id, network), room.nr, listed).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_as_it_was_written() {
        for forward in [true, false] {
            let token = DirectoryToken { forward, joined: 12, room_nr: RoomNr(7) };
            assert_eq!(token.to_string().parse::<DirectoryToken>().unwrap(), token);
        }
        for bad in ["", "d1_", "d1_x_1_1", "d1_n_1", "d1_n_1_1_1", "d1_n_a_1", "t1_1_1", "d1_n_+1_1", "d1_n_01_1"] {
            assert!(matches!(bad.parse::<DirectoryToken>(), Err(Error::InvalidParam(_))), "{bad}");
        }
    }
}
