//! Every bound of the configuration, reached.

use crate::mux::native::tests::pair::Pair;
use crate::mux::native::tests::*;

fn open_frame(number: u64) -> Frame {
    Frame::Open {
        stream: id(number),
        window: 1000,
        target: bytes(1),
    }
}

#[test]
fn max_streams_counts_streams_until_they_are_released() {
    let config = Config {
        max_streams: 2,
        ..Config::default()
    };
    let mut mux = agent(config);
    for number in [1, 3, 5] {
        mux.handle_frame(T0, open_frame(number)).unwrap();
    }
    let reason = Reason::Busy;
    assert_eq!(
        sent(&mut mux),
        [Frame::Reset {
            stream: id(5),
            reason
        }]
    );
    mux.reset(id(1), Reason::Refused);
    sent(&mut mux);
    assert_eq!(mux.streams(), 2, "its user still holds a handle");
    mux.release(id(1));
    mux.handle_frame(T0, open_frame(7)).unwrap();
    assert_eq!(mux.streams(), 2);

    let mut mux = server(config);
    mux.open(T0, bytes(1)).unwrap();
    mux.open(T0, bytes(1)).unwrap();
    assert_eq!(mux.open(T0, bytes(1)), Err(OpenError::Busy));
}

#[test]
fn refusals_max_ends_a_flood_of_opens() {
    let config = Config {
        max_streams: 0,
        refusals_max: 3,
        ..Config::default()
    };
    let mut mux = agent(config);
    for number in [1, 3, 5] {
        mux.handle_frame(T0, open_frame(number)).unwrap();
    }
    assert_eq!(
        mux.handle_frame(T0, open_frame(7)),
        Err(SessionError::OpenFlood)
    );
}

#[test]
fn a_target_may_be_as_long_as_the_bound_and_no_longer() {
    let mut mux = server(Config::default());
    assert!(mux.open(T0, bytes(TARGET_MAX)).is_ok());
    assert_eq!(
        mux.open(T0, bytes(TARGET_MAX + 1)),
        Err(OpenError::TargetTooLong)
    );
}

#[test]
fn the_peer_may_send_its_window_and_not_a_byte_more() {
    let config = Config {
        window_initial: 1000,
        ..Config::default()
    };
    let mut mux = open_agent(config, 0);
    let stream = id(1);
    mux.handle_frame(
        T0,
        Frame::Data {
            stream,
            data: bytes(1000),
        },
    )
    .unwrap();
    assert_eq!(mux.ending(stream), None);
    mux.handle_frame(
        T0,
        Frame::Data {
            stream,
            data: bytes(1),
        },
    )
    .unwrap();
    let reason = Reason::Overrun;
    assert_eq!(sent(&mut mux), [Frame::Reset { stream, reason }]);
    assert!(mux.over().is_none(), "one stream is the radius");
}

#[test]
fn send_buffer_bounds_a_stream_and_session_send_buffer_all_of_them() {
    let config = Config {
        send_buffer: 100,
        session_send_buffer: 150,
        frame_max: 50,
        ..Config::default()
    };
    let mut mux = agent(config);
    for number in [1, 3] {
        mux.handle_frame(T0, open_frame(number)).unwrap();
        mux.accept(T0, id(number)).unwrap();
    }
    sent(&mut mux);
    events(&mut mux);
    assert_eq!(mux.write(id(1), bytes(500)), Ok(100));
    assert_eq!(mux.write(id(3), bytes(500)), Ok(50));
    assert_eq!(mux.send_buffered(), 150);
    assert_eq!(mux.capacity(id(3)), Err(WriteError::Blocked));
    let mut woken = false;
    while mux.poll_transmit(mux.config.frame_max).is_some() {
        woken |= events(&mut mux).contains(&Event::Writable { stream: id(3) });
    }
    assert!(woken);
    assert_eq!(mux.send_buffered(), 0);
}

#[test]
fn a_starved_writer_is_woken_when_the_stream_in_its_way_is_reset() {
    let config = Config {
        send_buffer: 100,
        session_send_buffer: 100,
        ..Config::default()
    };
    let mut mux = agent(config);
    for number in [1, 3] {
        mux.handle_frame(T0, open_frame(number)).unwrap();
        mux.accept(T0, id(number)).unwrap();
    }
    events(&mut mux);
    assert_eq!(mux.write(id(1), bytes(100)), Ok(100));
    assert_eq!(mux.capacity(id(3)), Err(WriteError::Blocked));
    mux.reset(id(1), Reason::Aborted);
    assert!(events(&mut mux).contains(&Event::Writable { stream: id(3) }));
    assert_eq!(mux.capacity(id(3)), Ok(100));
}

#[test]
fn streams_take_turns_and_control_goes_first() {
    let config = Config {
        frame_max: 10,
        ..Config::default()
    };
    let mut mux = agent(config);
    for number in [1, 3, 5] {
        mux.handle_frame(T0, open_frame(number)).unwrap();
        mux.accept(T0, id(number)).unwrap();
    }
    sent(&mut mux);
    for number in [1, 3, 5] {
        mux.write(id(number), bytes(20)).unwrap();
    }
    mux.handle_frame(T0, Frame::Ping { nonce: 9 }).unwrap();
    let order: Vec<u64> = sent(&mut mux)
        .into_iter()
        .map(|frame| match frame {
            Frame::Pong { nonce } => nonce * 100,
            Frame::Data { stream, data } => {
                assert_eq!(data.len(), 10);
                stream.number()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(order, [900, 1, 3, 5, 1, 3, 5]);
}

/// An agent that gave several streams all the credit they want, with frames of ten bytes.
fn busy_agent(numbers: impl Iterator<Item = u64>) -> Mux {
    let config = Config {
        frame_max: 10,
        ..Config::default()
    };
    let mut mux = agent(config);
    for number in numbers {
        mux.handle_frame(T0, open_frame(number)).unwrap();
        mux.accept(T0, id(number)).unwrap();
    }
    sent(&mut mux);
    mux
}

/// Takes the next data frame and returns whose it is.
fn next_sender(mux: &mut Mux) -> u64 {
    match mux.poll_transmit(10) {
        Some(Frame::Data { stream, .. }) => stream.number(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stream_that_had_nothing_goes_before_those_that_always_have_once_a_round() {
    let mut mux = busy_agent([1, 3, 5].into_iter());
    for number in [1, 3] {
        mux.write(id(number), bytes(90)).unwrap();
    }
    let mut order: Vec<u64> = (0..3).map(|_| next_sender(&mut mux)).collect();
    mux.write(id(5), bytes(10)).unwrap();
    order.push(next_sender(&mut mux));
    // Again in the same round, it has to wait for its turn.
    mux.write(id(5), bytes(10)).unwrap();
    order.extend((0..4).map(|_| next_sender(&mut mux)));
    assert_eq!(order, [1, 3, 1, 5, 3, 1, 5, 3]);
}

#[test]
fn streams_that_come_and_come_do_not_starve_a_busy_one() {
    let mut mux = busy_agent((1..200).step_by(2));
    mux.write(id(1), bytes(90)).unwrap();
    assert_eq!(next_sender(&mut mux), 1);
    for number in (3..200).step_by(2) {
        mux.write(id(number), bytes(10)).unwrap();
    }
    let order: Vec<u64> = (0..100).map(|_| next_sender(&mut mux)).collect();
    let turns = order.iter().filter(|number| **number == 1).count();
    assert!(turns >= 3, "{order:?}");
}

#[test]
fn an_open_is_answered_or_ends_at_its_deadline() {
    let config = Config {
        open_timeout: Duration::from_secs(3),
        ..Config::default()
    };
    let mut mux = server(config);
    let stream = mux.open(T0, bytes(1)).unwrap();
    let answered = mux.open(T0, bytes(1)).unwrap();
    sent(&mut mux);
    mux.handle_frame(
        T0,
        Frame::Accept {
            stream: answered,
            window: 1,
        },
    )
    .unwrap();
    assert_eq!(mux.poll_timeout(), Some(Duration::from_secs(3)));
    mux.handle_timeout(Duration::from_secs(3));
    assert_eq!(
        mux.ending(stream),
        Some(Ending::Reset(Reason::TimedOut, By::Us))
    );
    assert_eq!(mux.ending(answered), None);
    assert_eq!(
        sent(&mut mux),
        [Frame::Reset {
            stream,
            reason: Reason::TimedOut
        }]
    );
}

#[test]
fn a_silent_peer_is_pinged_and_then_given_up() {
    let config = Config::default();
    let mut mux = server(config);
    mux.handle_timeout(config.ping_interval);
    assert_eq!(sent(&mut mux), [Frame::Ping { nonce: 1 }]);
    mux.handle_timeout(config.ping_interval);
    assert_eq!(sent(&mut mux), [], "one ping an interval");
    mux.handle_frame(config.ping_interval, Frame::Pong { nonce: 1 })
        .unwrap();
    let mut now = config.ping_interval;
    while mux.over().is_none() {
        now = mux.poll_timeout().unwrap();
        mux.handle_timeout(now);
    }
    assert_eq!(now, config.ping_interval + config.silence);
    assert_eq!(mux.over(), Some(SessionError::Silent));
    assert_eq!(mux.poll_timeout(), None);
}

/// Half of them are reset by either end, in either phase, the rest are finished.
#[test]
fn streams_that_come_and_go_leave_nothing() {
    let mut pair = Pair::new(Config::default(), Duration::ZERO);
    let rounds = if cfg!(miri) { 20 } else { 20_000_u64 };
    for round in 0..rounds {
        let stream = pair.server.open(pair.now, bytes(1)).unwrap();
        if round % 4 == 0 {
            pair.server.reset(stream, Reason::Cancelled);
        }
        pair.settle();
        if pair.agent.accept(T0, stream).is_ok() {
            pair.agent.write(stream, bytes(10)).unwrap();
            pair.settle();
            if round % 4 == 1 {
                pair.agent.reset(stream, Reason::Aborted);
            } else {
                for mux in [&mut pair.agent, &mut pair.server] {
                    mux.finish(stream).unwrap();
                }
                pair.settle();
                for mux in [&mut pair.agent, &mut pair.server] {
                    while let Ok(Some(data)) = mux.read(stream, 100) {
                        mux.consume(stream, data.len());
                    }
                    mux.deliver(stream);
                }
            }
            pair.settle();
        }
        pair.agent.release(stream);
        pair.server.release(stream);
        pair.settle();
        for mux in [&mut pair.agent, &mut pair.server] {
            while mux.poll_event().is_some() {}
            assert_eq!((mux.streams(), mux.send_buffered()), (0, 0));
            assert_eq!((mux.table.next_deadline(), mux.refusals.len()), (None, 0));
            assert_eq!(mux.budget.used(), 0);
        }
    }
}
