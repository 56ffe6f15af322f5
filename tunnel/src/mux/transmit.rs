//! What goes out, and in which order.

use super::error::{By, Ending};
use super::frame::{Frame, StreamId};
use super::stream::{Phase, Stream};
use super::{Event, Mux};

impl Mux {
    /// Whether [`Self::poll_transmit`] has a frame.
    #[must_use]
    pub fn has_transmit(&self) -> bool {
        self.pong.is_some()
            || self.ping.is_some()
            || self.go_away.is_some()
            || !self.refusals.is_empty()
            || !self.schedule.is_idle()
    }

    /// Takes the next frame to send: the session's control frames, then the streams', then data, one frame from each stream in turn.
    #[must_use]
    pub fn poll_transmit(&mut self) -> Option<Frame> {
        if let Some(nonce) = self.pong.take() {
            return Some(Frame::Pong { nonce });
        }
        if let Some(nonce) = self.ping.take() {
            return Some(Frame::Ping { nonce });
        }
        if let Some(reason) = self.go_away.take() {
            return Some(Frame::GoAway { reason });
        }
        if let Some((stream, reason)) = self.refusals.pop_front() {
            return Some(Frame::Reset { stream, reason });
        }
        while let Some(id) = self.schedule.pop_control() {
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.due.queued = false;
            let frame = stream.next_control(id);
            if stream.has_control() {
                self.queue_control(id);
            } else {
                self.forget_if_gone(id);
            }
            if frame.is_some() {
                return frame;
            }
        }
        while let Some(id) = self.schedule.pop_data() {
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.send.queued = false;
            let Some((frame, sent)) = stream.next_data(id, self.config.frame_max) else {
                continue;
            };
            self.send_buffered = self.send_buffered.saturating_sub(sent);
            if let Frame::Reset { reason, .. } = frame {
                self.end_stream(id, Ending::Reset(reason, By::Us));
                self.forget_if_gone(id);
            }
            self.queue_data(id);
            self.wake_writer(id);
            self.wake_starved();
            return Some(frame);
        }
        None
    }

    pub(super) fn queue_control(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.has_control()
            && !stream.due.queued
        {
            stream.due.queued = true;
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
            || stream.send.queue.len() > self.config.send_buffer / 2
            || stream.send.window.left() == 0
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

    /// Wakes everyone who waits for room once half of it is free. What keeps the room short is still to be sent, so this
    /// is called again while anyone waits.
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
