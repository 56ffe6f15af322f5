//! Credit: how many bytes a peer may send, per stream and within the budget of the session.

use crate::mux::native::Config;

/// What the peer lets us send on one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendWindow {
    credit: u64,
}

impl SendWindow {
    /// The most credit that a peer can pile up, in bytes.
    pub const MAX: u64 = u32::MAX as u64;

    /// Takes what the peer gives. What would exceed [`Self::MAX`] is ignored: less credit than
    /// given is always safe.
    pub fn give(&mut self, credit: u32) {
        self.credit = self.credit.saturating_add(u64::from(credit)).min(Self::MAX);
    }

    /// Returns the credit left in bytes.
    #[must_use]
    pub fn left(&self) -> usize {
        usize::try_from(self.credit).unwrap_or(usize::MAX)
    }

    /// Uses up at most `length` bytes of credit and returns how many.
    pub fn consume(&mut self, length: usize) -> usize {
        let spent = length.min(self.left());
        self.credit = self.credit.saturating_sub(spent as u64);
        spent
    }
}

/// The session's budget for receive windows, in bytes. Every stream has its floor outside of it, so
/// an exhausted budget slows streams down and never stops one: a slow reader cannot hold up the
/// others.
///
/// A half of it is for the windows that streams begin with, which idle ones keep, and a half for
/// those that grow with the bytes that move. So idle streams do not keep the window of a busy one
/// small. No window takes more than a part of what is left, so the next one finds some, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    limit: u64,
    opening: u64,
    growth: u64,
}

/// The part of the budget for growth that is left which one step of growth may take.
const STEP_SHARE: u64 = 4;

impl Budget {
    /// Creates a budget of `limit` bytes.
    #[must_use]
    pub const fn new(limit: u64) -> Self {
        Self {
            limit,
            opening: 0,
            growth: 0,
        }
    }

    /// Takes `amount` bytes for a window that opens, if they are there.
    pub fn reserve(&mut self, amount: u32) -> bool {
        let opening = self.opening.saturating_add(u64::from(amount));
        let fits = opening <= self.limit / 2;
        if fits {
            self.opening = opening;
        }
        fits
    }

    /// Takes up to `wanted` bytes for a window that grows, and returns how many.
    pub fn grow(&mut self, wanted: u32) -> u32 {
        let left = (self.limit - self.limit / 2).saturating_sub(self.growth);
        let share = u32::try_from(left / STEP_SHARE).unwrap_or(u32::MAX);
        let granted = wanted.min(share);
        self.growth += u64::from(granted);
        granted
    }

    /// Puts back what a window took when it opened, and when it grew.
    pub fn release(&mut self, opening: u32, growth: u32) {
        self.opening = self.opening.saturating_sub(u64::from(opening));
        self.growth = self.growth.saturating_sub(u64::from(growth));
    }

    /// Returns the bytes in use.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.opening + self.growth
    }
}

/// What we let the peer send on one stream.
///
/// Always: `outstanding` (credit the peer holds) + `held` (buffered here) + `due` (consumed, not
/// yet given back) = `size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveWindow {
    size: u32,
    reserved: u32,
    grown: u32,
    outstanding: u32,
    held: u32,
    due: u32,
    since_growth: u32,
}

/// The peer sent more than its credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrun;

impl ReceiveWindow {
    /// Opens a window: the configured initial size, halved until the budget has it, and never under
    /// the floor.
    #[must_use]
    pub fn open(config: &Config, budget: &mut Budget) -> Self {
        let floor = config.window_floor.min(config.window_initial);
        let mut size = config.window_initial;
        let mut reserved = 0;
        while size > floor {
            if budget.reserve(size - floor) {
                reserved = size - floor;
                break;
            }
            size = (size / 2).max(floor);
        }
        Self {
            size,
            reserved,
            grown: 0,
            outstanding: size,
            held: 0,
            due: 0,
            since_growth: 0,
        }
    }

    /// Returns the window's size in bytes.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Takes note of `length` bytes that arrived.
    ///
    /// # Errors
    ///
    /// [`Overrun`] when the peer did not have the credit.
    pub fn recv(&mut self, length: usize) -> Result<(), Overrun> {
        let length = u32::try_from(length).map_err(|_| Overrun)?;
        self.outstanding = self.outstanding.checked_sub(length).ok_or(Overrun)?;
        self.held = self.held.saturating_add(length);
        Ok(())
    }

    /// Takes note of `length` bytes that reached the socket; they become due. A stream that used
    /// its whole window gets twice as much, or as much more as the budget has.
    pub fn consume(&mut self, length: usize, config: &Config, budget: &mut Budget) {
        let length = u32::try_from(length).unwrap_or(u32::MAX).min(self.held);
        self.held -= length;
        self.due = self.due.saturating_add(length);
        self.since_growth = self.since_growth.saturating_add(length);
        if self.since_growth < self.size {
            return;
        }
        self.since_growth = 0;
        let more = self.size.min(config.window_max.saturating_sub(self.size));
        let more = budget.grow(more);
        self.size += more;
        self.grown += more;
        self.due = self.due.saturating_add(more);
    }

    /// Whether half a window is due, so that it is worth a frame.
    #[must_use]
    pub const fn is_due(&self) -> bool {
        self.due > 0 && self.due >= self.size / 2
    }

    /// Gives the due credit back to the peer and returns it in bytes.
    pub fn take_credit(&mut self) -> u32 {
        let credit = std::mem::take(&mut self.due);
        self.outstanding = self.outstanding.saturating_add(credit);
        credit
    }

    /// Returns the bytes that are buffered here.
    #[must_use]
    pub const fn held(&self) -> u32 {
        self.held
    }

    /// Puts what the window reserved back into the budget. Harmless when repeated.
    pub fn release(&mut self, budget: &mut Budget) {
        let opening = std::mem::take(&mut self.reserved);
        budget.release(opening, std::mem::take(&mut self.grown));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            window_floor: 10,
            window_initial: 80,
            window_max: 200,
            ..Config::default()
        }
    }

    #[test]
    fn an_empty_budget_leaves_the_floor() {
        let config = config();
        let mut budget = Budget::new(200);
        let sizes: Vec<u32> = (0..4)
            .map(|_| ReceiveWindow::open(&config, &mut budget).size())
            .collect();
        assert_eq!(sizes, [80, 40, 10, 10]);
        assert!(budget.used() <= 100);
    }

    /// Streams that use their whole windows grow behind any number of idle ones.
    #[test]
    fn idle_streams_do_not_keep_the_windows_of_busy_ones_small() {
        let config = Config::default();
        let mut budget = Budget::new(config.session_window);
        let open = |budget: &mut Budget| ReceiveWindow::open(&config, budget);
        let mut idle: Vec<_> = (0..280).map(|_| open(&mut budget)).collect();
        for _ in 0..20 {
            let mut busy = open(&mut budget);
            assert!(busy.size() >= config.window_floor);
            for _ in 0..8 {
                let length = usize::try_from(busy.size()).unwrap();
                busy.recv(length).unwrap();
                busy.consume(length, &config, &mut budget);
                busy.take_credit();
            }
            assert!(busy.size() >= config.window_initial, "{}", busy.size());
            // It stays, as large as it is.
            idle.push(busy);
        }
        assert!(budget.used() <= config.session_window);
        for window in &mut idle {
            window.release(&mut budget);
        }
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_window_grows_only_when_used_and_gives_everything_back() {
        let config = config();
        let mut budget = Budget::new(1000);
        let mut window = ReceiveWindow::open(&config, &mut budget);
        window.recv(80).unwrap();
        assert_eq!(window.recv(1), Err(Overrun));
        window.consume(79, &config, &mut budget);
        assert_eq!(window.size(), 80);
        window.consume(1, &config, &mut budget);
        assert_eq!(window.size(), 160);
        assert_eq!(window.take_credit(), 160);
        window.recv(160).unwrap();
        window.consume(160, &config, &mut budget);
        assert_eq!(window.size(), 200, "capped");
        assert_eq!(budget.used(), 190);
        window.release(&mut budget);
        window.release(&mut budget);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn send_credit_saturates() {
        let mut window = SendWindow::default();
        window.give(u32::MAX);
        window.give(u32::MAX);
        assert_eq!(window.left() as u64, SendWindow::MAX);
        assert_eq!(window.consume(7), 7);
        assert_eq!(window.consume(usize::MAX) as u64, SendWindow::MAX - 7);
        assert_eq!(window.consume(1), 0);
    }
}
