//! Limits on the use of an agent. All links of an agent share them.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tunnel_proto::Time;
use tunnel_proto::token_bucket::Bucket;

use crate::io::clock::Clock;
use crate::session::throttle::Throttle;

/// Limits on the use of an agent. All its links count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams that may be opened per second. Further ones are refused. `None` means no limit.
    pub opens_per_second: Option<NonZeroU32>,
    /// Streams that may be opened at once after a pause. It has no effect without
    /// `opens_per_second`.
    pub burst: u32,
    /// Payload bytes that its streams may carry per second, both directions together. After a pause
    /// that many may pass at once. Further bytes wait at their source, datagrams in their queue.
    /// `None` means no limit.
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

/// The state of an agent's limits.
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

    /// Returns the throttle of its streams.
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

/// The quotas of the connected agents. Each is kept alive by its agent's sessions.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    agents: Mutex<HashMap<String, Weak<Quota>>>,
}

impl Quotas {
    /// Returns the quota that all sessions of an agent share. The caller keeps it alive. `limits`
    /// is called if the agent has no other session.
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

    /// Whether the limit allows one more stream now. The quota of an agent at a peer is kept by
    /// that peer.
    pub(crate) fn takes_open(&self, agent: &str, now: Time) -> bool {
        let quota = {
            let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
            agents.get(agent).and_then(Weak::upgrade)
        };
        quota.is_none_or(|quota| quota.takes_open(now))
    }
}
