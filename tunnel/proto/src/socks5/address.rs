//! Addresses in requests and datagrams (RFC 1928, section 5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{BufMut as _, BytesMut};

use crate::target::Endpoint;

const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// An address as a visitor wrote it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address<'a> {
    host: Host<'a>,
    port: u16,
}

#[derive(Clone, Copy, Debug)]
enum Host<'a> {
    Ip(IpAddr),
    Name(&'a [u8]),
}

/// The type of an address is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnknownType;

impl<'a> Address<'a> {
    pub(super) const fn ip(ip: IpAddr, port: u16) -> Self {
        Self {
            host: Host::Ip(ip),
            port,
        }
    }

    pub(super) const fn name(name: &'a [u8], port: u16) -> Self {
        Self {
            host: Host::Name(name),
            port,
        }
    }

    /// Reads the address that `input` begins with; `None` if that takes more bytes.
    pub(super) fn read(input: &'a [u8]) -> Option<Result<Self, UnknownType>> {
        let (host, end) = match *input.first()? {
            IPV4 => {
                let ip = <[u8; 4]>::try_from(input.get(1..5)?).ok()?;
                (Host::Ip(Ipv4Addr::from(ip).into()), 5)
            }
            IPV6 => {
                let ip = <[u8; 16]>::try_from(input.get(1..17)?).ok()?;
                (Host::Ip(Ipv6Addr::from(ip).into()), 17)
            }
            NAME => {
                let end = 2 + usize::from(*input.get(1)?);
                (Host::Name(input.get(2..end)?), end)
            }
            _ => return Some(Err(UnknownType)),
        };
        let port = u16::from_be_bytes(input.get(end..end + 2)?.try_into().ok()?);
        Some(Ok(Self { host, port }))
    }

    /// Returns how many bytes were read.
    pub(super) const fn length(&self) -> usize {
        let host = match self.host {
            Host::Ip(IpAddr::V4(_)) => 4,
            Host::Ip(IpAddr::V6(_)) => 16,
            Host::Name(name) => 1 + name.len(),
        };
        1 + host + 2
    }

    /// Returns what the agent is asked for, if there can be such an endpoint. A name is the agent's
    /// to resolve.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        let port = self.port;
        let authority = match self.host {
            Host::Ip(ip) => SocketAddr::new(ip, port).to_string(),
            Host::Name(name) => {
                let name = std::str::from_utf8(name).ok()?;
                // Some write an address as a name.
                match name.parse::<Ipv6Addr>() {
                    Ok(address) => SocketAddr::new(address.into(), port).to_string(),
                    Err(_) => format!("{name}:{port}"),
                }
            }
        };
        Endpoint::parse(&authority, None).ok()
    }

    /// Returns the address from which somebody will send, if it says one.
    pub(super) fn source(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) if self.port != 0 => Some(SocketAddr::new(ip, self.port)),
            Host::Ip(_) | Host::Name(_) => None,
        }
    }

    /// Writes an address.
    pub(super) fn put_ip(ip: IpAddr, port: u16, to: &mut BytesMut) {
        match ip {
            IpAddr::V4(ip) => {
                to.put_u8(IPV4);
                to.put_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                to.put_u8(IPV6);
                to.put_slice(&ip.octets());
            }
        }
        to.put_u16(port);
    }

    /// Writes an endpoint.
    pub(super) fn put(endpoint: &Endpoint, to: &mut BytesMut) {
        match endpoint.address() {
            Some(ip) => Self::put_ip(ip, endpoint.port(), to),
            None => {
                to.put_u8(NAME);
                // A host has at most 255 bytes.
                let name = endpoint.host().as_bytes();
                to.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
                to.put_slice(name);
                to.put_u16(endpoint.port());
            }
        }
    }
}
