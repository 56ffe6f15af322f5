//! Connects to a server: the dial, TLS and the WebSocket handshake.

use std::time::Duration;

use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue, Request};
use tunnel_proto::target::Endpoint;
use tunnel_proto::wire::handshake::LinkId;
use tunnel_proto::wire::{Dialect, handshake, native};

use crate::io::race::race;
use crate::io::resolver::{self, ResolveError};
use crate::io::socket::{NOBODY, Role, Socket};
use crate::io::tls::{ClientError, HandshakeError, Transport};
use crate::io::{random, tls};
use crate::session::link;
use crate::uplink::keyring::Keyring;
use crate::uplink::proxy::{Proxy, TunnelError, tunnel};
use crate::uplink::url::ServerUrl;

/// How to reach a server and authenticate to it.
pub(crate) struct Uplink<'a> {
    pub(crate) server: &'a ServerUrl,
    pub(crate) tls: &'a tls::Client,
    pub(crate) proxy: Option<&'a Proxy>,
    /// Which of several links it is.
    pub(crate) slot: Option<LinkId>,
    /// The request header that carries the name, and the name.
    pub(crate) name: (&'static str, &'a str),
    /// The request header that carries the token instead of `Authorization: Bearer`.
    pub(crate) token_header: Option<HeaderName>,
    pub(crate) keyring: &'a Keyring,
    pub(crate) dialect: Dialect,
    /// How long connecting may take, handshake included.
    pub(crate) timeout: Duration,
    /// The shortest and the longest wait between attempts.
    pub(crate) backoff: (Duration, Duration),
    pub(crate) link: link::Config,
}

/// Why there is no link to the server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot resolve {0}: {1}")]
    Resolve(String, ResolveError),
    #[error("cannot reach {0}: {1}")]
    Dial(String, std::io::Error),
    #[error(transparent)]
    Proxy(#[from] TunnelError),
    #[error("the server refused: {status}: {why}")]
    Refused { status: u16, why: String },
    #[error(transparent)]
    Tls(#[from] ClientError),
    #[error("the server's handshake failed: {0}")]
    Handshake(Box<WsError>),
    #[error("the server sent no session identifier; is it a tunnel server?")]
    NoSession,
    #[error("the server did not answer in time")]
    TimedOut,
}

impl ConnectError {
    /// Whether the server rejected the token.
    pub(crate) const fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Refused { status: 401, .. })
    }

    /// Returns the value of the label `reason`.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::Resolve(..) => "unresolved",
            Self::Dial(..) => "unreachable",
            Self::Proxy(_) => "proxy",
            Self::Tls(ClientError::Files(_)) => "tls files",
            Self::Tls(ClientError::Handshake(error)) => error.reason(),
            Self::Refused { .. } => "refused",
            Self::Handshake(_) | Self::NoSession => "handshake",
            Self::TimedOut => "timed out",
        }
    }
}

pub(crate) async fn connect(
    config: &Uplink<'_>,
) -> Result<(WebSocketStream<Transport>, u64), ConnectError> {
    let server = config.server.endpoint();
    let socket = match config.proxy {
        Some(proxy) => through(proxy, server).await?,
        None => dial(server).await?,
    };
    let transport = if config.server.is_secure() {
        config.tls.connect(server.host(), socket).await?
    } else {
        socket.into()
    };
    shake_hands(config, transport).await
}

async fn dial(endpoint: &Endpoint) -> Result<Socket, ConnectError> {
    let addresses = resolver::resolve(endpoint, NOBODY)
        .await
        .map_err(|error| ConnectError::Resolve(endpoint.to_string(), error))?;
    let none = std::io::ErrorKind::NotFound.into();
    race(addresses, none, |address| {
        Socket::dial(address, Role::Link, NOBODY, "link to the server")
    })
    .await
    .map_err(|error| ConnectError::Dial(endpoint.to_string(), error))
}

/// Connects through a proxy. One that takes addresses only is asked for each in turn.
async fn through(proxy: &Proxy, server: &Endpoint) -> Result<Socket, ConnectError> {
    let mut failure = None;
    let servers = if proxy.takes_addresses() {
        let addresses = resolver::resolve(server, NOBODY).await;
        addresses
            .map_err(|error| ConnectError::Resolve(server.to_string(), error))?
            .into_iter()
            .map(Endpoint::from)
            .collect()
    } else {
        vec![server.clone()]
    };
    for server in servers {
        match tunnel(proxy, dial(proxy.endpoint()).await?, &server).await {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.map_or_else(
        || ConnectError::Resolve(server.to_string(), ResolveError::NoAddress),
        ConnectError::Proxy,
    ))
}

async fn shake_hands(
    config: &Uplink<'_>,
    transport: Transport,
) -> Result<(WebSocketStream<Transport>, u64), ConnectError> {
    let request = request(config).map_err(|error| ConnectError::Handshake(Box::new(error)))?;
    let websocket = Some(config.link.websocket(config.dialect));
    let (websocket, response) =
        match tokio_tungstenite::client_async_with_config(request, transport, websocket).await {
            Ok(connected) => connected,
            Err(WsError::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                return Err(ConnectError::Refused {
                    status: response.status().as_u16(),
                    why: String::from_utf8_lossy(body)
                        .trim()
                        .chars()
                        // The answer must not add lines to the log.
                        .filter(|char| !char.is_control())
                        .take(200)
                        .collect(),
                });
            }
            // With TLS 1.3 a server rejects a client certificate after the handshake.
            Err(WsError::Io(error)) if HandshakeError::is_in(&error) => {
                return Err(ClientError::from(HandshakeError::of(error)).into());
            }
            Err(error) => return Err(ConnectError::Handshake(Box::new(error))),
        };
    let own = response.headers().get(handshake::OWN_TOKEN_HEADER);
    if let Some(own) = own.and_then(|own| own.to_str().ok()) {
        config.keyring.take(own);
    }
    let named = response
        .headers()
        .get(handshake::SESSION_HEADER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse().ok())
        .filter(|id| *id != 0);
    let id = match (named, config.dialect) {
        (Some(id), _) => id,
        // A Go server sends no session identifier. Only the annotations of this end use it.
        (None, Dialect::Remotedialer) => random::session_id(),
        (None, Dialect::Native) => return Err(ConnectError::NoSession),
    };
    Ok((websocket, id))
}

fn request(config: &Uplink<'_>) -> Result<Request<()>, WsError> {
    let mut request = config.server.uri().clone().into_client_request()?;
    let mut header = |name: HeaderName, value: &str| {
        let mut value = HeaderValue::from_str(value)?;
        value.set_sensitive(true);
        request.headers_mut().insert(name, value);
        Ok::<_, WsError>(())
    };
    match config.dialect {
        Dialect::Native => header(SEC_WEBSOCKET_PROTOCOL, native::SUBPROTOCOL)?,
        Dialect::Remotedialer => {}
    }
    if let Some(slot) = config.slot {
        let name = HeaderName::from_static(handshake::LINK_HEADER);
        header(name, &slot.to_string())?;
    }
    let (name_header, name) = config.name;
    header(HeaderName::from_static(name_header), name)?;
    let (token, further) = (config.keyring.token(), config.keyring.headers());
    match &config.token_header {
        Some(name) => header(name.clone(), token.expose())?,
        // Something before the server wants the usual header for itself.
        None if further.has_authorization() => {
            let name = HeaderName::from_static(handshake::TOKEN_HEADER);
            header(name, token.expose())?;
        }
        None => header(AUTHORIZATION, &token.bearer())?,
    }
    further.add_to(request.headers_mut());
    Ok(request)
}
