//! Flows of datagrams, each with a stream to its target. At a static UDP forward the datagrams of
//! each visitor are a flow.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::io::socket::DatagramListener;
use crate::metrics::Dropped;
use crate::relay::datagrams;
use crate::relay::datagrams::{QueueReceiver, QueueSender, carry, count_dropped};
use crate::server::agents::registry::Route;
use crate::server::config::Forward;
use crate::server::config::port::Port;
use crate::server::open::{NotAccepted, OpenRequest, Tried};
use crate::server::ports::forward::open_request;
use crate::server::shared::Shared;
use crate::session::Opening;

/// How long datagrams of a visitor are dropped after its flow was refused, so that not every
/// datagram opens a stream.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// The flows of one listener by what tells them apart. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Flows<K> {
    table: Arc<Table<K>>,
    listening: CancellationToken,
}

#[derive(Debug)]
struct Table<K> {
    senders: Mutex<HashMap<K, QueueSender>>,
}

impl<K> Table<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, QueueSender>> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Default for Flows<K> {
    fn default() -> Self {
        let senders = Mutex::default();
        Self {
            table: Arc::new(Table { senders }),
            listening: CancellationToken::new(),
        }
    }
}

impl<K> Drop for Flows<K> {
    fn drop(&mut self) {
        self.listening.cancel();
    }
}

/// An entry in the table of flows. Dropping it removes the entry: the next datagram begins a new
/// flow.
struct FlowSlot<K: Eq + Hash> {
    table: Arc<Table<K>>,
    key: K,
}

impl<K: Eq + Hash> Drop for FlowSlot<K> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.key);
    }
}

/// Serves a listener. Its flows end with it, because only it can receive their datagrams, and when
/// the destination changes.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    listener: &DatagramListener,
    mut port: watch::Receiver<Arc<Port>>,
) {
    loop {
        let current = Arc::clone(&port.borrow_and_update());
        let Port::Forward(forward) = &*current else {
            return;
        };
        tokio::select! {
            biased;
            changed = port.changed() => if changed.is_err() {
                return;
            },
            never = serve_forward(shared, listener, forward) => match never {},
        }
    }
}

async fn serve_forward(
    shared: &Arc<Shared>,
    listener: &DatagramListener,
    forward: &Forward,
) -> Infallible {
    let flows = Flows::default();
    let mut buffer = BytesMut::new();
    loop {
        let visitor = listener.receive(&mut buffer).await;
        let request = open_request(forward);
        flows.send(shared, visitor, &buffer, request, || {
            let replies = listener.replies(visitor);
            move |datagram: &[u8]| replies.send(datagram)
        });
    }
}

impl<K: Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static> Flows<K> {
    /// Sends a datagram to the flow `key`, which begins with it if there is none. A datagram that
    /// cannot be sent is dropped and counted. `replies` returns what takes the datagrams from the
    /// target.
    pub(super) fn send<R>(
        &self,
        shared: &Arc<Shared>,
        key: K,
        datagram: &[u8],
        request: OpenRequest<'_>,
        replies: impl FnOnce() -> R,
    ) where
        R: Fn(&[u8]) -> io::Result<()> + Send + Sync + 'static,
    {
        let sender = self.table.lock().get(&key).cloned();
        let result = sender
            .map_or_else(|| self.begin(shared, key, request, replies), Ok)
            .and_then(|sender| sender.try_send(Bytes::copy_from_slice(datagram)));
        if let Err(dropped) = result {
            count_dropped(Some(&shared.metrics), dropped);
        }
    }

    /// Begins a flow: opens its stream. The session's scope owns the task from then on.
    fn begin<R>(
        &self,
        shared: &Arc<Shared>,
        key: K,
        request: OpenRequest<'_>,
        replies: impl FnOnce() -> R,
    ) -> Result<QueueSender, Dropped>
    where
        R: Fn(&[u8]) -> io::Result<()> + Send + Sync + 'static,
    {
        let config = shared.config.datagrams;
        if self.table.lock().len() >= config.flows_max {
            return Err(Dropped::Flows);
        }
        let mut tried = Tried::default();
        let opened = shared.open(request, &mut tried);
        let (route, opening) = opened.map_err(|_| Dropped::Stream)?;
        let (sender, receiver) = datagrams::queue(config.queue);
        self.table.lock().insert(key.clone(), sender.clone());
        let flow = Flow {
            slot: FlowSlot {
                table: Arc::clone(&self.table),
                key,
            },
            route: route.clone(),
            opening,
            tried,
            receiver,
            replies: replies(),
        };
        let (shared, listening) = (Arc::clone(shared), self.listening.clone());
        route.scope().spawn_interruptible(async move {
            listening
                .run_until_cancelled_owned(flow.serve(&shared))
                .await;
        });
        Ok(sender)
    }
}

/// The datagrams of one flow and their stream. Dropping it resets the stream.
struct Flow<K: Eq + Hash, R> {
    slot: FlowSlot<K>,
    route: Route,
    opening: Opening,
    tried: Tried,
    receiver: QueueReceiver,
    replies: R,
}

impl<K: Eq + Hash + fmt::Debug, R: Fn(&[u8]) -> io::Result<()>> Flow<K, R> {
    async fn serve(mut self, shared: &Shared) {
        let owner = self.opening.owner();
        let accepted = shared.accepted(&self.route, self.opening, &mut self.tried);
        match accepted.await {
            Ok(stream) => {
                let idle = Some(shared.config.datagrams.idle);
                let metrics = Some(&*shared.metrics);
                let ending = carry(stream, self.receiver, self.replies, idle, metrics).await;
                tracing::debug!(flow = ?self.slot.key, stream = owner.stream, %ending, "flow ended");
            }
            // The next datagram begins a flow in another session.
            Err(NotAccepted::TryAnother) => {}
            Err(NotAccepted::Refused(_)) => {
                drop(self.receiver);
                tokio::time::sleep(REFUSAL_PAUSE).await;
            }
        }
    }
}
