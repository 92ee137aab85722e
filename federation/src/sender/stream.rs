//! From the stream to the queues of destinations.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use model::{Position, RoomNr, UserNr};
use ruma::{
    OwnedServerName, ServerName, UserId,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde::Deserialize;
use storage::{Item, Published, StoredEvent};
use tokio::sync::broadcast::error::RecvError;

use super::{
    Sender, Servers, State,
    destination::{Destination, Queued, Route},
    receipts::Receipt,
    shares::share_of,
};

/// Most other servers of a room that are sent its events.
const SERVERS_MAX: u32 = 20_000;

/// In a room of so many other servers receipts wait up to a second: each would be a request to all of them, and many readers read at once.
const PATIENT_FROM: usize = 20;

/// Something for a destination.
pub(super) enum Part {
    Event(Queued),
    Devices(UserNr),
    Receipt(Receipt),
    /// One that others may join before it goes.
    PatientReceipt(Receipt),
    Edu,
}

impl Sender {
    /// Follows a group; `false` when there will never be another.
    pub(super) async fn follow(&self, received: Result<Arc<Published>, RecvError>) -> Result<bool, storage::Error> {
        match received {
            Ok(published) => {
                let cursor = self.lock().cursor;
                if published.previous == cursor {
                    self.take(&published).await?;
                } else {
                    self.follow_to(published.position).await?;
                }
                Ok(true)
            }
            Err(RecvError::Lagged(_)) => {
                self.follow_to(self.0.sync.position()).await?;
                Ok(true)
            }
            Err(RecvError::Closed) => Ok(false),
        }
    }

    /// Follows to a position by the database.
    pub(super) async fn follow_to(&self, position: Position) -> Result<(), storage::Error> {
        loop {
            let cursor = self.lock().cursor;
            if position <= cursor {
                return Ok(());
            }
            let upto = Position(position.0.min(cursor.0 + 5_000));
            match self.0.storage.read_stream(cursor, upto).await? {
                Some(published) if published.position > cursor => self.take(&published).await?,
                _ => {
                    // Anything may have happened.
                    self.0.servers_of_rooms.invalidate_all();
                    let from = self.lock().shares.keys().map(|share| (*share, cursor)).collect();
                    {
                        let state = &mut *self.lock();
                        (state.cursor, state.seen) = (position, position);
                    }
                    self.fall_behind(&from).await?;
                    let state = &mut *self.lock();
                    let routes: Vec<Route> = state.destinations.keys().cloned().collect();
                    routes.iter().for_each(|route| self.kick(state, route));
                }
            }
        }
    }

    async fn take(&self, published: &Published) -> Result<(), storage::Error> {
        self.lock().seen = published.position;
        self.queue(published, None).await?;
        self.lock().cursor = published.position;
        Ok(())
    }

    /// Puts what a group has for other servers into their queues; with `from` only for those shares, what came after their positions.
    pub(super) async fn queue(
        &self,
        published: &Published,
        from: Option<&HashMap<u32, Position>>,
    ) -> Result<(), storage::Error> {
        for (_, item) in &published.items {
            match item {
                Item::Event(event) if event.pdu.event_type == TimelineEventType::RoomMember => {
                    self.0.servers_of_rooms.invalidate(&event.room_nr);
                }
                Item::State(room_nr) => self.0.servers_of_rooms.invalidate(room_nr),
                _ => {}
            }
        }
        let mut parts = Vec::new();
        let (mut changes, mut readers) = (Vec::new(), Vec::new());
        for (position, item) in &published.items {
            match item {
                Item::Event(event) => self.add_event(*position, event, &mut parts).await?,
                Item::DeviceList(user_nr) => changes.push((*user_nr, *position)),
                Item::Outgoing(origin, destination) if self.sends_to(destination) => {
                    let route = Route { origin: origin.clone(), destination: destination.clone() };
                    parts.push((route, *position, Part::Edu));
                }
                Item::Receipt(room_nr, user_nr) => readers.push((*room_nr, *user_nr)),
                _ => {}
            }
        }
        if !changes.is_empty() {
            self.add_devices(&changes, &mut parts).await?;
        }
        if !readers.is_empty() {
            for (receipt, origin, servers) in self.new_receipts(readers, published.previous).await? {
                parts.extend(servers.iter().map(|server| {
                    let route = Route { origin: origin.clone(), destination: server.clone() };
                    let part = if servers.len() < PATIENT_FROM { Part::Receipt } else { Part::PatientReceipt };
                    (route, receipt.position, part(receipt.clone()))
                }));
            }
        }
        self.put(parts, from);
        Ok(())
    }

    pub(super) fn put(&self, parts: Vec<(Route, Position, Part)>, from: Option<&HashMap<u32, Position>>) {
        if parts.is_empty() {
            return;
        }
        let state = &mut *self.lock();
        let mut routes = HashSet::new();
        for (route, position, part) in parts {
            let share = share_of(&route);
            let is_ours = match from {
                Some(from) => from.get(&share).is_some_and(|from| position > *from),
                None => state.shares.contains_key(&share),
            };
            if !is_ours {
                continue;
            }
            let destination = state.destinations.entry(route.clone()).or_insert_with(|| Destination::new(share));
            match part {
                Part::Event(queued) => destination.push(queued),
                Part::Devices(user_nr) => destination.push_devices(user_nr, position),
                Part::Receipt(receipt) => destination.push_receipt(receipt),
                Part::PatientReceipt(receipt) => {
                    destination.push_receipt(receipt);
                    continue;
                }
                Part::Edu => destination.push_edu(position),
            }
            routes.insert(route);
        }
        // What is replayed is begun once all is there.
        if from.is_none() {
            routes.iter().for_each(|route| self.kick(state, route));
        }
    }

    /// An event goes to the servers that are in its room, but for that of its sender; who is made to leave hears of it too, though their
    /// server may have nobody left in the room.
    async fn add_event(
        &self,
        position: Position,
        event: &Arc<StoredEvent>,
        parts: &mut Vec<(Route, Position, Part)>,
    ) -> Result<(), storage::Error> {
        if event.outlier {
            // What users of ours are to a room that we are not in: a resident of it was told.
            return Ok(());
        }
        let servers = self.servers_of_room(event.room_nr).await?;
        self.add_newcomer(position, event, &servers, parts).await?;
        let Some(origin) = self.origin_of(event).await? else { return Ok(()) };
        let route = |server: &ServerName| Route { origin: origin.clone(), destination: server.to_owned() };
        let queued = |is_farewell| Part::Event(Queued { event: event.clone(), position, is_farewell });
        for server in servers.iter().filter(|server| *server != event.pdu.sender.server_name()) {
            parts.push((route(server), position, queued(false)));
        }
        let Some(member) = Member::of(event) else { return Ok(()) };
        let server = member.user_id.server_name();
        if member.is_out
            && event.replaces.is_some()
            && self.sends_to(server)
            && server != event.pdu.sender.server_name()
            && !servers.iter().any(|known| known == server)
        {
            parts.push((route(server), position, queued(true)));
        }
        Ok(())
    }

    /// A user of ours comes into a room: its servers that did not follow the user's devices are to. Server-Server API, "Device Management".
    async fn add_newcomer(
        &self,
        position: Position,
        event: &Arc<StoredEvent>,
        servers: &Servers,
        parts: &mut Vec<(Route, Position, Part)>,
    ) -> Result<(), storage::Error> {
        let Some(member) = Member::of(event).filter(|member| member.is_joined) else { return Ok(()) };
        if servers.is_empty() || !self.0.federation.servers().has_user(member.user_id) {
            return Ok(());
        }
        let before = match event.replaces {
            Some(nr) => self.0.storage.get_event(nr).await?,
            None => None,
        };
        if before.as_deref().and_then(Member::of).is_some_and(|before| before.is_joined) {
            return Ok(());
        }
        let origin = member.user_id.server_name();
        let new = self.0.storage.list_new_servers(event.room_nr, event.sender_nr, position).await?;
        parts.extend(new.into_iter().filter(|server| self.sends_to(server)).map(|destination| {
            let route = Route { origin: origin.to_owned(), destination };
            (route, position, Part::Devices(event.sender_nr))
        }));
        Ok(())
    }

    /// Which of our names sends an event; nothing when others do.
    pub(super) async fn origin_of(&self, event: &StoredEvent) -> Result<Option<OwnedServerName>, storage::Error> {
        let (servers, sender) = (self.0.federation.servers(), event.pdu.sender.server_name());
        match (servers.is_local(sender), event.passed_on) {
            (true, false) => return Ok(Some(sender.to_owned())),
            // Who let somebody in sends that: we for others...
            (false, true) => {}
            // ... and others for us.
            (true, true) | (false, false) => return Ok(None),
        }
        let in_room = self.0.storage.list_servers(event.room_nr, SERVERS_MAX).await?;
        let ours = servers.iter().find(|local| in_room.iter().any(|server| local.name == **server));
        Ok(ours.map(|local| local.name.clone()))
    }

    /// The other servers that are in a room and that are sent anything.
    pub(super) async fn servers_of_room(&self, room_nr: RoomNr) -> Result<Servers, storage::Error> {
        if let Some(known) = self.0.servers_of_rooms.get(&room_nr) {
            return Ok(known);
        }
        let all = self.0.storage.list_servers(room_nr, SERVERS_MAX).await?;
        let names = all.into_iter().filter_map(|name| OwnedServerName::try_from(name).ok());
        let others: Servers = Arc::new(names.filter(|name| self.sends_to(name)).collect());
        self.0.servers_of_rooms.insert(room_nr, others.clone());
        Ok(others)
    }

    /// Changes of devices go to all servers with which their users share rooms.
    async fn add_devices(
        &self,
        changes: &[(UserNr, Position)],
        parts: &mut Vec<(Route, Position, Part)>,
    ) -> Result<(), storage::Error> {
        let numbers: HashSet<UserNr> = changes.iter().map(|(user_nr, _)| *user_nr).collect();
        let mut numbers: Vec<UserNr> = numbers.into_iter().collect();
        let names = self.0.storage.user_ids(&numbers).await?;
        let ours = self.0.federation.servers();
        numbers.retain(|nr| names.get(nr).is_some_and(|user_id| ours.has_user(user_id)));
        let mut servers: HashMap<UserNr, Vec<OwnedServerName>> = HashMap::new();
        for (user_nr, server) in self.0.storage.list_servers_of_users(&numbers).await? {
            if self.sends_to(&server) {
                servers.entry(user_nr).or_default().push(server);
            }
        }
        for (user_nr, position) in changes {
            let (Some(user_id), Some(servers)) = (names.get(user_nr), servers.get(user_nr)) else { continue };
            parts.extend(servers.iter().map(|server| {
                let route = Route { origin: user_id.server_name().to_owned(), destination: server.clone() };
                (route, *position, Part::Devices(*user_nr))
            }));
        }
        Ok(())
    }

    /// Says something that may be lost to servers, unless they are behind or give no answer.
    pub(super) fn say(
        &self,
        origin: &ServerName,
        servers: &[OwnedServerName],
        subject: &super::lossy::Subject,
        said: &super::lossy::Said,
    ) {
        let state: &mut State = &mut self.lock();
        for server in servers {
            let route = Route { origin: origin.to_owned(), destination: server.clone() };
            let share = share_of(&route);
            if !state.shares.contains_key(&share) || self.outages().next_try(server).is_some() {
                continue;
            }
            let destination = state.destinations.entry(route.clone()).or_insert_with(|| Destination::new(share));
            if destination.behind.is_none() {
                destination.lossy.push(subject.clone(), said.clone());
                self.kick(state, &route);
            }
        }
    }
}

/// What a member event says.
struct Member<'a> {
    user_id: &'a UserId,
    is_joined: bool,
    is_out: bool,
}

impl<'a> Member<'a> {
    fn of(event: &'a StoredEvent) -> Option<Self> {
        #[derive(Deserialize)]
        struct Content {
            membership: MembershipState,
        }
        if event.pdu.event_type != TimelineEventType::RoomMember {
            return None;
        }
        let user_id = <&UserId>::try_from(event.pdu.state_key.as_deref()?).ok()?;
        let Content { membership } = serde_json::from_str(event.pdu.content.get()).ok()?;
        let is_out = matches!(membership, MembershipState::Leave | MembershipState::Ban);
        Some(Self { user_id, is_joined: membership == MembershipState::Join, is_out })
    }
}
