//! Sliding sync: rooms by lists and by name. MSC4186, "Simplified Sliding Sync".
//!
//! A request is [`Request`], an answer [`Response`], in whichever of the two wire formats the client speaks. [`lists`] finds the rooms
//! that a request looks at, [`room`] tells of those that have news, [`extensions`] of everything else, and [`connection`]
//! remembers what was told.

mod connection;
mod extensions;
mod lists;
mod request;
mod required_state;
mod response;
mod room;
mod settled;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use accounts::{Requester, UserSettings};
use event_bus::TypingNews;
use model::{EphemeralPosition, Membership, Position, RoomNr, SlidingToken, StreamToken};
use storage::ConnectionKey;

pub(crate) use self::connection::Connections;
use self::{
    connection::{Sent, SentRoom, SentState, Start},
    lists::{Selected, Selection},
    required_state::Wanted,
    room::Task,
};
pub use self::{
    request::{Extensions, Filters, LISTS_MAX, List, Request, RoomConfig, Scope, ToDevice},
    required_state::{Pattern, RequiredState},
    response::{E2ee, Extensions as ExtensionAnswers, Hero, Response, Room, ThreadSubscriptions},
};
use crate::{
    Error, Sync,
    news::News,
    room_facts::{ListedRoom, UserList},
    room_marks::RoomMarks,
    told_members::NewMembers,
    v3::TIMEOUT_MAX,
};

/// Most rooms that one answer tells of; the next one has the others.
const ROOMS_MAX: usize = 1_000;
/// Most events in the timelines of one answer, but for one room.
const EVENTS_MAX: usize = 20_000;

/// A look at what is new between two positions.
struct Look<'a> {
    requester: &'a Requester,
    request: &'a Request,
    start: &'a Start,
    /// Where the client stands; nothing for a new connection.
    since: Option<Position>,
    upto: Position,
    news: News,
    typing: TypingNews,
    list: Arc<UserList>,
    marks: Arc<RoomMarks>,
    /// What the requester chose: whom they ignore.
    settings: Arc<UserSettings>,
}

/// What a look has found.
struct Found {
    response: Response,
    /// What the client has been sent afterwards, if the position does not tell it.
    state: Option<SentState>,
    members: HashMap<RoomNr, NewMembers>,
    upto: Position,
    typing: EphemeralPosition,
}

/// What the client has been sent, while an answer is put together.
struct NextState<'a> {
    before: &'a SentState,
    rooms: HashMap<RoomNr, SentRoom>,
    asked: Vec<Arc<RequiredState>>,
    configs: Vec<Vec<usize>>,
    account_data: Sent,
    threads: Sent,
}

impl<'a> NextState<'a> {
    fn new(before: &'a SentState) -> Self {
        Self {
            before,
            rooms: HashMap::new(),
            asked: before.asked.clone(),
            configs: before.configs.clone(),
            account_data: before.account_data,
            threads: before.threads,
        }
    }

    fn room(&self, room_nr: RoomNr) -> Option<SentRoom> {
        self.rooms.get(&room_nr).or_else(|| self.before.rooms.get(&room_nr)).copied()
    }

    fn set(&mut self, room_nr: RoomNr, sent: SentRoom) {
        if self.room(room_nr) != Some(sent) {
            self.rooms.insert(room_nr, sent);
        }
    }

    /// The places of the combinations of a selection; new ones are added behind those that there are.
    fn add_configs(&mut self, selection: &Selection<'_>) -> Vec<usize> {
        let known: BTreeMap<&RequiredState, usize> =
            self.before.asked.iter().enumerate().map(|(place, asked)| (&**asked, place)).collect();
        let mut places = Vec::new();
        for asked in &selection.asked {
            places.push(known.get(asked).copied().unwrap_or_else(|| {
                self.asked.push(Arc::new((*asked).clone()));
                self.asked.len() - 1
            }));
        }
        let mut known: HashMap<Vec<usize>, usize> =
            self.configs.iter().cloned().enumerate().map(|(place, config)| (config, place)).collect();
        let mut configs = Vec::new();
        for combination in &selection.combinations {
            let mut config: Vec<usize> = combination.required_state.iter().map(|place| places[*place]).collect();
            config.sort_unstable();
            configs.push(*known.entry(config).or_insert_with_key(|config| {
                self.configs.push(config.clone());
                self.configs.len() - 1
            }));
        }
        configs
    }

    /// What is wanted in a combination.
    fn wanted(&self, config: usize) -> Wanted {
        let places = self.configs.get(config).into_iter().flatten();
        Wanted::new(places.filter_map(|place| self.asked.get(*place).cloned()).collect())
    }

    /// The state, if it is another one than before.
    fn into_changed(self) -> Option<SentState> {
        let Self { before, rooms, asked, configs, account_data, threads } = self;
        let is_changed = account_data != before.account_data
            || threads != before.threads
            || rooms.iter().any(|(room_nr, sent)| before.rooms.get(room_nr) != Some(sent));
        is_changed.then(|| {
            let mut state = SentState { rooms: before.rooms.clone(), asked, configs, account_data, threads };
            state.rooms.extend(rooms);
            state
        })
    }
}

impl Sync {
    /// What is new on a connection, waiting for it if there is nothing yet.
    ///
    /// Messages to the device up to the token of that extension are gone afterwards: with it the client says that it has them.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPos`] when the connection has to start anew, [`Error::BadToken`] for a token of messages that is none.
    pub async fn sliding_sync(&self, requester: &Requester, request: &Request) -> Result<Response, Error> {
        self.reach(self.0.storage.published()).await;
        let device_id = requester.device_id.as_ref().map(ToString::to_string).unwrap_or_default();
        let key = ConnectionKey { user_nr: requester.user_nr, device_id, conn_id: request.conn_id.clone() };
        let start = self.start_of(key, request.pos.as_deref()).await?;
        let token = start.token.map(|token| token.stream);
        if let Some(token) = token {
            // A position that is still to come is none of this server: the client begins anew.
            let ahead = |error| if matches!(error, Error::BadToken) { Error::UnknownPos } else { error };
            self.catch_up(token.position).await.map_err(ahead)?;
        }
        self.acknowledge_to_device(requester, request).await?;
        let timeout = tokio::time::sleep(request.timeout.min(TIMEOUT_MAX));
        tokio::pin!(timeout);
        let answers_at_once = token.is_none() || request.timeout.is_zero();
        let since = token.map(|token| token.position);
        let mut found: Option<Found> = None;
        // Up to where was looked, and found nothing.
        let mut after = since.unwrap_or_default();
        loop {
            let rooms = self.user_rooms(requester.user_nr).await?;
            // Registered before the look, so that nothing can slip in between.
            let (wake, guard) = self.0.waiters.wait(requester.user_nr, &rooms, false);
            let notified = wake.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();

            let upto = self.position();
            // After the position: the list knows of all that happened up to there.
            let list = self.user_list(requester.user_nr).await?;
            let rooms_now = list.made_from();
            let _guard_now =
                (!Arc::ptr_eq(rooms_now, &rooms)).then(|| self.0.waiters.wait(requester.user_nr, rooms_now, false));
            let typing = self.0.typing.news(&rooms_now.joined, token.unwrap_or_default().typing);
            let news = self.news(requester, token, rooms_now, (after, upto), &typing);
            if found.is_none() || news.any() {
                let mut news = self.news(requester, token, rooms_now, (since.unwrap_or_default(), upto), &typing);
                if let Some(since) = since.filter(|_| news.threads) {
                    news.subscribed_rooms = self.subscribed_rooms(requester, since, upto).await?;
                }
                if request.counts_unread && news.account_data && !news.recounts() {
                    let after = since.unwrap_or_default();
                    let changed = self.0.storage.list_account_data(requester.user_nr, after, upto).await?;
                    news.note_account_data(&changed);
                }
                let marks = self.room_marks(requester.user_nr).await?;
                let settings = self.0.rooms.settings(requester).await?;
                let (list, start) = (list.clone(), &start);
                let look = Look { requester, request, start, since, upto, news, typing, list, marks, settings };
                // Boxed: a poll that waits must not hold the memory of one that answers.
                let new = Box::pin(self.look(look)).await?;
                if answers_at_once || !new.response.is_empty() {
                    return self.finish(start, new).await;
                }
                found = Some(new);
            }
            after = after.max(upto);
            let is_over = tokio::select! {
                () = &mut notified => self.0.stopping.is_cancelled(),
                () = &mut timeout => true,
            };
            drop(guard);
            if let Some(found) = found.take_if(|_| is_over) {
                return self.finish(&start, found).await;
            }
        }
    }

    /// Keeps what the answer leaves behind, and gives it its `pos`.
    async fn finish(&self, start: &Start, found: Found) -> Result<Response, Error> {
        let Found { mut response, state, members, upto, typing } = found;
        let (version, answer) = self.keep(start, state, members).await?;
        let stream = StreamToken { typing, answer: Some(answer), ..StreamToken::at(upto) };
        response.pos = SlidingToken { version, stream }.to_string();
        Ok(response)
    }

    async fn look(&self, look: Look<'_>) -> Result<Found, Error> {
        let before = &look.start.state;
        let mut next = NextState::new(before);
        let mut response = Response::default();
        if let Some(counts) = look.start.last_look.counts(&look) {
            response.lists = counts;
            let (no_rooms, no_timelines) = Default::default();
            self.add_extensions(&look, &no_rooms, &no_timelines, &mut next, &mut response).await?;
            return Ok(found(&look, response, next, HashMap::new(), true));
        }
        let selection = self.select(&look).await?;
        let (tasks, are_all) = self.tasks(&look, &selection, &mut next);
        let (mut members, mut timelines) = (HashMap::new(), HashMap::new());
        for room in self.rooms(&look, tasks).await? {
            next.set(room.room_nr, room.sent);
            members.extend(room.members.map(|new| (room.room_nr, new)));
            timelines.insert(room.room_nr, room.timeline);
            response.rooms.extend(room.shown);
        }
        // What has news that is not told stays behind.
        if let Some(since) = look.since {
            let has_news = |room: &ListedRoom| room.last() > since && has_news(&look, room);
            let with_news = look.list.rooms.iter().filter(|room| has_news(room) || look.may_count(room));
            for room_nr in with_news.map(|room| room.row.room_nr).filter(|room_nr| !timelines.contains_key(room_nr)) {
                if let Some(sent) = next.room(room_nr).filter(|sent| sent.stream == Sent::Live) {
                    next.set(room_nr, SentRoom { stream: Sent::Upto(since), ..sent });
                }
            }
        }
        self.add_extensions(&look, &selection, &timelines, &mut next, &mut response).await?;
        response.lists = selection.counts;
        Ok(found(&look, response, next, members, are_all))
    }

    /// The rooms of which there may be something to tell: the most active ones first, and not too many at once; and whether these are all.
    fn tasks<'a>(
        &self,
        look: &'a Look<'_>,
        selection: &'a Selection<'_>,
        next: &mut NextState<'_>,
    ) -> (Vec<Task<'a>>, bool) {
        let configs = next.add_configs(selection);
        let mut rooms: Vec<&Selected<'_>> = selection
            .rooms
            .iter()
            .filter(|room| {
                let combination = &selection.combinations[room.combination];
                concerns(look, &look.list.rooms[room.place], combination.timeline_limit, configs[room.combination])
            })
            .collect();
        rooms.sort_by_cached_key(|room| std::cmp::Reverse(look.list.rooms[room.place].last()));
        let mut wanted: HashMap<usize, Arc<Wanted>> = HashMap::new();
        let mut tasks: Vec<Task<'a>> = Vec::new();
        let (count, mut events) = (rooms.len(), 0);
        for selected in rooms.into_iter().take(ROOMS_MAX) {
            let combination = &selection.combinations[selected.combination];
            events += combination.timeline_limit as usize;
            if events > EVENTS_MAX && !tasks.is_empty() {
                break;
            }
            let listed = &look.list.rooms[selected.place];
            let sent = look.start.state.rooms.get(&listed.row.room_nr);
            let config = configs[selected.combination];
            let before = sent.map(|sent| sent.config).filter(|before| *before != config);
            for config in [Some(config), before].into_iter().flatten() {
                if let Entry::Vacant(entry) = wanted.entry(config) {
                    entry.insert(Arc::new(next.wanted(config)));
                }
            }
            tasks.push(Task {
                listed,
                combination,
                sent,
                from: sent.and_then(|sent| sent.stream.position(look.since)),
                config,
                wanted: wanted[&config].clone(),
                wanted_before: before.map(|before| wanted[&before].clone()),
            });
        }
        let are_all = tasks.len() == count;
        (tasks, are_all)
    }
}

/// What a look has found; whether it has told all that there was is noted.
fn found(
    look: &Look<'_>,
    response: Response,
    next: NextState<'_>,
    members: HashMap<RoomNr, NewMembers>,
    is_all: bool,
) -> Found {
    let state = next.into_changed();
    if is_all && state.is_none() {
        look.start.last_look.note(look, &response.lists);
    }
    Found { response, state, members, upto: look.upto, typing: look.typing.position }
}

impl Look<'_> {
    /// Whether what the user has not read of a room may be another number than the client was told, if it is told.
    fn may_count(&self, room: &ListedRoom) -> bool {
        let room_nr = room.row.room_nr;
        // Of a room that stayed behind it is not known.
        let is_live = || self.start.state.rooms.get(&room_nr).is_none_or(|sent| sent.stream == Sent::Live);
        self.request.counts_unread
            && room.row.membership == Membership::Join
            && (self.news.may_count(room_nr) || !is_live())
    }
}

/// Whether there may be something to tell of a room that the request looks at.
fn concerns(look: &Look<'_>, room: &ListedRoom, timeline_limit: u32, config: usize) -> bool {
    let Some(sent) = look.start.state.rooms.get(&room.row.room_nr) else { return true };
    let Some(from) = sent.stream.position(look.since) else { return true };
    let is_live = sent.stream == Sent::Live;
    (room.last() > from && (!is_live || has_news(look, room)))
        || look.may_count(room)
        || timeline_limit > sent.timeline_limit
        || look.marks.direct.contains(&room.facts.room.id) != sent.is_dm
        || config != sent.config
}

/// Whether something has happened in a room since the client's position that lies within the look.
fn has_news(look: &Look<'_>, room: &ListedRoom) -> bool {
    room.is_out() || look.since.is_none_or(|since| room.row.position > since) || look.news.room(room.row.room_nr)
}
