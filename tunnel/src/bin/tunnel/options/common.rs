//! The options that server and agent share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use tunnel::admin;
use tunnel::io::socket::Keepalive;
use tunnel::listen;
use tunnel::metrics::Compat;
use tunnel::relay::splice;
use tunnel::session::link;

use super::value::{CompatArg, HostName, Span};
use super::{options, secret};

options! {
    /// What both `tunnel server` and `tunnel agent` can be told.
    #[derive(clap::Args)]
    pub(crate) struct CommonOptions {
        /// Serve the admin port: /metrics for Prometheus, /livez, /readyz, /admin/sessions,
        /// /admin/streams, and a page at /. Not served without this.
        #[arg(long, value_name = "IP:PORT", value_parser = listen::inet)]
        fixed admin: SocketAddr,
        /// Let --admin listen on an address that other machines reach: it shows sessions and
        /// targets to whoever asks, unless --admin-credentials-file is set.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        #[arg(value_name = "true|false")]
        fixed admin_public: bool,
        /// A name by which the admin port may be asked, besides addresses and localhost; others are
        /// refused, so that no page of another site can read it (DNS rebinding). Repeatable.
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        fixed admin_host: Vec<HostName>,
        /// The file with the USER:PASSWORD that --admin asks for (HTTP Basic), except at /livez and
        /// /readyz.
        #[arg(long, value_name = "FILE")]
        fixed admin_credentials_file: PathBuf,
        /// Serve another program's counters too, under its own names and labels, so that its
        /// dashboards go on working.
        #[arg(long, value_enum, value_name = "PROGRAM")]
        fixed compat_metrics: CompatArg,
        /// How long open streams may go on after SIGTERM before they are reset [default: 10s].
        #[arg(long, value_name = "DURATION")]
        fixed drain: Span,
        /// How long a half-closed connection may go without a byte before it is reset
        /// [default: 60s].
        #[arg(long, value_name = "DURATION")]
        fixed linger: Span,
        /// How long any stream may go without a byte in either direction before it is reset; 0s for
        /// ever [default: 0s].
        #[arg(long, value_name = "DURATION")]
        fixed idle: Span,
        /// How long a connection may be silent before TCP asks whether the other end is still
        /// there; 0s never asks [default: 60s].
        #[arg(long, value_name = "DURATION")]
        fixed tcp_keepalive: Span,
        /// How long what was sent may go unacknowledged before TCP gives the connection up; 0s
        /// leaves it to the system [default: 30s].
        #[arg(long, value_name = "DURATION")]
        fixed tcp_user_timeout: Span,
    }
}

/// What the shared options of a program come to.
#[derive(Debug)]
pub(super) struct CommonPlan {
    pub(super) admin: Option<admin::Config>,
    pub(super) compat_metrics: Option<Compat>,
    pub(super) drain: Duration,
}

impl CommonOptions {
    /// Checks the options, except for those of [`Self::set_timeouts`].
    pub(super) fn plan(&self) -> anyhow::Result<CommonPlan> {
        let admin = self.admin()?;
        ensure!(
            self.compat_metrics.is_none() || admin.is_some(),
            "--compat-metrics adds to what --admin IP:PORT serves: set that too"
        );
        Ok(CommonPlan {
            admin,
            compat_metrics: self.compat_metrics.map(Into::into),
            drain: self
                .drain
                .map_or(Duration::from_secs(10), |Span(span)| span),
        })
    }

    fn admin(&self) -> anyhow::Result<Option<admin::Config>> {
        let Some(listen) = self.admin else {
            for (option, is_set) in [
                ("--admin-public", self.admin_public.is_some()),
                ("--admin-host", self.admin_host.is_some()),
                (
                    "--admin-credentials-file",
                    self.admin_credentials_file.is_some(),
                ),
            ] {
                ensure!(
                    !is_set,
                    "{option} is about --admin IP:PORT: set that too, or leave it away"
                );
            }
            return Ok(None);
        };
        let users = self.admin_credentials_file.as_deref().map(secret::user);
        let hosts = self.admin_host.iter().flatten();
        Ok(Some(admin::Config {
            public: self.admin_public.unwrap_or(false),
            users: users.transpose()?.unwrap_or_default(),
            hosts: hosts.map(|HostName(name)| name.clone()).collect(),
            ..admin::Config::new(listen)
        }))
    }

    /// Sets the timeouts of streams, and of TCP beneath them and the links.
    pub(super) fn set_timeouts(&self, splice: &mut splice::Config, link: &mut link::Config) {
        set(&mut splice.linger, self.linger);
        if let Some(idle) = self.idle {
            splice.idle = unless_zero(idle);
        }
        for tcp in [&mut splice.tcp, &mut link.tcp] {
            if let Some(idle) = self.tcp_keepalive {
                tcp.keepalive = unless_zero(idle).map(|idle| Keepalive {
                    idle,
                    ..Keepalive::default()
                });
            }
            if let Some(timeout) = self.tcp_user_timeout {
                tcp.user_timeout = unless_zero(timeout);
            }
        }
    }
}

/// Sets what an option overrides.
pub(super) fn set(setting: &mut Duration, option: Option<Span>) {
    if let Some(Span(span)) = option {
        *setting = span;
    }
}

/// Returns a limit; zero means none.
fn unless_zero(Span(span): Span) -> Option<Duration> {
    Some(span).filter(|span| !span.is_zero())
}

/// Sets a limit that an option overrides; zero means none.
pub(super) fn set_limit(setting: &mut Option<Duration>, option: Option<Span>) {
    if let Some(span) = option {
        *setting = unless_zero(span);
    }
}

/// Requires that a length of time is not zero, and says why it must not be.
pub(super) fn not_zero(option: &str, span: Option<Span>, why: &str) -> anyhow::Result<()> {
    let zero = span.is_some_and(|Span(span)| span.is_zero());
    ensure!(!zero, "{option} must be longer than 0s: {why}");
    Ok(())
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
