//! Who owns a task. No task exists outside of a scope, and ending a scope is explicit and awaited.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How a scope came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every task returned by itself.
    Joined,
    /// At least one task had to be dropped when the deadline passed.
    Aborted,
}

/// A set of tasks with one owner.
///
/// [`Scope::end`] asks them to stop, joins them, and drops those that have not returned at the deadline. Dropping a scope
/// without that drops its tasks too, but nobody waits for it: it is the safety net and not the mechanism.
#[derive(Debug, Default)]
pub struct Scope {
    handle: Handle,
}

/// Spawns tasks into a scope without owning it.
#[derive(Clone, Debug, Default)]
pub struct Handle {
    tasks: TaskTracker,
    cancel: CancellationToken,
    abort: CancellationToken,
}

impl Scope {
    /// Creates a scope without tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a handle to spawn with.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Spawns a task that this scope owns.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(task);
    }

    /// Spawns a task that is dropped as soon as the scope is asked to stop.
    pub fn spawn_interruptible(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn_interruptible(task);
    }

    /// Returns the token that tells tasks to stop.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        self.handle.cancelled()
    }

    /// Returns the number of tasks that have not returned.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.handle.tasks()
    }

    /// Waits until no task is left, without asking any to stop; no task can be spawned afterwards.
    pub async fn join(&self) {
        self.handle.tasks.close();
        self.handle.tasks.wait().await;
    }

    /// Asks all tasks to stop, joins them until `deadline` has passed, and drops the rest.
    pub async fn end(&self, deadline: Duration) -> Ended {
        self.handle.cancel.cancel();
        if tokio::time::timeout(deadline, self.join()).await.is_ok() {
            return Ended::Joined;
        }
        self.handle.abort.cancel();
        self.join().await;
        Ended::Aborted
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.handle.cancel.cancel();
        self.handle.abort.cancel();
        self.handle.tasks.close();
    }
}

impl Handle {
    /// Spawns a task that the scope owns. A scope that was asked to stop drops the task at once.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_boxed(Box::pin(task));
    }

    /// Boxed, because a future that wraps another has room for it several times over.
    fn spawn_boxed(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        if self.cancel.is_cancelled() {
            return;
        }
        let abort = self.abort.clone();
        #[expect(clippy::let_underscore_future, reason = "the scope joins the task")]
        let _ = self.tasks.spawn(async move {
            abort.run_until_cancelled_owned(task).await;
        });
    }

    /// Returns the number of tasks that have not returned.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Spawns a task that is dropped as soon as the scope is asked to stop.
    pub fn spawn_interruptible(&self, task: impl Future<Output = ()> + Send + 'static) {
        let (cancel, task) = (self.cancel.clone(), Box::pin(task));
        self.spawn_boxed(Box::pin(async move {
            cancel.run_until_cancelled_owned(task).await;
        }));
    }

    /// Returns the token that tells tasks to stop.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }
}

/// What hyper spawns is the scope's, too: it is dropped as soon as the scope is asked to stop.
impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Handle {
    fn execute(&self, task: F) {
        self.spawn_interruptible(task);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_listens_is_joined() {
        let scope = Scope::new();
        let cancelled = scope.cancelled().clone();
        scope.spawn(async move { cancelled.cancelled().await });
        assert_eq!(scope.end(Duration::from_secs(1)).await, Ended::Joined);
        assert_eq!(scope.tasks(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_listen_is_dropped_at_the_deadline() {
        struct Flag(Arc<AtomicBool>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let dropped = Arc::new(AtomicBool::new(false));
        let flag = Flag(Arc::clone(&dropped));
        let scope = Scope::new();
        scope.spawn(async move {
            let _flag = flag;
            std::future::pending::<()>().await;
        });
        assert_eq!(scope.end(Duration::from_secs(1)).await, Ended::Aborted);
        assert!(dropped.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn an_ended_scope_takes_no_task() {
        let scope = Scope::new();
        scope.end(Duration::ZERO).await;
        scope.spawn(async { panic!("must not run") });
        scope.join().await;
    }
}
