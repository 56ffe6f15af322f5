//! How much may be asked of an agent, whatever links it has.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tunnel_proto::Time;
use tunnel_proto::token_bucket::Bucket;

use crate::io::clock::Clock;
use crate::session::throttle::Throttle;

/// How much may be asked of an agent. All its links count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams that may be opened a second; more are refused. No bound without.
    pub opens_per_second: Option<NonZeroU32>,
    /// Streams that may be opened at once after a pause. Only with `opens_per_second`.
    pub burst: u32,
    /// Payload bytes that its streams may carry a second, both directions together; after a pause as many at once. More wait where
    /// they come from; datagrams of UDP flows wait in their queues. No bound without.
    pub bytes_per_second: Option<NonZeroU64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            opens_per_second: None,
            burst: 100,
            bytes_per_second: None,
        }
    }
}

/// What is left of an agent's limits.
#[derive(Debug)]
pub(crate) struct Quota {
    opens: Option<Mutex<Bucket>>,
    throttle: Option<Arc<Throttle>>,
}

impl Quota {
    fn new(limits: Limits, clock: Clock) -> Self {
        let opens = limits.opens_per_second;
        Self {
            opens: opens.map(|rate| Mutex::new(Bucket::new(rate.into(), limits.burst.into()))),
            throttle: limits
                .bytes_per_second
                .map(|rate| Arc::new(Throttle::new(clock, rate))),
        }
    }

    /// Returns what slows its streams down.
    pub(crate) const fn throttle(&self) -> Option<&Arc<Throttle>> {
        self.throttle.as_ref()
    }

    fn takes_open(&self, now: Time) -> bool {
        let Some(opens) = &self.opens else {
            return true;
        };
        let mut bucket = opens.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.try_take(now, 1)
    }
}

/// The quotas of the agents that are here, each held by its sessions.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    agents: Mutex<HashMap<String, Weak<Quota>>>,
}

impl Quotas {
    /// Returns the quota that a session of an agent shares with its other sessions, and holds as long as
    /// it lives. `limits` is asked when none of them is here.
    pub(crate) fn quota(
        &self,
        agent: &str,
        clock: Clock,
        limits: impl FnOnce() -> Limits,
    ) -> Arc<Quota> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(quota) = agents.get(agent).and_then(Weak::upgrade) {
            return quota;
        }
        agents.retain(|_, quota| quota.strong_count() > 0);
        let quota = Arc::new(Quota::new(limits(), clock));
        agents.insert(agent.to_owned(), Arc::downgrade(&quota));
        quota
    }

    /// Whether one more stream of an agent may be opened now. An agent that is at a peer has its quota
    /// there.
    pub(crate) fn takes_open(&self, agent: &str, now: Time) -> bool {
        let quota = {
            let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
            agents.get(agent).and_then(Weak::upgrade)
        };
        quota.is_none_or(|quota| quota.takes_open(now))
    }
}
