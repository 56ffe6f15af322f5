//! Static UDP forwards: a public port, each of whose visitors is a flow, and each flow a stream to one target of one agent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use super::{Forward, NO_AGENT, Shared, reason_of};
use crate::flow::{self, Dropped, Inlet, Outlet, carry, count};
use crate::session::Opening;
use crate::socket::{DatagramListener, Replies};

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

/// Serves a listener. Its flows end with it: without it no datagram reaches them.
pub(super) async fn serve(shared: Arc<Shared>, listener: DatagramListener, forward: Forward) {
    let forward = Arc::new(forward);
    let flows = Arc::new(Flows::default());
    let listening = CancellationToken::new();
    let _ends_flows = listening.clone().drop_guard();
    let mut buffer = BytesMut::new();
    loop {
        let visitor = listener.receive(&mut buffer).await;
        let inlet = flows.lock().get(&visitor).cloned();
        let result = inlet
            .map_or_else(
                || begin(&shared, &forward, &flows, &listener, visitor, &listening),
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
    forward: &Arc<Forward>,
    flows: &Arc<Flows>,
    listener: &DatagramListener,
    visitor: SocketAddr,
    listening: &CancellationToken,
) -> Result<Inlet, Dropped> {
    let config = shared.config.flow;
    if flows.lock().len() >= config.flows_max {
        return Err(Dropped::Flows);
    }
    let refuse = |reason: &str, why: &str| {
        shared.metrics.open_failed(reason);
        tracing::debug!(%visitor, agent = forward.agent, why, "flow refused");
        Dropped::Stream
    };
    let route = shared
        .registry
        .find(&forward.agent)
        .ok_or_else(|| refuse(NO_AGENT, "the agent is not connected"))?;
    let opening = route
        .open(&forward.target)
        .map_err(|error| refuse(reason_of(error).name(), &error.to_string()))?;
    let (inlet, outlet) = flow::queue(config.queue);
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
    let (shared, forward) = (Arc::clone(shared), Arc::clone(forward));
    let listening = listening.clone();
    route.scope().spawn_interruptible(async move {
        listening
            .run_until_cancelled_owned(flow.serve(&shared, &forward))
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
    async fn serve(self, shared: &Shared, forward: &Forward) {
        let Place { visitor, .. } = self.place;
        let owner = self.opening.owner();
        match self.opening.accepted().await {
            Ok(stream) => {
                let send = |datagram: &[u8]| self.replies.send(datagram);
                let idle = Some(shared.config.flow.idle);
                let ending = carry(stream, self.outlet, send, idle, Some(&shared.metrics)).await;
                tracing::debug!(%visitor, stream = owner.stream, %ending, "flow over");
            }
            Err(error) => {
                shared.metrics.open_failed(reason_of(error).name());
                tracing::debug!(%visitor, agent = forward.agent, target = %forward.target, %error, "flow refused");
                drop(self.outlet);
                tokio::time::sleep(REFUSAL_PAUSE).await;
            }
        }
    }
}
