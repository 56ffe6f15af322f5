//! A connector for hyper's HTTP client.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::body::Body;
use hyper::http::uri::Scheme;
use hyper::rt::Executor;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use tower_service::Service;
use tunnel_proto::target::Target;

use crate::server::dialer::{DialError, Dialer};
use crate::session::Stream;

/// How long a connection of [`Dialer::client`] may wait in the pool for its next request.
pub const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How many idle connections of [`Dialer::client`] the pool keeps for one `HOST:PORT`.
pub const POOL_IDLE_MAX: usize = 8;

/// Connects hyper's client to `http://HOST:PORT/` through the agent.
///
/// A pooled connection holds a stream and the agent's socket. By default hyper's pool is unbounded,
/// and without a timer it does not drop idle connections. [`Dialer::client`] bounds both. A client
/// that is built in another way should set `pool_idle_timeout`, `pool_timer` and
/// `pool_max_idle_per_host`.
#[derive(Clone, Debug)]
pub struct Connector {
    dialer: Dialer,
    beneath_tls: bool,
}

/// Why there is no connection to a URI's host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The connector does not serve the URI's scheme.
    #[error(
        "{0} is not served: write http://HOST:PORT/; for https, put TLS over a connector that is \
         beneath_tls"
    )]
    Scheme(Uri),
    /// The dial failed.
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// A connection that is being made.
pub type Connecting =
    Pin<Box<dyn Future<Output = Result<TokioIo<Stream>, ConnectError>> + Send + 'static>>;

impl Dialer {
    /// Returns a connector for [`hyper_util::client::legacy::Client`].
    #[must_use]
    pub fn connector(&self) -> Connector {
        Connector {
            dialer: self.clone(),
            beneath_tls: false,
        }
    }

    /// Returns a client for `http://HOST:PORT/` through the agent whose pool is bounded by
    /// [`POOL_IDLE_TIMEOUT`] and [`POOL_IDLE_MAX`].
    ///
    /// `executor` owns the tasks of its connections. A [`scope::Handle`](crate::io::scope::Handle)
    /// ends them with its scope, hyper-util's `TokioExecutor` detaches them.
    pub fn client<E, B>(&self, executor: E) -> Client<Connector, B>
    where
        E: Executor<Pin<Box<dyn Future<Output = ()> + Send>>> + Send + Sync + Clone + 'static,
        B: Body<Data: Send> + Send,
    {
        Client::builder(executor)
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_max_idle_per_host(POOL_IDLE_MAX)
            .build(self.connector())
    }
}

impl Connector {
    /// Also accepts `https://`, for a TLS connector on top of this one. The connection itself is
    /// plain, by default to port 443.
    #[must_use]
    pub fn beneath_tls(mut self) -> Self {
        self.beneath_tls = true;
        self
    }

    fn target(&self, uri: &Uri) -> Result<Target, ConnectError> {
        let port = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => 80,
            Some(scheme) if *scheme == Scheme::HTTPS && self.beneath_tls => 443,
            Some(_) | None => return Err(ConnectError::Scheme(uri.clone())),
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let target = Target::tcp(authority, Some(port));
        Ok(target.map_err(DialError::Target)?)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.dialer.clone();
        let target = self.target(&uri);
        Box::pin(async move { Ok(TokioIo::new(dialer.dial(target?).await?)) })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
