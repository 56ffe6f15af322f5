//! Two cores and the way between them, on virtual time.

use std::collections::VecDeque;

use crate::mux::native::tests::*;

/// Two cores; frames take `delay` each way.
pub(crate) struct Pair {
    pub(super) server: Mux,
    pub(super) agent: Mux,
    pub(super) now: Time,
    delay: Duration,
    to_server: VecDeque<(Time, Frame)>,
    to_agent: VecDeque<(Time, Frame)>,
}

impl Pair {
    pub(crate) fn new(config: Config, delay: Duration) -> Self {
        Self {
            server: server(config),
            agent: agent(config),
            now: T0,
            delay,
            to_server: VecDeque::new(),
            to_agent: VecDeque::new(),
        }
    }

    /// Puts at most `limit` frames of each side on the way.
    pub(crate) fn transmit(&mut self, limit: usize) {
        let arrival = self.now + self.delay;
        for _ in 0..limit {
            let frames = [&mut self.server, &mut self.agent]
                .map(|mux| mux.poll_transmit(mux.config.frame_max));
            if frames == [None, None] {
                break;
            }
            let [from_server, from_agent] = frames.map(|frame| frame.map(|frame| (arrival, frame)));
            self.to_agent.extend(from_server);
            self.to_server.extend(from_agent);
        }
    }

    /// Delivers what has arrived by now.
    pub(crate) fn deliver(&mut self) {
        for (queue, mux) in [
            (&mut self.to_server, &mut self.server),
            (&mut self.to_agent, &mut self.agent),
        ] {
            while queue
                .front()
                .is_some_and(|(arrival, _)| *arrival <= self.now)
            {
                let (_, frame) = queue.pop_front().unwrap();
                let _ = mux.handle_frame(self.now, frame);
            }
        }
    }

    /// Moves time on, by no more than to the next deadline.
    pub(crate) fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        let next = [self.server.poll_timeout(), self.agent.poll_timeout()];
        self.now = next
            .into_iter()
            .flatten()
            .min()
            .map_or(until, |next| next.min(until))
            .max(self.now);
        self.server.handle_timeout(self.now);
        self.agent.handle_timeout(self.now);
    }

    /// Exchanges frames until nothing is left to exchange.
    pub(crate) fn settle(&mut self) {
        while self.server.has_transmit()
            || self.agent.has_transmit()
            || !self.to_server.is_empty()
            || !self.to_agent.is_empty()
        {
            self.transmit(usize::from(u16::MAX));
            self.advance(self.delay);
            self.deliver();
        }
    }
}

#[test]
fn a_quiet_session_lives_on_its_pings() {
    let config = Config::default();
    let mut pair = Pair::new(config, Duration::from_millis(50));
    while pair.now < config.silence * 20 {
        pair.advance(Duration::from_secs(1));
        pair.transmit(10);
        pair.deliver();
    }
    assert_eq!((pair.server.over(), pair.agent.over()), (None, None));
}

#[test]
fn a_broken_way_is_noticed_by_both() {
    let config = Config::default();
    let mut pair = Pair::new(config, Duration::from_secs(3600));
    while pair.now < config.silence {
        pair.advance(Duration::from_secs(1));
        pair.transmit(10);
        pair.deliver();
    }
    let silent = Some(SessionError::Silent);
    assert_eq!((pair.server.over(), pair.agent.over()), (silent, silent));
}

#[test]
fn a_stalled_stream_does_not_hold_up_the_others() {
    let config = Config {
        session_window: 1024 * 1024,
        ..Config::default()
    };
    let mut pair = Pair::new(config, Duration::from_millis(1));
    let streams: Vec<StreamId> = (0..100)
        .map(|_| pair.server.open(T0, bytes(1)).unwrap())
        .collect();
    pair.settle();
    for stream in &streams {
        pair.agent.accept(T0, *stream).unwrap();
    }
    pair.settle();
    // The agent fills every window; nobody reads but the last stream.
    let (reader, stalled) = streams.split_last().unwrap();
    for stream in stalled {
        while pair.agent.write(*stream, bytes(100_000)).is_ok() {
            pair.settle();
        }
    }
    let mut read = 0;
    let wanted = if cfg!(miri) { 200_000 } else { 2_000_000 };
    while read < wanted {
        pair.settle();
        let _ = pair.agent.write(*reader, bytes(100_000));
        pair.settle();
        let before = read;
        while let Ok(Some(data)) = pair.server.read(*reader, usize::MAX) {
            pair.server.consume(*reader, data.len());
            read += data.len();
        }
        assert!(read > before, "stuck at {read}");
    }
    let held: u64 = pair
        .server
        .table
        .streams
        .values()
        .map(|stream| u64::from(stream.ext.receive.held()))
        .sum();
    assert!(
        held <= config.session_window + 100 * u64::from(config.window_floor),
        "{held}"
    );
}
