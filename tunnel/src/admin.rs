//! The admin port: counters, health, sessions and streams, for those who run the program.
//!
//! | path | answers |
//! |---|---|
//! | `/` | a page for people |
//! | `/metrics` | the counters, for Prometheus |
//! | `/livez` | 200 as long as the program's tasks run, whatever it is connected to |
//! | `/readyz` | 200, or 503 and why this program should not be sent work now |
//! | `/admin/sessions` | every session, as JSON |
//! | `/admin/streams` | at most [`Config::streams_max`] streams, as JSON |
//!
//! With [`Config::users`] it asks for a login, except at `/livez` and `/readyz`.
//!
//! It answers GET and HEAD only, and changes nothing. It shows names, addresses and targets, so it
//! listens on loopback unless [`Config::public`] says otherwise. A request must name an address,
//! `localhost` or one of [`Config::hosts`] as its host. A web page whose own name is made to
//! resolve to this machine (DNS rebinding) cannot have a browser read the port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use axum::Router;
use tokio::sync::Semaphore;

mod answer;
mod page;
mod view;

pub(crate) use crate::admin::view::SessionView;
use crate::io::clock::Clock;
use crate::io::scope;
use crate::io::socket::{Listener, NOBODY, Role};
use crate::login::{Logins, Users};
use crate::metrics::Metrics;

/// What an admin port needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens; port 0 takes a free port.
    pub listen: SocketAddr,
    /// Whether `listen` may be an address that other machines reach.
    pub public: bool,
    /// Who may log in. Without users nobody needs to. `/livez` and `/readyz` never ask for a login;
    /// without one, `/readyz` does not say why it is not ready.
    pub users: Users,
    /// The host names that requests may use, besides addresses and `localhost`: without a port, in
    /// lower case.
    pub hosts: Vec<String>,
    /// Connections at once; more wait in the kernel's backlog.
    pub connections_max: usize,
    /// Streams that `/admin/streams` lists at the most.
    pub streams_max: usize,
    /// How long a kept-alive connection may be silent.
    pub silence: Duration,
}

impl Config {
    /// Returns the defaults around what has none.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            public: false,
            users: Users::default(),
            hosts: Vec::new(),
            connections_max: 32,
            streams_max: 1000,
            silence: Duration::from_secs(30),
        }
    }
}

/// Why there is no admin port.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Other machines would reach it.
    #[error(
        "the admin port at {0} would show sessions and targets to whoever reaches it: listen on \
         127.0.0.1 or [::1], or set admin-public"
    )]
    Public(SocketAddr),
    /// The address cannot be listened on; the error names it.
    #[error(transparent)]
    Listen(#[from] io::Error),
}

/// A part of the program that an admin port shows.
pub(crate) trait Inspect: fmt::Debug + Send + Sync {
    /// Returns why it should not be sent work now, if it should not.
    fn not_ready_reason(&self) -> Option<String>;

    /// Returns its sessions with at most `streams_max` streams in all.
    fn sessions(&self, streams_max: usize) -> Vec<SessionView>;
}

/// Shows a part of the program at an admin port, as [`Agent::inspector`](crate::Agent::inspector)
/// does.
#[derive(Clone, Debug)]
pub struct Inspector(Arc<dyn Inspect>);

impl Inspector {
    pub(crate) fn new(part: Arc<dyn Inspect>) -> Self {
        Self(part)
    }
}

/// What an admin port shows: the counters, and parts of the program such as its agents.
#[derive(Clone, Debug)]
pub struct Admin {
    metrics: Arc<Metrics>,
    logins: Arc<Logins>,
    parts: Vec<Inspector>,
}

impl Admin {
    /// Begins with the counters.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let logins = Logins::new(Clock::start(), Arc::clone(&metrics));
        Self {
            metrics,
            logins: Arc::new(logins),
            parts: Vec::new(),
        }
    }

    /// Counts attempts to log in together with those at other ports.
    #[must_use]
    pub(crate) fn logins(mut self, logins: Arc<Logins>) -> Self {
        self.logins = logins;
        self
    }

    /// Adds a part of the program. The program is ready when all of its parts are.
    #[must_use]
    pub fn inspect(mut self, part: Inspector) -> Self {
        self.parts.push(part);
        self
    }

    /// Returns why the program should not be sent work now, if it should not.
    fn not_ready_reason(&self) -> Option<String> {
        let reasons = self
            .parts
            .iter()
            .filter_map(|part| part.0.not_ready_reason());
        reasons.reduce(|all, next| all + "; " + &next)
    }

    /// Returns all sessions with at most `streams_max` streams in all.
    fn sessions(&self, streams_max: usize) -> Vec<SessionView> {
        let mut left = streams_max;
        let mut all = Vec::new();
        for Inspector(part) in &self.parts {
            let sessions = part.sessions(left);
            let streams: usize = sessions.iter().map(|it| it.stats.sample.len()).sum();
            left = left.saturating_sub(streams);
            all.extend(sessions);
        }
        all
    }

    /// Listens.
    ///
    /// # Errors
    ///
    /// [`AdminError::Public`] unless that is wanted, or [`AdminError::Listen`].
    pub async fn listen(self, config: Config) -> Result<Port, AdminError> {
        let address = config.listen.ip().to_canonical();
        if !address.is_loopback() && !config.public {
            return Err(AdminError::Public(config.listen));
        }
        let listener = Listener::listen(config.listen, "admin").await?;
        Ok(Port::new(self, config, listener))
    }
}

/// An admin port that listens.
#[derive(Debug)]
pub struct Port {
    listener: Listener,
    shared: Arc<Shared>,
    router: Router,
}

#[derive(Debug)]
struct Shared {
    admin: Admin,
    config: Config,
}

impl Port {
    pub(crate) fn new(admin: Admin, config: Config, listener: Listener) -> Self {
        let shared = Arc::new(Shared { admin, config });
        let router = answer::router(Arc::clone(&shared));
        Self {
            listener,
            shared,
            router,
        }
    }

    /// Returns the address that it listens on, with the real port.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Answers for ever; connections are tasks of `scope`.
    pub async fn serve(self, scope: scope::Handle) {
        let connections = Arc::new(Semaphore::new(self.shared.config.connections_max));
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
                return;
            };
            let socket = self.listener.accept().await;
            socket.bind(Role::Control, NOBODY, "admin");
            let (shared, router) = (Arc::clone(&self.shared), self.router.clone());
            scope.spawn_interruptible(async move {
                let _permit = permit;
                answer::serve(&shared, router, socket).await;
            });
        }
    }
}
