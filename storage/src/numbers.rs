//! Numbers for identifiers: handed out in blocks, remembered in memory, never reused.

use std::{collections::HashMap, sync::Arc};

use model::{EventNr, NodeNr, RoomNr, StateKeyNr, TypeNr, UserNr};
use moka::sync::Cache;
use ruma::{OwnedUserId, UserId};

use crate::{
    Error, Storage,
    db::{Db, args},
    rows::Rows,
    statement::{Statement, statements},
};

/// How many numbers a process takes at once. What it does not use when it ends is lost, which costs nothing.
const BLOCK: i64 = 10_000;

/// Most names of each kind that are remembered in memory.
const NAMES_CACHED: u64 = 100_000;

statements! {
    /// Takes a block of numbers; gives the number after it.
    TAKE_BLOCK = ["
        INSERT INTO number_blocks (kind, next) VALUES ($1, $2 + 1)
        ON CONFLICT (kind) DO UPDATE SET next = number_blocks.next + $2
        RETURNING next"];

    INSERT_USERS = ["
        INSERT INTO user_numbers (user_nr, user_id) SELECT nr, name FROM", (rows [1 nr bigint, 2 name text]), "
        WHERE TRUE ON CONFLICT (user_id) DO NOTHING"];
    FIND_USERS = ["SELECT user_nr, user_id FROM user_numbers WHERE user_id", (in_list 1)];
    GET_USERS = ["SELECT user_nr, user_id FROM user_numbers WHERE user_nr", (in_list 1)];

    INSERT_TYPES = ["
        INSERT INTO type_numbers (type_nr, type) SELECT nr, name FROM", (rows [1 nr bigint, 2 name text]), "
        WHERE TRUE ON CONFLICT (type) DO NOTHING"];
    FIND_TYPES = ["SELECT type_nr, type FROM type_numbers WHERE type", (in_list 1)];
    GET_TYPES = ["SELECT type_nr, type FROM type_numbers WHERE type_nr", (in_list 1)];

    INSERT_STATE_KEYS = ["
        INSERT INTO state_key_numbers (state_key_nr, state_key)
        SELECT nr, name FROM", (rows [1 nr bigint, 2 name text]), "
        WHERE TRUE ON CONFLICT (state_key) DO NOTHING"];
    FIND_STATE_KEYS = ["SELECT state_key_nr, state_key FROM state_key_numbers WHERE state_key", (in_list 1)];
    GET_STATE_KEYS = ["SELECT state_key_nr, state_key FROM state_key_numbers WHERE state_key_nr", (in_list 1)];
}

/// Hands out numbers, and knows which stand for which names.
pub(crate) struct Numbers {
    events: Block,
    rooms: Block,
    state_nodes: Block,
    reports: Block,
    users: Names,
    types: Names,
    state_keys: Names,
}

/// Numbers of one kind that were taken from the database and are not used yet.
struct Block {
    db: Db,
    kind: &'static str,
    /// Guards the block; held while the next one is fetched, so that one caller fetches for all. No lock inside.
    free: tokio::sync::Mutex<std::ops::Range<i64>>,
}

/// Names of one kind with their numbers, in the database and the most used in memory.
struct Names {
    block: Block,
    insert: &'static Statement,
    find: &'static Statement,
    get: &'static Statement,
    numbers: Cache<Arc<str>, i64>,
    names: Cache<i64, Arc<str>>,
}

impl Block {
    fn new(db: Db, kind: &'static str) -> Self {
        Self { db, kind, free: tokio::sync::Mutex::new(0..0) }
    }

    /// `count` numbers that nobody has, one after the other.
    async fn take(&self, count: i64) -> Result<std::ops::Range<i64>, Error> {
        let mut free = self.free.lock().await;
        if free.end - free.start < count {
            let size = BLOCK.max(count);
            let mut tx = self.db.begin().await?;
            let next: i64 = tx
                .fetch_one(&TAKE_BLOCK, args![self.kind, size])
                .await?
                .ok_or_else(|| Error::Damaged("no block of numbers".to_owned()))?
                .get(0)?;
            tx.commit().await?;
            *free = next - size..next;
        }
        let taken = free.start..free.start + count;
        free.start = taken.end;
        Ok(taken)
    }

    /// Takes back numbers that were taken and not used, if nobody took more meanwhile.
    fn give_back(&self, unused: std::ops::Range<i64>) {
        if let Ok(mut free) = self.free.try_lock()
            && free.start == unused.end
        {
            free.start = unused.start;
        }
    }
}

/// Numbers of state nodes that are not used yet.
pub(crate) struct FreeNodes<'a> {
    block: &'a Block,
    free: std::ops::Range<i64>,
}

impl FreeNodes<'_> {
    /// The next one.
    pub(crate) fn take(&mut self) -> NodeNr {
        NodeNr(self.free.next().expect("as many numbers as a change of a state can need"))
    }
}

impl Drop for FreeNodes<'_> {
    fn drop(&mut self) {
        self.block.give_back(self.free.clone());
    }
}

impl Names {
    fn new(
        db: Db,
        kind: &'static str,
        insert: &'static Statement,
        find: &'static Statement,
        get: &'static Statement,
    ) -> Self {
        let cache = || Cache::new(NAMES_CACHED);
        Self { block: Block::new(db, kind), insert, find, get, numbers: cache(), names: Cache::new(NAMES_CACHED) }
    }

    fn remember(&self, number: i64, name: &str) -> Arc<str> {
        let name: Arc<str> = name.into();
        self.numbers.insert(name.clone(), number);
        self.names.insert(number, name.clone());
        name
    }

    /// The numbers of names that have one; asks the database once for all that are not in memory.
    async fn find(&self, names: &[&str]) -> Result<HashMap<String, i64>, Error> {
        let mut found = HashMap::with_capacity(names.len());
        let mut missing = Vec::new();
        for name in names {
            match self.numbers.get(*name) {
                Some(number) => drop(found.insert((*name).to_owned(), number)),
                None => missing.push((*name).to_owned()),
            }
        }
        if !missing.is_empty() {
            for row in self.block.db.read(self.find, args![missing]).await? {
                let (number, name): (i64, String) = (row.get(0)?, row.get(1)?);
                self.remember(number, &name);
                found.insert(name, number);
            }
        }
        Ok(found)
    }

    /// The numbers of names; those that have none get one. Writes only for names that are new.
    async fn intern(&self, names: &[&str]) -> Result<HashMap<String, i64>, Error> {
        let mut found = self.find(names).await?;
        let mut new: Vec<&str> = names.iter().copied().filter(|name| !found.contains_key(*name)).collect();
        if !new.is_empty() {
            new.sort_unstable();
            new.dedup();
            let numbers = self.block.take(new.len() as i64).await?;
            let rows = Rows::new().bigint(numbers).text(new.iter().map(|name| (*name).to_owned()));
            self.block.db.write(self.insert, rows).await?;
            // Another process may have been first: what the database has counts.
            found.extend(self.find(&new).await?);
        }
        Ok(found)
    }

    async fn names(&self, numbers: &[i64]) -> Result<HashMap<i64, Arc<str>>, Error> {
        let mut found = HashMap::with_capacity(numbers.len());
        let mut missing = Vec::new();
        for number in numbers {
            match self.names.get(number) {
                Some(name) => drop(found.insert(*number, name)),
                None => missing.push(*number),
            }
        }
        if !missing.is_empty() {
            for row in self.block.db.read(self.get, args![missing]).await? {
                let (number, name): (i64, String) = (row.get(0)?, row.get(1)?);
                found.insert(number, self.remember(number, &name));
            }
        }
        Ok(found)
    }
}

impl Numbers {
    pub(crate) fn new(db: Db) -> Self {
        Self {
            events: Block::new(db.clone(), "event"),
            rooms: Block::new(db.clone(), "room"),
            state_nodes: Block::new(db.clone(), "state_node"),
            reports: Block::new(db.clone(), "report"),
            users: Names::new(db.clone(), "user", &INSERT_USERS, &FIND_USERS, &GET_USERS),
            types: Names::new(db.clone(), "type", &INSERT_TYPES, &FIND_TYPES, &GET_TYPES),
            state_keys: Names::new(db, "state_key", &INSERT_STATE_KEYS, &FIND_STATE_KEYS, &GET_STATE_KEYS),
        }
    }
}

fn one<T: From<i64>>(found: &HashMap<String, i64>, name: &str) -> Result<T, Error> {
    found.get(name).copied().map(T::from).ok_or_else(|| Error::Damaged(format!("no number for {name}")))
}

impl Storage {
    /// Numbers for at most `count` state nodes. What is not used is given back.
    pub(crate) async fn take_node_nrs(&self, count: i64) -> Result<FreeNodes<'_>, Error> {
        let block = &self.0.numbers.state_nodes;
        Ok(FreeNodes { block, free: block.take(count).await? })
    }

    /// Numbers for `count` new events, one after the other.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn take_event_nrs(&self, count: usize) -> Result<impl Iterator<Item = EventNr> + use<>, Error> {
        Ok(self.0.numbers.events.take(count as i64).await?.map(EventNr))
    }

    pub(crate) async fn take_report_nr(&self) -> Result<i64, Error> {
        Ok(self.0.numbers.reports.take(1).await?.start)
    }

    /// A number for a new room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn take_room_nr(&self) -> Result<RoomNr, Error> {
        Ok(RoomNr(self.0.numbers.rooms.take(1).await?.start))
    }

    /// The number of a user; a user who has none gets one.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn user_nr(&self, user_id: &UserId) -> Result<UserNr, Error> {
        if let Some(number) = self.0.numbers.users.numbers.get(user_id.as_str()) {
            return Ok(UserNr(number));
        }
        one(&self.0.numbers.users.intern(&[user_id.as_str()]).await?, user_id.as_str())
    }

    /// The number of a user, if they have one: whoever has none is in no room and has no account.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_user_nr(&self, user_id: &UserId) -> Result<Option<UserNr>, Error> {
        Ok(self.0.numbers.users.find(&[user_id.as_str()]).await?.get(user_id.as_str()).copied().map(UserNr))
    }

    /// The numbers of users, of those who have one, in one query at most.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_user_nrs<'a>(&self, users: &[&'a UserId]) -> Result<HashMap<&'a UserId, UserNr>, Error> {
        let names: Vec<&str> = users.iter().map(|user_id| user_id.as_str()).collect();
        let found = self.0.numbers.users.find(&names).await?;
        Ok(users.iter().filter_map(|user_id| Some((*user_id, UserNr(*found.get(user_id.as_str())?)))).collect())
    }

    /// The users that numbers stand for, in one query at most.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn user_ids(&self, users: &[UserNr]) -> Result<HashMap<UserNr, OwnedUserId>, Error> {
        let numbers: Vec<i64> = users.iter().map(|user| user.0).collect();
        let found = self.0.numbers.users.names(&numbers).await?;
        found
            .into_iter()
            .map(|(number, name)| match UserId::parse(&*name) {
                Ok(user_id) => Ok((UserNr(number), user_id)),
                Err(_) => Err(Error::Damaged(format!("user {number}"))),
            })
            .collect()
    }

    /// The number of an event type; a new type gets one.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn type_nr(&self, event_type: &str) -> Result<TypeNr, Error> {
        if let Some(number) = self.0.numbers.types.numbers.get(event_type) {
            return Ok(TypeNr(number));
        }
        one(&self.0.numbers.types.intern(&[event_type]).await?, event_type)
    }

    /// The number of an event type, if any event ever had it.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_type_nr(&self, event_type: &str) -> Result<Option<TypeNr>, Error> {
        Ok(self.0.numbers.types.find(&[event_type]).await?.get(event_type).copied().map(TypeNr))
    }

    /// The number of a state key; a new one gets one.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn state_key_nr(&self, state_key: &str) -> Result<StateKeyNr, Error> {
        if let Some(number) = self.0.numbers.state_keys.numbers.get(state_key) {
            return Ok(StateKeyNr(number));
        }
        one(&self.0.numbers.state_keys.intern(&[state_key]).await?, state_key)
    }

    /// Gives numbers to event types, state keys and users that have none, with one write for the new ones of each kind. Whoever is
    /// about to ask for many of them saves a write for each.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn intern(&self, types: &[&str], state_keys: &[&str], users: &[&UserId]) -> Result<(), Error> {
        let users: Vec<&str> = users.iter().map(|user_id| user_id.as_str()).collect();
        self.0.numbers.types.intern(types).await?;
        self.0.numbers.state_keys.intern(state_keys).await?;
        self.0.numbers.users.intern(&users).await?;
        Ok(())
    }

    /// The key in a room's state of a type and a state key, if any event ever had both words.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_state_key(&self, event_type: &str, state_key: &str) -> Result<Option<crate::StateKey>, Error> {
        // Both words are in memory nearly always: the rules ask for the same few with each event.
        let known = (self.0.numbers.types.numbers.get(event_type), self.0.numbers.state_keys.numbers.get(state_key));
        if let (Some(type_nr), Some(state_key_nr)) = known {
            return Ok(Some((TypeNr(type_nr), StateKeyNr(state_key_nr))));
        }
        let types = self.0.numbers.types.find(&[event_type]).await?;
        let keys = self.0.numbers.state_keys.find(&[state_key]).await?;
        Ok(types.get(event_type).zip(keys.get(state_key)).map(|(t, k)| (TypeNr(*t), StateKeyNr(*k))))
    }

    /// The numbers of event types and of state keys that any event ever had, in one query each at most.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn find_words(
        &self,
        types: &[&str],
        state_keys: &[&str],
    ) -> Result<(HashMap<String, TypeNr>, HashMap<String, StateKeyNr>), Error> {
        let types = self.0.numbers.types.find(types).await?;
        let keys = self.0.numbers.state_keys.find(state_keys).await?;
        Ok((
            types.into_iter().map(|(word, nr)| (word, TypeNr(nr))).collect(),
            keys.into_iter().map(|(word, nr)| (word, StateKeyNr(nr))).collect(),
        ))
    }

    /// The words of event types, in one query at most.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn type_names(&self, types: &[TypeNr]) -> Result<HashMap<TypeNr, Arc<str>>, Error> {
        let numbers: Vec<i64> = types.iter().map(|t| t.0).collect();
        Ok(self.0.numbers.types.names(&numbers).await?.into_iter().map(|(nr, name)| (TypeNr(nr), name)).collect())
    }

    /// The words of state keys, in one query at most.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn state_key_names(&self, keys: &[StateKeyNr]) -> Result<HashMap<StateKeyNr, Arc<str>>, Error> {
        let numbers: Vec<i64> = keys.iter().map(|k| k.0).collect();
        let found = self.0.numbers.state_keys.names(&numbers).await?;
        Ok(found.into_iter().map(|(nr, name)| (StateKeyNr(nr), name)).collect())
    }
}
