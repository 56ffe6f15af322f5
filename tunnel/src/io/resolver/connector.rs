//! The sockets and the tasks of one lookup.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::config::{ConnectionConfig, ProtocolConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{DnsUdpSocket, RuntimeProvider, Spawn, TokioTime};
use hickory_resolver::net::tcp::TcpClientStream;
use hickory_resolver::net::udp::UdpClientStream;
use hickory_resolver::net::xfer::DnsExchange;
use hickory_resolver::{ConnectionProvider, PoolContext};
use tokio::sync::mpsc;

use crate::io::socket::{DatagramSocket, Owner, Role, Socket};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Collects the tasks that the client spawns, one for each connection to a name server. The holder
/// of the receiver runs them.
#[derive(Clone)]
pub(super) struct Tasks(mpsc::UnboundedSender<Task>);

impl Tasks {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Task>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }
}

impl Spawn for Tasks {
    fn spawn_bg(&mut self, future: impl Future<Output = ()> + Send + 'static) {
        // Without a receiver the lookup has ended.
        let _ = self.0.send(Box::pin(future));
    }
}

/// Makes the connections of one lookup.
#[derive(Clone)]
pub(super) struct Connector {
    runtime: Runtime,
    /// How long one server may take to answer.
    timeout: Duration,
}

impl Connector {
    pub(super) fn new(tasks: Tasks, timeout: Duration, owner: Owner, label: String) -> Self {
        let label = label.into();
        let runtime = Runtime {
            tasks,
            owner,
            label,
        };
        Self { runtime, timeout }
    }
}

impl ConnectionProvider for Connector {
    type Conn = DnsExchange<Runtime>;
    type FutureConn = Pin<Box<dyn Future<Output = Result<Self::Conn, NetError>> + Send>>;
    type RuntimeProvider = Runtime;

    fn new_connection(
        &self,
        ip: IpAddr,
        config: &ConnectionConfig,
        cx: &PoolContext,
    ) -> Result<Self::FutureConn, NetError> {
        let (server, runtime) = (SocketAddr::new(ip, config.port), self.runtime.clone());
        let timeout = self.timeout;
        match config.protocol {
            ProtocolConfig::Udp => {
                let exchange = UdpClientStream::builder(server, runtime)
                    .with_timeout(Some(timeout))
                    .with_os_port_selection(true);
                Ok(Box::pin(async move { Ok(exchange.exchange()) }))
            }
            ProtocolConfig::Tcp => {
                let requests = Some(cx.options.max_active_requests);
                let exchange = TcpClientStream::exchange(server, None, timeout, requests, runtime);
                Ok(Box::pin(exchange))
            }
        }
    }

    fn runtime_provider(&self) -> &Runtime {
        &self.runtime
    }
}

/// Makes the sockets of one lookup through the socket module.
#[derive(Clone)]
pub(super) struct Runtime {
    tasks: Tasks,
    owner: Owner,
    label: Arc<str>,
}

impl RuntimeProvider for Runtime {
    type Handle = Tasks;
    type Timer = TokioTime;
    type Udp = Udp;
    type Tcp = AsyncIoTokioAsStd<Socket>;

    fn create_handle(&self) -> Tasks {
        self.tasks.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _: Option<SocketAddr>,
        wait: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let Self { owner, label, .. } = self.clone();
        Box::pin(async move {
            let dial = Socket::dial(server, Role::Control, owner, &label);
            let dialed = match wait {
                Some(wait) => tokio::time::timeout(wait, dial).await?,
                None => dial.await,
            };
            dialed.map(AsyncIoTokioAsStd)
        })
    }

    /// The socket is connected. It receives only what the server sends, and an error if the server
    /// cannot be reached.
    fn bind_udp(
        &self,
        _: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Udp>>>> {
        let Self { owner, label, .. } = self.clone();
        Box::pin(async move {
            let socket = DatagramSocket::dial(server, Role::Control, owner, &label).await?;
            Ok(Udp { socket, server })
        })
    }
}

pub(super) struct Udp {
    socket: DatagramSocket,
    server: SocketAddr,
}

#[async_trait]
impl DnsUdpSocket for Udp {
    type Time = TokioTime;

    async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        tokio::select! {
            biased;
            received = poll_fn(|cx| self.poll_recv_from(cx, buf)) => received,
            error = self.socket.failure() => Err(error),
        }
    }

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let received = self.socket.poll_receive(cx, buf);
        received.map_ok(|length| (length, self.server))
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        _: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_send(cx, buf)
    }
}
