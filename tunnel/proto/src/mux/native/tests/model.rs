//! Random lives of streams against a naive model: whatever happens, what is read is a prefix of
//! what was written, a finish arrives behind everything, each stream ends exactly once on each
//! side, and nothing is left behind.

use std::collections::HashMap;

use proptest::prelude::*;

use crate::mux::native::tests::pair::Pair;
use crate::mux::native::tests::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Open,
    Accept(usize),
    Refuse(usize),
    Write(bool, usize, usize),
    Read(bool, usize, usize),
    Finish(bool, usize),
    Reset(bool, usize),
    Abort(bool, usize),
    Release(bool, usize),
    Exchange(usize),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    let stream = || 0..6_usize;
    prop_oneof![
        2 => Just(Step::Open),
        3 => stream().prop_map(Step::Accept),
        1 => stream().prop_map(Step::Refuse),
        8 => (any::<bool>(), stream(), 0..4000_usize).prop_map(|(s, i, n)| Step::Write(s, i, n)),
        8 => (any::<bool>(), stream(), 1..4000_usize).prop_map(|(s, i, n)| Step::Read(s, i, n)),
        3 => (any::<bool>(), stream()).prop_map(|(s, i)| Step::Finish(s, i)),
        1 => (any::<bool>(), stream()).prop_map(|(s, i)| Step::Reset(s, i)),
        1 => (any::<bool>(), stream()).prop_map(|(s, i)| Step::Abort(s, i)),
        1 => (any::<bool>(), stream()).prop_map(|(s, i)| Step::Release(s, i)),
        6 => (0..8_usize).prop_map(Step::Exchange),
        2 => (0..400_u64).prop_map(Step::Wait),
    ]
}

/// One direction of one stream as the model knows it.
#[derive(Default)]
struct Direction {
    written: usize,
    read: usize,
    finished: bool,
    end_read: bool,
}

#[derive(Default)]
struct Model {
    streams: Vec<StreamId>,
    directions: HashMap<(bool, StreamId), Direction>,
    endings: HashMap<(bool, StreamId), Ending>,
    released: Vec<(bool, StreamId)>,
}

/// The byte at a place of a direction, so that a lost or doubled one is seen.
fn pattern(stream: StreamId, from_server: bool, at: usize) -> u8 {
    let seed =
        stream.number() * 31 + u64::from(from_server) * 7 + at as u64 * 13 + (at as u64 >> 8);
    u8::try_from(seed & 0xff).unwrap()
}

fn side(pair: &mut Pair, server: bool) -> &mut Mux {
    if server {
        &mut pair.server
    } else {
        &mut pair.agent
    }
}

impl Model {
    fn pick(&self, index: usize) -> Option<StreamId> {
        self.streams.iter().rev().nth(index).copied()
    }

    fn note_events(&mut self, pair: &mut Pair) {
        for server in [true, false] {
            for event in events(side(pair, server)) {
                if let Event::Ended { stream, ending } = event {
                    let before = self.endings.insert((server, stream), ending);
                    assert_eq!(before, None, "a stream ends once");
                }
            }
        }
    }

    fn write(&mut self, pair: &mut Pair, server: bool, stream: StreamId, length: usize) {
        let direction = self.directions.entry((server, stream)).or_default();
        let data: Vec<u8> = (0..length)
            .map(|at| pattern(stream, server, direction.written + at))
            .collect();
        match side(pair, server).write(stream, data.into()) {
            Ok(taken) => {
                assert!(taken <= length && !direction.finished);
                direction.written += taken;
            }
            Err(WriteError::Finished) => assert!(direction.finished),
            Err(WriteError::Blocked | WriteError::Over(_)) => {}
        }
    }

    fn read(&mut self, pair: &mut Pair, server: bool, stream: StreamId, max: usize) {
        let mux = side(pair, server);
        let direction = self.directions.entry((!server, stream)).or_default();
        match mux.read(stream, max) {
            Ok(Some(data)) => {
                assert!(data.len() <= max);
                for byte in &data {
                    assert_eq!(*byte, pattern(stream, !server, direction.read));
                    direction.read += 1;
                }
                assert!(direction.read <= direction.written);
                mux.consume(stream, data.len());
            }
            Ok(None) => {
                assert!(direction.finished, "an end that nobody wrote");
                assert_eq!(
                    direction.read, direction.written,
                    "bytes lost before the end"
                );
                direction.end_read = true;
                mux.deliver(stream);
            }
            Err(ReadError::Blocked | ReadError::Over(_)) => {}
        }
    }

    fn apply(&mut self, pair: &mut Pair, step: Step) {
        match step {
            Step::Open => {
                if let Ok(stream) = pair.server.open(pair.now, Bytes::from_static(b"tcp/a:1")) {
                    self.streams.push(stream);
                }
            }
            Step::Accept(index) => {
                if let Some(stream) = self.pick(index) {
                    let _ = pair.agent.accept(T0, stream);
                }
            }
            Step::Refuse(index) => {
                if let Some(stream) = self.pick(index) {
                    pair.agent.reset(stream, Reason::Refused);
                }
            }
            Step::Write(server, index, length) => {
                if let Some(stream) = self.pick(index) {
                    self.write(pair, server, stream, length);
                }
            }
            Step::Read(server, index, max) => {
                if let Some(stream) = self.pick(index) {
                    self.read(pair, server, stream, max);
                }
            }
            Step::Finish(server, index) => {
                if let Some(stream) = self.pick(index)
                    && side(pair, server).finish(stream).is_ok()
                {
                    self.directions
                        .entry((server, stream))
                        .or_default()
                        .finished = true;
                }
            }
            Step::Reset(server, index) => {
                if let Some(stream) = self.pick(index) {
                    side(pair, server).reset(stream, Reason::Aborted);
                }
            }
            Step::Abort(server, index) => {
                if let Some(stream) = self.pick(index) {
                    let mux = side(pair, server);
                    let open = mux.is_open(stream);
                    mux.abort(stream, Reason::Aborted);
                    self.directions
                        .entry((server, stream))
                        .or_default()
                        .finished |= open;
                }
            }
            Step::Release(server, index) => {
                if let Some(stream) = self.pick(index) {
                    side(pair, server).release(stream);
                    self.released.push((server, stream));
                }
            }
            Step::Exchange(limit) => {
                pair.transmit(limit);
                pair.deliver();
            }
            Step::Wait(milliseconds) => {
                pair.advance(Duration::from_millis(milliseconds));
                pair.deliver();
            }
        }
        self.note_events(pair);
    }

    /// Everybody behaves from here on: reads, finishes, lets go.
    fn wind_down(&mut self, pair: &mut Pair) {
        for stream in self.streams.clone() {
            let _ = pair.agent.accept(T0, stream);
            for server in [true, false] {
                if side(pair, server).finish(stream).is_ok() {
                    self.directions
                        .entry((server, stream))
                        .or_default()
                        .finished = true;
                }
            }
        }
        for _ in 0..200 {
            pair.settle();
            self.note_events(pair);
            if self
                .streams
                .iter()
                .all(|stream| self.endings.contains_key(&(true, *stream)))
            {
                break;
            }
            for stream in self.streams.clone() {
                let _ = pair.agent.accept(T0, stream);
                for server in [true, false] {
                    if server || pair.agent.is_open(stream) {
                        let _ = side(pair, server).finish(stream).is_ok_and(|()| {
                            self.directions
                                .entry((server, stream))
                                .or_default()
                                .finished = true;
                            true
                        });
                    }
                    self.read(pair, server, stream, 100_000);
                }
            }
            self.note_events(pair);
        }
    }
}

/// Few under miri, which takes long for each.
const CASES: u32 = if cfg!(miri) { 2 } else { 128 };
const STEPS_MAX: usize = if cfg!(miri) { 20 } else { 200 };

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, max_shrink_iters: 4096, ..ProptestConfig::default() })]

    #[test]
    fn streams_keep_their_promises(steps in prop::collection::vec(steps(), 0..STEPS_MAX), delay in 0..60_u64) {
        let config = Config {
            max_streams: 5,
            frame_max: 700,
            send_buffer: 2000,
            session_send_buffer: 5000,
            window_floor: 300,
            window_initial: 1500,
            window_max: 6000,
            session_window: 8000,
            open_timeout: Duration::from_millis(900),
            ..Config::default()
        };
        let mut pair = Pair::new(config, Duration::from_millis(delay));
        let mut model = Model::default();
        for step in steps {
            model.apply(&mut pair, step);
            prop_assert!(pair.server.send_buffered() <= 5000 && pair.agent.send_buffered() <= 5000);
            prop_assert!(pair.server.streams() <= 5 && pair.agent.streams() <= 5);
            prop_assert!(pair.server.budget.used() <= 8000 && pair.agent.budget.used() <= 8000);
        }
        model.wind_down(&mut pair);
        prop_assert_eq!(pair.server.over(), None);
        for stream in model.streams.clone() {
            prop_assert!(model.endings.contains_key(&(true, stream)), "{:?} has not ended", stream);
            let finished = |server| model.endings.get(&(server, stream)) == Some(&Ending::Finished);
            if finished(true) || finished(false) {
                for server in [true, false] {
                    let direction = &model.directions[&(server, stream)];
                    prop_assert!(direction.end_read && direction.read == direction.written);
                }
            }
            pair.server.release(stream);
            pair.agent.release(stream);
        }
        pair.settle();
        for mux in [&pair.server, &pair.agent] {
            prop_assert_eq!(mux.streams(), 0);
            prop_assert_eq!(mux.send_buffered(), 0);
            prop_assert_eq!(mux.budget.used(), 0);
            prop_assert_eq!(mux.table.next_deadline(), None);
        }
    }
}
