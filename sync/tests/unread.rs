//! Unread counts against a recount from scratch: people do anything at random, and after each few steps everybody's counts, those that were
//! kept from answer to answer and those that the database gives, must be what each event on its own comes to by ruma's `Ruleset`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use accounts::{Accounts, NewAccount, Requester, SessionRequest, default_push_rules};
use event_bus::{Bus, Typing};
use futures_util::{StreamExt as _, stream};
use model::{Clock, KeyPair, LocalServer, LocalServers, Membership, Position, Random, RoomNr, Thread};
use rooms::{Counts, Error, NewRoomRequest, Options, Preset, ReceiptKind, ReceiptRequest, Rooms, Unread};
use ruma::{
    EventId, Int, OwnedEventId, OwnedRoomId, RoomVersionId, UInt,
    events::AnyTimelineEvent,
    power_levels::NotificationPowerLevels,
    push::{
        Action, ConditionalPushRule, NewPushRule, PushCondition, PushConditionPowerLevelsCtx, PushConditionRoomCtx,
        RuleKind, Ruleset,
    },
    room_version_rules::RoomPowerLevelsRules,
    serde::Raw,
    server_name,
};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use storage::{LISTED_OF_ROOM_MAX, Storage, StoredEvent, TimelineDirection, testing::TestDatabase};
use sync::Sync;
use tokio_util::sync::CancellationToken;

/// What the first people may; the others may nothing.
const POWERS: [i32; 2] = [100, 50];

/// How many steps a history has.
const STEPS: usize = 220;

/// A process of the deployment that only reads.
struct Other {
    storage: Storage,
    rooms: Rooms,
    sync: Sync,
}

struct World {
    /// Another process, where there can be one.
    other: Option<Other>,
    storage: Storage,
    accounts: Accounts,
    rooms: Rooms,
    sync: Sync,
    random: Random,
    people: Vec<Requester>,
    ids: Vec<OwnedRoomId>,
    numbers: Vec<RoomNr>,
    /// Messages that may be read, answered, edited or redacted, in the order of the stream, by room.
    said: Vec<Vec<OwnedEventId>>,
    /// The threads that messages were in when they were sent.
    threads: HashMap<OwnedEventId, String>,
    /// Up to where each person has read a room: all threads (empty), `main`, or a thread, by person and room.
    read: HashMap<(usize, usize), HashMap<String, Position>>,
    /// The threads that people are subscribed to, by person and root.
    subscribed: HashSet<(usize, OwnedEventId)>,
    /// Whether the default rules are about that.
    has_subscriptions: bool,
    transactions: usize,
}

impl World {
    async fn start(database: &TestDatabase, seed: u64) -> Self {
        let has_subscriptions = seed.is_multiple_of(2);
        let storage = Storage::open(database.options.clone(), Clock::system(), Random::system()).await.unwrap();
        let options = accounts::Options {
            cheap_password_hashing: true,
            thread_subscriptions: has_subscriptions,
            ..accounts::Options::default()
        };
        let accounts = Accounts::new(storage.clone(), servers(), options);
        let (rooms, sync) = process(&storage, has_subscriptions);
        let mut other = None;
        if storage.is_shared() {
            let storage = Storage::open(database.options.clone(), Clock::system(), Random::system()).await.unwrap();
            let (rooms, sync) = process(&storage, has_subscriptions);
            other = Some(Other { storage, rooms, sync });
        }
        let mut people = Vec::new();
        for name in ["alice", "bob", "carol", "dave"] {
            let user_id = ruma::UserId::parse(format!("@{name}:hs")).unwrap();
            let account = NewAccount { password: Some("secret".to_owned()), ..NewAccount::default() };
            let user = accounts.register(&user_id, account).await.unwrap();
            let session = accounts.log_in(&user, SessionRequest::default()).await.unwrap();
            people.push(accounts.authenticate(&session.access_token, None).await.unwrap());
        }
        let random = Random::seeded(seed);
        let mut world = Self {
            other,
            storage,
            accounts,
            rooms,
            sync,
            random,
            people,
            ids: Vec::new(),
            numbers: Vec::new(),
            said: Vec::new(),
            threads: HashMap::new(),
            read: HashMap::new(),
            subscribed: HashSet::new(),
            has_subscriptions,
            transactions: 0,
        };
        for members in [2, 4] {
            let id = world.rooms.create_room(&world.people[0], new_room(&world.people)).await.unwrap();
            world.numbers.push(world.rooms.room(&id).await.unwrap().nr);
            world.ids.push(id);
            world.said.push(Vec::new());
            let room = world.ids.len() - 1;
            world.note_join(0, room).await;
            for person in 1..members {
                world.join(person, room).await;
            }
        }
        world
    }

    fn pick(&self, of: usize) -> usize {
        (self.random.number() % of as u64) as usize
    }

    async fn join(&mut self, person: usize, room: usize) {
        self.rooms.join(&self.people[person], &self.ids[room], None).await.unwrap();
        self.note_join(person, room).await;
    }

    async fn note_join(&mut self, person: usize, room: usize) {
        let row = self.membership(person, room).await.expect("they joined");
        let read = self.read.entry((person, room)).or_default();
        // Whoever joins has read what was before.
        let all = read.entry(String::new()).or_default();
        *all = row.max(*all);
    }

    /// When a person joined, if they are in the room.
    async fn membership(&self, person: usize, room: usize) -> Option<Position> {
        let row = self.storage.get_membership(self.numbers[room], self.people[person].user_nr).await.unwrap();
        row.filter(|row| row.membership == Membership::Join).map(|row| row.position)
    }

    async fn send(&mut self, person: usize, room: usize, event_type: &str, content: Value) -> Option<OwnedEventId> {
        self.transactions += 1;
        let (who, transaction) = (&self.people[person], format!("t{}", self.transactions));
        let content = to_raw_value(&content).unwrap();
        let sent = self
            .rooms
            .send_message(who, &self.ids[room], event_type.into(), transaction.as_str().into(), &content, None)
            .await;
        match sent {
            Ok(event_id) => Some(event_id),
            Err(Error::NotAllowed(_) | Error::NotMember) => None,
            // A rule of relations.
            Err(Error::BadRelation(_) | Error::DuplicateAnnotation) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// What a person says, and what it makes of what they have read.
    async fn say(&mut self, person: usize, room: usize) {
        let target = match self.said[room].len() {
            0 => None,
            count => Some(self.said[room][count - 1 - self.pick(count.min(8))].clone()),
        };
        let user = self.people[self.pick(4)].user_id.to_string();
        let words = ["tea", "coffee, alice?", "Tea?", "@room", "nothing"];
        let all: Vec<_> = self.people.iter().map(|who| who.user_id.to_string()).collect();
        let mut content = json!({"msgtype": "m.text", "body": words[self.pick(words.len())]});
        if self.pick(4) == 0 {
            content["msgtype"] = json!("m.notice");
        }
        match self.pick(7) {
            0 => content["m.mentions"] = json!({"user_ids": [user, user, "@nobody:hs", 7]}),
            2 => content["m.mentions"] = json!({"user_ids": all, "room": self.pick(2) == 0}),
            3 if self.pick(2) == 0 => content["body"] = json!(7),
            1 => content["m.mentions"] = json!({"room": true}),
            _ => {}
        }
        if let Some(target) = &target {
            let relation = |kind: &str| json!({"rel_type": kind, "event_id": target});
            match self.pick(6) {
                0 | 1 => content["m.relates_to"] = relation("m.thread"),
                2 => content["m.relates_to"] = relation("m.replace"),
                3 => content["m.relates_to"] = relation("m.reference"),
                _ => {}
            }
        }
        let event_type = match self.pick(12) {
            0 => "m.room.encrypted",
            1 => "m.sticker",
            2 => ["m.call.invite", "org.matrix.msc3381.poll.start", "org.matrix.msc3381.poll.response"][self.pick(3)],
            3 => {
                let Some(target) = &target else { return };
                content["m.relates_to"] =
                    json!({"rel_type": "m.annotation", "event_id": target, "key": words[self.pick(5)]});
                "m.reaction"
            }
            _ => "m.room.message",
        };
        let Some(event_id) = self.send(person, room, event_type, content).await else { return };
        let event = self.storage.find_event(&event_id).await.unwrap().unwrap();
        if let Some(thread) = self.find_thread(&event).await {
            self.threads.insert(event_id.clone(), thread);
        }
        let notifies_somebody = self.default_effects(&event, room).await;
        if notifies_somebody {
            let thread = self.thread_of(&event).unwrap_or_else(|| "main".to_owned());
            let position = event.position.unwrap();
            self.read.entry((person, room)).or_default().insert(thread, position);
        }
        self.said[room].push(event_id);
    }

    /// Whether some default rule that notifies fits an event, with all those off that keep it quiet.
    async fn default_effects(&self, event: &StoredEvent, room: usize) -> bool {
        for person in (0..4).filter(|person| self.people[*person].user_nr != event.sender_nr) {
            let mut rules = default_push_rules(&self.people[person].user_id, false);
            for quiet in [".m.rule.suppress_notices", ".m.rule.suppress_edits"] {
                rules.set_enabled(RuleKind::Override, quiet, false).unwrap();
            }
            if self.actions(&rules, event, person, room).await.iter().any(Action::should_notify) {
                return true;
            }
        }
        false
    }

    async fn actions(&self, rules: &Ruleset, event: &StoredEvent, person: usize, room: usize) -> Vec<Action> {
        let summary = self.storage.get_summaries(&[self.numbers[room]]).await.unwrap().remove(&self.numbers[room]);
        let joined = UInt::try_from(summary.unwrap().1).unwrap();
        let who = self.people[person].user_id.clone();
        // Who founded the room sees it.
        let founder = &self.people[0];
        let member = self.rooms.state_event(founder, &self.ids[room], "m.room.member", who.as_str()).await;
        let member = member.map(|(_, event)| serde_json::from_str(event.pdu.content.get()).unwrap());
        let member: Value = member.unwrap_or_default();
        let name = member["displayname"].as_str().unwrap_or_default().to_owned();
        let levels = PushConditionPowerLevelsCtx::new(
            BTreeMap::from([0, 1].map(|person| (self.people[person].user_id.clone(), Int::from(POWERS[person])))),
            Int::from(0),
            NotificationPowerLevels::new(),
            RoomPowerLevelsRules::new(&RoomVersionId::V11.rules().unwrap().authorization, []),
        );
        let context = PushConditionRoomCtx::new(self.ids[room].clone(), joined, who, name).with_power_levels(levels);
        let json: Raw<AnyTimelineEvent> = Raw::from_json(RawValue::from_string(event.pdu.json.to_string()).unwrap());
        let thread = self.thread_of(event).map(|root| EventId::parse(root).unwrap());
        let is_subscribed = thread.map(|root| self.subscribed.contains(&(person, root)));
        with_subscription(rules, is_subscribed).get_actions(&json, &context).await.to_vec()
    }

    /// Client-Server API, "Threaded read receipts", over again.
    async fn find_thread(&self, event: &StoredEvent) -> Option<String> {
        let mut content: Value = serde_json::from_str(event.pdu.content.get()).unwrap();
        for _ in 0..3 {
            let relation = &content["m.relates_to"];
            let parent = relation["event_id"].as_str()?.to_owned();
            if relation["rel_type"] == "m.thread" {
                return Some(parent);
            }
            let parent = self.storage.find_event(&EventId::parse(parent).unwrap()).await.unwrap()?;
            content = serde_json::from_str(parent.pdu.content.get()).unwrap();
        }
        None
    }

    /// Redactions make relations, and so threads, unknown to whoever looks later.
    fn thread_of(&self, event: &StoredEvent) -> Option<String> {
        self.threads.get(&event.pdu.event_id).cloned()
    }

    async fn read_something(&mut self, person: usize, room: usize) {
        let count = self.said[room].len();
        if count == 0 {
            return;
        }
        let event_id = self.said[room][count - 1 - self.pick(count.min(12))].clone();
        let event = self.storage.find_event(&event_id).await.unwrap().unwrap();
        let thread = match self.pick(2) {
            0 => None,
            // Of a redacted event it is not known which thread it was in.
            _ if event.redacted_by.is_some() => None,
            _ => Some(self.thread_of(&event).unwrap_or_else(|| "main".to_owned())),
        };
        let kind = [ReceiptKind::Read, ReceiptKind::ReadPrivate, ReceiptKind::FullyRead][self.pick(3)];
        let thread = thread.filter(|_| kind != ReceiptKind::FullyRead);
        let request = ReceiptRequest { kind, event_id, thread: thread.as_deref().and_then(Thread::parse) };
        match self.rooms.mark_read(&self.people[person], &self.ids[room], vec![request]).await {
            Ok(()) if kind != ReceiptKind::FullyRead => {
                let read = self.read.entry((person, room)).or_default().entry(thread.unwrap_or_default()).or_default();
                *read = event.position.unwrap().max(*read);
            }
            Ok(()) | Err(Error::NotMember | Error::InvalidParam(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }

    async fn change_rules(&mut self, person: usize) {
        let who = &self.people[person];
        let room = &self.ids[self.pick(2)];
        let notify = [json!([]), json!(["notify"]), json!(["notify", {"set_tweak": "highlight"}])];
        let actions = notify[self.pick(3)].clone();
        let in_room = json!({"kind": "event_match", "key": "room_id", "pattern": room});
        let other = self.people[self.pick(4)].user_id.clone();
        let pattern = ["tea", "t?a", "c*e", "*"][self.pick(4)];
        let (kind, rule) = match self.pick(15) {
            0 => ("override", json!({"rule_id": room, "actions": [], "conditions": [in_room]})),
            1 => ("room", json!({"rule_id": room, "actions": actions})),
            2 => ("content", json!({"rule_id": "tea", "actions": actions, "pattern": pattern})),
            3 => ("sender", json!({"rule_id": other, "actions": actions})),
            4 => (
                "override",
                json!({"rule_id": "members", "actions": actions, "conditions": [
                {"kind": "room_member_count", "is": "2"}]}),
            ),
            5 => (
                "underride",
                json!({"rule_id": "stickers", "actions": actions, "conditions": [
                {"kind": "event_match", "key": "type", "pattern": "m.sticker"}]}),
            ),
            6 => (
                "override",
                json!({"rule_id": "named", "actions": actions, "conditions": [
                {"kind": "contains_display_name"}]}),
            ),
            8 => own(
                "override",
                "everybody",
                &actions,
                &[
                    json!({"kind": "event_match", "key": "content.body", "pattern": "@room"}),
                    json!({"kind": "sender_notification_permission", "key": "room"}),
                ],
            ),
            9 => own(
                "override",
                "notices",
                &actions,
                &[json!({"kind": "event_property_is", "key": "content.msgtype", "value": "m.notice"})],
            ),
            10 => own(
                "underride",
                "others",
                &actions,
                &[json!({"kind": "event_property_contains", "key": "content.m\\.mentions.user_ids", "value": other})],
            ),
            11 => own(
                "override",
                "threads",
                &actions,
                &[json!({"kind": "io.element.msc4306.thread_subscription", "subscribed": self.pick(2) == 0})],
            ),
            12 => own("override", "strange", &actions, &[json!({"kind": "org.example.strange"})]),
            7 => {
                let rules = self.accounts.push_rules(&who.user_id, who.user_nr).await.unwrap();
                let own: Vec<(RuleKind, String)> = rules
                    .iter()
                    .filter(|rule| !rule.is_server_default())
                    .map(|rule| (kind_of(&rule), rule.rule_id().to_owned()))
                    .collect();
                if !own.is_empty() {
                    let (kind, rule_id) = own[self.pick(own.len())].clone();
                    self.accounts.delete_push_rule(who, kind, &rule_id).await.unwrap();
                }
                return;
            }
            change => {
                let rules = default_push_rules(&who.user_id, self.has_subscriptions);
                let all: Vec<_> = rules.iter().map(|rule| (kind_of(&rule), rule.rule_id().to_owned())).collect();
                let (kind, rule_id) = all[self.pick(all.len())].clone();
                // With the master switch on nothing else is tried.
                let enabled = rule_id != ".m.rule.master" && self.pick(2) == 0 || self.pick(8) == 0;
                if change == 13 {
                    let actions: Vec<Action> = serde_json::from_value(actions).unwrap();
                    self.accounts.set_push_rule_actions(who, kind, &rule_id, actions).await.unwrap();
                } else {
                    self.accounts.enable_push_rule(who, kind, &rule_id, enabled).await.unwrap();
                }
                return;
            }
        };
        let rule: NewPushRule = match kind {
            "override" => NewPushRule::Override(serde_json::from_value(rule).unwrap()),
            "underride" => NewPushRule::Underride(serde_json::from_value(rule).unwrap()),
            "room" => NewPushRule::Room(serde_json::from_value(rule).unwrap()),
            "sender" => NewPushRule::Sender(serde_json::from_value(rule).unwrap()),
            _ => NewPushRule::Content(serde_json::from_value(rule).unwrap()),
        };
        self.accounts.set_push_rule(who, rule, None, None).await.unwrap();
    }

    async fn step(&mut self) {
        let (person, room) = (self.pick(4), self.pick(2));
        let who = self.people[person].clone();
        let id = self.ids[room].clone();
        match self.pick(26) {
            0..=12 => self.say(person, room).await,
            13..=16 => self.read_something(person, room).await,
            17 | 18 => self.change_rules(person).await,
            19 => {
                let ignored: serde_json::Map<_, _> = (0..4)
                    .filter(|_| self.pick(5) == 0)
                    .map(|other| (self.people[other].user_id.to_string(), json!({})))
                    .collect();
                let content = json!({"ignored_users": ignored}).to_string();
                self.accounts.set_account_data(who.user_nr, None, "m.ignored_user_list", &content).await.unwrap();
            }
            20 => {
                let count = self.said[room].len();
                if count > 0 {
                    let target = self.said[room][count - 1 - self.pick(count.min(10))].clone();
                    self.transactions += 1;
                    let transaction = format!("r{}", self.transactions);
                    let redacted = self.rooms.redact(&who, &id, &target, transaction.as_str().into(), None).await;
                    assert!(matches!(redacted, Ok(_) | Err(Error::NotAllowed(_) | Error::NotMember)), "{redacted:?}");
                }
            }
            // Who founded the room stays, so that the others come in again.
            21 if person > 0 && self.membership(person, room).await.is_some() => {
                self.rooms.leave(&who, &id, None).await.unwrap();
            }
            22 if person < 2 || room == 1 => {
                if self.membership(person, room).await.is_none() {
                    self.join(person, room).await;
                }
            }
            23 | 24 => {
                let Some(root) = self.said[room].get(self.pick(self.said[room].len().max(1))).cloned() else { return };
                let subscribes = self.pick(3) > 0;
                let changed = match subscribes {
                    true => self.rooms.subscribe_thread(&who, &id, &root, None).await,
                    false => self.rooms.unsubscribe_thread(&who, &id, &root).await,
                };
                match changed {
                    Ok(()) if subscribes => drop(self.subscribed.insert((person, root))),
                    Ok(()) => drop(self.subscribed.remove(&(person, root))),
                    Err(Error::EventUnknown) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            _ => {
                let content = json!({"name": format!("room {}", self.pick(100))});
                let content = to_raw_value(&content).unwrap();
                let set = self.rooms.send_state(&who, &id, "m.room.name".into(), "", &content, None).await;
                assert!(matches!(set, Ok(_) | Err(Error::NotAllowed(_) | Error::NotMember)), "{set:?}");
            }
        }
    }

    /// From scratch, event by event.
    async fn recount(&self, person: usize, room: usize, upto: Position) -> Unread {
        let who = &self.people[person];
        let rules = self.accounts.push_rules(&who.user_id, who.user_nr).await.unwrap();
        let ignored = self.accounts.account_data(who.user_nr, None, "m.ignored_user_list").await.unwrap_or_default();
        let ignored: Value = serde_json::from_str(&ignored).unwrap_or_default();
        let none = HashMap::new();
        let read = self.read.get(&(person, room)).unwrap_or(&none);
        let read_upto = |thread: &str| {
            let of = |key: &str| read.get(key).copied().unwrap_or_default();
            of("").max(of(thread))
        };
        let (forward, end) = (TimelineDirection::Forward, (upto, i64::MAX));
        let timeline =
            self.storage.list_timeline(self.numbers[room], forward, (Position(0), 0), end, 10_000).await.unwrap();
        let mut unread = Unread::default();
        for (nr, _) in timeline {
            let event = self.storage.get_event(nr).await.unwrap().unwrap();
            let is_ignored =
                ignored["ignored_users"].get(event.pdu.sender.as_str()).is_some() && event.pdu.sender != who.user_id;
            if event.redacted_by.is_some() || is_ignored || event.sender_nr == who.user_nr {
                continue;
            }
            let thread = self.thread_of(&event);
            if event.position.unwrap() <= read_upto(thread.as_deref().unwrap_or("main")) {
                continue;
            }
            let actions = self.actions(&rules, &event, person, room).await;
            if !actions.iter().any(Action::should_notify) {
                continue;
            }
            let counts = match thread {
                None => &mut unread.main,
                Some(root) => unread.threads.entry(EventId::parse(root).unwrap()).or_default(),
            };
            counts.notifications += 1;
            counts.highlights += u64::from(actions.iter().any(Action::is_highlight));
        }
        unread
    }

    /// Compares everybody's counts; gives how much they have not read, all together.
    async fn check(&self, step: usize, seed: u64) -> u64 {
        let mut counted = 0;
        let upto = self.storage.published();
        // What the processes show has come as far.
        for sync in self.other.iter().map(|other| &other.sync).chain([&self.sync]) {
            let deadline = Instant::now() + Duration::from_secs(30);
            while sync.position() < upto {
                assert!(Instant::now() < deadline, "seed {seed}, step {step}: a process is behind");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        for person in 0..self.people.len() {
            let who = &self.people[person];
            for room in 0..self.ids.len() {
                if self.membership(person, room).await.is_none() {
                    continue;
                }
                let expected = self.recount(person, room, upto).await;
                let nr = self.numbers[room];
                let kept = self.sync.unread(who, &[nr], upto).await.unwrap().remove(&nr).unwrap();
                let anew = self.rooms.unread(who, &[nr], upto).await.unwrap().remove(&nr).unwrap();
                let rules = self.accounts.push_rules(&who.user_id, who.user_nr).await.unwrap();
                let what = || {
                    let own: Vec<_> = rules.iter().filter(|rule| !rule.is_server_default()).collect();
                    format!("seed {seed}, step {step}, {} in room {room}, with {own:?}", who.user_id)
                };
                assert_eq!(anew, expected, "from the database: {}", what());
                assert_eq!(without_empty(kept), expected, "kept in memory: {}", what());
                if let Some(other) = &self.other {
                    let kept = other.sync.unread(who, &[nr], upto).await.unwrap().remove(&nr).unwrap();
                    assert_eq!(without_empty(kept), expected, "kept by another process: {}", what());
                    let anew = other.rooms.unread(who, &[nr], upto).await.unwrap().remove(&nr).unwrap();
                    assert_eq!(anew, expected, "from the database, by another process: {}", what());
                }
                counted += expected.total().notifications;
            }
        }
        counted
    }
}

fn servers() -> LocalServers {
    let key = KeyPair::generate(&Random::seeded(1));
    LocalServers::new(vec![LocalServer::new(server_name!("hs").to_owned(), key)])
}

/// Rooms and sync of a process, which looks often at what others wrote.
fn process(storage: &Storage, thread_subscriptions: bool) -> (Rooms, Sync) {
    let rooms = Rooms::new(
        storage.clone(),
        servers(),
        Options { default_version: RoomVersionId::V11, thread_subscriptions, ..Options::default() },
    );
    let (typing, bus) = (Typing::new(Clock::system(), &Random::system()), Bus::memory());
    let every = Duration::from_millis(5);
    let sync = Sync::start_asking(every, storage.clone(), rooms.clone(), typing, bus, CancellationToken::new());
    (rooms, sync)
}

fn without_empty(mut unread: Unread) -> Unread {
    unread.threads.retain(|_, counts| *counts != Counts::default());
    unread
}

fn kind_of(rule: &ruma::push::AnyPushRuleRef<'_>) -> RuleKind {
    use ruma::push::AnyPushRuleRef as Rule;
    match rule {
        Rule::Override(_) => RuleKind::Override,
        Rule::Content(_) => RuleKind::Content,
        Rule::Room(_) => RuleKind::Room,
        Rule::Sender(_) => RuleKind::Sender,
        Rule::PostContent(_) => RuleKind::PostContent,
        _ => RuleKind::Underride,
    }
}

fn own(kind: &'static str, rule_id: &str, actions: &Value, conditions: &[Value]) -> (&'static str, Value) {
    (kind, json!({"rule_id": rule_id, "actions": actions, "conditions": conditions}))
}

/// The rules without conditions about subscriptions: those that do not hold switch their rules off. ruma does not look for threads as the
/// specification says.
fn with_subscription(rules: &Ruleset, is_subscribed: Option<bool>) -> Ruleset {
    let without = |mut rule: ConditionalPushRule| {
        rule.conditions.retain(|condition| match condition {
            PushCondition::ThreadSubscription(data) => {
                rule.enabled &= is_subscribed == Some(data.subscribed);
                false
            }
            _ => true,
        });
        rule
    };
    let mut rules = rules.clone();
    for kind in [&mut rules.override_, &mut rules.postcontent, &mut rules.underride] {
        *kind = std::mem::take(kind).into_iter().map(without).collect();
    }
    rules
}

fn new_room(people: &[Requester]) -> NewRoomRequest {
    NewRoomRequest {
        power_level_content_override: Some(
            to_raw_value(&json!({"users": {&people[0].user_id: POWERS[0], &people[1].user_id: POWERS[1]}})).unwrap(),
        ),
        ..NewRoomRequest::new(Preset::PublicChat)
    }
}

/// Histories on both databases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_what_each_event_on_its_own_comes_to() {
    let seed = std::env::var("SWIFTCHAT_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seed.map_or(vec![1, 2, 3], |seed| vec![seed]);
    for seed in seeds {
        println!("seed {seed}");
        for database in TestDatabase::each().await {
            let mut world = World::start(&database, seed).await;
            let mut counted = 0;
            for step in 0..STEPS {
                world.step().await;
                if step % 3 == 0 {
                    counted += world.check(step, seed).await;
                }
            }
            assert!(counted > 0, "nothing was ever unread");
            world.storage.close().await;
            if let Some(other) = world.other {
                other.storage.close().await;
            }
        }
    }
}

/// Whoever has a keyword does not make an answer look at any number of events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_to_look_at_counts_by_its_class() {
    for database in TestDatabase::each().await {
        let world = World::start(&database, 1).await;
        let (alice, bob, nr) = (&world.people[0], &world.people[1], world.numbers[1]);
        let quiet = json!({"rule_id": "spam", "actions": [], "pattern": "spam"});
        let quiet = NewPushRule::Content(serde_json::from_value(quiet).unwrap());
        world.accounts.set_push_rule(bob, quiet, None, None).await.unwrap();
        let content = to_raw_value(&json!({"msgtype": "m.text", "body": "spam"})).unwrap();
        let sent = (0..LISTED_OF_ROOM_MAX + 10).map(async |number| {
            let transaction = format!("spam{number}");
            let (kind, transaction) = ("m.room.message".into(), transaction.as_str().into());
            world.rooms.send_message(alice, &world.ids[1], kind, transaction, &content, None).await.unwrap()
        });
        let sent: Vec<OwnedEventId> = stream::iter(sent).buffer_unordered(64).collect().await;
        assert_eq!(sent.len(), LISTED_OF_ROOM_MAX + 10);
        let counted = world.rooms.unread(bob, &[nr], world.storage.published()).await.unwrap();
        assert_eq!(counted[&nr].main, Counts { notifications: 10, highlights: 0 });
        world.storage.close().await;
        if let Some(other) = world.other {
            other.storage.close().await;
        }
    }
}
