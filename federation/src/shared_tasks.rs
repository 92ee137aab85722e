//! Work that goes on when nobody waits for it any more, done once for all who ask for it at the same time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

type Running<V> = Arc<Mutex<HashMap<String, watch::Receiver<Option<V>>>>>;

/// Tasks by what they are about. Cheap to clone; clones share them.
#[derive(Clone)]
pub(crate) struct SharedTasks<V> {
    running: Running<V>,
    tasks_max: usize,
}

/// Takes a task off the list when it ends, however it does.
struct Entry<V> {
    running: Running<V>,
    key: String,
}

impl<V: Clone + Send + Sync + 'static> SharedTasks<V> {
    pub(crate) fn new(tasks_max: usize) -> Self {
        Self { running: Arc::default(), tasks_max }
    }

    /// Waits for the work about `key`, which is started unless it runs already; nothing when too much runs.
    pub(crate) async fn run(&self, key: &str, work: impl Future<Output = V> + Send + 'static) -> Option<V> {
        let mut result = {
            let mut running = lock(&self.running);
            match running.get(key) {
                Some(result) => result.clone(),
                None if running.len() >= self.tasks_max => return None,
                None => {
                    let (sender, result) = watch::channel(None);
                    running.insert(key.to_owned(), result.clone());
                    let entry = Entry { running: self.running.clone(), key: key.to_owned() };
                    tokio::spawn(async move {
                        let value = work.await;
                        // First: who comes from here on finds what the work has left behind.
                        drop(entry);
                        let _ = sender.send(Some(value));
                    });
                    result
                }
            }
        };
        // It fails when the task panics, or the process ends.
        result.wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl<V> Drop for Entry<V> {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.key);
    }
}

fn lock<V>(running: &Running<V>) -> MutexGuard<'_, HashMap<String, watch::Receiver<Option<V>>>> {
    // Nothing panics while it is held.
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn work_is_done_once_and_goes_on_without_who_asked_for_it() {
        let tasks = SharedTasks::new(1);
        let (done, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let work = || {
            let (done, go) = (done.clone(), go.clone());
            async move {
                go.notified().await;
                done.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        let first = tokio::spawn({
            let (tasks, work) = (tasks.clone(), work());
            async move { tasks.run("a", work).await }
        });
        while lock(&tasks.running).is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(tasks.run("b", work()).await, None, "no more than one at a time");
        first.abort();
        assert!(first.await.is_err());
        let second = tokio::spawn({
            let (tasks, work) = (tasks.clone(), work());
            async move { tasks.run("a", work).await }
        });
        go.notify_one();
        assert_eq!(second.await.unwrap(), Some(1));
        assert!(lock(&tasks.running).is_empty());
    }

    #[tokio::test]
    async fn work_that_panics_leaves_its_place() {
        let tasks: SharedTasks<()> = SharedTasks::new(1);
        assert_eq!(tasks.run("a", async { panic!("as the test wants it") }).await, None);
        assert_eq!(tasks.run("a", async {}).await, Some(()));
    }
}
