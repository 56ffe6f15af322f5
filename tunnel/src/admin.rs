//! The admin port: counters, health, and what goes on, for those who run the program.
//!
//! | path | answers |
//! |---|---|
//! | `/` | a page for people |
//! | `/metrics` | the counters, for Prometheus |
//! | `/livez` | 200 as long as the program's tasks run; says nothing of anybody else |
//! | `/readyz` | 200, or 503 and why this program should not be sent work now |
//! | `/admin/sessions` | every session, as JSON |
//! | `/admin/streams` | at most [`Config::streams_max`] streams, as JSON |
//!
//! It only answers questions, GET and HEAD. Whoever reaches it learns names, addresses and targets, so it listens on loopback unless
//! [`Config::public`] says otherwise; and it answers only who asks for it by an address, `localhost` or one of
//! [`Config::hosts`], so that no web page can have a browser ask on its behalf under a name of its own (DNS rebinding).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use tokio::sync::Semaphore;

mod answer;
mod host;
mod page;
mod view;

pub(crate) use crate::admin::view::Shown;
use crate::agent::Agent;
use crate::io::scope;
use crate::io::socket::{Listener, NOBODY, Role};
use crate::metrics::Metrics;

/// What an admin port needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens; port 0 takes a free port.
    pub listen: SocketAddr,
    /// Whether `listen` may be an address that others than this machine reach.
    pub public: bool,
    /// The names by which it may be asked, besides addresses and `localhost`: without a port, in lower case.
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
    pub const fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            public: false,
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
    /// Others than this machine would reach it.
    #[error(
        "the admin port at {0} would show sessions and targets to whoever reaches it: listen on 127.0.0.1 or [::1], or set admin-public"
    )]
    Public(SocketAddr),
    /// The address cannot be listened on; the error names it.
    #[error(transparent)]
    Listen(#[from] io::Error),
}

/// A part of the program that an admin port tells of.
pub(crate) trait Subject: fmt::Debug + Send + Sync {
    /// Returns why it should not be sent work now.
    fn unready(&self) -> Option<String>;

    /// Returns its sessions with at most `streams_max` streams in all.
    fn sessions(&self, streams_max: usize) -> Vec<Shown>;
}

/// What an admin port tells of: the counters, and the agents of a program.
#[derive(Clone, Debug)]
pub struct Admin {
    metrics: Arc<Metrics>,
    subjects: Vec<Arc<dyn Subject>>,
}

impl Admin {
    /// Begins with the counters.
    #[must_use]
    pub const fn new(metrics: Arc<Metrics>) -> Self {
        let subjects = Vec::new();
        Self { metrics, subjects }
    }

    /// Adds an agent. The program is ready when all of its agents are.
    #[must_use]
    pub fn agent(self, agent: &Agent) -> Self {
        self.subject(agent.subject())
    }

    pub(crate) fn subject(mut self, subject: Arc<dyn Subject>) -> Self {
        self.subjects.push(subject);
        self
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
}

#[derive(Debug)]
struct Shared {
    admin: Admin,
    config: Config,
}

impl Port {
    pub(crate) fn new(admin: Admin, config: Config, listener: Listener) -> Self {
        let shared = Arc::new(Shared { admin, config });
        Self { listener, shared }
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
            let shared = Arc::clone(&self.shared);
            scope.spawn_interruptible(async move {
                let _permit = permit;
                answer::serve(shared, socket).await;
            });
        }
    }
}
