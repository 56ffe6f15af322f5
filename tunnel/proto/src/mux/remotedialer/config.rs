//! Every bound of the core, by name.

use std::time::Duration;

use crate::mux::ConfigError;

/// The bounds and deadlines of one session in remotedialer's dialect.
///
/// Memory of a session: receive buffers hold at most `session_cap + max_streams * pause_floor`
/// bytes and one message, send buffers at most `session_send_buffer` bytes, whatever the peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Streams that are alive at once.
    pub max_streams: usize,
    /// The most data of one message sent, in bytes.
    pub piece_max: usize,
    /// Bytes of one stream that wait for the link.
    pub send_buffer: usize,
    /// Bytes of all streams that wait for the link.
    pub session_send_buffer: usize,
    /// The peer is asked to pause a stream that holds more than this many bytes.
    pub pause_above: usize,
    /// The peer is asked to go on with a stream that holds no more than this many bytes.
    pub resume_below: usize,
    /// While the session holds more than `session_pause`, these take the place of `pause_above`
    /// and, at a quarter, of `resume_below`.
    pub pause_floor: usize,
    /// Bytes held by the session above which streams are paused at `pause_floor`.
    pub session_pause: usize,
    /// A stream that holds more than this many bytes is ended: its peer does not pause, or has far
    /// too much on the way.
    pub stream_cap: usize,
    /// While the session holds more than this many bytes, a stream that gets more and holds more
    /// than `pause_floor` is ended.
    pub session_cap: usize,
    /// Errors that wait for the link and belong to no stream; more are dropped, since the peer's
    /// next message asks again.
    pub answers_max: usize,
    /// Sessions of clients that the peer may announce, at most 100 bytes each; more are not
    /// remembered. 0 for a peer that is no server.
    pub clients_max: usize,
    /// How often the agent sends a ping.
    pub ping_interval: Duration,
    /// How long the answer to a ping may take until streams are rather opened in another session of
    /// the same name.
    pub pong_due: Duration,
    /// How often the agent lists its connections.
    pub sync_interval: Duration,
    /// After this long without a word from the peer the session is over.
    pub silence: Duration,
    /// How long an agent goes on to dial for an opener that has sent bytes and left.
    pub dial_grace: Duration,
    /// How long an agent goes on to deliver for an opener that has left, without the target taking
    /// a byte.
    pub delivery_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_streams: 8192,
            piece_max: 32 * 1024,
            send_buffer: 64 * 1024,
            session_send_buffer: 4 * 1024 * 1024,
            pause_above: 512 * 1024,
            resume_below: 128 * 1024,
            pause_floor: 16 * 1024,
            session_pause: 32 * 1024 * 1024,
            stream_cap: 32 * 1024 * 1024,
            session_cap: 128 * 1024 * 1024,
            answers_max: 1024,
            clients_max: 0,
            ping_interval: Duration::from_secs(5),
            pong_due: Duration::from_secs(1),
            sync_interval: Duration::from_secs(60),
            silence: Duration::from_secs(60),
            dial_grace: Duration::from_millis(500),
            delivery_grace: Duration::from_secs(5),
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
            ("piece_max", self.piece_max),
            ("send_buffer", self.send_buffer),
            ("session_send_buffer", self.session_send_buffer),
            ("pause_above", self.pause_above),
            ("stream_cap", self.stream_cap),
            ("session_cap", self.session_cap),
        ])
    }
}
