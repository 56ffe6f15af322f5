//! What goes out, and in which order.

use bytes::Bytes;

use crate::mux::error::{By, Ending};
use crate::mux::remotedialer::stream::{Next, connection};
use crate::mux::remotedialer::{Answer, Mux, text};
use crate::shrink;
use crate::wire::remotedialer::{Body, EOF, Message, TEXT_MAX};

impl Mux {
    /// Takes the next message to send: the session's, then the streams' control messages, then
    /// data, one message from each stream in turn.
    #[must_use]
    pub fn poll_transmit(&mut self) -> Option<Message> {
        if std::mem::take(&mut self.sync) {
            let body = Body::SyncConnections(self.list());
            return Some(Message {
                connection: 0,
                body,
            });
        }
        if let Some((connection, answer)) = shrink::pop(&mut self.answers) {
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
        while let Some(id) = self.table.schedule.pop_control() {
            let Some(stream) = self.table.streams.get_mut(&id) else {
                continue;
            };
            stream.queued = false;
            let Some(body) = stream.next_control() else {
                continue;
            };
            if matches!(body, Body::Connect(_)) {
                self.connected = self.connected.max(id.number());
                self.table.queue_data(id);
            }
            self.table.queue_control(id);
            self.table.forget_if_gone(id);
            return Some(Message {
                connection: connection(id),
                body,
            });
        }
        while let Some(id) = self.table.schedule.pop_data() {
            let Some(stream) = self.table.streams.get_mut(&id) else {
                continue;
            };
            stream.send.queued = false;
            let body = match stream.next_data(self.config.piece_max) {
                None => continue,
                Some(Next::Data(data)) => {
                    self.table.sent(id, data.len());
                    Body::Data(data)
                }
                Some(Next::Finish) => {
                    self.both_over(id);
                    Body::Error(Bytes::from_static(EOF))
                }
                Some(Next::Abort(reason)) => {
                    self.end_stream(id, Ending::Reset(reason, By::Us));
                    self.table.forget_if_gone(id);
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
}
