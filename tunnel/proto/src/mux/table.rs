//! The streams of a session and what every dialect does with them: who sends next, who waits for
//! room, who is told what.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::mux::error::{By, Ending, ReadError, Reason, SessionError, WriteError};
use crate::mux::schedule::Schedule;
use crate::mux::stream::{Phase, ReceivePhase, SendPhase, Stream};
use crate::mux::{Event, GONE};
use crate::wire::frame::StreamId;
use crate::{Time, shrink};

/// What a dialect adds to a stream, and what it says of one.
pub(crate) trait Dialect: Sized {
    /// Whether the control queue should know the stream.
    fn has_control(stream: &Stream<Self>) -> bool;

    /// Whether the data queue should know the stream.
    fn has_data(stream: &Stream<Self>) -> bool;

    /// Whether nothing must be told any more of a stream that has ended.
    fn nothing_to_send(&self) -> bool;

    /// How many bytes the peer allows the writer to queue now.
    fn send_credit(&self) -> usize;

    /// Takes note that so many of them were queued.
    fn consume(&mut self, length: usize);
}

/// Nothing here is linear in the number of streams.
#[derive(Debug)]
pub(crate) struct Table<R> {
    pub(super) streams: HashMap<StreamId, Stream<R>>,
    pub(super) schedule: Schedule,
    pub(super) events: VecDeque<Event>,
    deadlines: BTreeSet<(Time, StreamId)>,
    /// Bytes of all streams that wait for the link, and how many may.
    pub(super) buffered: usize,
    buffered_max: usize,
    /// Bytes of one stream that may wait for the link.
    stream_max: usize,
    /// Why the session is over, if it is.
    pub(super) over: Option<SessionError>,
    /// How long the last ping took, if one was timed.
    pub(super) rtt: Option<Duration>,
    /// Bytes of all streams that their users have written and read.
    pub(super) written: u64,
    pub(super) read: u64,
}

impl<R: Dialect> Table<R> {
    pub(crate) fn new(stream_max: usize, buffered_max: usize) -> Self {
        Self {
            streams: HashMap::new(),
            schedule: Schedule::default(),
            events: VecDeque::new(),
            deadlines: BTreeSet::new(),
            buffered: 0,
            buffered_max,
            stream_max,
            over: None,
            rtt: None,
            written: 0,
            read: 0,
        }
    }

    pub(crate) fn ending(&self, id: StreamId) -> Option<Ending> {
        self.streams.get(&id).map_or(Some(GONE), Stream::ending)
    }

    pub(crate) fn is_open(&self, id: StreamId) -> bool {
        let stream = self.streams.get(&id);
        stream.is_some_and(|stream| stream.phase == Phase::Open)
    }

    pub(crate) fn capacity(&mut self, id: StreamId) -> Result<usize, WriteError> {
        let stream = self.streams.get_mut(&id).ok_or(WriteError::Over(GONE))?;
        let opening = match stream.phase {
            Phase::Ended(ending) => return Err(WriteError::Over(ending)),
            Phase::Opening => true,
            Phase::Open => false,
        };
        if stream.send.phase != SendPhase::Open {
            return Err(WriteError::Finished);
        }
        let room = self.stream_max.saturating_sub(stream.send.queue.len());
        let room = room.min(stream.ext.send_credit());
        let shared_room = self.buffered_max.saturating_sub(self.buffered);
        if room > 0 && shared_room > 0 && !opening {
            return Ok(room.min(shared_room));
        }
        stream.send.waiting = true;
        if room > 0 && shared_room == 0 && !stream.send.starved {
            stream.send.starved = true;
            self.schedule.push_starved(id);
        }
        Err(WriteError::Blocked)
    }

    pub(crate) fn write(&mut self, id: StreamId, mut data: Bytes) -> Result<usize, WriteError> {
        let capacity = self.capacity(id)?;
        let Some(stream) = self.streams.get_mut(&id) else {
            return Err(WriteError::Over(GONE));
        };
        data.truncate(capacity);
        let taken = data.len();
        stream.ext.consume(taken);
        stream.send.queue.push_own(data);
        stream.send.total = stream.send.total.saturating_add(taken as u64);
        self.written = self.written.saturating_add(taken as u64);
        self.buffered += taken;
        self.queue_data(id);
        Ok(taken)
    }

    pub(crate) fn finish(&mut self, id: StreamId) -> Result<(), Ending> {
        let stream = self.streams.get_mut(&id).ok_or(GONE)?;
        if let Some(ending) = stream.ending() {
            return Err(ending);
        }
        if stream.send.phase == SendPhase::Open {
            stream.send.phase = SendPhase::Finishing;
            self.queue_data(id);
        }
        Ok(())
    }

    /// Abandons the stream behind what was written; `false` when nothing is, and it can be reset at
    /// once.
    pub(crate) fn abort(&mut self, id: StreamId, reason: Reason) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return true;
        };
        let waits = stream.phase == Phase::Open
            && matches!(stream.send.phase, SendPhase::Open | SendPhase::Finishing)
            && !stream.send.queue.is_empty();
        if waits {
            stream.send.phase = SendPhase::Aborting(reason);
        }
        waits
    }

    pub(crate) fn read(&mut self, id: StreamId, max: usize) -> Result<Option<Bytes>, ReadError> {
        let stream = self.streams.get_mut(&id).ok_or(ReadError::Over(GONE))?;
        if let Some(data) = stream.receive.queue.pop(max) {
            let length = data.len() as u64;
            stream.receive.total = stream.receive.total.saturating_add(length);
            self.read = self.read.saturating_add(length);
            return Ok(Some(data));
        }
        match (stream.phase, stream.receive.phase) {
            (Phase::Ended(Ending::Finished), _)
            | (Phase::Opening | Phase::Open, ReceivePhase::Finished | ReceivePhase::Delivered) => {
                Ok(None)
            }
            (Phase::Ended(ending @ Ending::Reset(..)), _) => Err(ReadError::Over(ending)),
            (Phase::Opening | Phase::Open, ReceivePhase::Open) => {
                stream.receive.waiting = true;
                Err(ReadError::Blocked)
            }
        }
    }

    /// Takes note of a delivery; the stream, if everything up to the peer's end is delivered now.
    pub(crate) fn deliver(&mut self, id: StreamId) -> Option<&mut Stream<R>> {
        let stream = self.streams.get_mut(&id)?;
        let delivered = stream.ending().is_none()
            && stream.receive.phase == ReceivePhase::Finished
            && stream.receive.queue.is_empty();
        if !delivered {
            return None;
        }
        stream.receive.phase = ReceivePhase::Delivered;
        Some(stream)
    }

    /// The user of a stream that has ended holds no handle any more.
    pub(crate) fn release(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.released = true;
            stream.receive.queue.clear();
        }
        self.forget_if_gone(id);
    }

    /// The one function through which a stream ends: its buffers go back here, and the event is
    /// told here. What else the dialect takes back is up to the caller, and so is
    /// [`Self::wake_starved`].
    pub(crate) fn end(&mut self, id: StreamId, ending: Ending) -> Option<&mut Stream<R>> {
        self.disarm(id);
        let stream = self.streams.get_mut(&id)?;
        if stream.ending().is_some() {
            return None;
        }
        stream.phase = Phase::Ended(ending);
        self.buffered = self.buffered.saturating_sub(stream.send.queue.clear());
        // What a peer sent before its socket broke may still be passed on.
        if !matches!(ending, Ending::Reset(Reason::Aborted, By::Peer)) {
            stream.receive.queue.clear();
        }
        self.events.push_back(Event::Ended { stream: id, ending });
        Some(stream)
    }

    pub(crate) fn ids(&self) -> Vec<StreamId> {
        self.streams.keys().copied().collect()
    }

    pub(crate) fn arm(&mut self, id: StreamId, deadline: Time) {
        self.disarm(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.deadline = Some(deadline);
            self.deadlines.insert((deadline, id));
        }
    }

    pub(crate) fn disarm(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && let Some(deadline) = stream.deadline.take()
        {
            self.deadlines.remove(&(deadline, id));
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Takes the next stream whose deadline has come.
    pub(crate) fn expired(&mut self, now: Time) -> Option<StreamId> {
        let (deadline, id) = self.deadlines.first().copied()?;
        if deadline > now {
            return None;
        }
        self.deadlines.remove(&(deadline, id));
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.deadline = None;
        }
        Some(id)
    }

    pub(crate) fn queue_control(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && R::has_control(stream)
            && !stream.queued
        {
            stream.queued = true;
            self.schedule.push_control(id);
        }
    }

    pub(crate) fn queue_data(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && R::has_data(stream)
            && !stream.send.queued
        {
            stream.send.queued = true;
            self.schedule.push_data(id, stream.send.round);
        }
    }

    /// Takes note that a stream had its turn and so many bytes of its queue are on their way.
    pub(crate) fn sent(&mut self, id: StreamId, length: usize) {
        self.buffered = self.buffered.saturating_sub(length);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.send.round = self.schedule.round_end();
            if R::has_data(stream) {
                stream.send.queued = true;
                self.schedule.push_again(id);
            }
        }
        self.wake_writer(id);
        self.wake_starved();
    }

    pub(crate) fn wake_reader(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && std::mem::take(&mut stream.receive.waiting)
        {
            self.events.push_back(Event::Readable { stream: id });
        }
    }

    /// Wakes a writer once half its buffer is free, so that it reads from its socket in large
    /// pieces.
    pub(crate) fn wake_writer(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.send.waiting
            || stream.phase != Phase::Open
            || stream.send.queue.len() > self.stream_max / 2
            || stream.ext.send_credit() == 0
        {
            return;
        }
        if self.buffered < self.buffered_max {
            stream.send.waiting = false;
            self.events.push_back(Event::Writable { stream: id });
        } else if !stream.send.starved {
            stream.send.starved = true;
            self.schedule.push_starved(id);
        }
    }

    /// Wakes everyone who waits for room once half of it is free. What keeps the room short is
    /// still to be sent, so this is called again while anyone waits.
    pub(crate) fn wake_starved(&mut self) {
        if self.buffered > self.buffered_max / 2 {
            return;
        }
        while let Some(id) = self.schedule.pop_starved() {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.send.starved = false;
            }
            self.wake_writer(id);
        }
    }

    pub(crate) fn forget_if_gone(&mut self, id: StreamId) {
        let stream = self.streams.get(&id);
        if stream.is_some_and(|stream| {
            stream.released && stream.ending().is_some() && stream.ext.nothing_to_send()
        }) {
            self.streams.remove(&id);
            shrink::shrink_if_sparse(&mut self.streams);
        }
    }
}
