//! The core alone: rules of the dialect, bounds that are reached, races of the agent's list.

use std::time::Duration;

use crate::mux::remotedialer::*;
use crate::mux::{Event, Mux as _, SessionError, Streams as _, WriteError};
use crate::wire::remotedialer::{Body, Message};

mod clients;

const T0: Time = Duration::ZERO;

fn at(milliseconds: u64) -> Time {
    Duration::from_millis(milliseconds)
}

fn id(number: u64) -> StreamId {
    StreamId::new(number).unwrap()
}

fn core(side: Side, config: Config) -> Mux {
    Mux::new(side, "web/7", config, T0)
}

fn text(text: &'static str) -> Body {
    Body::Error(Bytes::from_static(text.as_bytes()))
}

fn data(length: usize) -> Body {
    Body::Data(Bytes::from(vec![7; length]))
}

fn recv(mux: &mut Mux, connection: i64, body: Body) {
    mux.handle_message(T0, Message { connection, body })
        .unwrap();
}

fn sent(mux: &mut Mux) -> Vec<(i64, Body)> {
    std::iter::from_fn(|| mux.poll_transmit())
        .map(|message| (message.connection, message.body))
        .collect()
}

fn events(mux: &mut Mux) -> Vec<Event> {
    std::iter::from_fn(|| mux.poll_event()).collect()
}

fn ended(mux: &Mux, number: u64) -> Ending {
    mux.ending(id(number)).unwrap()
}

/// A server whose stream 2 is open.
fn server(config: Config) -> Mux {
    let mut mux = core(Side::Server, config);
    let target = Bytes::from_static(b"tcp/a:1");
    assert_eq!(mux.open(T0, target.clone()), Ok(id(2)));
    assert_eq!(sent(&mut mux), [(2, Body::Connect(target))]);
    mux
}

/// The answer to a probe is due soon, and any message is one.
#[test]
fn a_client_that_is_probed_is_overdue_soon() {
    let config = Config::default();
    let mut mux = core(Side::Server, config);
    mux.probe(T0);
    assert!(!mux.poll_ping());
    let asked = T0 + config.pong_due;
    mux.probe(asked);
    mux.probe(asked);
    assert!(mux.poll_ping() && !mux.poll_ping());
    let due = asked + config.pong_due;
    assert_eq!(mux.health(due), Health::Live);
    let late = due + Duration::from_nanos(1);
    assert_eq!(mux.health(late), Health::Overdue);
    mux.handle_heartbeat(late, true);
    assert_eq!(mux.health(late), Health::Live);
    // Without a probe it is found out by the pings that do not come.
    let silent = late + config.ping_interval * 2 + config.pong_due;
    assert_eq!(mux.health(silent), Health::Live);
    assert_eq!(
        mux.health(silent + Duration::from_nanos(1)),
        Health::Overdue
    );
    mux.drain();
    assert_eq!(mux.health(late), Health::Draining);
}

/// An agent whose stream 2 is being dialed.
fn dialing(config: Config) -> Mux {
    let mut mux = core(Side::Agent, config);
    let target = Bytes::from_static(b"tcp/a:1");
    recv(&mut mux, 2, Body::Connect(target.clone()));
    let stream = id(2);
    assert_eq!(events(&mut mux), [Event::Opened { stream, target }]);
    mux
}

fn agent(config: Config) -> Mux {
    let mut mux = dialing(config);
    mux.accept(T0, id(2)).unwrap();
    mux
}

#[test]
fn an_opener_may_send_at_once() {
    let mut mux = core(Side::Server, Config::default());
    mux.open(T0, Bytes::from_static(b"tcp/a:1")).unwrap();
    assert!(mux.is_open(id(2)));
    mux.write(id(2), Bytes::from_static(b"hi")).unwrap();
    let messages = sent(&mut mux);
    assert!(matches!(
        messages.as_slice(),
        [(2, Body::Connect(_)), (2, Body::Data(_))]
    ));
    assert_eq!(mux.open(T0, Bytes::new()), Ok(id(3)));
    let long = Bytes::from(vec![b'x'; ADDRESS_MAX + 1]);
    assert_eq!(mux.open(T0, long), Err(OpenError::TargetTooLong));
}

#[test]
fn piece_max_bounds_each_message() {
    let config = Config {
        piece_max: 10,
        ..Config::default()
    };
    let mut mux = server(config);
    mux.write(id(2), Bytes::from(vec![7; 25])).unwrap();
    assert_eq!(sent(&mut mux), [10, 10, 5].map(|length| (2, data(length))));
}

#[test]
fn a_finish_ends_both_directions_behind_what_was_written() {
    let mut mux = server(Config::default());
    recv(&mut mux, 2, data(3));
    mux.write(id(2), Bytes::from_static(b"last")).unwrap();
    mux.finish(id(2)).unwrap();
    let last = Body::Data(Bytes::from_static(b"last"));
    assert_eq!(sent(&mut mux), [(2, last), (2, text("EOF"))]);
    recv(&mut mux, 2, data(3));
    assert_eq!(mux.read(id(2), 99).unwrap().unwrap().len(), 3);
    assert_eq!(mux.read(id(2), 99), Ok(None));
    assert_eq!(mux.ending(id(2)), None);
    mux.deliver(id(2));
    assert_eq!(ended(&mux, 2), Ending::Finished);
    mux.release(id(2));
    assert_eq!((mux.streams(), mux.held(), sent(&mut mux).len()), (0, 0, 0));
}

/// Data before EOF dropped.
#[test]
fn what_came_before_an_eof_is_read_before_the_end() {
    let mut mux = server(Config::default());
    mux.write(id(2), Bytes::from_static(b"unsent")).unwrap();
    recv(&mut mux, 2, data(3));
    recv(&mut mux, 2, text("EOF"));
    assert_eq!(mux.capacity(id(2)), Err(WriteError::Finished));
    assert_eq!(mux.read(id(2), 99).unwrap().unwrap().len(), 3);
    mux.deliver(id(2));
    assert_eq!(ended(&mux, 2), Ending::Finished);
    assert_eq!(sent(&mut mux), []);
}

#[test]
fn an_error_ends_its_connection_and_no_other() {
    let mut mux = server(Config::default());
    mux.open(T0, Bytes::new()).unwrap();
    recv(&mut mux, 2, text("dial tcp a:1: connection refused"));
    assert_eq!(ended(&mux, 2), Ending::Reset(Reason::Refused, By::Peer));
    assert!(mux.is_open(id(3)));
}

#[test]
fn data_of_an_unknown_connection_is_answered_and_an_error_of_one_is_not() {
    let mut mux = core(Side::Agent, Config::default());
    for connection in [9, 0, -1] {
        recv(&mut mux, connection, text("EOF"));
        recv(&mut mux, connection, Body::Pause);
        recv(&mut mux, connection, Body::Unknown(99));
        assert_eq!(sent(&mut mux), []);
    }
    recv(&mut mux, 9, data(1));
    assert_eq!(sent(&mut mux), [(9, text("connection not found web/7/9"))]);
}

#[test]
fn answers_are_bounded() {
    let config = Config {
        answers_max: 10,
        ..Config::default()
    };
    let mut mux = core(Side::Agent, config);
    (1..1000).for_each(|connection| recv(&mut mux, connection, data(1)));
    assert_eq!(sent(&mut mux).len(), 10);
}

#[test]
fn a_refused_connect_is_answered_for_that_connection_alone() {
    let mut mux = agent(Config::default());
    recv(&mut mux, 3, Body::Connect(Bytes::from_static(b"tcp/b:1")));
    mux.reset(id(3), Reason::Denied);
    assert_eq!(sent(&mut mux), [(3, text("connect not allowed"))]);
    let long = Bytes::from(vec![b'x'; ADDRESS_MAX + 1]);
    recv(&mut mux, 4, Body::Connect(long));
    assert_eq!(sent(&mut mux), [(4, text("malformed address"))]);
    mux.drain();
    recv(&mut mux, 5, Body::Connect(Bytes::new()));
    assert_eq!(sent(&mut mux), [(5, text("the agent is draining"))]);
    assert!(mux.is_open(id(2)));
    let mut server = core(Side::Server, Config::default());
    recv(&mut server, 2, Body::Connect(Bytes::new()));
    assert_eq!(sent(&mut server), [(2, text("connect not allowed"))]);
}

#[test]
fn a_paused_stream_sends_nothing_and_goes_on_when_resumed() {
    let mut mux = server(Config::default());
    mux.write(id(2), Bytes::from_static(b"a")).unwrap();
    recv(&mut mux, 2, Body::Pause);
    assert_eq!(sent(&mut mux), []);
    assert_eq!(mux.capacity(id(2)), Err(WriteError::Blocked));
    recv(&mut mux, 2, Body::Resume);
    assert_eq!(events(&mut mux), [Event::Writable { stream: id(2) }]);
    assert_eq!(sent(&mut mux).len(), 1);
}

/// One flag for both directions. Here a peer that is paused can still pause us, and the other way
/// round.
#[test]
fn both_directions_pause_independently() {
    let mut mux = server(Config::default());
    recv(&mut mux, 2, Body::Pause);
    recv(&mut mux, 2, data(600 * 1024));
    assert_eq!(sent(&mut mux), [(2, Body::Pause)]);
    while let Ok(Some(piece)) = mux.read(id(2), 64 * 1024) {
        mux.consume(id(2), piece.len());
    }
    assert_eq!(sent(&mut mux), [(2, Body::Resume)]);
    assert_eq!(mux.capacity(id(2)), Err(WriteError::Blocked));
}

#[test]
fn a_peer_that_ignores_the_pause_is_cut_off_at_the_cap() {
    let config = Config::default();
    let mut mux = server(config);
    let mut most = 0;
    while mux.ending(id(2)).is_none() {
        recv(&mut mux, 2, data(1024 * 1024));
        most = most.max(mux.held());
        sent(&mut mux);
    }
    assert!(most <= config.stream_cap, "{most}");
    assert_eq!(
        (mux.held(), ended(&mux, 2)),
        (0, Ending::Reset(Reason::Overrun, By::Us))
    );
}

#[test]
fn all_streams_together_are_bounded_and_small_ones_go_on() {
    let config = Config {
        session_pause: 1024 * 1024,
        session_cap: 2 * 1024 * 1024,
        ..Config::default()
    };
    let mut mux = core(Side::Server, config);
    let streams: Vec<_> = (0..20)
        .map(|_| mux.open(T0, Bytes::new()).unwrap())
        .collect();
    let (small, greedy) = streams.split_last().unwrap();
    for _ in 0..100 {
        for stream in greedy {
            recv(&mut mux, stream.number().cast_signed(), data(16 * 1024));
            assert!(mux.held() <= config.session_cap + 20 * config.pause_floor);
        }
    }
    recv(&mut mux, small.number().cast_signed(), data(1024));
    assert!(mux.is_open(*small));
    assert!(greedy.iter().any(|stream| mux.ending(*stream).is_some()));
}

/// An upload to a target that does not read, whose opener leaves.
#[test]
fn a_delivery_without_progress_ends_after_its_grace() {
    let config = Config::default();
    let mut mux = agent(config);
    recv(&mut mux, 2, data(1000));
    recv(&mut mux, 2, text("EOF"));
    let grace = config.delivery_grace;
    assert_eq!(mux.poll_timeout(), Some(config.ping_interval.min(grace)));
    // A target that takes bytes gets more time.
    assert_eq!(mux.read(id(2), 10).unwrap().unwrap().len(), 10);
    mux.consume(id(2), 10);
    mux.handle_timeout(grace);
    assert_eq!(mux.ending(id(2)), None);
    mux.handle_timeout(2 * grace);
    assert_eq!(ended(&mux, 2), Ending::Reset(Reason::Cancelled, By::Peer));
    assert_eq!(mux.held(), 0);
}

/// A dial that is not called off when its opener leaves.
#[test]
fn an_opener_that_leaves_calls_off_the_dial() {
    let config = Config::default();
    let cancelled = Ending::Reset(Reason::Cancelled, By::Peer);
    let mut mux = dialing(config);
    recv(&mut mux, 2, text("EOF"));
    assert_eq!(ended(&mux, 2), cancelled);
    // What it sent before may still arrive, if the dial is quick.
    let mut mux = dialing(config);
    recv(&mut mux, 2, data(10));
    recv(&mut mux, 2, text("EOF"));
    mux.handle_timeout(config.dial_grace - at(1));
    assert_eq!(mux.ending(id(2)), None);
    mux.handle_timeout(config.dial_grace);
    assert_eq!(ended(&mux, 2), cancelled);
    let mut mux = dialing(config);
    recv(&mut mux, 2, data(10));
    recv(&mut mux, 2, text("EOF"));
    mux.accept(T0, id(2)).unwrap();
    assert_eq!(mux.read(id(2), 99).unwrap().unwrap().len(), 10);
    mux.deliver(id(2));
    assert_eq!(ended(&mux, 2), Ending::Finished);
}

fn list(mux: &mut Mux, connections: &[i64]) {
    recv(mux, 0, Body::SyncConnections(connections.to_vec()));
}

/// A list that was made before its agent knew of a connection.
#[test]
fn a_list_from_before_a_connect_ends_nothing() {
    let mut mux = server(Config::default());
    // Nothing proves that the agent has read the connect, however many lists come.
    for _ in 0..10 {
        list(&mut mux, &[]);
    }
    assert!(mux.poll_ping());
    assert!(mux.is_open(id(2)));
    // The agent answered: a list made before that may still be on its way, the one after it counts.
    mux.handle_heartbeat(T0, true);
    list(&mut mux, &[]);
    assert!(mux.is_open(id(2)));
    // A connection that came after the ping is not proved by it.
    mux.open(T0, Bytes::new()).unwrap();
    sent(&mut mux);
    list(&mut mux, &[]);
    assert_eq!(ended(&mux, 2), Ending::Reset(Reason::Aborted, By::Peer));
    list(&mut mux, &[]);
    assert!(mux.is_open(id(3)));
}

#[test]
fn a_message_about_the_connection_starts_the_count_again() {
    let mut mux = server(Config::default());
    for _ in 0..10 {
        recv(&mut mux, 2, data(1));
        list(&mut mux, &[]);
    }
    assert!(mux.is_open(id(2)));
    list(&mut mux, &[2]);
    list(&mut mux, &[]);
    assert!(mux.is_open(id(2)));
    list(&mut mux, &[]);
    assert!(!mux.is_open(id(2)));
}

/// The end of a reconciled connection was told to nobody, and what only the agent had stayed for
/// good.
#[test]
fn both_ends_are_told_what_the_lists_disagree_on() {
    let mut mux = server(Config::default());
    recv(&mut mux, 2, data(1));
    list(&mut mux, &[2, 77]);
    assert_eq!(
        sent(&mut mux),
        [(77, text("connection not found web/7/77"))]
    );
    list(&mut mux, &[]);
    list(&mut mux, &[]);
    assert_eq!(sent(&mut mux), [(2, text("operation was canceled"))]);
}

/// A server that ended a connection without a word.
#[test]
fn a_quiet_connection_is_asked_after() {
    let config = Config::default();
    let mut mux = agent(config);
    let tick = |mux: &mut Mux, count: u32| {
        mux.handle_heartbeat(config.sync_interval * count, true);
        mux.handle_timeout(config.sync_interval * count);
        sent(mux)
    };
    let list = [(0, Body::SyncConnections(vec![2]))];
    let list_and_question = [list[0].clone(), (2, data(0))];
    assert_eq!(tick(&mut mux, 1), list);
    assert_eq!(tick(&mut mux, 2), list_and_question);
    recv(&mut mux, 2, data(1));
    assert_eq!(tick(&mut mux, 3), list);
    mux.write(id(2), Bytes::from_static(b"a")).unwrap();
    assert_eq!(sent(&mut mux).len(), 1);
    assert_eq!(tick(&mut mux, 4), list);
    assert_eq!(tick(&mut mux, 5), list_and_question);
    recv(&mut mux, 2, text("connection not found web/7/2"));
    assert_eq!(ended(&mux, 2), Ending::Reset(Reason::Cancelled, By::Peer));
}

#[test]
fn the_agent_pings_and_lists_and_both_give_up_on_silence() {
    let config = Config::default();
    let mut mux = agent(config);
    assert_eq!(mux.poll_timeout(), Some(config.ping_interval));
    let mut pings = 0;
    for second in 1..=60 {
        mux.handle_heartbeat(at(1000 * second), true);
        mux.handle_timeout(at(1000 * second));
        pings += u32::from(mux.poll_ping());
    }
    assert_eq!(pings, 12);
    assert_eq!(sent(&mut mux), [(0, Body::SyncConnections(vec![2]))]);
    mux.handle_timeout(at(120_000));
    assert_eq!(mux.over(), Some(SessionError::Silent));
    let mut mux = server(config);
    mux.handle_timeout(at(59_999));
    assert!(!mux.poll_ping() && mux.over().is_none());
    mux.handle_timeout(at(60_000));
    assert_eq!(mux.over(), Some(SessionError::Silent));
    assert_eq!(ended(&mux, 2), Ending::Reset(Reason::TimedOut, By::Us));
}

#[test]
fn the_end_of_a_session_ends_every_connection() {
    let mut mux = server(Config::default());
    mux.end_session(Reason::Replaced);
    assert_eq!(sent(&mut mux), [(2, text("tunnel disconnect"))]);
    assert_eq!(ended(&mux, 2), Ending::Reset(Reason::Replaced, By::Us));
    let message = Message {
        connection: 2,
        body: Body::Pause,
    };
    assert!(mux.handle_message(T0, message).is_err());
    assert_eq!(mux.open(T0, Bytes::new()), Err(OpenError::SessionOver));
}

#[test]
fn a_user_may_leave_what_it_finished() {
    let config = Config::default();
    let mut mux = server(config);
    mux.write(id(2), Bytes::from_static(b"last")).unwrap();
    mux.finish(id(2)).unwrap();
    mux.detach(T0, id(2));
    // An answer is late.
    recv(&mut mux, 2, data(5));
    assert_eq!(
        sent(&mut mux),
        [(2, Body::Data("last".into())), (2, text("EOF"))]
    );
    assert_eq!(mux.streams(), 0);

    // A peer that reads nothing holds it up for a while only.
    let mut mux = server(config);
    mux.write(id(2), Bytes::from_static(b"last")).unwrap();
    mux.finish(id(2)).unwrap();
    recv(&mut mux, 2, Body::Pause);
    mux.detach(T0, id(2));
    assert_eq!(sent(&mut mux), []);
    mux.handle_timeout(config.delivery_grace);
    assert!(matches!(sent(&mut mux).as_slice(), [(2, Body::Error(_))]));
    assert_eq!(mux.streams(), 0);

    let mut mux = server(config);
    mux.detach(T0, id(2));
    assert!(matches!(sent(&mut mux).as_slice(), [(2, Body::Error(_))]));
    assert_eq!(mux.streams(), 0);
}
