//! Static forwards: every visitor of the port gets a stream to the same target.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;

use crate::io::socket::{NOBODY, Role, Socket};
use crate::relay::splice::splice;
use crate::server::agents::registry::Route;
use crate::server::config::{Forward, Port};
use crate::server::open::{Entrypoint, NotAccepted, OpenRequest, Tried};
use crate::server::shared::Shared;
use crate::session::Opening;

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

/// A visitor that has no stream yet.
pub(crate) struct Visitor {
    pub(crate) shared: Arc<Shared>,
    /// A forward.
    pub(crate) port: Arc<Port>,
    pub(crate) socket: Socket,
    /// Counts the connection against the limit.
    pub(crate) permit: OwnedSemaphorePermit,
    pub(crate) tried: Tried,
}

impl Visitor {
    /// Opens a stream for the visitor. The session's scope owns the task from then on.
    pub(crate) fn open(mut self) {
        let Port::Forward(forward) = &*self.port else {
            return;
        };
        let opened = self.shared.open(open_request(forward), &mut self.tried);
        let Ok((route, opening)) = opened else {
            let label = "visitor without an agent";
            self.socket.bind(Role::Control, NOBODY, label);
            self.socket.reset_on_release();
            return;
        };
        let owner = opening.owner();
        let peer = self.socket.peer_addr();
        let label = format!("visitor {peer} -> {}", forward.destination());
        self.socket.bind(Role::Stream, owner, &label);
        let span = tracing::debug_span!(
            "stream",
            agent = forward.agent,
            session = owner.session,
            stream = owner.stream,
            target = %forward.target,
        );
        let scope = route.scope().clone();
        scope.spawn(self.serve(route, opening).instrument(span));
    }

    async fn serve(mut self, route: Route, opening: Opening) {
        let accepted = tokio::select! {
            biased;
            accepted = self.shared.accepted(&route, opening, &mut self.tried) => accepted,
            () = self.socket.hung_up() => return,
        };
        match accepted {
            Ok(stream) => {
                let peer = self.socket.peer_addr();
                let _permit = self.permit;
                let ending = splice(self.socket, stream, self.shared.config.splice).await;
                tracing::debug!(visitor = %peer, %ending, "visitor released");
            }
            Err(NotAccepted::Refused(_)) => self.socket.reset_on_release(),
            Err(NotAccepted::TryAnother) => self.open(),
        }
    }
}
