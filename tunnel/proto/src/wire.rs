//! What frames look like in bytes. The dialect of a link is chosen at its handshake.

pub mod datagram;
pub mod frame;
pub mod handshake;
pub mod native;
mod reason;
pub mod remotedialer;

pub use frame::{Side, StreamId};
pub use reason::Reason;

/// How two ends of a link talk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `watertight.v1`, asked for by WebSocket subprotocol.
    #[default]
    Native,
    /// remotedialer's, which asks for no subprotocol.
    Remotedialer,
}

impl Dialect {
    /// Returns its name: the subprotocol that asks for it, if there is one.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => native::SUBPROTOCOL,
            Self::Remotedialer => "remotedialer",
        }
    }
}

/// Why a message is not of its link's dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It is not `watertight.v1`.
    #[error(transparent)]
    Native(#[from] native::DecodeError),
    /// It is not remotedialer's.
    #[error(transparent)]
    Remotedialer(#[from] remotedialer::DecodeError),
}
