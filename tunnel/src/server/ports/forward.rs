//! Static forwards: a public port whose every visitor is a stream to one target of one agent. UDP targets have UDP ports.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;

use crate::io::socket::{NOBODY, Role, Socket};
use crate::relay::splice::splice;
use crate::server::config::Forward;
use crate::server::open::{Entrypoint, Visit};
use crate::server::shared::Shared;

/// What every visitor of a forward asks for.
pub(crate) fn visit(forward: &Forward) -> Visit<'_> {
    Visit {
        entrypoint: Entrypoint::Port {
            kind: "forward",
            listen: &forward.listen,
        },
        agent: &forward.agent,
        target: &forward.target,
    }
}

/// Opens a stream for a visitor and hands both to the session, which owns the task from then on.
pub(crate) fn take_visitor(
    shared: &Arc<Shared>,
    forward: &Forward,
    socket: Socket,
    permit: OwnedSemaphorePermit,
) {
    let peer = socket.peer_addr();
    let Ok((route, opening)) = shared.open(visit(forward)) else {
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
