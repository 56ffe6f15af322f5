//! Looks up names by `/etc/hosts` and `/etc/resolv.conf` (`hosts(5)`, `resolv.conf(5)`).
//!
//! A lookup is one future that owns its tasks and sockets. Dropping it releases them at once. Its
//! sockets are made by the socket module. Other sources that nsswitch.conf(5) may name (mDNS, NIS,
//! LDAP, systemd's own) are not used.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::{fmt, io};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, Resolver as Client};
use tunnel_proto::target::Endpoint;

use crate::io::race::interleave;
use crate::io::resolver::connector::{Connector, Tasks};
use crate::io::resolver::file::Watched;
use crate::io::resolver::slots::Slots;
use crate::io::resolver::system::Settings;
use crate::io::socket::Owner;

mod connector;
mod file;
mod slots;
mod system;
mod turns;

/// The most addresses of one name that are used.
pub const ANSWERS_MAX: usize = 16;

/// The most lookups that run at once. More wait for a slot.
pub const LOOKUPS_MAX: usize = 64;

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name or one of its labels is too long for the DNS.
    #[error("it is not a name that the DNS can have")]
    NotAName,
    /// The name does not exist.
    #[error("there is no such name")]
    NoSuchName,
    /// The name exists and has no address.
    #[error("the name has no address")]
    NoAddress,
    /// No name server answered.
    #[error("no name server answered in time; are those in /etc/resolv.conf right?")]
    NoAnswer,
    /// A name server answered with a failure.
    #[error("the name server cannot tell: {0}")]
    Refused(String),
    /// No name server can be reached.
    #[error("cannot ask a name server: {0}")]
    Failed(String),
}

/// Looks up the host of an endpoint as [`Resolver::resolve`] does, by the files of the system.
///
/// # Errors
///
/// [`ResolveError`] says why there is no address.
pub async fn resolve(endpoint: &Endpoint, owner: Owner) -> Result<Vec<SocketAddr>, ResolveError> {
    static SYSTEM: LazyLock<Resolver> = LazyLock::new(|| Resolver::new(Files::default()));
    SYSTEM.resolve(endpoint, owner).await
}

/// The files that configure lookups; those of the system by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Names with their addresses (`hosts(5)`).
    pub hosts: PathBuf,
    /// The name servers and the options for queries (`resolv.conf(5)`).
    pub resolv_conf: PathBuf,
    /// The port of the name servers.
    pub port: u16,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            port: 53,
        }
    }
}

/// Looks up names. Its lookups share the contents of the files and the bound on their number.
pub struct Resolver {
    hosts: Watched<Hosts>,
    settings: Watched<Settings>,
    port: u16,
    slots: Slots,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    /// Creates a resolver. The files are read when a name is looked up.
    #[must_use]
    pub fn new(files: Files) -> Self {
        Self {
            hosts: Watched::new(files.hosts, system::hosts),
            settings: Watched::new(files.resolv_conf, Settings::parse),
            port: files.port,
            slots: Slots::new(LOOKUPS_MAX),
        }
    }

    /// Looks up the host of an endpoint. An address needs no lookup. At most [`ANSWERS_MAX`]
    /// addresses are returned. The sockets of the lookup are bound to `owner`.
    ///
    /// # Errors
    ///
    /// [`ResolveError`] says why there is no address.
    pub async fn resolve(
        &self,
        endpoint: &Endpoint,
        owner: Owner,
    ) -> Result<Vec<SocketAddr>, ResolveError> {
        let addresses = match endpoint.address() {
            Some(address) => vec![address],
            None => {
                // Boxed: otherwise the caller's future reserves space for it for its whole life.
                let lookup: BoxFuture<'_, _> = Box::pin(self.lookup(endpoint.host(), owner));
                lookup.await?
            }
        };
        let addresses = addresses.into_iter();
        let addresses = addresses.map(|address| SocketAddr::new(address, endpoint.port()));
        // The families alternate, so that the bound keeps addresses of both.
        let mut addresses = interleave(addresses.collect());
        addresses.truncate(ANSWERS_MAX);
        Ok(addresses)
    }

    async fn lookup(&self, host: &str, owner: Owner) -> Result<Vec<IpAddr>, ResolveError> {
        let name = Name::from_ascii(host).map_err(|_| ResolveError::NotAName)?;
        if let Some(found) = in_hosts(&self.hosts.current(), &name) {
            return Ok(found);
        }
        // RFC 6761, section 6.3.
        if host == "localhost" || host.ends_with(".localhost") {
            return Ok(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]);
        }
        let settings = self.settings.current();
        let zone = host.split_once('.').map_or(host, |(_, zone)| zone);
        self.slots
            .run(zone, || {
                ask(Arc::clone(&settings), self.port, name.clone(), owner)
            })
            .await
    }
}

/// Returns the addresses of a name in the hosts file, IPv6 first.
fn in_hosts(hosts: &Hosts, name: &Name) -> Option<Vec<IpAddr>> {
    let of = |kind| {
        let found = hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let records = found.map(|found| found.answers().to_vec());
        let records = records.unwrap_or_default().into_iter();
        records.filter_map(|record| record.data.ip_addr())
    };
    let found: Vec<_> = of(RecordType::AAAA).chain(of(RecordType::A)).collect();
    (!found.is_empty()).then_some(found)
}

/// Queries the name servers. What the client would spawn runs in this future and ends with it.
async fn ask(
    settings: Arc<Settings>,
    port: u16,
    name: Name,
    owner: Owner,
) -> Result<Vec<IpAddr>, ResolveError> {
    let label = format!("lookup of {}", name.to_ascii());
    let (tasks, mut spawned) = Tasks::new();
    let connector = Connector::new(tasks, settings.timeout, owner, label);
    let mut client = Client::builder_with_config(settings.servers(port), connector);
    *client.options_mut() = settings.options();
    let client = client.build().map_err(|error| failure(&error))?;
    let mut answer = Box::pin(client.lookup_ip(name));
    let mut running = FuturesUnordered::new();
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut answer => break answer,
            Some(task) = spawned.recv() => running.push(task),
            Some(()) = running.next() => {}
        }
    };
    let answer = answer.map_err(|error| failure(&error))?;
    let addresses: Vec<_> = answer.iter().collect();
    if addresses.is_empty() {
        return Err(ResolveError::NoAddress);
    }
    Ok(addresses)
}

fn failure(error: &NetError) -> ResolveError {
    match error {
        NetError::Timeout => ResolveError::NoAnswer,
        NetError::Io(error) if error.kind() == io::ErrorKind::TimedOut => ResolveError::NoAnswer,
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => ResolveError::NoSuchName,
            ResponseCode::NoError => ResolveError::NoAddress,
            code => ResolveError::Refused(code.to_string()),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => ResolveError::Refused(code.to_string()),
        NetError::Io(error) => ResolveError::Failed(error.to_string()),
        other => ResolveError::Failed(other.to_string()),
    }
}
