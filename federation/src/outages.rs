//! Servers that give no answer, and when they are tried again: one place for everything that is asked of them.
//!
//! Each try in vain doubles the pause, from a second to two days. Who asks a server that is known to be down is answered at once, from
//! memory. An outage ends with an answer, with a request of that server, or when an administrator says so; it is kept in the database, so
//! that the other processes and the next start know of it.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use model::{Clock, Random};
use ruma::{OwnedServerName, ServerName};
use storage::OutageRow;
use tokio::sync::Notify;

use crate::Error;

/// The first pause, in milliseconds.
const PAUSE_MS: i64 = 1_000;
/// The longest pause, in milliseconds: two days.
const PAUSE_MS_MAX: i64 = 172_800_000;
/// After so many tries in vain a server counts as down for whoever asks it.
const TRIES_UNTIL_DOWN: i64 = 3;
/// Most servers whose outages are known; of further ones every request is tried.
const SERVERS_MAX: usize = 100_000;
/// Longest text that is kept of an error, in characters.
const ERROR_CHARS_MAX: usize = 300;

/// Servers that give no answer.
pub(crate) struct Outages {
    clock: Clock,
    random: Random,
    /// How many there are, to be looked at without the lock.
    count: AtomicUsize,
    /// Guards them. Held for moments only; no other lock is taken inside.
    known: Mutex<Known>,
    /// Tells when an outage ends before its time.
    ended: Notify,
}

#[derive(Default)]
struct Known {
    outages: HashMap<OwnedServerName, OutageRow>,
    /// Those that are to be written.
    changed: HashSet<OwnedServerName>,
    /// Outages that ended and are to be written as ended.
    over: HashMap<OwnedServerName, OutageRow>,
    /// Servers that answer again, for who sends to them.
    back: Vec<OwnedServerName>,
    /// Up to when changes of other processes were read.
    learned_upto_ms: i64,
}

/// A request that is about to be made.
pub(crate) struct Asking<'a> {
    server: &'a ServerName,
    at_ms: i64,
}

impl Outages {
    pub(crate) fn new(clock: Clock, random: Random) -> Self {
        Self { clock, random, count: AtomicUsize::new(0), known: Mutex::default(), ended: Notify::new() }
    }

    /// Whether a server may be asked now.
    ///
    /// # Errors
    ///
    /// [`Error::Down`].
    pub(crate) fn check(&self, server: &ServerName) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let now_ms = self.clock.now_ms();
        let is_down = self.lock().outages.get(server).is_some_and(|outage| {
            outage.is_unreachable && outage.tries >= TRIES_UNTIL_DOWN && outage.next_try_ms > now_ms
        });
        if is_down { Err(Error::Down { server: server.to_owned() }) } else { Ok(()) }
    }

    /// Notes when a request is made, before it is.
    pub(crate) fn asking<'a>(&self, server: &'a ServerName) -> Asking<'a> {
        Asking { server, at_ms: self.clock.now_ms() }
    }

    /// A server gave an answer, whatever it is: it can be reached.
    pub(crate) fn answered(&self, server: &ServerName) {
        if !self.is_empty() {
            self.end_if(server, |outage| outage.is_unreachable);
        }
    }

    /// A server gave no answer.
    pub(crate) fn unanswered(&self, asking: Asking<'_>, error: &outbound::Error) {
        use outbound::Error as E;
        if matches!(error, E::Name { .. } | E::NoAddress { .. } | E::Unreachable { .. } | E::NotPublic { .. }) {
            self.failed(asking, true, &told(error));
        }
    }

    /// A server does not take what we send, for a reason that passes.
    pub(crate) fn refused(&self, asking: Asking<'_>, error: &Error) {
        self.failed(asking, false, &told(error));
    }

    fn failed(&self, asking: Asking<'_>, is_unreachable: bool, error: &str) {
        let now_ms = self.clock.now_ms();
        let mut known = self.lock();
        if known.outages.len() >= SERVERS_MAX && !known.outages.contains_key(asking.server) {
            return;
        }
        let outage = known.outages.entry(asking.server.to_owned()).or_insert_with(|| OutageRow {
            server: asking.server.to_owned(),
            since_ms: asking.at_ms,
            tries: 0,
            next_try_ms: 0,
            is_unreachable,
            last_error: String::new(),
            changed_ms: 0,
        });
        // Of requests that fail together the first counts.
        if outage.tries > 0 && asking.at_ms < outage.changed_ms {
            return;
        }
        outage.tries += 1;
        outage.is_unreachable = is_unreachable;
        outage.next_try_ms = now_ms + self.pause_ms(outage.tries);
        outage.changed_ms = now_ms;
        outage.last_error = error.chars().take(ERROR_CHARS_MAX).collect();
        known.changed.insert(asking.server.to_owned());
        known.over.remove(asking.server);
        self.count.store(known.outages.len(), Ordering::Relaxed);
    }

    /// A server took what we sent, or asked us something.
    pub(crate) fn end(&self, server: &ServerName) {
        if !self.is_empty() {
            self.end_if(server, |_| true);
        }
    }

    fn end_if(&self, server: &ServerName, is_over: impl FnOnce(&OutageRow) -> bool) {
        let mut known = self.lock();
        if !known.outages.get(server).is_some_and(is_over) {
            return;
        }
        if let Some((server, outage)) = known.outages.remove_entry(server) {
            let over = OutageRow { tries: 0, changed_ms: self.clock.now_ms(), ..outage };
            known.over.insert(server.clone(), over);
            known.changed.remove(&server);
            known.back.push(server);
            self.count.store(known.outages.len(), Ordering::Relaxed);
            self.ended.notify_one();
        }
    }

    /// How often a server was tried in vain, and when it is tried next; nothing when it answers, or refused what another one of our names
    /// sent and not this one (`is_refused`).
    pub(crate) fn next_try(&self, server: &ServerName, is_refused: bool) -> Option<(i64, i64)> {
        if self.is_empty() {
            return None;
        }
        let known = self.lock();
        let outage = known.outages.get(server).filter(|outage| outage.is_unreachable || is_refused);
        outage.map(|outage| (outage.tries, outage.next_try_ms))
    }

    /// Waits until servers answer again before they were to be tried.
    pub(crate) async fn ended(&self) -> Vec<OwnedServerName> {
        loop {
            let back = mem::take(&mut self.lock().back);
            if !back.is_empty() {
                return back;
            }
            self.ended.notified().await;
        }
    }

    /// What is to be written: outages that began or went on, and those that ended.
    pub(crate) fn take_changes(&self) -> Vec<OutageRow> {
        let known = &mut *self.lock();
        let changed = mem::take(&mut known.changed);
        let mut rows: Vec<OutageRow> = changed.iter().filter_map(|server| known.outages.get(server)).cloned().collect();
        rows.extend(mem::take(&mut known.over).into_values());
        rows
    }

    /// It could not be written, and is to be tried again.
    pub(crate) fn keep_changes(&self, rows: Vec<OutageRow>) {
        let known = &mut *self.lock();
        for row in rows {
            if row.tries > 0 {
                known.changed.insert(row.server);
            } else if !known.outages.contains_key(&row.server) {
                known.over.insert(row.server.clone(), row);
            }
        }
    }

    /// From when on changes of others are to be read.
    pub(crate) fn learned_upto_ms(&self) -> i64 {
        self.lock().learned_upto_ms
    }

    /// Takes over what others wrote, processes and administrators, or this process before it was started.
    pub(crate) fn learn(&self, rows: Vec<OutageRow>) {
        let known = &mut *self.lock();
        let mut has_ended = false;
        for row in rows {
            known.learned_upto_ms = known.learned_upto_ms.max(row.changed_ms);
            let own = known.outages.get(&row.server);
            if own.is_some_and(|own| own.changed_ms >= row.changed_ms) || known.over.contains_key(&row.server) {
                continue;
            }
            if row.tries > 0 {
                if known.outages.len() < SERVERS_MAX || own.is_some() {
                    known.outages.insert(row.server.clone(), row);
                }
            } else if known.outages.remove(&row.server).is_some() {
                known.changed.remove(&row.server);
                known.back.push(row.server);
                has_ended = true;
            }
        }
        self.count.store(known.outages.len(), Ordering::Relaxed);
        if has_ended {
            self.ended.notify_one();
        }
    }

    /// The pause after so many tries in vain: doubled each time, and different by a fifth each way, so that not all come at once.
    fn pause_ms(&self, tries: i64) -> i64 {
        let doublings = u32::try_from(tries - 1).unwrap_or(0).min(30);
        let pause_ms = PAUSE_MS.saturating_mul(1 << doublings).min(PAUSE_MS_MAX);
        pause_ms * 4 / 5 + (self.random.number() % (pause_ms.unsigned_abs() * 2 / 5)).cast_signed()
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error with its causes, on one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    fn outages() -> (Outages, Clock) {
        let clock = Clock::manual(1_000_000);
        (Outages::new(clock.clone(), Random::seeded(1)), clock)
    }

    fn fail(outages: &Outages, server: &ServerName) {
        let error = outbound::Error::NoAddress { name: server.to_string() };
        outages.unanswered(outages.asking(server), &error);
    }

    #[test]
    fn pauses_double_from_a_second_to_two_days() {
        let (outages, _) = outages();
        for (tries, about_ms) in
            [(1, 1_000), (2, 2_000), (5, 16_000), (18, 131_072_000), (19, PAUSE_MS_MAX), (999, PAUSE_MS_MAX)]
        {
            let pause_ms = outages.pause_ms(tries);
            assert!((about_ms * 4 / 5..about_ms * 6 / 5).contains(&pause_ms), "{tries}: {pause_ms}");
        }
    }

    #[test]
    fn a_server_that_is_down_is_not_asked_until_its_time_has_come() {
        let (outages, clock) = outages();
        let dead = server_name!("dead.test");
        for _ in 0..TRIES_UNTIL_DOWN {
            assert!(outages.check(dead).is_ok(), "a slip is no outage");
            fail(&outages, dead);
            clock.advance_ms(1);
        }
        assert!(matches!(outages.check(dead), Err(Error::Down { .. })));
        assert!(outages.check(server_name!("alive.test")).is_ok());
        clock.advance_ms(10_000);
        assert!(outages.check(dead).is_ok());
        outages.answered(dead);
        assert_eq!(outages.next_try(dead, true), None);
    }

    #[test]
    fn requests_that_fail_together_count_once() {
        let (outages, clock) = outages();
        let dead = server_name!("dead.test");
        let error = outbound::Error::NoAddress { name: "dead.test".to_owned() };
        let (one, other) = (outages.asking(dead), outages.asking(dead));
        clock.advance_ms(10);
        outages.unanswered(one, &error);
        outages.unanswered(other, &error);
        assert_eq!(outages.next_try(dead, true).unwrap().0, 1);
    }

    /// A server that can be reached and does not take what we send must not be tried anew with each of its other answers.
    #[test]
    fn an_answer_ends_the_outage_of_a_server_that_was_unreachable_only() {
        let (outages, _) = outages();
        let server = server_name!("odd.test");
        outages.refused(outages.asking(server), &Error::Ours(server.to_owned()));
        outages.answered(server);
        assert!(outages.next_try(server, true).is_some());
        assert!(outages.check(server).is_ok(), "it answers others");
        outages.end(server);
        assert_eq!(outages.next_try(server, true), None);
        let rows = outages.take_changes();
        assert_eq!((rows.len(), rows[0].tries), (1, 0));
    }

    #[test]
    fn what_another_process_or_an_administrator_wrote_counts() {
        let (one, clock) = outages();
        let other = Outages::new(clock.clone(), Random::seeded(2));
        let dead = server_name!("dead.test");
        fail(&one, dead);
        other.learn(one.take_changes());
        assert_eq!(other.next_try(dead, true), one.next_try(dead, true));
        clock.advance_ms(5);
        other.end(dead);
        one.learn(other.take_changes());
        assert_eq!(one.next_try(dead, true), None);
        assert_eq!(one.lock().back, [dead]);
    }
}
