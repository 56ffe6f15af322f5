//! Static forwards: every visitor of the port gets a stream to the same target.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;

use crate::io::socket::{NOBODY, Role, Socket};
use crate::relay::splice::splice;
use crate::server::config::Forward;
use crate::server::open::{Entrypoint, OpenRequest};
use crate::server::shared::Shared;

/// Returns what every visitor of a forward asks for.
pub(crate) fn open_request(forward: &Forward) -> OpenRequest<'_> {
    OpenRequest {
        entrypoint: Entrypoint::Port {
            kind: "forward",
            listen: &forward.listen,
        },
        user: None,
        agent: &forward.agent,
        target: &forward.target,
    }
}

/// Opens a stream for a visitor. The session's scope owns the task from then on.
pub(crate) fn take_visitor(
    shared: &Arc<Shared>,
    forward: &Forward,
    socket: Socket,
    permit: OwnedSemaphorePermit,
) {
    let peer = socket.peer_addr();
    let Ok((route, opening)) = shared.open(open_request(forward)) else {
        socket.bind(Role::Control, NOBODY, "visitor without an agent");
        socket.reset_on_release();
        return;
    };
    let owner = opening.owner();
    let label = format!("visitor {peer} -> {}", forward.destination());
    socket.bind(Role::Stream, owner, &label);
    let shared = Arc::clone(shared);
    let span = tracing::debug_span!(
        "stream",
        agent = forward.agent,
        session = owner.session,
        stream = owner.stream,
        target = %forward.target,
    );
    let serve = async move {
        let _permit = permit;
        let opened = tokio::select! {
            biased;
            opened = shared.accepted(opening) => opened,
            () = socket.hung_up() => return,
        };
        match opened {
            Ok(stream) => {
                let ending = splice(socket, stream, shared.config.splice).await;
                tracing::debug!(visitor = %peer, %ending, "visitor released");
            }
            Err(_) => socket.reset_on_release(),
        }
    };
    route.scope().spawn(serve.instrument(span));
}
