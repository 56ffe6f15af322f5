//! Reads `/etc/hosts` and `/etc/resolv.conf`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hickory_resolver::Hosts;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
    ServerOrderingStrategy,
};
use hickory_resolver::proto::rr::Name;

/// The most name servers that are queried (glibc's `MAXNS`).
const SERVERS_MAX: usize = 3;

/// The most domains that are searched. glibc has no bound. Kubernetes writes at most this many.
const SEARCH_MAX: usize = 32;

/// Reads `/etc/hosts`.
pub(super) fn hosts(content: &[u8]) -> Hosts {
    let mut hosts = Hosts::default();
    if let Err(error) = hosts.read_hosts_conf(content) {
        tracing::warn!(%error, "only the beginning of the hosts file can be read");
    }
    hosts
}

/// The settings in `/etc/resolv.conf`. The default is one name server, on this machine.
#[derive(Debug)]
pub(super) struct Settings {
    servers: Vec<IpAddr>,
    search: Vec<Name>,
    ndots: usize,
    attempts: usize,
    /// How long each server may take to answer.
    pub(super) timeout: Duration,
    rotate: bool,
    edns0: bool,
    use_tcp: bool,
    no_aaaa: bool,
}

impl Settings {
    /// The bounds are glibc's (`resolv.h`): `RES_MAXNDOTS`, `RES_MAXRETRY` and `RES_MAXRETRANS`.
    pub(super) fn parse(content: &[u8]) -> Self {
        let (conf, errors) = resolv_conf::Config::parse_with_errors(content);
        for error in errors {
            tracing::debug!(%error, "a line of resolv.conf is skipped");
        }
        let mut servers: Vec<IpAddr> = conf.nameservers.iter().map(IpAddr::from).collect();
        if servers.is_empty() {
            servers.push(Ipv4Addr::LOCALHOST.into());
        }
        servers.truncate(SERVERS_MAX);
        let mut search: Vec<String> = conf
            .get_last_search_or_domain()
            .take(SEARCH_MAX)
            .cloned()
            .collect();
        if search.is_empty() {
            search.extend(own_domain());
        }
        // `search .` means no domain.
        let search = search.iter().filter(|domain| *domain != ".");
        Self {
            servers,
            search: search
                .filter_map(|domain| Name::from_ascii(domain).ok())
                .collect(),
            ndots: conf.ndots.min(15) as usize,
            attempts: (conf.attempts as usize).clamp(1, 5),
            timeout: Duration::from_secs(u64::from(conf.timeout.clamp(1, 30))),
            rotate: conf.rotate,
            edns0: conf.edns0,
            use_tcp: conf.use_vc,
            no_aaaa: conf.no_aaaa,
        }
    }

    /// Returns the name servers, with port `port`, and the search list.
    pub(super) fn servers(&self, port: u16) -> ResolverConfig {
        let mut servers = self.servers.clone();
        if self.rotate {
            let first = fastrand::usize(..servers.len().max(1));
            servers.rotate_left(first);
        }
        let servers = servers.into_iter().map(|address| {
            let mut server = if self.use_tcp {
                NameServerConfig::tcp(address)
            } else {
                NameServerConfig::udp_and_tcp(address)
            };
            for connection in &mut server.connections {
                connection.port = port;
            }
            server
        });
        ResolverConfig::from_parts(None, self.search.clone(), servers.collect())
    }

    pub(super) fn options(&self) -> ResolverOpts {
        let mut options = ResolverOpts::default();
        options.ndots = self.ndots;
        options.attempts = self.attempts - 1;
        // The timeout of all servers together, one after the other. `Connector` has that of each.
        options.timeout = self.timeout * u32::try_from(self.servers.len()).unwrap_or(1);
        options.edns0 = self.edns0;
        options.ip_strategy = if self.no_aaaa {
            LookupIpStrategy::Ipv4Only
        } else {
            LookupIpStrategy::Ipv6AndIpv4
        };
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        options.num_concurrent_reqs = 1;
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = 0;
        options
    }
}

/// Returns the domain of this machine's host name. glibc searches it if resolv.conf names none.
fn own_domain() -> Option<String> {
    let system = rustix::system::uname();
    let name = system.nodename().to_str().ok()?;
    let (_, domain) = name.split_once('.')?;
    (!domain.is_empty()).then(|| domain.to_owned())
}
