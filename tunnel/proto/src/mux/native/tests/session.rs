//! Whole sessions: their end, and whether the peer is alive.

use crate::mux::native::tests::*;

#[test]
fn drain_refuses_new_streams_and_lets_the_others_be() {
    let mut mux = open_agent(Config::default(), 10);
    mux.drain();
    let reason = Reason::Draining;
    assert_eq!(sent(&mut mux), [Frame::GoAway { reason }]);
    let (stream, window, target) = (id(3), 0, bytes(1));
    mux.handle_frame(
        T0,
        Frame::Open {
            stream,
            window,
            target,
        },
    )
    .unwrap();
    assert_eq!(sent(&mut mux), [Frame::Reset { stream, reason }]);
    assert_eq!(mux.open(T0, bytes(1)), Err(OpenError::Draining));
    assert_eq!(mux.write(id(1), bytes(1)), Ok(1));
    let mut peer = server(Config::default());
    peer.handle_frame(T0, Frame::GoAway { reason }).unwrap();
    assert_eq!(events(&mut peer), [Event::PeerDraining]);
    assert_eq!(peer.open(T0, bytes(1)), Err(OpenError::Draining));
}

#[test]
fn ending_the_session_ends_every_stream_and_says_why_last() {
    let mut mux = open_agent(Config::default(), 10);
    mux.write(id(1), bytes(3)).unwrap();
    mux.end_session(Reason::Replaced);
    let ending = Ending::Reset(Reason::Replaced, By::Us);
    assert_eq!(
        events(&mut mux),
        [
            Event::Ended {
                stream: id(1),
                ending
            },
            Event::SessionOver(SessionError::Ended(Reason::Replaced))
        ]
    );
    assert_eq!(
        sent(&mut mux),
        [Frame::GoAway {
            reason: Reason::Replaced
        }]
    );
    assert_eq!(mux.send_buffered(), 0);
    mux.release(id(1));
    assert_eq!(mux.streams(), 0);
    let error = SessionError::Ended(Reason::Replaced);
    assert_eq!(mux.handle_frame(T0, Frame::Ping { nonce: 1 }), Err(error));
}

#[test]
fn identifiers_that_are_not_the_peers_to_open_end_the_session() {
    for number in [2, 1] {
        let mut mux = open_agent(Config::default(), 10);
        let (stream, window, target) = (id(number), 0, bytes(1));
        assert_eq!(
            mux.handle_frame(
                T0,
                Frame::Open {
                    stream,
                    window,
                    target
                }
            ),
            Err(SessionError::BadStreamId)
        );
    }
}

#[test]
fn a_peer_is_live_until_its_pong_is_overdue() {
    let config = Config::default();
    let mut mux = server(config);
    let due = T0 + config.ping_interval + config.pong_due;
    assert_eq!(mux.health(due), Health::Live);
    let late = due + Duration::from_nanos(1);
    assert_eq!(mux.health(late), Health::Overdue);
    mux.handle_frame(late, Frame::Pong { nonce: 1 }).unwrap();
    assert_eq!(mux.health(late), Health::Live);
    let reason = Reason::Draining;
    mux.handle_frame(late, Frame::GoAway { reason }).unwrap();
    assert_eq!(mux.health(late), Health::Draining);
}

/// A frozen peer is found out when a stream is opened, and not with the next regular ping.
#[test]
fn a_peer_that_is_probed_is_overdue_soon() {
    let config = Config::default();
    let mut mux = server(config);
    // It was just heard of.
    mux.probe(T0);
    assert_eq!(mux.poll_transmit(config.frame_max), None);
    let asked = T0 + config.pong_due;
    mux.probe(asked);
    assert_eq!(
        mux.poll_transmit(config.frame_max),
        Some(Frame::Ping { nonce: 1 })
    );
    // The time counts from the first ping.
    let due = asked + config.pong_due;
    mux.probe(due);
    assert_eq!(mux.poll_transmit(config.frame_max), None);
    assert_eq!(mux.health(due), Health::Live);
    let late = due + Duration::from_nanos(1);
    assert_eq!(mux.health(late), Health::Overdue);
    // Any frame is a sign of life.
    mux.handle_frame(late, Frame::Ping { nonce: 9 }).unwrap();
    assert_eq!(mux.health(late), Health::Live);
}
