//! The histograms of the kernel side.

/// What a histogram measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Histogram {
    /// How long sockets lived, from their birth to their release.
    Lifetime = 0,
    /// How long sockets were open after their request was over.
    Outlive,
}

impl Histogram {
    /// How many histograms there are.
    pub const COUNT: u32 = Self::Outlive as u32 + 1;
    /// How many buckets each has. Bucket `n` counts less than `2^n` milliseconds and not less than
    /// half of that, the last one all longer ones too: more than two hours.
    pub const BUCKETS: u32 = 24;
    /// How many slots each has: the buckets, and the sum in nanoseconds.
    pub const SLOTS: u32 = Self::BUCKETS + 1;
}
