//! Addresses that are not like others.

use std::net::IpAddr;

use crate::policy::carried::{Carried, carried};
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

/// The table in docs/tunnel.md, "Guarded addresses", has the sources.
const GUARDED: [Network; 12] = [
    // Loopback (RFC 1122, section 3.2.1.3; RFC 4291, section 2.5.3).
    Network::v4([127, 0, 0, 0], 8),
    Network::v6(1, 128),
    // Link-local (RFC 3927; RFC 4291, section 2.5.6). 169.254.169.254 tells most clouds' instances
    // their credentials.
    Network::v4([169, 254, 0, 0], 16),
    Network::v6(0xfe80 << 112, 10),
    // The same service elsewhere. Alibaba Cloud, Azure's wire server, Oracle Cloud Classic.
    Network::v4([100, 100, 100, 200], 32),
    Network::v4([168, 63, 129, 16], 32),
    Network::v4([192, 0, 0, 192], 32),
    // Amazon: instance metadata, and the credentials of EKS pods.
    Network::v6(0xfd00_0ec2_0000_0000_0000_0000_0000_0254, 128),
    Network::v6(0xfd00_0ec2_0000_0000_0000_0000_0000_0023, 128),
    // Google Cloud.
    Network::v6(0xfd20_00ce_0000_0000_0000_0000_0000_0254, 128),
    // Oracle Cloud.
    Network::v6(0xfd00_00c1_0000_0000_0000_0000_a9fe_a9fe, 128),
    // Scaleway.
    Network::v6(0xfd00_0042_0000_0000_0000_0000_0000_0042, 128),
];

impl Range {
    pub(super) fn of(address: IpAddr) -> Self {
        let address = address.to_canonical();
        if let IpAddr::V6(address) = address
            && Self::is_hidden(&carried(address))
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

    /// Whether an IPv6 address must not be dialed because of the IPv4 addresses that it carries.
    fn is_hidden(carried: &[Carried]) -> bool {
        let ranges = carried
            .iter()
            .map(|carried| (Self::of(carried.address.into()), carried.may_differ));
        // The bits of a prefix may look like a reserved address.
        let mut certain = ranges.clone().filter(|(range, may_differ)| match range {
            Self::Ordinary => false,
            Self::Guarded(_) => true,
            Self::Nowhere => !may_differ,
        });
        let mut all = ranges.map(|(range, _)| range);
        certain.next().is_some() || !carried.is_empty() && all.all(|range| range == Self::Nowhere)
    }
}
