//! SIGTERM and SIGINT drain, SIGHUP has the configuration read again.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tunnel::metrics::Metrics;

use crate::memory;
use crate::watch::Watch;

/// The signals that the program listens for.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To drain and end.
    End,
    /// To read the configuration again.
    Reload,
}

impl Signals {
    pub(crate) fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
            hang_up: signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?,
        })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for the next signal, or a change of a file, while streams come and go.
    pub(crate) async fn next_while(&mut self, metrics: &Metrics, files: &mut Watch) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hang_up.recv() => Asked::Reload,
            () = files.changed() => Asked::Reload,
            never = memory::trim_after_bursts(metrics) => match never {},
        }
    }

    /// Reads a configuration, which may block: off the workers, and only until the program is told
    /// to end. Then it returns `None`.
    pub(crate) async fn read_unless_ended<T: Send + 'static>(
        &mut self,
        read: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<Option<T>> {
        tokio::select! {
            read = tokio::task::spawn_blocking(read) => {
                read.context("the configuration could not be read")?.map(Some)
            }
            () = self.end() => Ok(None),
        }
    }

    /// Waits for `ends`, or for the next signal to end.
    pub(crate) async fn or_leave_at_once(
        &mut self,
        ends: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        tokio::select! {
            () = ends => Ok(()),
            () = self.end() => anyhow::bail!("left at once, without waiting for streams"),
        }
    }
}
