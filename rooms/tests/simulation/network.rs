//! What lies between the servers.

use std::{
    collections::{BTreeMap, HashSet},
    ops::AddAssign,
    sync::Arc,
};

use model::Pdu;
use rooms::{Error, Received};
use ruma::OwnedEventId;

use crate::{
    Chance,
    people::Action,
    world::{NAMES, Template, World},
};

/// Longest way of an event, in steps.
const DELAY_MAX: u64 = 12;
/// Most events that are fetched for one that came.
const FETCHED_MAX: usize = 1_000;

/// What happened, to be sure that something did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Events that were made.
    pub(crate) events: u64,
    /// Things that were not allowed.
    pub(crate) refused: u64,
    /// Events that never came.
    pub(crate) lost: u64,
    /// Events that were asked for because one referred to them.
    pub(crate) fetched: u64,
    /// Events that follow several.
    pub(crate) merges: u64,
    /// Events that a server did not show.
    pub(crate) soft_failed: u64,
}

impl AddAssign for Facts {
    fn add_assign(&mut self, more: Self) {
        self.events += more.events;
        self.refused += more.refused;
        self.lost += more.lost;
        self.fetched += more.fetched;
        self.merges += more.merges;
        self.soft_failed += more.soft_failed;
    }
}

/// Three servers and the ways between them.
pub(crate) struct Network {
    worlds: Vec<World>,
    /// The ways that are cut, from one to another.
    cut: HashSet<(usize, usize)>,
    /// What is on its way: by when it comes and a running number; from where to where.
    under_way: BTreeMap<(u64, u64), (usize, usize, Arc<Pdu>)>,
    made: HashSet<OwnedEventId>,
    now: u64,
    counter: u64,
    facts: Facts,
    /// Whether to tell what happens.
    told: bool,
}

impl Network {
    pub(crate) async fn start(template: &Template, version: u8, seed: u64, told: bool) -> Self {
        let mut worlds = Vec::new();
        for index in 0..NAMES.len() {
            worlds.push(World::start(template, index, version, seed).await);
        }
        Self {
            worlds,
            cut: HashSet::new(),
            under_way: BTreeMap::new(),
            made: HashSet::new(),
            now: 0,
            counter: 0,
            facts: Facts::default(),
            told,
        }
    }

    /// Cuts and heals ways.
    pub(crate) fn change(&mut self, chance: &Chance) {
        self.now += 1;
        match chance.below(12) {
            0 | 1 => {
                let alone = usize::try_from(chance.below(3)).expect("a small number");
                self.cut
                    .extend((0..3).filter(|other| *other != alone).flat_map(|other| [(alone, other), (other, alone)]));
            }
            2 => drop(self.cut.insert((usize::try_from(chance.below(3)).expect("a small number"), 0))),
            3 => self.cut.clear(),
            _ => {}
        }
    }

    /// Somebody of a server does something, which it tells the others.
    pub(crate) async fn act(&mut self, at: usize, chance: &Chance) {
        for world in &self.worlds {
            world.clock.advance_ms(i64::try_from(chance.below(3_000)).expect("a small number"));
        }
        self.counter += 1;
        let person = usize::try_from(chance.below(3)).expect("a small number");
        let action = Action::choose(chance, self.counter, person == 0);
        let world = &self.worlds[at];
        let result = action.play(world, &world.people[person], self.counter).await;
        if self.told {
            println!("{}: {} wants {action:?}: {result:?}", self.now, world.people[person].user_id);
        }
        match result {
            Ok(()) => {}
            Err(error @ (Error::Storage(_) | Error::Busy | Error::InvalidRoomState(_) | Error::BadEvent(_))) => {
                panic!("{} could not do {action:?}: {error:?}", world.name)
            }
            Err(_) => self.facts.refused += 1,
        }
        for pdu in self.worlds[at].news().await {
            self.made.insert(pdu.event_id.clone());
            self.facts.events += 1;
            self.facts.merges += u64::from(pdu.prev_events.len() > 1);
            for to in (0..3).filter(|to| *to != at) {
                let copies = if chance.percent(15) { 2 } else { 1 };
                for _ in 0..copies {
                    if chance.percent(20) {
                        self.facts.lost += 1;
                        continue;
                    }
                    self.counter += 1;
                    let due = self.now + chance.below(DELAY_MAX);
                    self.under_way.insert((due, self.counter), (at, to, pdu.clone()));
                }
            }
        }
    }

    /// Delivers what is due, in any order.
    pub(crate) async fn carry(&mut self, chance: &Chance) {
        while let Some((key, _)) = self.under_way.range(..=(self.now, u64::MAX)).next() {
            let due: Vec<(u64, u64)> = self.under_way.range(..=(self.now, u64::MAX)).map(|(key, _)| *key).collect();
            let key = if chance.percent(50) { chance.one_of(&due) } else { *key };
            let (from, to, pdu) = self.under_way.remove(&key).expect("it is there");
            if self.cut.contains(&(from, to)) {
                self.facts.lost += 1;
            } else {
                self.deliver(from, to, pdu).await;
            }
        }
    }

    /// Hands over an event, and what it refers to if the way back is open too; gives how many were new.
    async fn deliver(&mut self, from: usize, to: usize, pdu: Arc<Pdu>) -> usize {
        let (mut open, mut tries, mut new) = (vec![pdu], 0, 0);
        while let Some(pdu) = open.pop() {
            tries += 1;
            assert!(tries < FETCHED_MAX, "{} asks {} for events without end", NAMES[to], NAMES[from]);
            let received = self.worlds[to].receive(&pdu).await;
            let received = received.unwrap_or_else(|error| panic!("{} on {}: {error:?}", NAMES[to], pdu.json));
            if self.told && received != Received::Known {
                println!("{}: {} to {}: {received:?}: {}", self.now, NAMES[from], NAMES[to], pdu.json);
            }
            match received {
                Received::Known => {}
                Received::Accepted => new += 1,
                Received::SoftFailed(_) => {
                    self.facts.soft_failed += 1;
                    new += 1;
                }
                // Whoever made it was allowed to by the same state.
                Received::Rejected(rule) => panic!("{} rejects what another one made: {rule}: {}", NAMES[to], pdu.json),
                Received::Missing(_) if self.cut.contains(&(to, from)) => break,
                Received::Missing(ids) => {
                    open.push(pdu);
                    for id in ids {
                        self.facts.fetched += 1;
                        let fetched = self.worlds[from].pdu(&id).await;
                        open.push(
                            fetched.unwrap_or_else(|| panic!("{} sent what it does not have: {id}", NAMES[from])),
                        );
                    }
                }
            }
        }
        new
    }

    /// The network is whole again: all that any server has reaches all.
    pub(crate) async fn heal(&mut self, chance: &Chance) {
        self.cut.clear();
        self.now += DELAY_MAX;
        self.carry(chance).await;
        self.exchange().await;
        // What one shows and the other does not is joined by what follows.
        for at in 0..3 {
            self.say(at).await;
        }
        self.exchange().await;
    }

    /// The anchor of a server says something, which nobody may forbid.
    async fn say(&mut self, at: usize) {
        self.counter += 1;
        let world = &self.worlds[at];
        Action::Say("again".to_owned()).play(world, &world.people[0], self.counter).await.expect("anchors may speak");
        for pdu in self.worlds[at].news().await {
            self.made.insert(pdu.event_id.clone());
        }
    }

    /// Each server tells the others of its newest events until nobody learns anything.
    async fn exchange(&mut self) {
        loop {
            let mut new = 0;
            for (from, to) in [(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)] {
                for pdu in self.worlds[from].extremities().await {
                    new += self.deliver(from, to, pdu).await;
                }
            }
            if new == 0 {
                return;
            }
        }
    }

    /// All servers have the same events and the same state, and go on from there.
    pub(crate) async fn check(&mut self) {
        for _ in 0..2 {
            let states = [self.worlds[0].state().await, self.worlds[1].state().await, self.worlds[2].state().await];
            for (world, state) in self.worlds.iter().zip(&states) {
                assert_eq!(world.lacks(&self.made).await, Vec::<OwnedEventId>::new(), "{} lacks events", world.name);
                let differ: Vec<_> = states[0].iter().filter(|(key, id)| state.get(*key) != Some(*id)).collect();
                let instead: Vec<_> = state.iter().filter(|(key, id)| states[0].get(*key) != Some(*id)).collect();
                let (name, first) = (world.name, NAMES[0]);
                assert!(state == &states[0], "the states differ: {first} has {differ:#?}, {name} has {instead:#?}");
                assert!(world.extremities().await.len() <= 3, "what was said at last joins all that was before");
                world.check_members().await;
            }
            self.say(0).await;
            self.exchange().await;
        }
    }

    pub(crate) async fn end(self) -> Facts {
        for world in &self.worlds {
            world.storage.close().await;
        }
        self.facts
    }
}
