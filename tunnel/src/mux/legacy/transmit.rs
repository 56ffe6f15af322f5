//! What goes out, and in which order.

use bytes::Bytes;

use super::stream::{Next, Stream, connection};
use super::{Answer, Legacy, Probe};
use crate::dialect::remotedialer::{Body, EOF, Message, TEXT_MAX};
use crate::mux::Event;
use crate::mux::error::{By, Ending};
use crate::mux::frame::StreamId;
use crate::mux::stream::Phase;

use super::text;

impl Legacy {
    /// Whether [`Self::poll_transmit`] has a message or [`Self::poll_ping`] a ping.
    #[must_use]
    pub fn has_transmit(&self) -> bool {
        self.ping
            || self.probe == Probe::Due
            || self.sync
            || !self.answers.is_empty()
            || !self.announcements.is_empty()
            || !self.schedule.is_idle()
    }

    /// Takes the next message to send: the session's, then the streams' control messages, then data, one message from each stream
    /// in turn.
    #[must_use]
    pub fn poll_transmit(&mut self) -> Option<Message> {
        if std::mem::take(&mut self.sync) {
            let body = Body::SyncConnections(self.list());
            return Some(Message {
                connection: 0,
                body,
            });
        }
        if let Some((connection, answer)) = self.answers.pop_front() {
            let body = Body::Error(match answer {
                Answer::Because(reason) => text::of(reason),
                Answer::NotFound => {
                    let mut text = format!("connection not found {}/{connection}", self.name);
                    text.truncate(TEXT_MAX);
                    Bytes::from(text)
                }
            });
            return Some(Message { connection, body });
        }
        if let Some(body) = self.announcements.pop() {
            return Some(Message {
                connection: 0,
                body,
            });
        }
        while let Some(id) = self.schedule.pop_control() {
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.queued = false;
            let Some(body) = stream.next_control() else {
                continue;
            };
            if matches!(body, Body::Connect(_)) {
                self.connected = self.connected.max(id.number());
                self.queue_data(id);
            }
            self.queue_control(id);
            self.forget_if_gone(id);
            return Some(Message {
                connection: connection(id),
                body,
            });
        }
        while let Some(id) = self.schedule.pop_data() {
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.send.queued = false;
            let body = match stream.next_data(self.config.piece_max) {
                None => continue,
                Some(Next::Data(data)) => {
                    self.send_buffered = self.send_buffered.saturating_sub(data.len());
                    self.queue_data(id);
                    self.wake_writer(id);
                    self.wake_starved();
                    Body::Data(data)
                }
                Some(Next::Finish) => {
                    self.both_over(id);
                    Body::Error(Bytes::from_static(EOF))
                }
                Some(Next::Abort(reason)) => {
                    self.end_stream(id, Ending::Reset(reason, By::Us));
                    self.forget_if_gone(id);
                    Body::Error(text::of(reason))
                }
            };
            return Some(Message {
                connection: connection(id),
                body,
            });
        }
        None
    }

    pub(super) fn queue_control(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.has_control()
            && !stream.queued
        {
            stream.queued = true;
            self.schedule.push_control(id);
        }
    }

    pub(super) fn queue_data(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.has_data()
            && !stream.send.queued
        {
            stream.send.queued = true;
            self.schedule.push_data(id);
        }
    }

    /// Wakes a writer once half its buffer is free, so that it reads from its socket in large pieces.
    pub(super) fn wake_writer(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.send.waiting
            || stream.phase != Phase::Open
            || stream.send.paused
            || stream.send.queue.len() > self.config.send_buffer / 2
        {
            return;
        }
        if self.send_buffered < self.config.session_send_buffer {
            stream.send.waiting = false;
            self.events.push_back(Event::Writable { stream: id });
        } else if !stream.send.starved {
            stream.send.starved = true;
            self.schedule.push_starved(id);
        }
    }

    /// Wakes everyone who waits for room once half of it is free.
    pub(super) fn wake_starved(&mut self) {
        if self.send_buffered > self.config.session_send_buffer / 2 {
            return;
        }
        while let Some(id) = self.schedule.pop_starved() {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.send.starved = false;
            }
            self.wake_writer(id);
        }
    }

    pub(super) fn forget_if_gone(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(Stream::is_gone) {
            self.streams.remove(&id);
        }
    }
}
