//! Connections: what each was sent, by version. MSC4186, "Connections".
//!
//! A connection's state changes when the client asks for other things, and when a room has news that it is not told; an
//! ordinary delivery is told by the position in the `pos` alone. The state that an answer leaves behind has a version, which is in
//! the answer's `pos`. The version that the client asked from and the newest one are kept, so that a request can be repeated.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use model::{Position, RoomNr, SlidingToken};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use storage::{ConnectionKey, ConnectionRow};

use super::{required_state::RequiredState, settled::LastLook};
use crate::{
    Error, Sync,
    told_members::{KnownMembers, NewMembers, ToldMembers},
};

/// Most connections of one device: a client has two or three.
const CONNECTIONS_MAX: u32 = 10;
/// Most rooms in the states of connections that are in memory, of all together. What is wanted counts as so many rooms as would take
/// the same.
const ROOMS_CACHED: u64 = 2_000_000;
/// What a room takes in such a state, in bytes, roughly.
const ROOM_BYTES: usize = 100;
/// Most bytes that what is wanted of rooms takes in a state. The doors let no request ask for so much, but rooms keep what was
/// asked of them before: a client that asks for ever other things reaches it, and begins anew.
const CONFIG_BYTES_MAX: usize = 2_000_000;
/// How often it is noted that a connection is in use, in milliseconds.
const TOUCHED_EVERY_MS: i64 = 24 * 3_600_000;
/// How much of something a client has been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "i64", from = "i64")]
pub(super) enum Sent {
    /// Nothing.
    #[default]
    Never,
    /// What there was at a position; since then there was news that it has not been told.
    Upto(Position),
    /// Everything up to the position of its `pos`.
    Live,
}

impl Sent {
    /// The position up to which the client has it, who stands at `since`.
    pub(super) fn position(self, since: Option<Position>) -> Option<Position> {
        match self {
            Self::Never => None,
            Self::Upto(position) => Some(position),
            Self::Live => since,
        }
    }
}

impl From<i64> for Sent {
    fn from(number: i64) -> Self {
        match number {
            -1 => Self::Never,
            0 => Self::Live,
            position => Self::Upto(Position(position)),
        }
    }
}

impl From<Sent> for i64 {
    fn from(sent: Sent) -> Self {
        match sent {
            Sent::Never => -1,
            Sent::Live => 0,
            Sent::Upto(position) => position.0,
        }
    }
}

/// What a client has been sent of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct SentRoom {
    pub(super) stream: Sent,
    pub(super) account_data: Sent,
    pub(super) receipts: Sent,
    /// The newest events that it has, without a hole: at least so many, if the room has them.
    pub(super) timeline_limit: u32,
    /// Which state it wants: the place in [`SentState::configs`].
    pub(super) config: usize,
    pub(super) is_dm: bool,
}

/// What a client has been sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SentState {
    pub(super) rooms: HashMap<RoomNr, SentRoom>,
    /// What lists and subscriptions want of rooms, each once.
    pub(super) asked: Vec<Arc<RequiredState>>,
    /// The combinations of these, as ascending places in [`asked`](Self::asked).
    pub(super) configs: Vec<Vec<usize>>,
    /// The account data of no room.
    pub(super) account_data: Sent,
    /// The subscriptions to threads.
    pub(super) threads: Sent,
}

/// A state as it is stored: most rooms have been sent alike. The numbers of rooms are differences.
#[derive(Deserialize, Serialize)]
struct Packed {
    asked: Vec<RequiredState>,
    configs: Vec<Vec<usize>>,
    account_data: Sent,
    #[serde(default)]
    threads: Sent,
    groups: Vec<(SentRoom, Vec<i64>)>,
}

impl SentState {
    fn pack(&self) -> Vec<u8> {
        let mut groups: BTreeMap<SentRoom, Vec<i64>> = BTreeMap::new();
        for (room_nr, sent) in &self.rooms {
            groups.entry(*sent).or_default().push(room_nr.0);
        }
        for rooms in groups.values_mut() {
            rooms.sort_unstable();
            let mut before = 0;
            for room in rooms {
                (before, *room) = (*room, *room - before);
            }
        }
        let packed = Packed {
            asked: self.asked.iter().map(|asked| (**asked).clone()).collect(),
            configs: self.configs.clone(),
            account_data: self.account_data,
            threads: self.threads,
            groups: groups.into_iter().collect(),
        };
        serde_json::to_vec(&packed).expect("numbers and texts serialize")
    }

    fn unpack(bytes: &[u8]) -> Result<Self, Error> {
        let packed: Packed = serde_json::from_slice(bytes)
            .map_err(|error| storage::Error::Damaged(format!("a connection of sliding sync: {error}")))?;
        let mut rooms = HashMap::new();
        for (sent, numbers) in packed.groups {
            let mut nr = 0;
            for difference in numbers {
                nr += difference;
                rooms.insert(RoomNr(nr), sent);
            }
        }
        Ok(Self {
            rooms,
            asked: packed.asked.into_iter().map(Arc::new).collect(),
            configs: packed.configs,
            account_data: packed.account_data,
            threads: packed.threads,
        })
    }

    /// Leaves out the combinations that no room has any more.
    fn tidy(&mut self) {
        let mut places: HashMap<usize, usize> = HashMap::new();
        let mut configs = Vec::new();
        for sent in self.rooms.values_mut() {
            sent.config = *places.entry(sent.config).or_insert_with(|| {
                configs.push(self.configs.get(sent.config).cloned().unwrap_or_default());
                configs.len() - 1
            });
        }
        let mut places: HashMap<usize, usize> = HashMap::new();
        let mut asked = Vec::new();
        for config in &mut configs {
            for place in config.iter_mut() {
                *place = *places.entry(*place).or_insert_with(|| {
                    asked.push(self.asked.get(*place).cloned().unwrap_or_default());
                    asked.len() - 1
                });
            }
            config.sort_unstable();
        }
        (self.asked, self.configs) = (asked, configs);
    }

    /// How much what is wanted takes, in bytes, roughly.
    fn config_bytes(&self) -> usize {
        let asked: usize = self.asked.iter().map(|asked| asked.bytes()).sum();
        asked + self.configs.iter().map(|config| 8 * (config.len() + 3)).sum::<usize>()
    }
}

/// The connections in memory.
pub(crate) struct Connections(Cache<ConnectionKey, Arc<Connection>>);

impl Default for Connections {
    fn default() -> Self {
        let weigh = |_: &ConnectionKey, connection: &Arc<Connection>| {
            let weight = |state: &SentState| (state.rooms.len() + state.config_bytes() / ROOM_BYTES) as u32;
            connection.states.iter().map(|(_, state)| weight(state)).sum::<u32>() + 50
        };
        Self(Cache::builder().max_capacity(ROOMS_CACHED).weigher(weigh).build())
    }
}

/// A connection in memory.
pub(super) struct Connection {
    states: Vec<(u64, Arc<SentState>)>,
    used_at_ms: AtomicI64,
    members: Arc<ToldMembers>,
    last_look: Arc<LastLook>,
}

/// Where a request starts.
pub(super) struct Start {
    pub(super) key: ConnectionKey,
    /// The token that the client has; nothing for a new connection.
    pub(super) token: Option<SlidingToken>,
    /// What it has been sent.
    pub(super) state: Arc<SentState>,
    /// The members whom it was sent as they were needed, and those that the client has.
    pub(super) members: Arc<ToldMembers>,
    pub(super) known: Arc<KnownMembers>,
    pub(super) last_look: Arc<LastLook>,
}

impl Sync {
    /// Where a request starts.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPos`] when the token is none of this connection, or of a version that is not kept any more.
    pub(super) async fn start_of(&self, key: ConnectionKey, pos: Option<&str>) -> Result<Start, Error> {
        let Some(pos) = pos else {
            let (state, members, known, last_look) = Default::default();
            return Ok(Start { key, token: None, state, members, known, last_look });
        };
        let token: SlidingToken = pos.parse().map_err(|_| Error::UnknownPos)?;
        let connection = self.connection(&key, token.version).await?.ok_or(Error::UnknownPos)?;
        let state = connection.state(token.version).ok_or(Error::UnknownPos)?;
        let known = connection.members.take(token.stream.answer);
        let now_ms = self.0.storage.clock().now_ms();
        if now_ms - connection.used_at_ms.load(Ordering::Relaxed) > TOUCHED_EVERY_MS {
            connection.used_at_ms.store(now_ms, Ordering::Relaxed);
            self.0.storage.touch_sync_connection(&key).await?;
        }
        let (members, last_look) = (connection.members.clone(), connection.last_look.clone());
        Ok(Start { key, token: Some(token), state, members, known, last_look })
    }

    /// A connection that has a version; asks the database when it is not in memory.
    async fn connection(&self, key: &ConnectionKey, version: u64) -> Result<Option<Arc<Connection>>, Error> {
        let known = self.0.connections.0.get(key);
        if let Some(known) = known.filter(|known| known.state(version).is_some()) {
            return Ok(Some(known));
        }
        let Some(row) = self.0.storage.get_sync_connection(key).await? else { return Ok(None) };
        let ConnectionRow { states, used_at_ms } = row;
        let states =
            states.into_iter().map(|(version, state)| Ok((version as u64, Arc::new(SentState::unpack(&state)?))));
        let connection = Arc::new(Connection {
            states: states.collect::<Result<_, Error>>()?,
            used_at_ms: AtomicI64::new(used_at_ms),
            members: Arc::default(),
            last_look: Arc::default(),
        });
        self.0.connections.0.insert(key.clone(), connection.clone());
        Ok(Some(connection))
    }

    /// Keeps what an answer leaves behind, and gives the version and the number of the answer for its `pos`.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPos`] when the connection ended meanwhile, or has to be kept with too much that is wanted.
    pub(super) async fn keep(
        &self,
        start: &Start,
        state: Option<SentState>,
        members: HashMap<RoomNr, NewMembers>,
    ) -> Result<(u64, u32), Error> {
        let answer = self.0.storage.random().number() as u32;
        let version = match (start.token, state) {
            (Some(token), None) => token.version,
            (token, state) => {
                let mut state = state.unwrap_or_default();
                state.tidy();
                if state.config_bytes() > CONFIG_BYTES_MAX {
                    return Err(Error::UnknownPos);
                }
                // Kept as a signed number.
                let version = self.0.storage.random().number() >> 1;
                let packed = state.pack();
                match token {
                    None => {
                        self.0
                            .storage
                            .upsert_sync_connection(&start.key, version as i64, packed, CONNECTIONS_MAX - 1)
                            .await?;
                    }
                    Some(from) => {
                        let from = from.version as i64;
                        if !self.0.storage.update_sync_connection(&start.key, from, version as i64, packed).await? {
                            return Err(Error::UnknownPos);
                        }
                    }
                }
                let before = token.map(|token| (token.version, start.state.clone()));
                let connection = Connection {
                    states: [(version, Arc::new(state))].into_iter().chain(before).collect(),
                    used_at_ms: AtomicI64::new(self.0.storage.clock().now_ms()),
                    members: start.members.clone(),
                    last_look: start.last_look.clone(),
                };
                self.0.connections.0.insert(start.key.clone(), Arc::new(connection));
                version
            }
        };
        start.members.note(answer, members);
        Ok((version, answer))
    }
}

impl Connection {
    fn state(&self, version: u64) -> Option<Arc<SentState>> {
        self.states.iter().find(|(known, _)| *known == version).map(|(_, state)| state.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{super::required_state::Pattern, *};

    fn sent(stream: Sent, config: usize) -> SentRoom {
        SentRoom { stream, account_data: Sent::Live, receipts: Sent::Never, timeline_limit: 20, config, is_dm: false }
    }

    #[test]
    fn a_state_comes_back_without_what_no_room_uses() {
        let config = |word: &str| {
            let pattern = Pattern { event_type: Some(word.to_owned()), state_key: None };
            Arc::new(RequiredState { include: [pattern].into(), ..RequiredState::default() })
        };
        let asked = vec![config("unused"), config("b"), config("a")];
        let mut state = SentState { asked, configs: vec![vec![1, 2], vec![0, 2], vec![1]], ..SentState::default() };
        for nr in 1..=3_000 {
            state.rooms.insert(RoomNr(nr * 3), sent(Sent::Live, 0));
        }
        state.rooms.insert(RoomNr(9), sent(Sent::Upto(Position(77)), 2));
        let before = state.clone();
        state.tidy();
        let packed = state.pack();
        assert!(packed.len() < 10_000, "{}", packed.len());
        let back = SentState::unpack(&packed).unwrap();
        assert_eq!(back.rooms.len(), 3_000);
        assert_eq!((back.configs.len(), back.asked.len()), (2, 2));
        let wanted = |state: &SentState, config: usize| -> BTreeSet<Arc<RequiredState>> {
            state.configs[config].iter().map(|place| state.asked[*place].clone()).collect()
        };
        for (room, known) in &before.rooms {
            let found = back.rooms[room];
            assert_eq!(wanted(&back, found.config), wanted(&before, known.config));
            assert_eq!(SentRoom { config: 0, ..found }, SentRoom { config: 0, ..*known });
        }
    }
}
