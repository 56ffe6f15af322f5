//! Addresses that are not like others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::policy::network::Network;

/// How near an address is to the agent's own machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// No connection to it means what it says.
    Nowhere,
    /// Within this network live those who trust whoever reaches them.
    Guarded(Network),
    /// Like any other.
    Ordinary,
}

const NOWHERE: [Network; 5] = [
    // "This network" (RFC 1122, section 3.2.1.3). Linux takes 0.0.0.0 for itself.
    Network::v4([0, 0, 0, 0], 8),
    // Multicast (RFC 5771).
    Network::v4([224, 0, 0, 0], 4),
    // Reserved, and the broadcast address (RFC 1112, section 4; RFC 919).
    Network::v4([240, 0, 0, 0], 4),
    // Unspecified (RFC 4291, section 2.5.2). Linux takes it for itself, too.
    Network::v6(0, 128),
    // Multicast (RFC 4291, section 2.7).
    Network::v6(0xff00 << 112, 8),
];

const GUARDED: [Network; 7] = [
    // Loopback (RFC 1122, section 3.2.1.3; RFC 4291, section 2.5.3).
    Network::v4([127, 0, 0, 0], 8),
    Network::v6(1, 128),
    // Link-local (RFC 3927; RFC 4291, section 2.5.6). 169.254.169.254 tells most clouds' instances
    // their credentials.
    Network::v4([169, 254, 0, 0], 16),
    Network::v6(0xfe80 << 112, 10),
    // The same service elsewhere: Alibaba Cloud, Azure's wire server, Amazon's by IPv6.
    Network::v4([100, 100, 100, 200], 32),
    Network::v4([168, 63, 129, 16], 32),
    Network::v6(0xfd00_0ec2_0000_0000_0000_0000_0000_0254, 128),
];

impl Range {
    pub(super) fn of(address: IpAddr) -> Self {
        let address = address.to_canonical();
        if let IpAddr::V6(address) = address
            && let Some(carried) = carried(address)
            && Self::of(carried.into()) != Self::Ordinary
        {
            return Self::Nowhere;
        }
        if NOWHERE.iter().any(|network| network.contains(address)) {
            return Self::Nowhere;
        }
        GUARDED
            .into_iter()
            .find(|network| network.contains(address))
            .map_or(Self::Ordinary, Self::Guarded)
    }
}

/// Returns the IPv4 address to which a translator or a tunnel would pass what is sent to `address`.
fn carried(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = address.to_bits();
    let word =
        |shift: u32| Ipv4Addr::from_bits(u32::try_from((bits >> shift) & 0xffff_ffff).unwrap_or(0));
    match (bits >> 96, bits >> 112) {
        // IPv4-compatible, deprecated (RFC 4291, section 2.5.5.1); the unspecified and the loopback
        // address are none.
        (0, _) if bits > 1 && bits >> 32 == 0 => Some(word(0)),
        // NAT64 (RFC 6052, section 2.1).
        (0x0064_ff9b, _) if (bits >> 32) & 0xffff_ffff_ffff_ffff == 0 => Some(word(0)),
        // 6to4 (RFC 3056, section 2).
        (_, 0x2002) => Some(word(80)),
        _ => None,
    }
}
