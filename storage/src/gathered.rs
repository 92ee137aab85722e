//! Small work of many, done together: what comes while some is being done is done next, all at once.
//!
//! A statement for a thousand costs little more than one for one, and a thousand transactions are flushed to disk one by one.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{Error, Storage};

/// A kind of work.
pub(crate) trait Gather: Sized + Send + Sync + 'static {
    /// What comes of it.
    type Answer: Send + 'static;
    /// What is known of a group while it is put together.
    type Group: Default;

    /// Where it waits.
    fn queue(storage: &Storage) -> &Gathered<Self>;

    /// Whether it may be done together with a group that is not empty; if so, it is part of it from now on.
    fn join(&self, group: &mut Self::Group, is_first: bool) -> bool;

    /// Does the work of a group; gives an answer for each, in their order.
    fn perform(storage: &Storage, group: &[Self]) -> impl Future<Output = Result<Vec<Self::Answer>, Error>> + Send;
}

/// Work that waits.
pub(crate) struct Gathered<W: Gather> {
    /// Held for moments only; no other lock is taken inside.
    waiting: Mutex<VecDeque<Waiting<W>>>,
    /// Whoever holds it works off what waits, of anybody; no lock inside but those of the database.
    turn: tokio::sync::Mutex<()>,
}

struct Waiting<W: Gather> {
    work: W,
    answer: Answering<W>,
}

/// To whom the answer goes.
type Answering<W> = oneshot::Sender<Result<<W as Gather>::Answer, Error>>;

impl<W: Gather> Default for Gathered<W> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }
}

impl<W: Gather> Gathered<W> {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting<W>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, work: W) -> oneshot::Receiver<Result<W::Answer, Error>> {
        let (answer, answered) = oneshot::channel();
        self.waiting().push_back(Waiting { work, answer });
        answered
    }

    /// What comes next, in the order in which it came; at least one if any waits.
    fn next_group(&self) -> (Vec<W>, Vec<Answering<W>>) {
        let mut waiting = self.waiting();
        let (mut group, mut works, mut answers) = (W::Group::default(), Vec::new(), Vec::new());
        while let Some(next) = waiting.front() {
            // Nobody waits for it any more.
            let is_given_up = next.answer.is_closed();
            if !is_given_up && !next.work.join(&mut group, works.is_empty()) {
                break;
            }
            let Some(Waiting { work, answer }) = waiting.pop_front() else { break };
            if !is_given_up {
                works.push(work);
                answers.push(answer);
            }
        }
        (works, answers)
    }
}

impl Storage {
    /// Does work together with that of others.
    ///
    /// # Errors
    ///
    /// When the database fails; whether the work was done is not known then.
    pub(crate) async fn gather<W: Gather>(&self, work: W) -> Result<W::Answer, Error> {
        let answered = W::queue(self).push(work);
        // A task of its own: who gives up must not take others with them. As many tasks come as work, and each does some or finds none.
        let storage = self.clone();
        tokio::spawn(async move {
            let _turn = W::queue(&storage).turn.lock().await;
            let (works, answers) = W::queue(&storage).next_group();
            if works.is_empty() {
                return;
            }
            let done = W::perform(&storage, &works).await;
            // What the database refuses fails alone.
            if done.is_err() && works.len() > 1 {
                for (work, answer) in works.iter().zip(answers) {
                    let done = W::perform(&storage, std::slice::from_ref(work)).await;
                    let _ = answer.send(done.map(only));
                }
                return;
            }
            match done {
                Ok(done) => {
                    for (done, answer) in done.into_iter().zip(answers) {
                        let _ = answer.send(Ok(done));
                    }
                }
                Err(error) => {
                    if let Some(answer) = answers.into_iter().next() {
                        let _ = answer.send(Err(error));
                    }
                }
            }
        });
        answered.await.unwrap_or(Err(Error::Closed))
    }
}

fn only<T>(answers: Vec<T>) -> T {
    answers.into_iter().next().expect("an answer for each work")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::TestDatabase;

    /// A number that is doubled; 13 fails.
    pub(crate) struct Doubled(i64);

    impl Gather for Doubled {
        type Answer = i64;
        type Group = usize;

        fn queue(storage: &Storage) -> &Gathered<Self> {
            &storage.0.doubled
        }

        fn join(&self, group: &mut usize, is_first: bool) -> bool {
            *group += 1;
            is_first || *group <= 3
        }

        async fn perform(_storage: &Storage, group: &[Self]) -> Result<Vec<i64>, Error> {
            tokio::task::yield_now().await;
            match group.iter().any(|number| number.0 == 13) {
                true => Err(Error::Damaged("an unlucky number".to_owned())),
                false => Ok(group.iter().map(|number| 2 * number.0).collect()),
            }
        }
    }

    #[tokio::test]
    async fn everybody_gets_their_answer_and_only_what_fails_fails() {
        let database = TestDatabase::each().await.remove(0);
        let storage = database.open().await;
        let tasks: Vec<_> = (0..40)
            .map(|number| {
                let storage = storage.clone();
                tokio::spawn(async move { storage.gather(Doubled(number)).await })
            })
            .collect();
        for (number, task) in tasks.into_iter().enumerate() {
            let answer = task.await.unwrap().ok();
            assert_eq!(answer, (number != 13).then_some(2 * number as i64));
        }
    }

    #[tokio::test]
    async fn a_group_has_what_fits_and_nobody_who_has_given_up() {
        let queue = Gathered::<Doubled>::default();
        let mut answers: Vec<_> = (0..8).map(|number| Some(queue.push(Doubled(number)))).collect();
        (answers[1], answers[7]) = (None, None);
        let groups: Vec<Vec<i64>> =
            (0..3).map(|_| queue.next_group().0.iter().map(|number| number.0).collect()).collect();
        assert_eq!(groups, [vec![0, 2, 3], vec![4, 5, 6], vec![]]);
    }
}
