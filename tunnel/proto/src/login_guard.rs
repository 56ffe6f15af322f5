//! How many wrong secrets an address may try: slower and slower answers, then none for a while.
//! Time is an argument.
//!
//! Many users may share one address. Right secrets cost nothing, and while an address is blocked,
//! names that are known go on to have a few tries each.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::Time;

/// The limits of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Wrong secrets that are answered at once. Each further one is answered later than the one
    /// before.
    pub prompt: u32,
    /// Wrong secrets at which the address is blocked.
    pub most: u32,
    /// How long it takes until one wrong secret is forgotten.
    pub forget: Duration,
    /// How long an address is blocked.
    pub block: Duration,
    /// Wrong secrets for one known name from an address that is blocked.
    pub reserve: u32,
    /// Addresses that are remembered at once, and as many names.
    pub entries_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            prompt: 10,
            most: 100,
            forget: Duration::from_secs(6),
            block: Duration::from_secs(60),
            reserve: 5,
            entries_max: 16_384,
        }
    }
}

/// The unit and the bound of the delay of answers.
const DELAY: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(1);

/// Where attempts come from: an IPv4 address, an IPv6 network of 64 bits, or this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A process of this machine, by a Unix socket.
    Local,
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// The first 64 bits of an IPv6 address: whoever has one has the whole network.
    V6(u64),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6(network(address)),
        }
    }
}

fn network(address: Ipv6Addr) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = address.octets();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// Whether an attempt's secret is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is, on the account of the address.
    Open,
    /// The address is blocked. It is looked at on the account of the name.
    Reserved,
    /// It is not. The address is blocked for so long.
    Refused(Duration),
}

/// What follows from a wrong secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// How long the answer is held back.
    pub delay: Duration,
    /// Whether the address is blocked from now on.
    pub blocks: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// When all wrong secrets will be forgotten.
    clear_at: Time,
    blocked_until: Time,
}

/// The wrong secrets of all addresses.
#[derive(Debug)]
pub struct Guard {
    limits: Limits,
    addresses: HashMap<Source, Account>,
    /// When the wrong secrets for a name from an address will be forgotten. A name stays after
    /// that, because it is known there.
    names: HashMap<(Source, Box<str>), Time>,
}

impl Guard {
    /// Starts with nothing remembered.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            addresses: HashMap::new(),
            names: HashMap::new(),
        }
    }

    /// Begins an attempt, and counts it as a wrong one until [`Self::right`] or
    /// [`Self::undecided`] is called. `exists` says whether the name is one that can log in at all.
    pub fn begin(&mut self, now: Time, source: Source, name: &str, exists: bool) -> Admission {
        let account = self.addresses.get(&source).copied().unwrap_or_default();
        if now < account.blocked_until {
            return if self.reserve(now, source, name, exists) {
                Admission::Reserved
            } else {
                Admission::Refused(account.blocked_until.saturating_sub(now))
            };
        }
        let clear_at = account.clear_at.max(now) + self.limits.forget;
        let account = Account {
            clear_at,
            ..account
        };
        let max = self.limits.entries_max;
        insert(&mut self.addresses, max, source, account, |account| {
            account.clear_at.max(account.blocked_until)
        });
        Admission::Open
    }

    fn reserve(&mut self, now: Time, source: Source, name: &str, exists: bool) -> bool {
        let key = (source, Box::from(name));
        let clear_at = self.names.get(&key).copied();
        if clear_at.is_none() && !exists {
            return false;
        }
        let clear_at = clear_at.unwrap_or_default().max(now) + self.limits.forget;
        let has_room = self.count(now, clear_at) <= self.limits.reserve;
        if has_room {
            insert(
                &mut self.names,
                self.limits.entries_max,
                key,
                clear_at,
                |at| *at,
            );
        }
        has_room
    }

    /// Ends an attempt whose secret is right. The name is known at the address from now on.
    pub fn right(&mut self, now: Time, source: Source, name: &str, admission: Admission) {
        self.undecided(now, source, name, admission);
        let key = (source, Box::from(name));
        let clear_at = self.names.get(&key).copied().unwrap_or_default().max(now);
        let max = self.limits.entries_max;
        insert(&mut self.names, max, key, clear_at, |at| *at);
    }

    /// Ends an attempt that turned out to be none: it does not count.
    pub fn undecided(&mut self, now: Time, source: Source, name: &str, admission: Admission) {
        match admission {
            Admission::Open => {
                if let Some(account) = self.addresses.get_mut(&source) {
                    account.clear_at = account.clear_at.saturating_sub(self.limits.forget);
                    if account.clear_at <= now && account.blocked_until <= now {
                        self.addresses.remove(&source);
                    }
                }
            }
            Admission::Reserved => {
                if let Some(clear_at) = self.names.get_mut(&(source, Box::from(name))) {
                    *clear_at = clear_at.saturating_sub(self.limits.forget);
                }
            }
            Admission::Refused(_) => {}
        }
    }

    /// Ends an attempt whose secret is wrong.
    pub fn wrong(&mut self, now: Time, source: Source, admission: Admission) -> Wrong {
        let account = self.addresses.get(&source).copied().unwrap_or_default();
        let count = self.count(now, account.clear_at);
        let blocks = admission == Admission::Open
            && count >= self.limits.most
            && account.blocked_until <= now;
        if blocks && let Some(account) = self.addresses.get_mut(&source) {
            account.blocked_until = now + self.limits.block;
        }
        let delay = DELAY * count.saturating_sub(self.limits.prompt);
        Wrong {
            delay: delay.min(DELAY_MAX),
            blocks,
        }
    }

    /// Returns how many wrong secrets are not forgotten yet.
    fn count(&self, now: Time, clear_at: Time) -> u32 {
        let left = clear_at.saturating_sub(now).as_nanos();
        let count = left.div_ceil(self.limits.forget.as_nanos().max(1));
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// Inserts an entry. When there is no room, the eighth of the entries with the lowest rank goes.
fn insert<K: Clone + Eq + Hash, V>(
    entries: &mut HashMap<K, V>,
    max: usize,
    key: K,
    value: V,
    rank: impl Fn(&V) -> Time,
) {
    if entries.len() >= max && !entries.contains_key(&key) {
        let mut ranks: Vec<Time> = entries.values().map(&rank).collect();
        let at = (ranks.len() / 8).min(ranks.len().saturating_sub(1));
        let (_, lowest, _) = ranks.select_nth_unstable(at);
        let (lowest, mut left) = (*lowest, at + 1);
        entries.retain(|_, value| {
            let goes = left > 0 && rank(value) <= lowest;
            left -= usize::from(goes);
            !goes
        });
    }
    entries.insert(key, value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: Source = Source::Local;
    const SECOND: Duration = Duration::from_secs(1);

    /// Presents wrong secrets, and returns how many were looked at and the longest delay.
    fn guess(guard: &mut Guard, now: Time, source: Source, count: u32) -> (u32, Duration) {
        let (mut looked_at, mut longest) = (0, Duration::ZERO);
        for number in 0..count {
            let name = number.to_string();
            let admission = guard.begin(now, source, &name, false);
            if !matches!(admission, Admission::Refused(_)) {
                looked_at += 1;
                longest = longest.max(guard.wrong(now, source, admission).delay);
            }
        }
        (looked_at, longest)
    }

    fn log_in(guard: &mut Guard, now: Time, source: Source, name: &str, exists: bool) -> bool {
        let admission = guard.begin(now, source, name, exists);
        let looked_at = !matches!(admission, Admission::Refused(_));
        if looked_at {
            guard.right(now, source, name, admission);
        }
        looked_at
    }

    #[test]
    fn wrong_secrets_are_slowed_down_and_then_refused_for_a_while() {
        let mut guard = Guard::new(Limits::default());
        let start = 100 * SECOND;
        assert_eq!(guess(&mut guard, start, HERE, 10), (10, Duration::ZERO));
        assert_eq!(guess(&mut guard, start, HERE, 5), (5, 5 * DELAY));
        assert_eq!(guess(&mut guard, start, HERE, 1000), (85, DELAY_MAX));
        let refused = guard.begin(start + SECOND, HERE, "anna", false);
        assert_eq!(refused, Admission::Refused(59 * SECOND));
        // Another address is not the worse for it.
        let other = Source::from(IpAddr::from([10, 0, 0, 1]));
        assert_eq!(guess(&mut guard, start, other, 1).0, 1);
        // After the block only what was forgotten meanwhile is to be had.
        assert_eq!(guess(&mut guard, start + 60 * SECOND, HERE, 1000).0, 10);
        assert_eq!(guess(&mut guard, start + 3600 * SECOND, HERE, 1000).0, 100);
    }

    #[test]
    fn right_secrets_cost_nothing_and_forgive_nothing() {
        let rounds = if cfg!(miri) { 600 } else { 10_000 };
        let mut guard = Guard::new(Limits::default());
        for at in 0..rounds {
            let name = format!("user-{}", at % 500);
            assert!(log_in(&mut guard, SECOND, HERE, &name, true));
        }
        assert!(guard.addresses.is_empty());
        assert_eq!(guess(&mut guard, SECOND, HERE, 99).0, 99);
        assert!(log_in(&mut guard, SECOND, HERE, "user-1", true));
        assert_eq!(guess(&mut guard, SECOND, HERE, 99).0, 1);
    }

    #[test]
    fn known_names_get_in_from_an_address_that_is_blocked() {
        let mut guard = Guard::new(Limits::default());
        assert!(log_in(&mut guard, SECOND, HERE, "regular", false));
        guess(&mut guard, SECOND, HERE, 1000);
        for _ in 0..100 {
            assert!(log_in(&mut guard, SECOND, HERE, "regular", false));
            assert!(log_in(&mut guard, SECOND, HERE, "new", true));
            assert!(!log_in(&mut guard, SECOND, HERE, "nobody", false));
        }
        // Guesses at one of them have a bound of their own.
        let mut tries = 0;
        for _ in 0..100 {
            let admission = guard.begin(SECOND, HERE, "new", true);
            if admission == Admission::Reserved {
                guard.wrong(SECOND, HERE, admission);
                tries += 1;
            }
        }
        assert_eq!(tries, 5);
        assert!(log_in(&mut guard, SECOND, HERE, "regular", false));
    }

    #[test]
    fn an_attempt_that_is_none_does_not_count() {
        let mut guard = Guard::new(Limits::default());
        for _ in 0..1000 {
            let admission = guard.begin(SECOND, HERE, "a", false);
            assert_eq!(admission, Admission::Open);
            guard.undecided(SECOND, HERE, "a", admission);
        }
        assert!(guard.addresses.is_empty() && guard.names.is_empty());
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:2"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
    }

    /// Few under miri, which takes long for each.
    const SOURCES_MAX: usize = if cfg!(miri) { 150 } else { 2000 };

    proptest! {
        /// Whatever comes from wherever, memory is bounded, and the worst address stays blocked.
        #[test]
        fn memory_is_bounded(sources in proptest::collection::vec(0_u64..1000, 1..SOURCES_MAX)) {
            let limits = Limits { entries_max: 64, ..Limits::default() };
            let mut guard = Guard::new(limits);
            guess(&mut guard, SECOND, HERE, 1000);
            for (at, source) in sources.into_iter().enumerate() {
                let source = Source::V6(source);
                if at % 3 == 0 {
                    log_in(&mut guard, SECOND, source, "a", true);
                } else {
                    guess(&mut guard, SECOND, source, 1);
                }
                prop_assert!(guard.addresses.len() <= 64 && guard.names.len() <= 64);
            }
            prop_assert_eq!(guess(&mut guard, SECOND, HERE, 10).0, 0);
        }
    }
}
