//! A hostile peer: every file of the corpus, and mutations of it, go through the decoders into both
//! cores. Nothing panics, every bound of the configuration holds, and an error ends that session
//! with all its streams and leaves nothing behind.
//!
//! A file is what one peer sends: one WebSocket message a line, in hexadecimal.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config as Cases, RngAlgorithm, TestRng, TestRunner};
use tunnel_proto::mux::{Event, Mux, Reason};
use tunnel_proto::wire::frame::{Side, StreamId};
use tunnel_proto::wire::{native, remotedialer};
use tunnel_proto::{Time, mux};

const STREAMS_MAX: usize = 16;
const STREAM_SEND: usize = 2048;
const SESSION_SEND: usize = 4096;
const QUEUE_MAX: usize = 8;

fn native_config() -> mux::native::Config {
    mux::native::Config {
        max_streams: STREAMS_MAX,
        send_buffer: STREAM_SEND,
        session_send_buffer: SESSION_SEND,
        window_floor: 512,
        window_initial: 2048,
        window_max: 4096,
        session_window: 8192,
        refusals_max: QUEUE_MAX,
        open_timeout: Duration::from_millis(50),
        ping_interval: Duration::from_millis(20),
        silence: Duration::from_millis(200),
        ..Default::default()
    }
}

fn remotedialer_config() -> mux::remotedialer::Config {
    mux::remotedialer::Config {
        max_streams: STREAMS_MAX,
        send_buffer: STREAM_SEND,
        session_send_buffer: SESSION_SEND,
        pause_above: 1024,
        resume_below: 256,
        pause_floor: 512,
        session_pause: 8192,
        stream_cap: 4096,
        session_cap: 16_384,
        answers_max: QUEUE_MAX,
        clients_max: 4,
        ping_interval: Duration::from_millis(20),
        sync_interval: Duration::from_millis(50),
        silence: Duration::from_millis(200),
        dial_grace: Duration::from_millis(5),
        delivery_grace: Duration::from_millis(30),
        ..Default::default()
    }
}

/// A session's core and its dialect, as a link has them.
trait Core: Mux {
    /// The most received bytes that its streams may hold together, one message of `message` bytes
    /// included.
    fn held_max(message: usize) -> usize;
    fn start(side: Side) -> Self;
    /// Takes a message; `false` when the link would let go.
    fn take(&mut self, now: Time, message: Bytes) -> bool;
    /// Sends the next message; `None` when there is none.
    fn send(&mut self) -> Option<usize>;
}

impl Core for mux::native::Mux {
    fn held_max(message: usize) -> usize {
        let floors = STREAMS_MAX * usize::try_from(native_config().window_floor).unwrap();
        usize::try_from(native_config().session_window).unwrap() + floors + message
    }
    fn start(side: Side) -> Self {
        Self::new(side, native_config(), Time::ZERO)
    }
    fn take(&mut self, now: Time, message: Bytes) -> bool {
        native::Decoder::new(message)
            .all(|frame| frame.is_ok_and(|frame| self.handle_frame(now, frame).is_ok()))
    }
    fn send(&mut self) -> Option<usize> {
        let frame = self.poll_transmit(native_config().frame_max)?;
        let mut out = BytesMut::new();
        native::encode(&frame, &mut out);
        let again: Vec<_> = native::Decoder::new(out.clone().freeze()).collect();
        assert_eq!(again, [Ok(frame)]);
        Some(out.len())
    }
}

impl Core for mux::remotedialer::Mux {
    fn held_max(message: usize) -> usize {
        remotedialer_config().session_cap
            + STREAMS_MAX * remotedialer_config().pause_floor
            + message
    }
    fn start(side: Side) -> Self {
        Self::new(side, "web/7", remotedialer_config(), Time::ZERO)
    }
    fn take(&mut self, now: Time, message: Bytes) -> bool {
        let held = self.held();
        let max = Self::held_max(message.len());
        let taken = remotedialer::decode(message)
            .is_ok_and(|message| self.handle_message(now, message).is_ok());
        assert!(self.held() <= max && (taken || self.held() <= held));
        taken
    }
    fn send(&mut self) -> Option<usize> {
        let message = self.poll_transmit()?;
        let mut out = BytesMut::new();
        remotedialer::encode(i64::MIN, &message, &mut out);
        assert_eq!(remotedialer::decode(out.clone().freeze()), Ok(message));
        Some(out.len())
    }
}

/// How the end under attack is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    /// Reads, writes, and lets go of what is over.
    Lively,
    /// Opens and accepts, and does nothing more: all that is bounded fills up. The link takes
    /// nothing either.
    Idle,
}

/// One end and its peer's messages.
struct Attack<C> {
    core: C,
    user: User,
    now: Time,
    /// Streams that there are, and whether their end was told.
    streams: HashMap<StreamId, bool>,
    turn: usize,
}

impl<C: Core> Attack<C> {
    fn run(side: Side, user: User, messages: &[Bytes]) {
        let mut attack = Self {
            core: C::start(side),
            user,
            now: Time::ZERO,
            streams: HashMap::new(),
            turn: 0,
        };
        let longest = messages.iter().map(Bytes::len).max().unwrap_or(0);
        for _ in 0..4 {
            let opened = attack.core.open(Time::ZERO, Bytes::from_static(b"tcp/a:1"));
            attack.streams.insert(opened.unwrap(), false);
        }
        attack.send();
        for message in messages {
            let taken = attack.core.take(attack.now, message.clone());
            attack.settle();
            if !taken {
                break;
            }
            attack.act();
        }
        attack.end(longest);
    }

    /// Takes the events. Each stream ends once.
    fn settle(&mut self) {
        while let Some(event) = self.core.poll_event() {
            match event {
                Event::Opened { stream, .. } => {
                    // remotedialer's peers may use a number again, once it is free.
                    let before = self.streams.insert(stream, false);
                    assert_ne!(before, Some(false), "{stream:?}");
                    self.turn += 1;
                    match (self.user, self.turn % 4) {
                        (User::Lively, 0) => self.core.reset(stream, Reason::Refused),
                        (User::Lively, 1) => self.core.release(stream),
                        (User::Lively, _) | (User::Idle, _) => {
                            let _ = self.core.accept(self.now, stream);
                        }
                    }
                }
                Event::Ended { stream, .. } => {
                    assert_eq!(self.streams.insert(stream, true), Some(false), "{stream:?}");
                }
                Event::Accepted { stream }
                | Event::Readable { stream }
                | Event::Writable { stream } => assert!(self.streams.contains_key(&stream)),
                Event::SessionOver(_) => {
                    assert!(
                        self.core.over().is_some() && self.streams.values().all(|ended| *ended)
                    );
                }
                Event::PeerDraining | Event::TooManyClients => {}
            }
        }
        assert!(self.core.streams() <= STREAMS_MAX);
    }

    fn act(&mut self) {
        if self.user == User::Idle {
            return;
        }
        self.now += Duration::from_millis(3);
        let ids: Vec<StreamId> = self.streams.keys().copied().collect();
        for id in ids {
            self.turn += 1;
            if let Ok(Some(data)) = self.core.read(id, 1500) {
                self.core.consume(id, data.len());
            } else {
                self.core.deliver(id);
            }
            let _ = self.core.write(id, Bytes::from_static(&[7; 700]));
            match self.turn % 32 {
                0 => {
                    let _ = self.core.finish(id);
                }
                1 => self.core.reset(id, Reason::Refused),
                _ => {}
            }
            if self.streams[&id] {
                self.core.release(id);
                self.streams.remove(&id);
            }
        }
        if self.core.poll_timeout().is_some_and(|due| due <= self.now) {
            self.core.handle_timeout(self.now);
        }
        self.send();
        self.settle();
    }

    /// What waits for the link is a bounded number of messages.
    fn send(&mut self) {
        let streams = self.core.streams();
        let mut sent = 0;
        while self.core.send().is_some() {
            sent += 1;
        }
        let data = SESSION_SEND + streams;
        assert!(sent <= data + 5 * streams + 2 * QUEUE_MAX + 2, "{sent}");
        self.settle();
    }

    /// The link is lost, if the session has not ended before: nothing is left then.
    fn end(mut self, longest: usize) {
        if self.core.over().is_none() {
            self.send();
            let mut held = 0;
            for id in self.streams.keys() {
                while let Ok(Some(data)) = self.core.read(*id, 1500) {
                    held += data.len();
                }
            }
            assert!(held <= C::held_max(longest), "{held} bytes are held");
        }
        self.core.handle_link_lost();
        self.settle();
        assert!(self.core.over().is_some() && self.streams.values().all(|ended| *ended));
        assert_eq!((self.core.poll_timeout(), self.core.send()), (None, None));
        for id in self.streams.keys() {
            self.core.release(*id);
        }
        assert_eq!(self.core.streams(), 0);
    }
}

/// Sends `messages` to every kind of end.
fn attack<C: Core>(messages: &[Bytes]) {
    for side in [Side::Server, Side::Agent] {
        for user in [User::Lively, User::Idle] {
            Attack::<C>::run(side, user, messages);
        }
    }
}

fn corpus(dialect: &str) -> Vec<(String, Vec<Bytes>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(dialect);
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let file = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let messages = lines.map(|line| {
            let byte = |at| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
            (0..line.len()).step_by(2).map(byte).collect()
        });
        (path.display().to_string(), messages.collect())
    };
    files.iter().map(file).collect()
}

#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, Index, u8),
    Cut(Index, Index),
    Insert(Index, Index, Vec<u8>),
    Repeat(Index, usize),
    Swap(Index, Index),
    Join(Index, Index),
    Borrow(Index, Index, Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..4),
        Just(vec![0xff; 9]),
        Just(vec![0x80, 0x80, 0x80]),
        Just(vec![b'z'; 3000]),
    ];
    prop_oneof![
        4 => (at(), at(), 0..8_u8).prop_map(|(message, byte, bit)| Mutation::Flip(message, byte, 1 << bit)),
        1 => (at(), at()).prop_map(|(message, byte)| Mutation::Cut(message, byte)),
        2 => (at(), at(), bytes).prop_map(|(message, byte, bytes)| Mutation::Insert(message, byte, bytes)),
        2 => (at(), 1..20_usize).prop_map(|(message, times)| Mutation::Repeat(message, times)),
        2 => (at(), at()).prop_map(|(one, other)| Mutation::Swap(one, other)),
        1 => (at(), at()).prop_map(|(one, other)| Mutation::Join(one, other)),
        4 => (at(), at(), at()).prop_map(|(place, file, message)| Mutation::Borrow(place, file, message)),
    ]
}

fn mutate(messages: &mut Vec<Vec<u8>>, mutation: &Mutation, corpus: &[(String, Vec<Bytes>)]) {
    let count = messages.len();
    match mutation {
        Mutation::Flip(message, byte, bit) => {
            let message = &mut messages[message.index(count)];
            if !message.is_empty() {
                let byte = byte.index(message.len());
                message[byte] ^= bit;
            }
        }
        Mutation::Cut(message, byte) => {
            let message = &mut messages[message.index(count)];
            message.truncate(byte.index(message.len() + 1));
        }
        Mutation::Insert(message, byte, bytes) => {
            let message = &mut messages[message.index(count)];
            let byte = byte.index(message.len() + 1);
            message.splice(byte..byte, bytes.iter().copied());
        }
        Mutation::Repeat(message, times) => {
            let at = message.index(count);
            let again = std::iter::repeat_n(messages[at].clone(), *times);
            messages.splice(at..at, again);
        }
        Mutation::Swap(one, other) => messages.swap(one.index(count), other.index(count)),
        Mutation::Join(one, other) => {
            let other = messages[other.index(count)].clone();
            messages[one.index(count)].extend(other);
        }
        Mutation::Borrow(place, file, message) => {
            let (_, file) = &corpus[file.index(corpus.len())];
            let message = file[message.index(file.len())].to_vec();
            messages.insert(place.index(count + 1), message);
        }
    }
}

/// Replays every file as it is, and then so many mutations of each, always the same ones.
fn replay<C: Core>(dialect: &str, mutations: u32) {
    let corpus = corpus(dialect);
    assert!(corpus.len() > 10, "the corpus is there");
    for (name, messages) in &corpus {
        assert!(!messages.is_empty(), "{name}");
        attack::<C>(messages);
        let cases = Cases {
            cases: mutations,
            failure_persistence: None,
            ..Cases::default()
        };
        let seed = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(cases, seed);
        let mutations = prop::collection::vec(mutation(), 1..8);
        let result = runner.run(&mutations, |mutations| {
            let mut messages: Vec<Vec<u8>> =
                messages.iter().map(|message| message.to_vec()).collect();
            for mutation in &mutations {
                mutate(&mut messages, mutation, &corpus);
            }
            let messages: Vec<Bytes> = messages.into_iter().map(Bytes::from).collect();
            attack::<C>(&messages);
            Ok(())
        });
        if let Err(error) = result {
            panic!("{name}: {error}");
        }
    }
}

#[test]
fn the_native_dialect_and_its_core_withstand_a_hostile_peer() {
    replay::<mux::native::Mux>("native", 200);
}

#[test]
fn remotedialers_dialect_and_its_core_withstand_a_hostile_peer() {
    replay::<mux::remotedialer::Mux>("remotedialer", 200);
}
