//! Keeps a link to a server connected: it connects, serves and waits, in a loop.

use std::time::Duration;

use tokio_tungstenite::WebSocketStream;
use tokio_util::sync::CancellationToken;
use tunnel_proto::mux::{Reason, SessionError};

use crate::io::clock::Clock;
use crate::io::random;
use crate::io::tls::Transport;
use crate::session::link::LinkError;
use crate::uplink::backoff::Backoff;
use crate::uplink::dial::{ConnectError, Uplink, connect};

/// Serves the links that [`keep_connected`] makes.
pub(crate) trait LinkHandler: Sync {
    /// Called before each attempt to connect.
    fn connecting(&self) {}

    /// Called after each attempt that failed.
    fn failed(&self, _error: &ConnectError) {}

    /// Serves a link until it ends; `id` identifies its session.
    fn serve(
        &self,
        websocket: WebSocketStream<Transport>,
        id: u64,
    ) -> impl Future<Output = LinkError> + Send;
}

/// A session shorter than this does not reset the backoff.
const MIN_LIFETIME: Duration = Duration::from_secs(1);

/// Connects and serves until `cancelled`.
pub(crate) async fn keep_connected(
    uplink: &Uplink<'_>,
    clock: Clock,
    cancelled: &CancellationToken,
    handler: &impl LinkHandler,
) {
    let (min, max) = uplink.backoff;
    let mut backoff = Backoff::new(min, max);
    while !cancelled.is_cancelled() {
        handler.connecting();
        let attempt = tokio::time::timeout(uplink.timeout, connect(uplink));
        let attempt = tokio::select! {
            biased;
            () = cancelled.cancelled() => return,
            attempt = attempt => attempt.unwrap_or(Err(ConnectError::TimedOut)),
        };
        match attempt {
            Ok((websocket, id)) => {
                let began = clock.now();
                let error = handler.serve(websocket, id).await;
                tracing::info!(session = id, %error, "the link ended");
                if matches!(
                    error,
                    LinkError::Session(SessionError::Ended(Reason::Replaced))
                ) {
                    backoff.set_to_max();
                } else if clock.now().saturating_sub(began) >= MIN_LIFETIME {
                    backoff.reset();
                }
            }
            Err(error) => {
                if error.is_unauthorized() {
                    uplink.keyring.refused();
                }
                handler.failed(&error);
                tracing::warn!(%error, server = %uplink.server, "cannot connect");
            }
        }
        let wait = random::jitter(backoff.next_limit());
        tokio::select! {
            biased;
            () = cancelled.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
