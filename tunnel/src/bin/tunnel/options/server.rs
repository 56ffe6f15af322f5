//! The options of `tunnel server`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};

use hyper::header::HeaderName;
use serde::Deserialize;
use tunnel::io::token::Digest;
use tunnel::policy::Rule;
use tunnel::server::auth::peers::Peer;
use tunnel::server::config::port::ProxyPort;
use tunnel::server::{Forward, Listen};
use tunnel::uplink::ServerUrl;

use super::{HostName, Invitee, Span, name, named, options, path, rebase, text, texts};
use crate::cli::{ClientsArg, CompatArg};

mod plan;

pub(crate) use plan::ServerPlan;

options! {
    /// What `tunnel server` can be told.
    pub(crate) struct ServerOptions {
        /// Where agents (/connect) and HTTP visitors (/client/AGENT/http/HOST:PORT/PATH, or http+unix and a socket's path
        /// with %2F for /) connect [default: 127.0.0.1:8123].
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
        /// The certificate of --listen in PEM, and what is between it and its authority: agents and visitors come by TLS then. A
        /// file that changes is taken without a break.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        tls_cert: PathBuf,
        /// The private key of --tls-cert in PEM.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        tls_key: PathBuf,
        /// The authorities of clients in PEM (mutual TLS): the certificate of an agent must have its name among its DNS names.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        tls_client_ca: PathBuf,
        /// Who must show a certificate of --tls-client-ca [default: required].
        #[arg(long, value_enum, value_name = "WHO")]
        tls_clients: ClientsArg,
        /// Make an authority and a certificate in --state-dir, and renew it; agents trust it by a pin, which --print-join tells them.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
        tls_self_signed: bool,
        /// Print a line by which one agent can join, within --join-lifetime and once: `tunnel agent LINE`. It names the server, proves
        /// it and lets the agent in. With a name it is for an agent of that name only, also if one of that name has joined before. Without
        /// --tls-cert it sets --tls-self-signed.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "", value_name = "NAME")]
        #[serde(deserialize_with = "text")]
        print_join: Invitee,
        /// How long a line of --print-join is good [default: 1h].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        join_lifetime: Span,
        /// How agents reach this server, for --print-join and the names in the certificate of --tls-self-signed, as
        /// wss://tunnel.example:8123/connect [default: by the address of --listen].
        #[arg(long, value_name = "URL")]
        #[serde(deserialize_with = "text")]
        public_url: ServerUrl,
        /// Where the server keeps the agents that have joined, and its own authority [default: $STATE_DIRECTORY, or watertight in
        /// $XDG_STATE_HOME or ~/.local/state].
        #[arg(long, value_name = "DIRECTORY")]
        #[serde(deserialize_with = "path")]
        state_dir: PathBuf,
        /// Forward a public port to one target, as 127.0.0.1:8080=home/tcp/127.0.0.1:9000,
        /// 127.0.0.1:8080=home/unix//run/app.sock, unix:/run/db.sock=home/tcp/10.0.0.5:5432 or
        /// 127.0.0.1:5353=home/udp/10.0.0.53:53. Repeatable.
        ///
        /// The file of a Unix socket is its user's only; unix:660:/run/db.sock gives it another mode.
        /// The port is a UDP port if the target is one. Each address that sends to it is a flow of its own, with a socket of its own at
        /// the agent. Give such a port the address that visitors send to: answers from 0.0.0.0 leave by whatever address the system takes.
        #[arg(long, value_name = "LISTEN=AGENT/TARGET", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        forward: Vec<Forward>,
        /// Serve SOCKS5 (CONNECT) on a port whose visitors name targets of one agent, as 127.0.0.1:1080=home. Repeatable.
        #[arg(long, value_name = "LISTEN=AGENT", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        socks5: Vec<ProxyPort>,
        /// Serve HTTP CONNECT on a port whose visitors name targets of one agent, as 127.0.0.1:3128=home. Repeatable.
        #[arg(long, value_name = "LISTEN=AGENT", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        http_connect: Vec<ProxyPort>,
        /// The file with the USER:PASSWORD that visitors of --socks5 and --http-connect must know; else the environment variable
        /// TUNNEL_PROXY_CREDENTIALS. Without them these ports may listen on loopback addresses and Unix sockets only.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        proxy_credentials_file: PathBuf,
        /// Serve the admin port: /metrics for Prometheus, /livez, /readyz, /admin/sessions, /admin/streams, and a page at /. Not served
        /// without this.
        #[arg(long, value_name = "IP:PORT")]
        admin: SocketAddr,
        /// Let --admin listen on an address that other machines reach: it shows sessions and targets to whoever asks.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
        admin_public: bool,
        /// A name by which the admin port may be asked, besides addresses and localhost; others are refused, so that no page of
        /// another site can read it (DNS rebinding). Repeatable.
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        admin_host: Vec<HostName>,
        /// Serve another program's counters too, under its own names and labels, so that its dashboards go on working.
        #[arg(long, value_enum, value_name = "PROGRAM")]
        compat_metrics: CompatArg,
        /// How long open streams may go on after SIGTERM before they are reset [default: 10s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        drain: Span,
        /// How long a TLS handshake may take [default: 10s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        handshake_timeout: Span,
        /// The longest message of a link that is taken, in bytes; a longer one ends its link [default: 262144].
        #[arg(long, value_name = "BYTES")]
        max_message: usize,
        /// How long the head of a request may take, and how long a kept-alive connection may be silent [default: 30s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        header_timeout: Span,
        /// How long a target may take to begin its HTTP response; then the visitor gets 504 [default: 60s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        response_timeout: Span,
        /// How long a half-closed connection may go without a byte before it is reset [default: 60s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        linger: Span,
        /// How long any stream may go without a byte in either direction before it is reset; 0s for ever [default: 0s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        idle: Span,
        /// How long a connection may be silent before TCP asks whether the other end is still there; 0s never asks [default: 60s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        tcp_keepalive: Span,
        /// How long what was sent may go unacknowledged before TCP gives the connection up; 0s leaves it to the system
        /// [default: 30s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        tcp_user_timeout: Span,
        /// How long a UDP flow may go without a datagram before it ends; it may take twice as long [default: 60s].
        #[arg(long, value_name = "DURATION")]
        #[serde(deserialize_with = "text")]
        udp_idle: Span,
        /// UDP flows of one forward at once; datagrams of more visitors are dropped and counted [default: 512].
        #[arg(long, value_name = "COUNT")]
        max_flows: usize,
        /// Connections at once, of visitors, and of agents until their handshake is done; more wait [default: 16384].
        #[arg(long, value_name = "COUNT")]
        max_connections: usize,
        /// Links of agents at once; more are refused with 503 [default: 4096].
        #[arg(long, value_name = "COUNT")]
        max_sessions: usize,
        /// Streams of one agent at once; more are refused with 503 [default: 8192].
        #[arg(long, value_name = "COUNT")]
        max_streams: usize,
        /// Streams that visitors may open a second to one agent; more are refused. No bound without.
        #[arg(long, value_name = "COUNT")]
        opens_per_second: NonZeroU32,
        /// Streams that may be opened at once after a pause, with --opens-per-second [default: 100].
        #[arg(long, value_name = "COUNT")]
        opens_burst: NonZeroU32,
        /// Payload bytes a second that the streams of one agent may carry, both directions together; more wait where they come
        /// from. No bound without.
        #[arg(long, value_name = "BYTES")]
        bytes_per_second: NonZeroU64,
        /// Take clients of rancher/remotedialer too: those that ask for no WebSocket subprotocol. They send the same token and their
        /// name in X-Tunnel-ID.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
        accept_remotedialer: bool,
        /// The request header in which clients of remotedialer send the token, as X-API-Tunnel-Token; else Authorization: Bearer.
        #[arg(long, value_name = "HEADER")]
        #[serde(deserialize_with = "text")]
        remotedialer_token_header: HeaderName,
        /// The file with a secret that agents of every name know which has no tokens of its own (in the file, [server.agents.NAME]);
        /// else the environment variable TUNNEL_TOKEN. There is no option for the secret itself: every user of the machine could read it.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        token_file: PathBuf,
        /// Another server, as east=ws://10.0.0.2:8123/connect: visitors reach its agents through this one, and its visitors the agents
        /// here. Both must name each other. Repeatable. Servers built on rancher/remotedialer can be peers.
        #[arg(long, value_name = "ID=URL", value_delimiter = ',')]
        #[serde(deserialize_with = "texts")]
        peer: Vec<Peer>,
        /// The authorities that peers' certificates are trusted by instead of the system's, in PEM.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        peer_ca_file: PathBuf,
        /// The certificate that this server shows to its peers, in PEM, with --peer-id among its DNS names.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        peer_tls_cert: PathBuf,
        /// The private key of --peer-tls-cert in PEM.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        peer_tls_key: PathBuf,
        /// The name by which the peers know this server.
        #[arg(long, value_name = "ID", value_parser = name)]
        #[serde(deserialize_with = "named")]
        peer_id: String,
        /// The file with the secret that all peers share; else the environment variable TUNNEL_PEER_TOKEN. Not that of the agents.
        #[arg(long, value_name = "FILE")]
        #[serde(deserialize_with = "path")]
        peer_token_file: PathBuf,
        /// What single agents are granted; in the file only.
        #[arg(skip)]
        agents: BTreeMap<String, GrantOptions>,
    }
}

/// What one agent is granted: `[server.agents.NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct GrantOptions {
    /// The digests of its tokens, as `tunnel token` prints them. Any of them is good, so that they can be rotated.
    #[serde(deserialize_with = "texts")]
    pub(crate) tokens: Option<Vec<Digest>>,
    /// What may be asked of it, written like the agent's --allow.
    #[serde(deserialize_with = "texts")]
    pub(crate) targets: Option<Vec<Rule>>,
    /// Instead of the server's --opens-per-second.
    pub(crate) opens_per_second: Option<NonZeroU32>,
    /// Instead of the server's --opens-burst.
    pub(crate) opens_burst: Option<NonZeroU32>,
    /// Instead of the server's --bytes-per-second.
    pub(crate) bytes_per_second: Option<NonZeroU64>,
    /// Which ports may lead to it, by where they listen; port 0 stands for every port of its address.
    #[serde(deserialize_with = "texts")]
    pub(crate) ports: Option<Vec<Listen>>,
}

/// What takes effect while the server runs; all else needs a new start.
pub(crate) const LIVE: &[&str] = &[
    "agents",
    "forward",
    "http-connect",
    "proxy-credentials-file",
    "socks5",
    "tls-cert",
    "tls-client-ca",
    "tls-clients",
    "tls-key",
    "token-file",
];

impl ServerOptions {
    /// Makes paths of the file independent of where the program is started.
    pub(crate) fn rebase(&mut self, folder: &Path) {
        for path in [
            &mut self.tls_cert,
            &mut self.tls_key,
            &mut self.tls_client_ca,
            &mut self.state_dir,
            &mut self.peer_ca_file,
            &mut self.peer_tls_cert,
            &mut self.peer_tls_key,
        ] {
            rebase(path, folder);
        }
        rebase(&mut self.token_file, folder);
        rebase(&mut self.peer_token_file, folder);
        rebase(&mut self.proxy_credentials_file, folder);
    }
}
