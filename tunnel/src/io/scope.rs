//! Scopes own tasks. Every task belongs to a scope, and ending a scope is explicit and awaited.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How a scope ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every task returned by itself.
    Joined,
    /// At least one task was aborted at the deadline.
    Aborted,
}

/// A set of tasks with one owner. [`Scope::end`] cancels them, joins them, and aborts those that
/// have not ended by the deadline. Dropping a scope aborts its tasks without waiting for them. That
/// is a safety net.
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

    /// Spawns a task that is aborted as soon as the scope is cancelled.
    pub fn spawn_interruptible(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn_interruptible(task);
    }

    /// Returns the token that is cancelled when tasks should stop.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        self.handle.cancelled()
    }

    /// Returns the number of tasks that have not returned.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.handle.tasks()
    }

    /// Waits until no task is left, without asking any to stop. Tasks may spawn others until then;
    /// once this returns no task can be spawned any more.
    pub async fn join(&self) {
        self.handle.tasks.close();
        self.handle.tasks.wait().await;
        self.handle.cancel.cancel();
        // A task that was spawned just before.
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
    /// Spawns a task that the scope owns. A scope that was asked to stop, or that was joined, drops
    /// the task at once.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_boxed(Box::pin(task));
    }

    /// The task is boxed, because each future that wraps another one would hold it by value.
    fn spawn_boxed(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        // Counted before the scope is looked at: a scope that is asked to stop in between waits for
        // the task.
        let _counted = self.tasks.token();
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

    /// Spawns a task that is aborted as soon as the scope is cancelled.
    pub fn spawn_interruptible(&self, task: impl Future<Output = ()> + Send + 'static) {
        let (cancel, task) = (self.cancel.clone(), Box::pin(task));
        self.spawn_boxed(Box::pin(async move {
            cancel.run_until_cancelled_owned(task).await;
        }));
    }

    /// Returns the token that is cancelled when tasks should stop.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }
}

/// The scope owns hyper's tasks as well. They are aborted as soon as the scope is cancelled.
impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Handle {
    fn execute(&self, task: F) {
        self.spawn_interruptible(task);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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

    #[tokio::test]
    async fn a_joined_scope_waits_for_the_tasks_of_its_tasks_and_takes_no_more() {
        let (scope, done) = (Scope::new(), Arc::new(AtomicBool::new(false)));
        let (handle, flag) = (scope.handle(), Arc::clone(&done));
        scope.spawn(async move {
            tokio::task::yield_now().await;
            handle.spawn(async move {
                tokio::task::yield_now().await;
                flag.store(true, Ordering::SeqCst);
            });
        });
        scope.join().await;
        assert!(done.load(Ordering::SeqCst));
        scope.spawn(async { panic!("must not run") });
        assert_eq!(scope.tasks(), 0);
        tokio::task::yield_now().await;
    }

    /// On many threads: whatever was spawned when `end` returns has ended.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_task_slips_in_while_a_scope_ends() {
        struct Running(Arc<AtomicUsize>);
        impl Drop for Running {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        for _ in 0..200 {
            let (scope, running) = (Scope::new(), Arc::new(AtomicUsize::new(0)));
            let (handle, count) = (scope.handle(), Arc::clone(&running));
            let other = Scope::new();
            other.spawn(async move {
                for _ in 0..100 {
                    count.fetch_add(1, Ordering::SeqCst);
                    let task = Running(Arc::clone(&count));
                    handle.spawn(async move {
                        let _task = task;
                        tokio::task::yield_now().await;
                    });
                }
            });
            scope.end(Duration::from_secs(5)).await;
            other.join().await;
            assert_eq!(running.load(Ordering::SeqCst), 0);
        }
    }
}
