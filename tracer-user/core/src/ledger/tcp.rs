//! TCP states and addresses, as the kernel's records hold them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tracer_abi::facts::{AF_INET, Facts, IPPROTO_TCP};

use crate::verdict::Tuple;

/// `TCP_SYN_SENT` (net/tcp_states.h).
pub(crate) const TCP_SYN_SENT: u16 = 2;
/// `TCP_CLOSE` (net/tcp_states.h).
pub(crate) const TCP_CLOSE: u16 = 7;
/// `TCP_CLOSE_WAIT` (net/tcp_states.h).
pub(crate) const TCP_CLOSE_WAIT: u16 = 8;

/// `TCP_LISTEN` (net/tcp_states.h).
pub(crate) const TCP_LISTEN: u16 = 10;

/// Returns the name of a [`Facts::state`] or of a
/// [`Sighting::state`](tracer_abi::sighting::Sighting::state).
#[must_use]
pub const fn tcp_state_name(state: u16) -> &'static str {
    match state {
        1 => "ESTABLISHED",
        TCP_SYN_SENT => "SYN_SENT",
        3 => "SYN_RECV",
        4 => "FIN_WAIT1",
        5 => "FIN_WAIT2",
        6 => "TIME_WAIT",
        TCP_CLOSE => "CLOSE",
        TCP_CLOSE_WAIT => "CLOSE_WAIT",
        9 => "LAST_ACK",
        TCP_LISTEN => "LISTEN",
        11 => "CLOSING",
        12 => "NEW_SYN_RECV",
        _ => "UNKNOWN",
    }
}

/// Whether the socket is TCP.
pub(super) const fn is_tcp(facts: &Facts) -> bool {
    facts.protocol == IPPROTO_TCP
}

/// Returns the addresses of both ends; `None` for a socket that never connected nor listened.
pub(super) fn tuple(facts: &Facts) -> Option<Tuple> {
    if facts.local_port == 0 && facts.remote_port == 0 {
        return None;
    }
    Some(Tuple {
        local: SocketAddr::new(address(facts.family, facts.local), facts.local_port),
        remote: SocketAddr::new(address(facts.family, facts.remote), facts.remote_port),
    })
}

/// Returns an address as the kernel's records hold it.
pub(crate) fn address(family: u16, bytes: [u8; 16]) -> IpAddr {
    let [a, b, c, d, ..] = bytes;
    if family == AF_INET {
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
    }
}
