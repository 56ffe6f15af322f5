//! The options of `tunnel agent`.

use std::path::PathBuf;

use hyper::header::HeaderName;
use tunnel::io::tls::Pin;
use tunnel::policy::Rule;
use tunnel::uplink::ServerUrl;

use super::value::{DialectArg, HostName, Name, Span};
use super::{CommonOptions, options};

mod plan;

pub(crate) use plan::AgentPlan;

options! {
    /// What `tunnel agent` can be told.
    #[derive(clap::Args)]
    pub(crate) struct AgentOptions {
        /// The line that `tunnel server --print-join` prints, in quotes, or - to read it from
        /// standard input. It names the server, proves it, and is good once: the agent gets a token
        /// of its own in return.
        #[arg(value_name = "LINE")]
        fixed join: String,
        /// The server, as wss://tunnel.example:8123/connect. Repeatable: the agent serves each by
        /// links of its own.
        #[arg(long, value_name = "URL", value_delimiter = ',')]
        fixed server: Vec<ServerUrl>,
        /// The authorities that the server's certificate is trusted by instead of the system's, in
        /// PEM.
        #[arg(long, value_name = "FILE")]
        fixed ca_file: PathBuf,
        /// The pin of the server's key or of its authority's, as sha256:... in the line of `tunnel
        /// server --print-join`. Without --ca-file nothing else is trusted. Repeatable.
        #[arg(long, value_name = "PIN", value_delimiter = ',')]
        fixed server_pin: Vec<Pin>,
        /// The name that the server's certificate must have instead of the host in its URL.
        #[arg(long, value_name = "NAME")]
        fixed server_name: HostName,
        /// The certificate that this agent shows to a server that asks for one, in PEM, with the
        /// agent's name among its DNS names.
        #[arg(long, value_name = "FILE")]
        fixed tls_cert: PathBuf,
        /// The private key of --tls-cert in PEM.
        #[arg(long, value_name = "FILE")]
        fixed tls_key: PathBuf,
        /// The name under which visitors ask for this agent: 1 to 253 letters, digits or any of
        /// -_.:@+~ [default: the machine's name]. A newer agent of the same name replaces this one.
        #[arg(long, value_name = "NAME")]
        fixed name: Name,
        /// Links to each server at once, 1 to 16 [default: 1]. New streams go to the link with the
        /// fewest; one that breaks costs its own streams only and is made again.
        #[arg(long, value_name = "COUNT")]
        fixed links: u8,
        /// How the server talks [default: native]; remotedialer is for servers built on
        /// rancher/remotedialer.
        #[arg(long, value_enum)]
        fixed dialect: DialectArg,
        /// The request header that carries the token, as X-API-Tunnel-Token; else Authorization:
        /// Bearer.
        #[arg(long, value_name = "HEADER")]
        fixed token_header: HeaderName,
        /// The file with further headers of the handshake, NAME: VALUE on each line, for what
        /// stands before the server. With Authorization: Basic USER:PASSWORD among them the token
        /// is sent as X-Tunnel-Token.
        #[arg(long, value_name = "FILE")]
        live link_header: PathBuf,
        /// Allow targets, as 127.0.0.1:9000, 10.0.0.0/8:8000-8099, [2001:db8::1]:*,
        /// db.internal:5432, *.internal:443, udp:10.0.0.53:53, unix:/run/app.sock or
        /// unix:/run/apps/*. Repeatable; without it every target is refused.
        ///
        /// What is checked is the address that is dialed, and of a Unix socket the file that all
        /// symbolic links lead to. A name stands for whatever it resolves to here, except for
        /// addresses of the machine and its link (127.0.0.0/8, ::1, 169.254.0.0/16, fe80::/10) and
        /// those where clouds keep their credentials: allow these by address, or by a network that
        /// lies within them.
        #[arg(long, value_name = "[udp:]HOST:PORT|unix:PATH", value_delimiter = ',')]
        live allow: Vec<Rule>,
        /// How long resolving and dialing a target may take together [default: 10s].
        #[arg(long, value_name = "DURATION")]
        fixed dial_timeout: Span,
        /// Where the token is kept that an invited agent gets for its own [default:
        /// $STATE_DIRECTORY, or watertight in $XDG_STATE_HOME or ~/.local/state].
        #[arg(long, value_name = "DIRECTORY")]
        fixed state_dir: PathBuf,
        /// The file with the secret by which the server knows this agent; else the environment
        /// variable TUNNEL_TOKEN. There is no option for the secret itself: every user of the
        /// machine could read it.
        #[arg(long, value_name = "FILE")]
        live token_file: PathBuf,
        ..common: CommonOptions
    }
}
