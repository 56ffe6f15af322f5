//! The public ports besides the front. Each has a task that listens. The set can change while the
//! server runs.

pub(crate) mod datagrams;
pub(crate) mod forward;
pub(crate) mod socks5;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, watch};
use tunnel_proto::listen::Listen;

use crate::io::scope;
use crate::io::scope::Scope;
use crate::io::socket::{DatagramListener, Listener, Options, Socket, UnixListener};
use crate::server::budget::Budget;
use crate::server::config::HttpSocket;
use crate::server::config::port::{Port, PortsError, validate};
use crate::server::front;
use crate::server::open::Tried;
use crate::server::shared::{Shared, TEARDOWN};

/// The ports that are listened on.
#[derive(Debug)]
pub(crate) struct Ports {
    shared: Arc<Shared>,
    /// Owns the tasks of visitors that have no stream yet.
    visitors: scope::Handle,
    /// The address of the front.
    front: SocketAddr,
    /// Held while the ports change.
    changing: tokio::sync::Mutex<()>,
    open: Mutex<Vec<Open>>,
}

/// A port that is listened on.
#[derive(Debug)]
struct Open {
    /// The configuration for its next visitors.
    port: watch::Sender<Arc<Port>>,
    address: Listen,
    file: Weak<UnixListener>,
    scope: Scope,
}

impl Open {
    fn is(&self, port: &Port) -> bool {
        **self.port.borrow() == *port
    }

    /// Whether its socket can serve `port`.
    fn suits(&self, port: &Port) -> bool {
        let own = self.port.borrow();
        own.takes_datagrams() == port.takes_datagrams()
            && own.shares_socket() == port.shares_socket()
            && (port.shares_socket() || self.address.is_where(port.listen()))
    }
}

/// The listening socket of a port.
enum BoundPort {
    Tcp(Listener),
    Unix(Arc<UnixListener>),
    Udp(DatagramListener),
    /// The front's socket.
    Front(SocketAddr),
}

impl BoundPort {
    async fn listen(port: &Port, front: SocketAddr, tcp: Options) -> io::Result<Self> {
        if port.shares_socket() {
            return Ok(Self::Front(front));
        }
        let label = port.label();
        match port.listen() {
            Listen::Inet(address) if port.takes_datagrams() => {
                DatagramListener::listen(*address, &label).map(Self::Udp)
            }
            Listen::Inet(address) => {
                let listener = Listener::listen(*address, &label).await?;
                listener.set_options(tcp);
                Ok(Self::Tcp(listener))
            }
            Listen::Unix(file) => {
                let listener = UnixListener::listen(file.path(), file.mode(), &label)?;
                Ok(Self::Unix(Arc::new(listener)))
            }
        }
    }
}

/// The socket for a wanted port.
enum Origin {
    /// The one of an open port, by its index.
    Kept(usize),
    New(BoundPort),
}

impl Ports {
    pub(crate) fn new(shared: Arc<Shared>, visitors: scope::Handle, front: SocketAddr) -> Self {
        Self {
            shared,
            visitors,
            front,
            changing: tokio::sync::Mutex::default(),
            open: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the ports in the order of the configuration, each with its real address.
    pub(crate) fn list(&self) -> Vec<(Arc<Port>, Listen)> {
        let open = self.lock();
        let ports = open.iter();
        ports
            .map(|open| (Arc::clone(&open.port.borrow()), open.address.clone()))
            .collect()
    }

    /// Replaces the ports by `wanted`. A socket that serves a wanted port stays open, even if its
    /// destination has changed. New ports listen before anything else changes.
    ///
    /// # Errors
    ///
    /// [`PortsError`]. Nothing has changed then.
    pub(crate) async fn set(&self, wanted: Vec<Port>) -> Result<(), PortsError> {
        validate(&wanted, self.shared.tls.is_some())?;
        let _changing = self.changing.lock().await;
        let mut origins = Vec::new();
        for (port, kept) in wanted.iter().zip(self.kept(&wanted)) {
            origins.push(match kept {
                Some(at) => Origin::Kept(at),
                None => Origin::New(
                    BoundPort::listen(port, self.front, self.shared.config.splice.tcp)
                        .await
                        .map_err(|error| PortsError::Listen {
                            port: port.to_string(),
                            error,
                        })?,
                ),
            });
        }
        let gone = self.change(wanted, origins)?;
        for open in gone {
            open.scope.end(TEARDOWN).await;
            tracing::info!(port = %**open.port.borrow(), "no longer listened on");
        }
        Ok(())
    }

    /// Finds an open port for each wanted one: first by address, then among those whose address the
    /// system chose.
    fn kept(&self, wanted: &[Port]) -> Vec<Option<usize>> {
        let open = self.lock();
        let mut kept = vec![None; wanted.len()];
        let mut taken = vec![false; open.len()];
        for fits in [Open::suits, Open::is] {
            for (place, port) in kept.iter_mut().zip(wanted) {
                let free = || {
                    let mut open = open.iter().zip(&taken);
                    open.position(|(open, taken)| !taken && fits(open, port))
                };
                if place.is_none()
                    && let Some(at) = free()
                {
                    *place = Some(at);
                    if let Some(taken) = taken.get_mut(at) {
                        *taken = true;
                    }
                }
            }
        }
        kept
    }

    /// Replaces the open ports by the wanted ones, and returns those that are not wanted.
    fn change(&self, wanted: Vec<Port>, origins: Vec<Origin>) -> Result<Vec<Open>, PortsError> {
        let mut open = self.lock();
        set_modes(&open, &wanted, &origins)?;
        let mut before: Vec<_> = std::mem::take(&mut *open).into_iter().map(Some).collect();
        for (port, origin) in wanted.into_iter().zip(origins) {
            let next = match origin {
                Origin::New(bound) => Some(self.start(port, bound)),
                Origin::Kept(at) => {
                    let kept = before.get_mut(at).and_then(Option::take);
                    kept.inspect(|kept| {
                        kept.port.send_if_modified(|current| {
                            let other = **current != port;
                            if other {
                                *current = Arc::new(port);
                            }
                            other
                        });
                    })
                }
            };
            open.extend(next);
        }
        let on_front = open.iter().find_map(|open| match &**open.port.borrow() {
            Port::Http(http) if http.socket == HttpSocket::Shared => Some(Arc::clone(http)),
            Port::Forward(_) | Port::Socks5(_) | Port::Connect(_) | Port::Http(_) => None,
        });
        self.shared.front_http.send_replace(on_front);
        Ok(before.into_iter().flatten().collect())
    }

    fn start(&self, port: Port, bound: BoundPort) -> Open {
        let scope = Scope::new();
        let (sender, port) = watch::channel(Arc::new(port));
        let (shared, visitors) = (Arc::clone(&self.shared), self.visitors.clone());
        let configured = port.borrow().listen().clone();
        let (address, file) = match &bound {
            BoundPort::Tcp(listener) => (listener.address().into(), Weak::new()),
            BoundPort::Udp(listener) => (listener.address().into(), Weak::new()),
            BoundPort::Unix(listener) => (configured, Arc::downgrade(listener)),
            BoundPort::Front(address) => ((*address).into(), Weak::new()),
        };
        let budget = Budget::new(shared.config.connections_max);
        scope.spawn_interruptible(async move {
            match bound {
                BoundPort::Tcp(listener) => loop {
                    let Some(permit) = budget.place(&shared.metrics).await else {
                        return;
                    };
                    let socket = listener.accept().await;
                    take_visitor(&shared, &port.borrow(), &visitors, socket, permit);
                },
                BoundPort::Unix(listener) => loop {
                    let Some(permit) = budget.place(&shared.metrics).await else {
                        return;
                    };
                    let socket = listener.accept().await;
                    take_visitor(&shared, &port.borrow(), &visitors, socket, permit);
                },
                BoundPort::Udp(listener) => datagrams::serve(&shared, &listener, port).await,
                // The front takes its visitors.
                BoundPort::Front(_) => {}
            }
        });
        Open {
            port: sender,
            address,
            file,
            scope,
        }
    }

    /// Stops listening.
    pub(crate) async fn end(&self) {
        let _changing = self.changing.lock().await;
        let open = std::mem::take(&mut *self.lock());
        for open in open {
            open.scope.end(TEARDOWN).await;
        }
    }
}

/// Sets the modes of the Unix sockets that stay. If one cannot be set, those before it are put back.
fn set_modes(open: &[Open], wanted: &[Port], origins: &[Origin]) -> Result<(), PortsError> {
    let mut changed: Vec<(Arc<UnixListener>, u32)> = Vec::new();
    for (port, origin) in wanted.iter().zip(origins) {
        let Origin::Kept(at) = origin else {
            continue;
        };
        if let Listen::Unix(file) = port.listen()
            && let Some(kept) = open.get(*at)
            && let Some(listener) = kept.file.upgrade()
        {
            if let Err(error) = listener.set_mode(file.mode()) {
                for (listener, before) in changed {
                    put_back(&listener, before);
                }
                let port = port.to_string();
                return Err(PortsError::Listen { port, error });
            }
            if let Listen::Unix(before) = kept.port.borrow().listen() {
                changed.push((listener, before.mode()));
            }
        }
    }
    Ok(())
}

fn put_back(listener: &UnixListener, mode: u32) {
    if let Err(error) = listener.set_mode(mode) {
        tracing::warn!(%error, "cannot put the mode of a Unix socket back");
    }
}

fn take_visitor(
    shared: &Arc<Shared>,
    port: &Arc<Port>,
    visitors: &scope::Handle,
    socket: Socket,
    permit: OwnedSemaphorePermit,
) {
    match &**port {
        Port::Forward(_) => {
            let visitor = forward::Visitor {
                shared: Arc::clone(shared),
                port: Arc::clone(port),
                socket,
                permit,
                tried: Tried::default(),
            };
            visitor.open();
        }
        Port::Socks5(_) | Port::Connect(_) => {
            let (shared, port) = (Arc::clone(shared), Arc::clone(port));
            visitors.spawn_interruptible(negotiate(shared, port, socket, permit));
        }
        Port::Http(http) => {
            let (shared, http) = (Arc::clone(shared), Arc::clone(http));
            visitors.spawn_interruptible(front::serve_visitor(shared, http, socket, permit));
        }
    }
}

/// Serves a visitor that has yet to name its target.
async fn negotiate(
    shared: Arc<Shared>,
    port: Arc<Port>,
    socket: Socket,
    permit: OwnedSemaphorePermit,
) {
    match &*port {
        Port::Socks5(proxy) => socks5::serve(shared, proxy, socket, permit).await,
        Port::Connect(proxy) => front::serve_proxy(shared, proxy.clone(), socket, permit).await,
        Port::Forward(_) | Port::Http(_) => {}
    }
}
