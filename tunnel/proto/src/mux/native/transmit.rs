//! What goes out, and in which order.

use crate::mux::error::{By, Ending};
use crate::mux::native::Mux;
use crate::mux::native::halves::Halves;
use crate::mux::table::Dialect as _;
use crate::shrink;
use crate::wire::frame::Frame;

impl Mux {
    /// Takes the next frame to send: the session's control frames, then the streams', then data,
    /// one frame from each stream in turn. A data frame has at most `room` bytes of data, and at
    /// most [`Config::frame_max`](crate::mux::native::Config::frame_max) while another stream waits
    /// for its turn.
    #[must_use]
    pub fn poll_transmit(&mut self, room: usize) -> Option<Frame> {
        if let Some(nonce) = self.pong.take() {
            return Some(Frame::Pong { nonce });
        }
        if let Some(nonce) = self.ping.take() {
            return Some(Frame::Ping { nonce });
        }
        if let Some(reason) = self.go_away.take() {
            return Some(Frame::GoAway { reason });
        }
        if let Some((stream, reason)) = shrink::pop(&mut self.refusals) {
            return Some(Frame::Reset { stream, reason });
        }
        while let Some(id) = self.table.schedule.pop_control() {
            let Some(stream) = self.table.streams.get_mut(&id) else {
                continue;
            };
            stream.queued = false;
            let frame = stream.next_control(id);
            if Halves::has_control(stream) {
                self.table.queue_control(id);
            } else {
                self.table.forget_if_gone(id);
            }
            if frame.is_some() {
                return frame;
            }
        }
        while let Some(id) = self.table.schedule.pop_data() {
            let Some(stream) = self.table.streams.get_mut(&id) else {
                continue;
            };
            stream.send.queued = false;
            let max = if self.table.schedule.has_data() {
                self.config.frame_max.min(room)
            } else {
                room
            };
            let Some((frame, sent)) = stream.next_data(id, max) else {
                continue;
            };
            if let Frame::Reset { reason, .. } = frame {
                self.end_stream(id, Ending::Reset(reason, By::Us));
                self.table.forget_if_gone(id);
            }
            self.table.sent(id, sent);
            return Some(frame);
        }
        None
    }
}
