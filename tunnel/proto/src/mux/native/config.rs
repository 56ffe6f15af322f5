//! Every bound of the core, by name.

use std::time::Duration;

use crate::mux::ConfigError;

/// The bounds and deadlines of one session.
///
/// Memory of a session: receive buffers hold at most `session_window + max_streams * window_floor`
/// bytes and send buffers at most `session_send_buffer` bytes, whatever the peer does; frames that
/// wait to be sent are flags of streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Streams that are alive at once, in both directions together.
    pub max_streams: usize,
    /// The longest data frame sent while other streams have something to send, in bytes. One that
    /// fills a batch is copied least: its reader keeps it by reference.
    pub frame_max: usize,
    /// Bytes of one stream that wait for the link.
    pub send_buffer: usize,
    /// Bytes of all streams that wait for the link.
    pub session_send_buffer: usize,
    /// The credit that every stream has even when the session's budget is used up, in bytes.
    pub window_floor: u32,
    /// The credit that a stream starts with when the budget has it, in bytes.
    pub window_initial: u32,
    /// The credit that a busy stream grows to when the budget has it, in bytes.
    pub window_max: u32,
    /// The budget for all credit above the floors, in bytes. A half of it is for the credit that
    /// streams start with, a half for that which they grow by.
    pub session_window: u64,
    /// Refusals of the peer's opens that wait for the link; more of them end the session.
    pub refusals_max: usize,
    /// How long an open may go unanswered.
    pub open_timeout: Duration,
    /// How long a stream that its user finished and let go of may take to end.
    pub linger_timeout: Duration,
    /// After this long without a frame from the peer a ping is sent.
    pub ping_interval: Duration,
    /// How long the answer to a ping may take until streams are rather opened in another session of
    /// the same name.
    pub pong_due: Duration,
    /// After this long without a frame from the peer the session is over.
    pub silence: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_streams: 8192,
            frame_max: 64 * 1024 - 128,
            send_buffer: 256 * 1024,
            session_send_buffer: 4 * 1024 * 1024,
            window_floor: 16 * 1024,
            window_initial: 256 * 1024,
            window_max: 1024 * 1024,
            session_window: 64 * 1024 * 1024,
            refusals_max: 1024,
            open_timeout: Duration::from_secs(15),
            linger_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(10),
            pong_due: Duration::from_secs(1),
            silence: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// Checks that streams can move.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the bound that is zero.
    pub const fn check(&self) -> Result<(), ConfigError> {
        ConfigError::if_zero(&[
            ("max_streams", self.max_streams),
            ("frame_max", self.frame_max),
            ("send_buffer", self.send_buffer),
            ("session_send_buffer", self.session_send_buffer),
            ("window_initial", self.window_initial as usize),
            ("window_max", self.window_max as usize),
        ])
    }
}
