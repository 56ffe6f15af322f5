//! Ranges of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The addresses whose first bits are those of a network. IPv4-mapped IPv6 addresses (RFC 4291,
/// section 2.5.5.2) are those that they stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Returns the IPv4 network of this address and length.
    ///
    /// # Panics
    ///
    /// If `prefix` is longer than an address; the networks of this crate are constants.
    #[must_use]
    pub const fn v4(address: [u8; 4], prefix: u8) -> Self {
        let [a, b, c, d] = address;
        Self(IpNet::V4(Ipv4Net::new_assert(
            Ipv4Addr::new(a, b, c, d),
            prefix,
        )))
    }

    /// Returns the IPv6 network of these bits and this length.
    ///
    /// # Panics
    ///
    /// If `prefix` is longer than an address; the networks of this crate are constants.
    #[must_use]
    pub const fn v6(bits: u128, prefix: u8) -> Self {
        Self(IpNet::V6(Ipv6Net::new_assert(
            Ipv6Addr::from_bits(bits),
            prefix,
        )))
    }

    /// Whether `address` is one of this network's.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// Whether every address of this network is one of `other`.
    #[must_use]
    pub fn lies_within(&self, other: &Self) -> bool {
        other.0.contains(&self.0)
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self(address.to_canonical().into())
    }
}

/// It is neither `ADDRESS` nor `ADDRESS/PREFIX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotANetwork;

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.contains('/') {
            return text
                .parse::<IpAddr>()
                .map(Self::from)
                .map_err(|_| NotANetwork);
        }
        let network: IpNet = text.parse().map_err(|_| NotANetwork)?;
        let IpAddr::V4(mapped) = network.addr().to_canonical() else {
            return Ok(Self(network));
        };
        let prefix = match network {
            IpNet::V4(network) => network.prefix_len(),
            IpNet::V6(network) => network.prefix_len().checked_sub(96).ok_or(NotANetwork)?,
        };
        let network = Ipv4Net::new(mapped, prefix).map_err(|_| NotANetwork)?;
        Ok(Self(network.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_their_addresses() {
        for (network, address, contains) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.1.2.3/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("::ffff:10.0.0.0/104", "10.0.0.1", true),
            ("::ffff:10.0.0.0/104", "11.0.0.1", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "10.0.0.1", false),
            ("::/0", "ffff::", true),
            ("::1", "::1", true),
            ("::1", "::2", false),
            ("127.0.0.1", "127.0.0.2", false),
        ] {
            let found = network
                .parse::<Network>()
                .unwrap()
                .contains(address.parse().unwrap());
            assert_eq!(found, contains, "{network} {address}");
        }
        for text in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0/8",
            "::/129",
            "::ffff:10.0.0.0/95",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
