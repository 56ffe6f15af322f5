//! The core alone: state tables, bounds that are reached, and two cores in a pair on virtual time.

mod bounds;
mod model;
mod pair;
mod session;
mod states;

use std::time::Duration;

use crate::mux::native::*;
use crate::mux::{Event, Mux as _, ReadError, SessionError, Streams as _, WriteError};
use crate::wire::frame::{Frame, TARGET_MAX};

fn id(number: u64) -> StreamId {
    StreamId::new(number).unwrap()
}

fn bytes(length: usize) -> Bytes {
    Bytes::from(vec![7; length])
}

const T0: Time = Duration::ZERO;

fn server(config: Config) -> Mux {
    Mux::new(Side::Server, config, T0)
}

fn agent(config: Config) -> Mux {
    Mux::new(Side::Agent, config, T0)
}

/// Takes all frames that a core has to send.
fn sent(mux: &mut Mux) -> Vec<Frame> {
    std::iter::from_fn(|| mux.poll_transmit(mux.config.frame_max)).collect()
}

/// Takes all events.
fn events(mux: &mut Mux) -> Vec<Event> {
    std::iter::from_fn(|| mux.poll_event()).collect()
}

/// An agent with an open stream 1 that gave the given credit.
fn open_agent(config: Config, credit: u32) -> Mux {
    let mut mux = agent(config);
    mux.handle_frame(
        T0,
        Frame::Open {
            stream: id(1),
            window: credit,
            target: Bytes::from_static(b"tcp/a:1"),
        },
    )
    .unwrap();
    mux.accept(T0, id(1)).unwrap();
    sent(&mut mux);
    events(&mut mux);
    mux
}
