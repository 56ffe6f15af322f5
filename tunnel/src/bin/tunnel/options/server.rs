//! The options of `tunnel server`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use hyper::header::HeaderName;
use tunnel::io::token::Digest;
use tunnel::listen;
use tunnel::policy::Rule;
use tunnel::server::auth::peers::Peer;
use tunnel::server::config::http::{HealthPath, HttpListen, Origin, TrustedProxy};
use tunnel::server::config::port::ProxyPort;
use tunnel::server::{Forward, Listen};
use tunnel::uplink::ServerUrl;

use super::value::{ClientsArg, HostName, Invitee, Name, ReplicasArg, Several, Span};
use super::{CommonOptions, options};

mod access;
mod plan;
mod tls;
mod users;

pub(crate) use plan::{JoinPlan, ServerPlan};
pub(crate) use tls::TlsSource;

options! {
    /// What `tunnel server` can be told.
    #[derive(clap::Args)]
    pub(crate) struct ServerOptions {
        /// Where agents connect (/connect), and HTTP visitors with --http listen [default:
        /// 127.0.0.1:8123].
        #[arg(long, value_name = "IP:PORT", value_parser = listen::inet)]
        fixed listen: SocketAddr,
        /// The certificate of --listen in PEM, and what is between it and its authority: agents and
        /// visitors come by TLS then. A file that changes is taken without a break.
        #[arg(long, value_name = "FILE")]
        live tls_cert: PathBuf,
        /// The private key of --tls-cert in PEM.
        #[arg(long, value_name = "FILE")]
        live tls_key: PathBuf,
        /// The authorities of clients in PEM (mutual TLS): the certificate of an agent must have
        /// its name among its DNS names.
        #[arg(long, value_name = "FILE")]
        live tls_client_ca: PathBuf,
        /// Who must show a certificate of --tls-client-ca [default: required].
        #[arg(long, value_enum, value_name = "WHO")]
        live tls_clients: ClientsArg,
        /// Make an authority and a certificate in --state-dir, and renew it; agents trust it by a
        /// pin, which --print-join tells them.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        #[arg(value_name = "true|false")]
        fixed tls_self_signed: bool,
        /// Print a line by which one agent can join, within --join-lifetime and once: `tunnel agent
        /// LINE`. It names the server, proves it and lets the agent in. With a name it is for an
        /// agent of that name only, also if one of that name has joined before. Without --tls-cert
        /// it sets --tls-self-signed.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "")]
        #[arg(value_name = "NAME")]
        fixed print_join: Invitee,
        /// How long a line of --print-join is good [default: 1h].
        #[arg(long, value_name = "DURATION")]
        fixed join_lifetime: Span,
        /// How agents reach this server, for --print-join and the names in the certificate of
        /// --tls-self-signed, as wss://tunnel.example:8123/connect [default: by the address of
        /// --listen].
        #[arg(long, value_name = "URL")]
        fixed public_url: ServerUrl,
        /// Where the server keeps the agents that have joined, and its own authority [default:
        /// $STATE_DIRECTORY, or watertight in $XDG_STATE_HOME or ~/.local/state].
        #[arg(long, value_name = "DIRECTORY")]
        fixed state_dir: PathBuf,
        /// Forward a public port to one target, as 127.0.0.1:8080=home/tcp/127.0.0.1:9000,
        /// 127.0.0.1:8080=home/unix//run/app.sock, unix:/run/db.sock=home/tcp/10.0.0.5:5432 or
        /// 127.0.0.1:5353=home/udp/10.0.0.53:53. Repeatable.
        ///
        /// The file of a Unix socket is its user's only; unix:660:/run/db.sock gives it another
        /// mode. The port is a UDP port if the target is one. Each address that sends to it is a
        /// flow of its own, with a socket of its own at the agent. Give such a port the address
        /// that visitors send to: answers from 0.0.0.0 leave by whatever address the system takes.
        ///
        /// LISTEN may be localhost:8080 (127.0.0.1), :8080 (0.0.0.0) and a range: with
        /// 127.0.0.1:8000-8003=home/tcp/10.0.0.5:9000-9003 each port leads to its own, and with one
        /// port of the target all lead to that.
        #[arg(long, value_name = "LISTEN=AGENT/TARGET", value_delimiter = ',')]
        live forward: Vec<Several<Forward>>,
        /// Serve SOCKS5 (CONNECT and UDP ASSOCIATE) on a port whose visitors name targets of one
        /// agent, as 127.0.0.1:1080=home; without users SOCKS4 and 4a, too. Repeatable.
        #[arg(long, value_name = "LISTEN=AGENT", value_delimiter = ',')]
        live socks5: Vec<Several<ProxyPort>>,
        /// Be an HTTP proxy on a port whose visitors name targets of one agent, as
        /// 127.0.0.1:3128=home: by CONNECT, or by requests for http://HOST/... Repeatable.
        #[arg(long, value_name = "LISTEN=AGENT", value_delimiter = ',')]
        live http_connect: Vec<Several<ProxyPort>>,
        /// Serve HTTP on a port whose visitors name agent and target in the path, as
        /// /client/AGENT/http/HOST:PORT/PATH (or http+unix and a socket's path with %2F for /): at
        /// an address of its own, as 127.0.0.1:8124 or unix:/run/http.sock, or at that of --listen
        /// if this is the word listen. Not served without this. Repeatable.
        #[arg(long, value_name = "LISTEN", value_delimiter = ',')]
        live http: Vec<HttpListen>,
        /// As --http, at an address of its own by TLS with --tls-cert. Repeatable.
        #[arg(long, value_name = "LISTEN", value_delimiter = ',')]
        live https: Vec<Listen>,
        /// A name by which the ports of --http and --https may be asked, besides addresses,
        /// localhost and the host of --public-url; others are refused, so that no page of another
        /// site can read them (DNS rebinding). Repeatable.
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        live http_host: Vec<HostName>,
        /// The origin of another site whose pages may send requests to --http and --https, as
        /// https://app.example. Requests of all other sites' pages are refused. Repeatable.
        #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
        live http_origin: Vec<Origin>,
        /// The proxies in front of --http and --https, as 10.0.0.0/8, or unix for those that come
        /// by a Unix socket: what they say of the visitor in X-Forwarded-* and Forwarded is added
        /// to and passed on, and its address counts for refused logins. What others say is replaced.
        #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
        live trusted_proxies: Vec<TrustedProxy>,
        /// Answer health checks of load balancers at this path of --listen, --http and --https, as
        /// /healthz: 200 to everybody by whatever host name, or 503 while the server drains. It
        /// shows nothing else. Not served without this.
        #[arg(long, value_name = "PATH")]
        fixed health_path: HealthPath,
        /// The file with the USER:PASSWORD that visitors of --socks5, --http-connect, --http and
        /// --https must know; else the environment variable TUNNEL_PROXY_CREDENTIALS. More users
        /// are in the file, [server.users.NAME]. Without users these ports may listen on loopback
        /// addresses and Unix sockets only.
        #[arg(long, value_name = "FILE")]
        live proxy_credentials_file: PathBuf,
        /// How long a TLS handshake may take [default: 10s].
        #[arg(long, value_name = "DURATION")]
        fixed handshake_timeout: Span,
        /// The longest message of a link that is taken, in bytes; a longer one ends its link
        /// [default: 262144].
        #[arg(long, value_name = "BYTES")]
        fixed max_message: usize,
        /// How long the head of a request may take from its first byte, and the first one from the
        /// start of the connection; 0s is for ever [default: 30s].
        #[arg(long, value_name = "DURATION")]
        fixed header_timeout: Span,
        /// How long a visitor's connection to an HTTP port or an HTTP proxy may be idle between two
        /// requests; 0s is for ever [default: 75s].
        #[arg(long, value_name = "DURATION")]
        fixed keep_alive_timeout: Span,
        /// How long a target may take to begin its HTTP response after the end of the request; then
        /// the visitor gets 504. A request may take as long as it moves. One that stands still for
        /// as long gets 408, or 504 if it is the target that takes nothing; 0s is for ever
        /// [default: 60s].
        #[arg(long, value_name = "DURATION")]
        fixed response_timeout: Span,
        /// The longest head of an HTTP request or response in bytes; longer ones get 431 and 502
        /// [default: 65536].
        #[arg(long, value_name = "BYTES")]
        fixed max_head: usize,
        /// The most header lines of an HTTP request or response; more get 431 and 502 [default:
        /// 256].
        #[arg(long, value_name = "COUNT")]
        fixed max_header_lines: usize,
        /// How long a UDP flow may go without a datagram before it ends; it may take twice as long
        /// [default: 60s].
        #[arg(long, value_name = "DURATION")]
        fixed udp_idle: Span,
        /// UDP flows of one forward, or of one association of SOCKS5, at once; datagrams of more are
        /// dropped and counted [default: 512].
        #[arg(long, value_name = "COUNT")]
        fixed max_flows: usize,
        /// Connections of visitors at once, at each port; more wait, and at --listen are refused
        /// with 503 [default: 16384].
        #[arg(long, value_name = "COUNT")]
        fixed max_connections: usize,
        /// Connections to --listen at once that have yet to be let in, of agents and visitors; when
        /// more come, those that have taken longest make room, but not before a second [default:
        /// 1024].
        #[arg(long, value_name = "COUNT")]
        fixed max_handshakes: usize,
        /// Links of agents at once; more are refused with 503 [default: 4096].
        #[arg(long, value_name = "COUNT")]
        fixed max_sessions: usize,
        /// What several agents of one name do, as the replicas of a Deployment or the old and the
        /// new agent of a rolling update [default: share].
        #[arg(long, value_enum, value_name = "POLICY")]
        live replicas: ReplicasArg,
        /// Agents of one name at once, each with its links; more are refused with 503, unless one
        /// of the others does not answer [default: 16].
        #[arg(long, value_name = "COUNT")]
        fixed max_replicas: usize,
        /// Streams of one agent at once; more are refused with 503 [default: 8192].
        #[arg(long, value_name = "COUNT")]
        fixed max_streams: usize,
        /// Streams that visitors may open a second to one agent; more are refused. No bound
        /// without.
        #[arg(long, value_name = "COUNT")]
        fixed opens_per_second: NonZeroU32,
        /// Streams that may be opened at once after a pause, with --opens-per-second [default:
        /// 100].
        #[arg(long, value_name = "COUNT")]
        fixed opens_burst: NonZeroU32,
        /// Payload bytes a second that the streams of one agent may carry, both directions
        /// together; more wait where they come from. No bound without.
        #[arg(long, value_name = "BYTES")]
        fixed bytes_per_second: NonZeroU64,
        /// Take clients of rancher/remotedialer too: those that ask for no WebSocket subprotocol.
        /// They send the same token and their name in X-Tunnel-ID.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        #[arg(value_name = "true|false")]
        fixed accept_remotedialer: bool,
        /// The request header in which clients of remotedialer send the token, as
        /// X-API-Tunnel-Token; else Authorization: Bearer.
        #[arg(long, value_name = "HEADER")]
        fixed remotedialer_token_header: HeaderName,
        /// The file with a secret that agents of every name know which has no tokens of its own (in
        /// the file, [server.agents.NAME]); else the environment variable TUNNEL_TOKEN. There is no
        /// option for the secret itself: every user of the machine could read it.
        #[arg(long, value_name = "FILE")]
        live token_file: PathBuf,
        /// Another server, as east=ws://10.0.0.2:8123/connect: visitors reach its agents through
        /// this one, and its visitors the agents here. Both must name each other. Repeatable.
        /// Servers built on rancher/remotedialer can be peers.
        #[arg(long, value_name = "ID=URL", value_delimiter = ',')]
        fixed peer: Vec<Peer>,
        /// The authorities that peers' certificates are trusted by instead of the system's, in PEM.
        #[arg(long, value_name = "FILE")]
        fixed peer_ca_file: PathBuf,
        /// The certificate that this server shows to its peers, in PEM, with --peer-id among its
        /// DNS names.
        #[arg(long, value_name = "FILE")]
        fixed peer_tls_cert: PathBuf,
        /// The private key of --peer-tls-cert in PEM.
        #[arg(long, value_name = "FILE")]
        fixed peer_tls_key: PathBuf,
        /// The name by which the peers know this server.
        #[arg(long, value_name = "ID")]
        fixed peer_id: Name,
        /// The file with the secret that all peers share; else the environment variable
        /// TUNNEL_PEER_TOKEN. Not that of the agents. When it changes, the sessions of peers that
        /// used the old one end.
        #[arg(long, value_name = "FILE")]
        live peer_token_file: PathBuf,
        /// What single agents are granted; in the file only.
        #[arg(skip)]
        live agents: BTreeMap<String, GrantOptions>,
        /// Who may log in at --socks5, --http-connect, --http and --https; in the file only.
        #[arg(skip)]
        live users: BTreeMap<String, UserOptions>,
        ..common: CommonOptions
    }
}

impl ServerOptions {
    /// Returns where agents and visitors connect.
    fn listen(&self) -> SocketAddr {
        self.listen
            .unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8123))
    }
}

options! {
    /// What one agent is granted: `[server.agents.NAME]`.
    pub(crate) struct GrantOptions {
        /// The digests of its tokens, as `tunnel token` prints them. Any of them is good, so that
        /// they can be rotated.
        live tokens: Vec<Digest>,
        /// What may be asked of it, written like the agent's --allow.
        live targets: Vec<Rule>,
        /// Instead of the server's --opens-per-second.
        live opens_per_second: NonZeroU32,
        /// Instead of the server's --opens-burst.
        live opens_burst: NonZeroU32,
        /// Instead of the server's --bytes-per-second.
        live bytes_per_second: NonZeroU64,
        /// Instead of the server's --replicas.
        live replicas: ReplicasArg,
        /// Which ports may lead to it, by where they listen; port 0 stands for every port of its
        /// address.
        live ports: Vec<Several<Listen>>,
        /// Whether other servers may ask it on behalf of their visitors. Without this they may
        /// unless `ports` is set.
        live peers: bool,
    }
}

options! {
    /// What one user may do: `[server.users.NAME]`.
    pub(crate) struct UserOptions {
        /// The digests of its tokens, as `tunnel token` prints them. A token is the user's
        /// password, or a bearer token. Without any, the user logs in by a client certificate with
        /// its name among the DNS names.
        live tokens: Vec<Digest>,
        /// The agents that it reaches; all without.
        live agents: Vec<Name>,
        /// What it may ask for, written like the agent's --allow; everything without.
        live targets: Vec<Rule>,
    }
}
