//! Static UDP forwards: the datagrams of each visitor are a flow, and each flow has a stream to the
//! target.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::io::socket::{DatagramListener, Replies};
use crate::metrics::Dropped;
use crate::relay::datagrams;
use crate::relay::datagrams::{QueueReceiver, QueueSender, carry, count_dropped};
use crate::server::agents::registry::Route;
use crate::server::config::Forward;
use crate::server::config::port::Port;
use crate::server::open::{NotAccepted, Tried};
use crate::server::ports::forward::open_request;
use crate::server::shared::Shared;
use crate::session::Opening;

/// How long datagrams of a visitor are dropped after its flow was refused, so that not every
/// datagram opens a stream.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// The flows of one listener by their visitors.
#[derive(Debug, Default)]
struct Flows {
    senders: Mutex<HashMap<SocketAddr, QueueSender>>,
}

impl Flows {
    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, QueueSender>> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry in the table of flows. Dropping it removes the entry: the visitor's next datagram
/// begins a new flow.
struct FlowSlot {
    flows: Arc<Flows>,
    visitor: SocketAddr,
}

impl Drop for FlowSlot {
    fn drop(&mut self) {
        self.flows.lock().remove(&self.visitor);
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
    let flows = Arc::new(Flows::default());
    let listening = CancellationToken::new();
    let _ends_flows = listening.clone().drop_guard();
    let mut buffer = BytesMut::new();
    loop {
        let visitor = listener.receive(&mut buffer).await;
        let sender = flows.lock().get(&visitor).cloned();
        let result = sender
            .map_or_else(
                || begin(shared, forward, &flows, listener, visitor, &listening),
                Ok,
            )
            .and_then(|sender| sender.try_send(Bytes::copy_from_slice(&buffer)));
        if let Err(dropped) = result {
            count_dropped(Some(&shared.metrics), dropped);
        }
    }
}

/// Begins a flow: opens a stream for a visitor that has none. The session's scope owns the task
/// from then on.
fn begin(
    shared: &Arc<Shared>,
    forward: &Forward,
    flows: &Arc<Flows>,
    listener: &DatagramListener,
    visitor: SocketAddr,
    listening: &CancellationToken,
) -> Result<QueueSender, Dropped> {
    let config = shared.config.datagrams;
    if flows.lock().len() >= config.flows_max {
        return Err(Dropped::Flows);
    }
    let mut tried = Tried::default();
    let opened = shared.open(open_request(forward), &mut tried);
    let (route, opening) = opened.map_err(|_| Dropped::Stream)?;
    let (sender, receiver) = datagrams::queue(config.queue);
    flows.lock().insert(visitor, sender.clone());
    let flow = Flow {
        slot: FlowSlot {
            flows: Arc::clone(flows),
            visitor,
        },
        route: route.clone(),
        opening,
        tried,
        receiver,
        replies: listener.replies(visitor),
    };
    let (shared, listening) = (Arc::clone(shared), listening.clone());
    route.scope().spawn_interruptible(async move {
        listening
            .run_until_cancelled_owned(flow.serve(&shared))
            .await;
    });
    Ok(sender)
}

/// One visitor's datagrams and their stream. Dropping it resets the stream.
struct Flow {
    slot: FlowSlot,
    route: Route,
    opening: Opening,
    tried: Tried,
    receiver: QueueReceiver,
    replies: Replies,
}

impl Flow {
    async fn serve(mut self, shared: &Shared) {
        let FlowSlot { visitor, .. } = self.slot;
        let owner = self.opening.owner();
        let accepted = shared.accepted(&self.route, self.opening, &mut self.tried);
        match accepted.await {
            Ok(stream) => {
                let send = |datagram: &[u8]| self.replies.send(datagram);
                let idle = Some(shared.config.datagrams.idle);
                let ending = carry(stream, self.receiver, send, idle, Some(&shared.metrics)).await;
                tracing::debug!(%visitor, stream = owner.stream, %ending, "flow ended");
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
