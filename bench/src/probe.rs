//! Somebody who sends messages into a room beside what is measured: what others feel of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use crate::{
    Target,
    matrix::{self, User},
    percentiles::Samples,
    setup::{self, Room},
};

/// The pause between two sends.
const EVERY: Duration = Duration::from_millis(10);

/// Somebody who sends messages, one after the other.
pub(crate) struct Probe {
    is_over: Arc<AtomicBool>,
    sending: JoinHandle<Result<Samples>>,
}

impl Probe {
    pub(crate) fn start(target: &Target, user: &User, room: &Room) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (user, path, run) = (user.clone(), matrix::send_path(&room.id), setup::run_name());
        let mut connection = setup::connection(target, 1);
        let sending = tokio::spawn({
            let is_over = is_over.clone();
            async move {
                let mut samples = Samples::default();
                let mut ticks = interval(EVERY);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                for number in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    ticks.tick().await;
                    let started = Instant::now();
                    let body = matrix::numbered_message(number, 200);
                    matrix::send(&mut connection, &user, &path, &format!("{run}p{number}"), body).await?;
                    samples.add(started.elapsed());
                }
                Ok(samples)
            }
        });
        Self { is_over, sending }
    }

    pub(crate) async fn stop(self) -> Result<Samples> {
        self.is_over.store(true, Ordering::Relaxed);
        self.sending.await?
    }
}
