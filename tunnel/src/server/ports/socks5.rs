//! SOCKS ports: visitors name their targets by SOCKS5 (RFC 1928, RFC 1929), or by SOCKS4 and 4a
//! where nobody logs in.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tunnel_proto::mux::Reason;
use tunnel_proto::socks5::{Code, Event, Greeting, Version};
use tunnel_proto::target::Target;

use crate::io::socket::{NOBODY, ReadBuffer, Role, Socket};
use crate::login::{LoginPort, Presented};
use crate::relay::splice::{FLUSH_GRACE, splice_after};
use crate::server::config::port::ProxyPort;
use crate::server::open::{Entrypoint, OpenRequest};
use crate::server::shared::{Shared, within};

mod association;

/// Serves a visitor until its stream has begun. The session's scope owns the stream's task.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    proxy: &ProxyPort,
    socket: Socket,
    permit: OwnedSemaphorePermit,
) {
    let peer = socket.peer_addr();
    socket.bind(Role::Control, NOBODY, &format!("visitor {peer}"));
    let asked = tokio::select! {
        biased;
        () = shared.draining.cancelled() => return,
        asked = within(
            shared.config.header_timeout,
            negotiate(&shared, proxy, &socket),
        ) => asked,
    };
    let Asked {
        user,
        version,
        wanted,
        early,
    } = match asked {
        Some(Some(asked)) => asked,
        Some(None) => return,
        None => {
            shared.metrics.limit_rejected("handshake");
            tracing::debug!(visitor = %peer, "the SOCKS5 handshake took too long");
            socket.reset_on_release();
            return;
        }
    };
    let target = match wanted {
        Wanted::Stream(target) => target,
        Wanted::Datagrams(source) => {
            association::serve(&shared, proxy, user.as_deref(), &socket, source).await;
            return;
        }
    };
    let open_request = OpenRequest {
        entrypoint: Entrypoint::Port {
            kind: "socks5",
            listen: &proxy.listen,
        },
        user: user.as_deref(),
        agent: &proxy.agent,
        target: &target,
    };
    let label = format!("visitor {peer} -> {}/{target}", proxy.agent);
    let bind = |owner| socket.bind(Role::Stream, owner, &label);
    let mut early = BytesMut::from(&early[..]);
    let opened = tokio::select! {
        biased;
        opened = shared.open_stream(open_request, bind) => opened,
        () = disconnected(&socket, &mut early) => return,
    };
    let (route, stream) = match opened {
        Ok(opened) => opened,
        Err(refused) => {
            socket.bind(Role::Control, NOBODY, "visitor that was refused");
            reply_and_close(&socket, &Code::from(refused.reason()).reply(version)).await;
            return;
        }
    };
    let shared = Arc::clone(&shared);
    route.scope().spawn(async move {
        let _permit = permit;
        // The socket's send buffer is empty, so it takes this at once.
        if send(&socket, &Code::Succeeded.reply(version))
            .await
            .is_err()
        {
            stream.watch().reset(Reason::Aborted);
            return;
        }
        let owner = stream.owner();
        let ending = splice_after(early.freeze(), socket, stream, shared.config.splice).await;
        tracing::debug!(visitor = %peer, stream = owner.stream, %ending, "visitor released");
    });
}

/// The most bytes of one read before the stream begins.
const PIECE: usize = 1024;

/// The most bytes that are taken from a visitor before its stream begins. Further ones wait in the
/// kernel.
const EARLY_MAX: usize = 16 * 1024;

/// What a visitor asks for.
struct Asked {
    user: Option<String>,
    version: Version,
    wanted: Wanted,
    /// What it sent after the request.
    early: Bytes,
}

impl Asked {
    fn new(user: Option<String>, wanted: Wanted, greeting: Greeting) -> Self {
        Self {
            user,
            version: greeting.version(),
            wanted,
            early: greeting.into_rest(),
        }
    }
}

enum Wanted {
    Stream(Target),
    /// An association, for datagrams that come from this address.
    Datagrams(Option<SocketAddr>),
}

/// Performs the handshake. Returns `None` if the visitor left or was refused.
async fn negotiate(shared: &Shared, proxy: &ProxyPort, socket: &Socket) -> Option<Asked> {
    let mut greeting = Greeting::new(proxy.login);
    let mut user = None;
    let mut buffer = ReadBuffer::default();
    loop {
        let data = socket.read(&mut buffer, PIECE).await.ok()?;
        if data.is_empty() {
            return None;
        }
        greeting.receive(&data);
        while let Some(event) = greeting.poll() {
            match event {
                Event::Send(reply) => send(socket, &reply).await.ok()?,
                Event::Login {
                    user: name,
                    password,
                } => {
                    let presented = Presented::Pair {
                        user: &name,
                        password: &password,
                    };
                    let from = socket.peer_addr();
                    let login = shared.log_in(LoginPort::Socks5, from, Some(presented));
                    user = login.await.ok();
                    greeting.judge_login(user.is_some());
                }
                Event::Connect(target) => {
                    let claimed = String::from_utf8_lossy(greeting.user_id());
                    tracing::debug!(visitor = %socket.peer_addr(), ?claimed, %target, "asks");
                    let wanted = Wanted::Stream(target);
                    return Some(Asked::new(user, wanted, greeting));
                }
                Event::Associate(source) => {
                    let wanted = Wanted::Datagrams(source);
                    return Some(Asked::new(user, wanted, greeting));
                }
                Event::Refuse(refusal) => {
                    tracing::debug!(
                        visitor = %socket.peer_addr(),
                        why = %refusal,
                        "visitor refused"
                    );
                    reply_and_close(socket, &refusal.reply(greeting.version())).await;
                    return None;
                }
            }
        }
    }
}

/// Returns when the visitor disconnects before its stream has begun. Meanwhile it collects what the
/// visitor sends in `early`. The end of the input counts as a disconnect only if the visitor has
/// sent nothing: otherwise it may have sent all that it wants to.
async fn disconnected(socket: &Socket, early: &mut BytesMut) {
    let mut buffer = ReadBuffer::default();
    while let Some(room) = EARLY_MAX.checked_sub(early.len()).filter(|room| *room > 0) {
        match socket.read(&mut buffer, room.min(PIECE)).await {
            Ok(data) if data.is_empty() && early.is_empty() => return,
            Ok(data) if data.is_empty() => break,
            Ok(data) => early.extend_from_slice(&data),
            Err(_) => return,
        }
    }
    socket.hung_up().await;
}

/// Sends a reply and finishes. For a moment it reads and drops what the visitor still sends:
/// closing a socket with unread bytes resets it, and the reset can overtake the reply.
async fn reply_and_close(socket: &Socket, reply: &[u8]) {
    let replied = async {
        send(socket, reply).await?;
        socket.finish()?;
        let mut buffer = ReadBuffer::default();
        while !socket.read(&mut buffer, PIECE).await?.is_empty() {}
        Ok::<_, io::Error>(())
    };
    // A visitor that does not read must not hold the task.
    let _ = timeout(FLUSH_GRACE, replied).await;
}

async fn send(socket: &Socket, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = socket.write(bytes).await?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}
