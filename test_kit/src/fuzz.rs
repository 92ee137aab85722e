//! Requests from the table of endpoints, valid and hostile, and the judge of what the server answers to them.

mod dice;
mod judge;
mod request;
mod values;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use model::Clock;

use self::{
    dice::Dice,
    judge::judge,
    request::{Attempt, Who},
    world::World,
};
use crate::{
    Http,
    conformance::{Operation, Presence, probe, table},
};

/// Most violations that one run collects before it gives up.
const VIOLATIONS_MAX: usize = 25;
/// Requests between two rounds of looking whether the server and its users are well.
const ROUND: u64 = 100;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What the requests follow from.
    pub seed: u64,
    /// Most requests.
    pub cases: u64,
    /// Longest time, in milliseconds.
    pub time_max_ms: i64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Requests that were sent.
    pub sent: u64,
    /// Answers by the hundreds of their status, such as 4 for 404.
    pub by_class: BTreeMap<u16, u64>,
    /// The operations that were tried.
    pub tried: BTreeSet<String>,
    /// The operations that succeeded at least once.
    pub succeeded: BTreeSet<String>,
    /// What should not have happened.
    pub violations: Vec<String>,
}

/// Sends requests as planned to every endpoint that the server has.
///
/// Requests follow from the seed, and from ids and tokens in earlier answers, so that the same seed on the same build of the server
/// gives the same requests, as far as the server itself does not depend on time.
///
/// # Panics
///
/// When the server does not let users register, or answers no longer.
pub async fn run(http: &Http, plan: Plan) -> Report {
    let clock = Clock::system();
    let end_ms = clock.now_ms() + plan.time_max_ms;
    let probes = probe(http, table()).await;
    let operations: Vec<&Operation> = table()
        .operations
        .iter()
        .filter(|operation| probes.get(&operation.name()) == Some(&Presence::Answers))
        .collect();
    assert!(!operations.is_empty(), "the server at {} has no endpoint of the specification", http.base());
    let mut report = Report::default();
    let mut seen = BTreeSet::new();
    let mut world = World::new(http).await;
    for case in 0..plan.cases {
        if clock.now_ms() > end_ms || report.violations.len() >= VIOLATIONS_MAX {
            break;
        }
        if case % ROUND == ROUND - 1 {
            world.refresh(http).await;
        }
        let mut dice = Dice::new(plan.seed, case);
        let attempt = Attempt::new(&mut dice, &operations, &world);
        let answer = http
            .send(&attempt.method, &attempt.path, attempt.token.as_deref(), attempt.content_type, attempt.body.clone())
            .await;
        report.sent += 1;
        report.tried.insert(attempt.operation.name());
        if let Ok(answer) = &answer {
            *report.by_class.entry(answer.status.as_u16() / 100).or_default() += 1;
            if answer.status.is_success() {
                report.succeeded.insert(attempt.operation.name());
                world.learn(&answer.json());
            }
        }
        let is_token_dead = answer.as_ref().is_ok_and(|answer| answer.errcode() == "M_UNKNOWN_TOKEN");
        if is_token_dead && attempt.who != Who::Stranger {
            world.refresh(http).await;
        }
        if let Some(wrong) = judge(&attempt, &answer) {
            // One of a kind is enough.
            if seen.insert((attempt.operation.name(), wrong.chars().take(40).collect::<String>())) {
                report.violations.push(format!("case {case}: {wrong}\n    {attempt}\n    {}", shown(&answer)));
            }
        }
    }
    world.refresh(http).await;
    report
}

fn shown(answer: &Result<crate::Answer, crate::Failure>) -> String {
    match answer {
        Ok(answer) => format!("answer: {answer}"),
        Err(failure) => format!("no answer: {failure:?}"),
    }
}

impl Report {
    /// Checks that nothing happened that should not have.
    ///
    /// # Panics
    ///
    /// With all violations and the seed, when something did.
    pub fn check(&self, plan: Plan) {
        println!("{self}");
        assert!(
            self.violations.is_empty(),
            "{} violations with seed {seed}; try it again with SWIFTCHAT_FUZZ_SEED={seed}\n\n{}",
            self.violations.len(),
            self.violations.join("\n\n"),
            seed = plan.seed,
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let never: Vec<&str> = self.tried.difference(&self.succeeded).map(String::as_str).collect();
        write!(
            f,
            "{} requests to {} operations, {} of them with success; answers by class {:?}; never with success: {}",
            self.sent,
            self.tried.len(),
            self.succeeded.len(),
            self.by_class,
            never.join(", "),
        )
    }
}
