//! Static UDP forwards: a public port, each of whose visitors is a flow, and each flow a stream to one target of one agent.

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
use crate::relay::datagrams::{Inlet, Outlet, carry, count};
use crate::server::config::Forward;
use crate::server::config::port::Port;
use crate::server::ports::forward::visit;
use crate::server::shared::Shared;
use crate::session::Opening;

/// For how long datagrams of a visitor are dropped after its flow was refused, so that not each of them asks again.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// The flows of one listener by their visitors.
#[derive(Debug, Default)]
struct Flows {
    inlets: Mutex<HashMap<SocketAddr, Inlet>>,
}

impl Flows {
    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Inlet>> {
        self.inlets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the flows. When it goes, the visitor's next datagram begins a new flow.
struct Place {
    flows: Arc<Flows>,
    visitor: SocketAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.flows.lock().remove(&self.visitor);
    }
}

/// Serves a listener. Its flows end with it, since without it no datagram reaches them, and when they would go elsewhere now.
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
        let inlet = flows.lock().get(&visitor).cloned();
        let result = inlet
            .map_or_else(
                || begin(shared, forward, &flows, listener, visitor, &listening),
                Ok,
            )
            .and_then(|inlet| inlet.offer(Bytes::copy_from_slice(&buffer)));
        if let Err(dropped) = result {
            count(Some(&shared.metrics), dropped);
        }
    }
}

/// Opens a stream for a visitor that has none and hands it to the session, which owns the task from then on.
fn begin(
    shared: &Arc<Shared>,
    forward: &Forward,
    flows: &Arc<Flows>,
    listener: &DatagramListener,
    visitor: SocketAddr,
    listening: &CancellationToken,
) -> Result<Inlet, Dropped> {
    let config = shared.config.datagrams;
    if flows.lock().len() >= config.flows_max {
        return Err(Dropped::Flows);
    }
    let opened = shared.open(visit(forward));
    let (route, opening) = opened.map_err(|_| Dropped::Stream)?;
    let (inlet, outlet) = datagrams::queue(config.queue);
    flows.lock().insert(visitor, inlet.clone());
    let flow = Flow {
        place: Place {
            flows: Arc::clone(flows),
            visitor,
        },
        opening,
        outlet,
        replies: listener.replies(visitor),
    };
    let (shared, listening) = (Arc::clone(shared), listening.clone());
    route.scope().spawn_interruptible(async move {
        listening
            .run_until_cancelled_owned(flow.serve(&shared))
            .await;
    });
    Ok(inlet)
}

/// One visitor's datagrams and their stream. When it is dropped, so is the stream: it is reset.
struct Flow {
    place: Place,
    opening: Opening,
    outlet: Outlet,
    replies: Replies,
}

impl Flow {
    async fn serve(self, shared: &Shared) {
        let Place { visitor, .. } = self.place;
        let owner = self.opening.owner();
        match shared.accepted(self.opening).await {
            Ok(stream) => {
                let send = |datagram: &[u8]| self.replies.send(datagram);
                let idle = Some(shared.config.datagrams.idle);
                let ending = carry(stream, self.outlet, send, idle, Some(&shared.metrics)).await;
                tracing::debug!(%visitor, stream = owner.stream, %ending, "flow over");
            }
            Err(_) => {
                drop(self.outlet);
                tokio::time::sleep(REFUSAL_PAUSE).await;
            }
        }
    }
}
