//! Every frame in every state of a stream.

use crate::mux::native::tests::*;

/// The states of stream 1 as an agent has it, before a frame arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Unknown,
    Opening,
    Open,
    PeerFinished,
    WeFinished,
    BothFinished,
    Ended,
    Gone,
}

fn mux_in(before: Before) -> Mux {
    let config = Config::default();
    if before == Before::Unknown {
        return agent(config);
    }
    if before == Before::Opening {
        let mut mux = agent(config);
        let target = Bytes::from_static(b"tcp/a:1");
        let window = 100;
        mux.handle_frame(
            T0,
            Frame::Open {
                stream: id(1),
                window,
                target,
            },
        )
        .unwrap();
        events(&mut mux);
        return mux;
    }
    let mut mux = open_agent(config, 100);
    if matches!(before, Before::PeerFinished | Before::BothFinished) {
        mux.handle_frame(T0, Frame::Finish { stream: id(1) })
            .unwrap();
    }
    if matches!(before, Before::WeFinished | Before::BothFinished) {
        mux.finish(id(1)).unwrap();
    }
    if matches!(before, Before::Ended | Before::Gone) {
        mux.reset(id(1), Reason::Aborted);
    }
    sent(&mut mux);
    events(&mut mux);
    if before == Before::Gone {
        mux.release(id(1));
        assert_eq!(mux.streams(), 0);
    }
    mux
}

/// What a frame did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// Nothing, and nothing was sent.
    Dropped,
    /// It was taken and the stream goes on.
    Taken,
    /// The stream was reset as a breach of the protocol.
    Breach,
    /// The stream ended as the peer asked.
    Ended,
}

fn after(before: Before, frame: &Frame) -> After {
    let mut mux = mux_in(before);
    mux.handle_frame(T0, frame.clone()).unwrap();
    let ended = events(&mut mux).into_iter().find_map(|event| match event {
        Event::Ended { ending, .. } => Some(ending),
        _ => None,
    });
    let resets = sent(&mut mux)
        .into_iter()
        .any(|frame| matches!(frame, Frame::Reset { .. }));
    match ended {
        Some(Ending::Reset(Reason::Protocol, By::Us)) => {
            assert!(resets);
            After::Breach
        }
        Some(Ending::Reset(_, By::Peer) | Ending::Finished) => After::Ended,
        Some(other) => panic!("{other:?}"),
        None if matches!(before, Before::Unknown | Before::Gone | Before::Ended) => {
            assert!(!resets, "a late frame is answered with nothing");
            After::Dropped
        }
        None => After::Taken,
    }
}

#[test]
fn every_frame_in_every_state() {
    use After::{Breach, Dropped, Ended, Taken};
    let stream = id(1);
    let data = || Frame::Data {
        stream,
        data: bytes(3),
    };
    let rows: [(Frame, [After; 8]); 6] = [
        // Unknown, Opening, Open, PeerFinished, WeFinished, BothFinished, Ended, Gone
        (
            data(),
            [
                Dropped, Breach, Taken, Breach, Taken, Breach, Dropped, Dropped,
            ],
        ),
        (
            Frame::Window { stream, credit: 5 },
            [Dropped, Taken, Taken, Taken, Taken, Taken, Dropped, Dropped],
        ),
        (
            Frame::Finish { stream },
            [
                Dropped, Breach, Taken, Breach, Taken, Breach, Dropped, Dropped,
            ],
        ),
        (
            Frame::Delivered { stream },
            [
                Dropped, Breach, Breach, Breach, Taken, Taken, Dropped, Dropped,
            ],
        ),
        (
            Frame::Reset {
                stream,
                reason: Reason::Done,
            },
            [Dropped, Ended, Ended, Ended, Ended, Ended, Dropped, Dropped],
        ),
        // The peer may only accept what we opened.
        (
            Frame::Accept { stream, window: 5 },
            [Dropped, Taken, Taken, Taken, Taken, Taken, Dropped, Dropped],
        ),
    ];
    let states = [
        Before::Unknown,
        Before::Opening,
        Before::Open,
        Before::PeerFinished,
        Before::WeFinished,
        Before::BothFinished,
        Before::Ended,
        Before::Gone,
    ];
    for (frame, expected) in rows {
        for (before, expected) in states.into_iter().zip(expected) {
            assert_eq!(after(before, &frame), expected, "{frame:?} in {before:?}");
        }
    }
}

#[test]
fn a_stream_is_over_when_both_halves_are_delivered_and_not_before() {
    let mut mux = open_agent(Config::default(), 100);
    mux.handle_frame(
        T0,
        Frame::Data {
            stream: id(1),
            data: bytes(5),
        },
    )
    .unwrap();
    mux.handle_frame(T0, Frame::Finish { stream: id(1) })
        .unwrap();
    mux.finish(id(1)).unwrap();
    assert_eq!(sent(&mut mux), [Frame::Finish { stream: id(1) }]);
    mux.handle_frame(T0, Frame::Delivered { stream: id(1) })
        .unwrap();
    mux.deliver(id(1));
    assert_eq!(
        mux.ending(id(1)),
        None,
        "five bytes are still to be delivered"
    );
    assert_eq!(mux.read(id(1), 100).unwrap().unwrap().len(), 5);
    assert_eq!(mux.read(id(1), 100), Ok(None));
    mux.consume(id(1), 5);
    mux.deliver(id(1));
    assert_eq!(mux.ending(id(1)), Some(Ending::Finished));
    assert_eq!(sent(&mut mux), [Frame::Delivered { stream: id(1) }]);
    mux.release(id(1));
    assert_eq!(mux.streams(), 0);
}

#[test]
fn an_open_that_was_not_sent_is_cancelled_without_a_word() {
    let mut mux = server(Config::default());
    let stream = mux.open(T0, bytes(3)).unwrap();
    mux.release(stream);
    assert_eq!(sent(&mut mux), []);
    assert_eq!(mux.streams(), 0);
    assert_eq!(
        mux.open(T0, bytes(3)).unwrap().number(),
        3,
        "identifiers are not used twice"
    );
}

#[test]
fn an_open_that_was_sent_is_cancelled_with_a_reset_and_a_late_accept_is_dropped() {
    let mut mux = server(Config::default());
    let stream = mux.open(T0, bytes(3)).unwrap();
    assert!(matches!(sent(&mut mux)[..], [Frame::Open { .. }]));
    mux.release(stream);
    let reason = Reason::Cancelled;
    assert_eq!(sent(&mut mux), [Frame::Reset { stream, reason }]);
    assert_eq!(mux.streams(), 0);
    mux.handle_frame(T0, Frame::Accept { stream, window: 9 })
        .unwrap();
    assert_eq!((sent(&mut mux), mux.streams()), (vec![], 0));
}

#[test]
fn data_is_sent_before_the_finish_and_the_credit_bounds_it() {
    let mut mux = open_agent(Config::default(), 10);
    assert_eq!(mux.write(id(1), bytes(25)), Ok(10));
    assert_eq!(mux.write(id(1), bytes(1)), Err(WriteError::Blocked));
    mux.finish(id(1)).unwrap();
    let stream = id(1);
    assert_eq!(
        sent(&mut mux),
        [
            Frame::Data {
                stream,
                data: bytes(10)
            },
            Frame::Finish { stream }
        ]
    );
    assert_eq!(mux.write(stream, bytes(1)), Err(WriteError::Finished));
}

#[test]
fn a_blocked_writer_is_woken_once_by_credit() {
    let mut mux = open_agent(Config::default(), 0);
    assert_eq!(mux.capacity(id(1)), Err(WriteError::Blocked));
    for _ in 0..2 {
        mux.handle_frame(
            T0,
            Frame::Window {
                stream: id(1),
                credit: 5,
            },
        )
        .unwrap();
    }
    assert_eq!(events(&mut mux), [Event::Writable { stream: id(1) }]);
    assert_eq!(mux.capacity(id(1)), Ok(10));
}

#[test]
fn what_an_acceptor_did_before_it_accepted_happens_afterwards() {
    let mut mux = agent(Config::default());
    let (stream, window, target) = (id(1), 10, bytes(1));
    mux.handle_frame(
        T0,
        Frame::Open {
            stream,
            window,
            target,
        },
    )
    .unwrap();
    assert_eq!(mux.capacity(stream), Err(WriteError::Blocked));
    mux.finish(stream).unwrap();
    assert_eq!(sent(&mut mux), []);
    mux.accept(T0, stream).unwrap();
    assert!(matches!(
        sent(&mut mux)[..],
        [Frame::Accept { .. }, Frame::Finish { .. }]
    ));
    assert!(events(&mut mux).contains(&Event::Writable { stream }));
}

#[test]
fn an_abort_follows_what_was_written_and_the_peer_reads_it_first() {
    let mut mux = open_agent(Config::default(), 100);
    let (stream, reason) = (id(1), Reason::Aborted);
    mux.write(stream, bytes(5)).unwrap();
    mux.abort(stream, reason);
    assert_eq!(mux.ending(stream), None);
    assert_eq!(mux.write(stream, bytes(1)), Err(WriteError::Finished));
    let frames = sent(&mut mux);
    let data = bytes(5);
    assert_eq!(
        frames,
        [
            Frame::Data { stream, data },
            Frame::Reset { stream, reason }
        ]
    );
    assert_eq!(mux.ending(stream), Some(Ending::Reset(reason, By::Us)));

    let mut peer = server(Config::default());
    peer.open(T0, bytes(1)).unwrap();
    peer.handle_frame(T0, Frame::Accept { stream, window: 9 })
        .unwrap();
    for frame in frames {
        peer.handle_frame(T0, frame).unwrap();
    }
    let ending = Ending::Reset(reason, By::Peer);
    assert_eq!(peer.ending(stream), Some(ending));
    assert_eq!(peer.read(stream, 100), Ok(Some(bytes(5))));
    assert_eq!(peer.read(stream, 100), Err(ReadError::Over(ending)));
    peer.release(stream);
    sent(&mut peer);
    assert_eq!((peer.streams(), peer.budget.used()), (0, 0));
}

#[test]
fn an_abort_with_nothing_queued_is_a_reset() {
    let mut mux = open_agent(Config::default(), 100);
    mux.abort(id(1), Reason::Aborted);
    assert_eq!(
        mux.ending(id(1)),
        Some(Ending::Reset(Reason::Aborted, By::Us))
    );
}

/// Both halves in all phases, and the user lets go.
#[test]
fn a_user_may_leave_what_it_finished() {
    let config = Config::default();
    // It goes on to its end without the user.
    let mut mux = mux_in(Before::Open);
    mux.write(id(1), Bytes::from_static(b"last")).unwrap();
    mux.finish(id(1)).unwrap();
    mux.detach(T0, id(1));
    let frames = sent(&mut mux);
    assert!(
        matches!(
            frames.as_slice(),
            [Frame::Data { .. }, Frame::Finish { .. }]
        ),
        "{frames:?}"
    );
    for frame in [
        Frame::Delivered { stream: id(1) },
        Frame::Finish { stream: id(1) },
    ] {
        assert_eq!(mux.streams(), 1);
        mux.handle_frame(T0, frame).unwrap();
    }
    let ended = |ending| Event::Ended {
        stream: id(1),
        ending,
    };
    assert_eq!(sent(&mut mux), [Frame::Delivered { stream: id(1) }]);
    assert!(events(&mut mux).contains(&ended(Ending::Finished)));
    assert_eq!(mux.streams(), 0);

    // The peer finished before.
    let mut mux = mux_in(Before::BothFinished);
    mux.detach(T0, id(1));
    assert_eq!(sent(&mut mux), [Frame::Delivered { stream: id(1) }]);
    mux.handle_frame(T0, Frame::Delivered { stream: id(1) })
        .unwrap();
    assert_eq!(mux.streams(), 0);

    // Bytes that nobody reads, a reset, a deadline and the end of the session each end it.
    let left = || {
        let mut mux = mux_in(Before::WeFinished);
        mux.detach(T0, id(1));
        mux
    };
    let mut mux = left();
    let data = Bytes::from_static(b"unwanted");
    let stream = id(1);
    mux.handle_frame(T0, Frame::Data { stream, data }).unwrap();
    let reason = Reason::Cancelled;
    assert_eq!(sent(&mut mux), [Frame::Reset { stream, reason }]);
    assert_eq!(mux.streams(), 0);
    let mut mux = left();
    mux.handle_frame(T0, Frame::Reset { stream, reason })
        .unwrap();
    assert_eq!(mux.streams(), 0);
    let mut mux = left();
    let config = Config {
        silence: config.linger_timeout * 2,
        ..config
    };
    mux.config = config;
    assert!(mux.poll_timeout().unwrap() <= config.linger_timeout);
    mux.handle_timeout(config.linger_timeout);
    let reason = Reason::TimedOut;
    assert!(sent(&mut mux).contains(&Frame::Reset { stream, reason }));
    assert_eq!(mux.streams(), 0);
    let mut mux = left();
    mux.handle_link_lost();
    assert_eq!(mux.streams(), 0);

    // What was not finished is cancelled, and so is what has bytes that nobody read.
    let mut unread = mux_in(Before::WeFinished);
    let data = Bytes::from_static(b"unread");
    unread
        .handle_frame(T0, Frame::Data { stream, data })
        .unwrap();
    let reason = Reason::Cancelled;
    for mut mux in [mux_in(Before::Open), mux_in(Before::PeerFinished), unread] {
        mux.detach(T0, id(1));
        assert_eq!(sent(&mut mux), [Frame::Reset { stream, reason }]);
        assert_eq!(mux.streams(), 0);
    }
}
