//! What servers tell each other: whose streams each can open.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;

use crate::mux::Event;
use crate::mux::remotedialer::Mux;
use crate::wire::frame::Side;
use crate::wire::remotedialer::{Body, TEXT_MAX};

/// The clients that the peer has. A client may be there by several sessions, and is until the last
/// of them is gone.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    sessions: HashMap<Box<str>, HashSet<i64>>,
    count: usize,
    overrun: bool,
}

/// Reads `clientKey/sessionKey`.
fn parse(text: &[u8]) -> Option<(&str, i64)> {
    let (client, session) = std::str::from_utf8(text).ok()?.split_once('/')?;
    Some((client, session.parse().ok()?))
}

/// What the peer is to be told of our clients. It holds no more than what the peer knows and what
/// it should know: what is over before it was told is never told.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    waiting: VecDeque<(Box<str>, bool)>,
}

impl Announcements {
    fn push(&mut self, client: &str, present: bool) {
        let untold = |(waiting, present): &(Box<str>, bool)| *present && **waiting == *client;
        let untold = (!present).then(|| self.waiting.iter().position(untold));
        match untold.flatten() {
            Some(at) => drop(self.waiting.remove(at)),
            None => self.waiting.push_back((client.into(), present)),
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Body> {
        let (client, present) = self.waiting.pop_front()?;
        let client = Bytes::from(client.into_string());
        Some(if present {
            Body::AddClient(client)
        } else {
            Body::RemoveClient(client)
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.waiting = VecDeque::new();
    }
}

impl Mux {
    /// Tells the peer that streams of `client` can be opened through us by the session `key`, or no
    /// longer. What is longer than [`TEXT_MAX`] bytes is not told, because the peer would read
    /// another name.
    pub fn announce(&mut self, client: &str, key: i64, present: bool) {
        let text = format!("{client}/{key}");
        if self.table.over.is_none() && text.len() <= TEXT_MAX {
            self.announcements.push(&text, present);
        }
    }

    /// Whether the peer has told that streams of `client` can be opened through it.
    #[must_use]
    pub fn has_client(&self, client: &str) -> bool {
        self.clients.sessions.contains_key(client)
    }

    pub(crate) fn recv_client(&mut self, text: &[u8], present: bool) {
        if self.side == Side::Agent || self.config.clients_max == 0 {
            return;
        }
        let Some((client, session)) = parse(text) else {
            return;
        };
        let Clients {
            sessions, count, ..
        } = &mut self.clients;
        if !present {
            if let Some(keys) = sessions.get_mut(client) {
                *count -= usize::from(keys.remove(&session));
                if keys.is_empty() {
                    sessions.remove(client);
                }
            }
        } else if *count < self.config.clients_max {
            let keys = sessions.entry(client.into()).or_default();
            *count += usize::from(keys.insert(session));
        } else if !std::mem::replace(&mut self.clients.overrun, true) {
            self.table.events.push_back(Event::TooManyClients);
        }
    }
}
