//! What unmodified programs of remotedialer and ours said to each other over loopback, recorded on
//! the wire: read, written and said again byte by byte.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tunnel_proto::mux::remotedialer::{Config, Mux};
use tunnel_proto::mux::{Mux as _, Reason, Streams as _};
use tunnel_proto::wire::frame::{Side, StreamId};
use tunnel_proto::wire::remotedialer::{Body, Message, TEXT_MAX, decode, encode};

const T0: Duration = Duration::ZERO;

const GO_CLIENT: &str = include_str!("vectors/go-client.txt");
const GO_SERVER: &str = include_str!("vectors/go-server.txt");
const PEER_THAT_DIALED_US: &str = include_str!("vectors/peer-that-dialed-us.txt");
const PEER_THAT_WE_DIALED: &str = include_str!("vectors/peer-that-we-dialed.txt");
const MESSAGES: &str = include_str!("vectors/messages.txt");

struct Line {
    ours: bool,
    bytes: Bytes,
    /// The connection, the kind and the body, as a reader that is not ours understood them.
    words: &'static str,
}

fn lines(file: &'static str) -> Vec<Line> {
    let lines = file.lines().filter(|line| !line.starts_with('#'));
    let line = |line: &'static str| {
        let (sender, rest) = line.split_at(4);
        let (hex, words) = rest.trim_start().split_once(' ').unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        Line {
            ours: match sender {
                "us  " => true,
                "peer" => false,
                other => panic!("{other}"),
            },
            bytes: (0..hex.len()).step_by(2).map(byte).collect(),
            words,
        }
    };
    lines.map(line).collect()
}

/// Reads the number of a message, which the dialect is not interested in.
fn number(bytes: &[u8]) -> i64 {
    let mut zigzag = 0_u64;
    for (at, byte) in bytes.iter().enumerate() {
        zigzag |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            break;
        }
    }
    (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed()
}

fn words(message: &Message) -> String {
    let text = |bytes: &Bytes| bytes.escape_ascii().to_string();
    let (kind, body) = match &message.body {
        Body::Data(data) => ("data", text(data)),
        Body::Connect(address) => ("connect", text(address)),
        Body::Error(error) => ("error", text(error)),
        Body::AddClient(client) => ("add-client", text(client)),
        Body::RemoveClient(client) => ("remove-client", text(client)),
        Body::Pause => ("pause", String::new()),
        Body::Resume => ("resume", String::new()),
        Body::SyncConnections(list) => {
            let list: Vec<String> = list.iter().map(i64::to_string).collect();
            ("sync-connections", list.join(" "))
        }
        Body::Unknown(kind) => panic!("{kind}"),
    };
    let line = format!("{} {kind} {body}", message.connection);
    line.trim_end().to_owned()
}

#[test]
fn every_message_is_understood_and_written_byte_by_byte() {
    let mut kinds = std::collections::HashSet::new();
    let files = [
        GO_CLIENT,
        GO_SERVER,
        PEER_THAT_DIALED_US,
        PEER_THAT_WE_DIALED,
        MESSAGES,
    ];
    for line in files.into_iter().flat_map(lines) {
        let message = decode(line.bytes.clone()).unwrap();
        if let Body::Error(text) = &message.body
            && text.len() == TEXT_MAX
        {
            // Of a longer text the beginning is read.
            assert!(line.words.starts_with(&words(&message)), "{}", line.words);
            continue;
        }
        assert_eq!(words(&message), line.words);
        let mut written = BytesMut::new();
        encode(number(&line.bytes), &message, &mut written);
        assert_eq!(written, line.bytes, "{}", line.words);
        kinds.insert((line.ours, line.words.split(' ').nth(1).unwrap()));
    }
    assert_eq!(
        kinds.len(),
        2 * 8,
        "every kind, from either sender: {kinds:?}"
    );
}

/// Our end of a link: what its user did is taken from what was sent.
struct Replay {
    mux: Mux,
    sent: i64,
}

impl Replay {
    fn new(side: Side, name: &str) -> Self {
        let config = Config {
            clients_max: 10,
            ..Config::default()
        };
        let mux = Mux::new(side, name, config, T0);
        Self { mux, sent: 0 }
    }

    fn play(&mut self, file: &'static str) {
        for line in lines(file) {
            let message = decode(line.bytes.clone()).unwrap();
            if line.ours {
                self.act(&message);
                assert_eq!(self.say(), Some(line.bytes), "{}", line.words);
            } else {
                self.mux.handle_message(T0, message).unwrap();
                self.follow();
            }
            while self.mux.poll_event().is_some() {}
        }
        assert_eq!(self.say(), None);
    }

    /// Does what leads to `message`, unless it is said without more ado.
    fn act(&mut self, message: &Message) {
        if self.mux.has_transmit() {
            return;
        }
        let id = u64::try_from(message.connection)
            .ok()
            .and_then(StreamId::new);
        match (id, &message.body) {
            (Some(id), Body::Connect(target)) => {
                assert_eq!(self.mux.open(T0, target.clone()), Ok(id));
            }
            (Some(id), Body::Data(data)) => {
                self.mux.accept(T0, id).unwrap();
                assert_eq!(self.mux.write(id, data.clone()), Ok(data.len()));
            }
            (Some(id), Body::Error(text)) => {
                let reason = match text.as_ref() {
                    b"connection refused" => Reason::Refused,
                    b"connect not allowed" => Reason::Denied,
                    other => panic!("{}", other.escape_ascii()),
                };
                self.mux.reset(id, reason);
                self.mux.release(id);
            }
            (None, Body::AddClient(client)) => {
                let (client, key) = std::str::from_utf8(client)
                    .unwrap()
                    .split_once('/')
                    .unwrap();
                self.mux.announce(client, key.parse().unwrap(), true);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Takes what arrived, as a user does, and lets go of what is over.
    fn follow(&mut self) {
        for id in (1..10).filter_map(StreamId::new) {
            if !self.mux.is_open(id) {
                continue;
            }
            while let Ok(Some(data)) = self.mux.read(id, usize::MAX) {
                self.mux.consume(id, data.len());
            }
            self.mux.deliver(id);
            if self.mux.ending(id).is_some() {
                self.mux.release(id);
            }
        }
    }

    fn say(&mut self) -> Option<Bytes> {
        let message = self.mux.poll_transmit()?;
        self.sent += 1;
        let mut bytes = BytesMut::new();
        encode(self.sent, &message, &mut bytes);
        Some(bytes.freeze())
    }
}

#[test]
fn our_end_says_the_same_again() {
    Replay::new(Side::Server, "foo/1").play(GO_CLIENT);
    Replay::new(Side::Agent, "bar/11343085966143778242").play(GO_SERVER);
    Replay::new(Side::Agent, "east/1").play(PEER_THAT_WE_DIALED);
    let mut peer = Replay::new(Side::Server, "east/1");
    peer.play(PEER_THAT_DIALED_US);
    assert!(peer.mux.has_client("foo"));
}
