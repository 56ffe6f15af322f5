//! What drives an audit while it runs: a timer, the ring, scrapes, and the signals that end it.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};

use crate::audit::Audit;
use crate::metrics::{Endpoint, Scrape};

/// How often the ring is drained. It is also drained when it is half full.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The signals that end an audit: all those that would end this process and leave the command
/// running untraced. From its creation on, none of them is missed.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    user: [Signal; 2],
}

impl Signals {
    /// Starts to catch the signals.
    ///
    /// # Errors
    ///
    /// When the runtime cannot catch signals.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            user: [
                signal(SignalKind::user_defined1())?,
                signal(SignalKind::user_defined2())?,
            ],
        })
    }

    /// Whether a signal has been received.
    pub async fn any_received(&mut self) -> bool {
        // The runtime notices a signal when it polls its driver.
        timeout(Duration::from_millis(1), self.recv()).await.is_ok()
    }

    /// Waits for the next signal.
    pub(crate) async fn recv(&mut self) {
        let [first, second] = &mut self.user;
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
            _ = self.quit.recv() => {}
            _ = first.recv() => {}
            _ = second.recv() => {}
        }
    }
}

/// Polls the audit on a timer and when the ring is half full, and answers scrapes.
pub(crate) struct EventLoop<'a> {
    timer: Interval,
    ring: AsyncFd<OwnedFd>,
    endpoint: Option<&'a mut Endpoint>,
}

impl<'a> EventLoop<'a> {
    /// Starts to wait for the ring of `audit`.
    pub(crate) fn new(audit: &Audit, endpoint: Option<&'a mut Endpoint>) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "an OwnedFd upholds what the unsafe replacement asks for"
        )]
        let ring = AsyncFd::new(audit.ring().try_clone_to_owned()?)?;
        let mut timer = interval(POLL_INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            timer,
            ring,
            endpoint,
        })
    }

    /// Drives `audit`, for ever.
    pub(crate) async fn run(&mut self, audit: &mut Audit) -> Infallible {
        loop {
            self.turn(audit).await;
        }
    }

    /// Waits for the timer, the ring or a scrape, and lets `audit` do what is due.
    pub(crate) async fn turn(&mut self, audit: &mut Audit) {
        tokio::select! {
            _ = self.timer.tick() => {}
            Ok(mut ready) = self.ring.readable() => ready.clear_ready(),
            Some(scrape) = next_scrape(self.endpoint.as_deref_mut()) => scrape.respond(audit),
        }
        while audit.poll() {
            tokio::task::yield_now().await;
        }
    }
}

/// Waits for the next scrape; for ever without an endpoint.
pub(crate) async fn next_scrape(endpoint: Option<&mut Endpoint>) -> Option<Scrape> {
    match endpoint {
        Some(endpoint) => endpoint.next_scrape().await,
        None => std::future::pending().await,
    }
}

/// Sleeps until the deadline; for ever without one.
pub(crate) async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
