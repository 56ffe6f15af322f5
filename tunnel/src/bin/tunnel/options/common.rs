//! What server and agent have in common.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use tunnel::admin;
use tunnel::io::socket::Keepalive;
use tunnel::relay::splice;
use tunnel::session::link;

use super::{HostName, Span};

/// Returns the settings of the admin port, if there is one.
pub(super) fn admin(
    listen: Option<SocketAddr>,
    public: Option<bool>,
    hosts: Option<Vec<HostName>>,
) -> anyhow::Result<Option<admin::Config>> {
    let Some(listen) = listen else {
        ensure!(
            public.is_none(),
            "--admin-public is about --admin IP:PORT: set that too, or leave it away"
        );
        ensure!(
            hosts.is_none(),
            "--admin-host is about --admin IP:PORT: set that too, or leave it away"
        );
        return Ok(None);
    };
    let hosts = hosts.unwrap_or_default().into_iter();
    Ok(Some(admin::Config {
        public: public.unwrap_or(false),
        hosts: hosts.map(|HostName(name)| name).collect(),
        ..admin::Config::new(listen)
    }))
}

/// Sets the timeouts of streams, and of TCP beneath them and the links.
pub(super) fn timeouts(
    (splice, link): (&mut splice::Config, &mut link::Config),
    idle: Option<Span>,
    keepalive: Option<Span>,
    user_timeout: Option<Span>,
) {
    let some = |Span(span): Span| Some(span).filter(|span| *span > Duration::ZERO);
    if let Some(idle) = idle {
        splice.idle = some(idle);
    }
    for tcp in [&mut splice.tcp, &mut link.tcp] {
        if let Some(idle) = keepalive {
            tcp.keepalive = some(idle).map(|idle| Keepalive {
                idle,
                ..Keepalive::default()
            });
        }
        if let Some(timeout) = user_timeout {
            tcp.user_timeout = some(timeout);
        }
    }
}

/// Requires that a certificate and its key are both set, or neither.
pub(super) fn both(
    (certificate, key): (&str, &str),
    (one, other): (Option<&PathBuf>, Option<&PathBuf>),
) -> anyhow::Result<()> {
    ensure!(
        one.is_none() || other.is_some(),
        "{certificate} needs {key}, its private key"
    );
    ensure!(
        other.is_none() || one.is_some(),
        "{key} needs {certificate}, its certificate"
    );
    Ok(())
}
