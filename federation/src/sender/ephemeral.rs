//! Who types, who has read what, and who is there, as other servers are told of it. Server-Server API, "Typing Notifications", "Receipts" and
//! "Presence".

use std::collections::{BTreeSet, HashMap, HashSet};

use event_bus::{Presence, Typing, UserPresence};
use model::{EphemeralPosition, Position, RoomNr, UserNr};
use ruma::{EventId, OwnedServerName, UserId};
use serde_json::{Value, json};
use storage::ReadRow;

use super::{
    Sender, Servers,
    lossy::{Said, Subject},
    receipts::Receipt,
};

/// How often it is said again that somebody types: others believe it for about a minute.
const TYPING_EVERY_MS: i64 = 30_000;
/// How often it is said again that somebody is there: others believe it for half an hour.
const PRESENCE_EVERY_MS: i64 = 25 * 60_000;

/// What other servers were told by this process.
#[derive(Debug, Default)]
pub(super) struct Told {
    typing_seen: EphemeralPosition,
    /// Who of ours types where.
    typing: HashMap<RoomNr, BTreeSet<UserNr>>,
    typing_again_ms: i64,
    presence_seen: EphemeralPosition,
    presence_again_ms: i64,
}

impl Told {
    pub(super) fn new(typing: &Typing, presence: Option<&Presence>) -> Self {
        let presence_seen = presence.map(Presence::position).unwrap_or_default();
        Self { typing_seen: typing.position(), presence_seen, ..Self::default() }
    }
}

impl Sender {
    /// Tells who began to type or stopped.
    pub(super) async fn tell_typing(&self, told: &mut Told) -> Result<(), storage::Error> {
        let typing = &self.0.typing;
        let rooms = match typing.changed_rooms(told.typing_seen) {
            Some((rooms, position)) => {
                told.typing_seen = position;
                rooms
            }
            None => {
                // Another life of the state: those who typed do so no more, or say so again.
                told.typing_seen = typing.position();
                told.typing.keys().copied().collect()
            }
        };
        let now: HashMap<RoomNr, Vec<UserNr>> = typing
            .news(&rooms, EphemeralPosition::default())
            .changes
            .into_iter()
            .map(|change| (change.room_nr, change.users))
            .collect();
        for room_nr in rooms {
            let servers = self.servers_of_room(room_nr).await?;
            if servers.is_empty() {
                continue;
            }
            let users: BTreeSet<UserNr> = now.get(&room_nr).into_iter().flatten().copied().collect();
            let before = told.typing.remove(&room_nr).unwrap_or_default();
            let changed: Vec<(UserNr, bool)> =
                before.symmetric_difference(&users).map(|user_nr| (*user_nr, users.contains(user_nr))).collect();
            self.say_typing(room_nr, &servers, &changed).await?;
            if !users.is_empty() {
                told.typing.insert(room_nr, users);
            }
        }
        Ok(())
    }

    /// Says again who types still.
    pub(super) async fn tell_typing_again(&self, told: &mut Told) -> Result<(), storage::Error> {
        let now_ms = self.now_ms();
        if told.typing.is_empty() || now_ms < told.typing_again_ms {
            return Ok(());
        }
        told.typing_again_ms = now_ms + TYPING_EVERY_MS;
        for (room_nr, users) in &told.typing {
            let servers = self.servers_of_room(*room_nr).await?;
            let users: Vec<(UserNr, bool)> = users.iter().map(|user_nr| (*user_nr, true)).collect();
            self.say_typing(*room_nr, &servers, &users).await?;
        }
        Ok(())
    }

    async fn say_typing(
        &self,
        room_nr: RoomNr,
        servers: &Servers,
        users: &[(UserNr, bool)],
    ) -> Result<(), storage::Error> {
        let numbers: Vec<UserNr> = users.iter().map(|(user_nr, _)| *user_nr).collect();
        let names = self.0.storage.user_ids(&numbers).await?;
        let rooms = self.0.storage.get_rooms(&[room_nr]).await?;
        let Some(room) = rooms.get(&room_nr) else { return Ok(()) };
        for (user_nr, typing) in users {
            let Some(user_id) = names.get(user_nr).filter(|user_id| self.0.federation.servers().has_user(user_id))
            else {
                continue;
            };
            let said = Said::Typing { room_id: room.id.clone(), user_id: user_id.clone(), typing: *typing };
            self.say(user_id.server_name(), servers, &Subject::Typing(room_nr, *user_nr), &said);
        }
        Ok(())
    }

    /// How far users of ours have read, for what they marked after a position, with the servers that are told; never what they keep for
    /// themselves.
    pub(super) async fn new_receipts(
        &self,
        mut readers: Vec<(RoomNr, UserNr)>,
        after: Position,
    ) -> Result<Vec<(Receipt, OwnedServerName, Servers)>, storage::Error> {
        let mut servers = HashMap::new();
        for (room_nr, _) in &readers {
            if !servers.contains_key(room_nr) {
                servers.insert(*room_nr, self.servers_of_room(*room_nr).await?);
            }
        }
        readers.retain(|(room_nr, _)| servers.get(room_nr).is_some_and(|servers| !servers.is_empty()));
        if readers.is_empty() {
            return Ok(Vec::new());
        }
        readers.sort_unstable();
        readers.dedup();
        let rows = self.0.storage.list_read(&readers, after).await?;
        let receipts = self.receipts_of(&rows).await?;
        Ok(receipts
            .into_iter()
            .filter_map(|(room_nr, origin, receipt)| Some((receipt, origin, servers.get(&room_nr)?.clone())))
            .collect())
    }

    /// What of it is our users', each with its room and which of our names tells it.
    pub(super) async fn receipts_of(
        &self,
        rows: &[ReadRow],
    ) -> Result<Vec<(RoomNr, OwnedServerName, Receipt)>, storage::Error> {
        let numbers: HashSet<UserNr> = rows.iter().map(|row| row.user_nr).collect();
        let names = self.0.storage.user_ids(&numbers.into_iter().collect::<Vec<_>>()).await?;
        let rooms = self.0.storage.get_rooms(&rows.iter().map(|row| row.room_nr).collect::<Vec<_>>()).await?;
        let is_ours = |user_id: &UserId| self.0.federation.servers().has_user(user_id);
        let receipts = rows.iter().filter_map(|row| {
            let user_id = names.get(&row.user_nr).filter(|user_id| is_ours(user_id))?;
            let (room, event_id) = (rooms.get(&row.room_nr)?, EventId::parse(&row.event_id).ok()?);
            let receipt = Receipt::new(row, room.id.clone(), user_id.clone(), &event_id);
            Some((row.room_nr, user_id.server_name().to_owned(), receipt))
        });
        Ok(receipts.collect())
    }

    /// Tells how users of ours are, of those for whom it changed, and now and then of all who are there.
    pub(super) async fn tell_presence(&self, told: &mut Told) -> Result<(), storage::Error> {
        let Some(presence) = &self.0.presence else { return Ok(()) };
        let now_ms = self.now_ms();
        let is_again = now_ms >= told.presence_again_ms;
        if told.presence_seen == presence.position() && !is_again {
            return Ok(());
        }
        let since = if is_again { EphemeralPosition::default() } else { told.presence_seen };
        let mut changed: Vec<UserNr> =
            presence.news(told.presence_seen).changes.into_iter().map(|(_, user_nr)| user_nr).collect();
        if is_again {
            told.presence_again_ms = now_ms + PRESENCE_EVERY_MS;
            changed.extend(presence.news(since).changes.into_iter().map(|(_, user_nr)| user_nr));
        }
        told.presence_seen = presence.position();
        changed.sort_unstable();
        changed.dedup();
        let names = self.0.storage.user_ids(&changed).await?;
        changed.retain(|nr| names.get(nr).is_some_and(|user_id| self.0.federation.servers().has_user(user_id)));
        self.find_servers_of(&changed).await?;
        for user_nr in changed {
            let (Some(user_id), Some(servers)) = (names.get(&user_nr), self.0.servers_of_users.get(&user_nr)) else {
                continue;
            };
            if servers.is_empty() {
                continue;
            }
            if let Some(shown) = presence.get(user_nr) {
                let said = Said::Presence(presence_update(user_id, &shown));
                self.say(user_id.server_name(), &servers, &Subject::Presence(user_nr), &said);
            }
        }
        Ok(())
    }

    /// Brings the other servers with which users share rooms into memory.
    async fn find_servers_of(&self, users: &[UserNr]) -> Result<(), storage::Error> {
        let unknown: Vec<UserNr> =
            users.iter().filter(|user_nr| !self.0.servers_of_users.contains_key(*user_nr)).copied().collect();
        for users in unknown.chunks(500) {
            let mut servers: HashMap<UserNr, Vec<_>> = users.iter().map(|user_nr| (*user_nr, Vec::new())).collect();
            for (user_nr, server) in self.0.storage.list_servers_of_users(users).await? {
                if self.sends_to(&server) {
                    servers.entry(user_nr).or_default().push(server);
                }
            }
            for (user_nr, servers) in servers {
                self.0.servers_of_users.insert(user_nr, servers.into());
            }
        }
        Ok(())
    }
}

fn presence_update(user_id: &UserId, presence: &UserPresence) -> Value {
    let mut update = json!({
        "user_id": user_id, "presence": presence.shown.availability, "last_active_ago": presence.last_active_ago_ms.unwrap_or(0),
        "currently_active": presence.currently_active().unwrap_or(false),
    });
    if let Some(status_msg) = &presence.shown.says.status_msg {
        update["status_msg"] = json!(status_msg);
    }
    update
}
