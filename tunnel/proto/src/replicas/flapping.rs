//! A name whose agents come and go.

use std::collections::VecDeque;
use std::time::Duration;

use crate::Time;

/// A session that ends sooner than this is a short one.
const SHORT: Duration = Duration::from_secs(30);

/// So many short sessions that end within [`WINDOW`] are flapping.
const SHORT_MAX: usize = 4;

/// See [`SHORT_MAX`]. A pod that crashes is started again after 10 s, 20 s and 40 s.
const WINDOW: Duration = Duration::from_secs(120);

/// How long no warning follows a warning.
const WARNING_INTERVAL: Duration = Duration::from_secs(600);

/// The short sessions of one name.
#[derive(Debug, Default)]
pub struct Flapping {
    /// When the last ones ended, the oldest first: at most [`SHORT_MAX`].
    ends: VecDeque<Time>,
    warned: Option<Time>,
}

/// What the end of a session shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flap {
    /// Nothing.
    No,
    /// The name flaps, and was warned of.
    Known,
    /// The name flaps, which is worth a warning.
    Warn,
}

impl Flapping {
    /// Takes note that a session has ended after it had lived for `age`.
    pub fn ended(&mut self, now: Time, age: Duration) -> Flap {
        self.forget(now);
        if age >= SHORT {
            return Flap::No;
        }
        if self.ends.len() == SHORT_MAX {
            self.ends.pop_front();
        }
        self.ends.push_back(now);
        if self.ends.len() < SHORT_MAX {
            return Flap::No;
        }
        if self.warned.is_some() {
            return Flap::Known;
        }
        self.warned = Some(now);
        Flap::Warn
    }

    /// Whether nothing has to be remembered any longer.
    pub fn is_over(&mut self, now: Time) -> bool {
        self.forget(now);
        self.ends.is_empty() && self.warned.is_none()
    }

    fn forget(&mut self, now: Time) {
        let is_old = |then: &Time, limit| now.saturating_sub(*then) > limit;
        while self.ends.front().is_some_and(|end| is_old(end, WINDOW)) {
            self.ends.pop_front();
        }
        self.warned
            .take_if(|warned| is_old(warned, WARNING_INTERVAL));
    }
}
