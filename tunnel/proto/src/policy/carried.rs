//! IPv4 addresses within IPv6 addresses: where a translator or a tunnel would pass the packets.

use std::net::{Ipv4Addr, Ipv6Addr};

/// An IPv4 address that an IPv6 address carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) address: Ipv4Addr,
    /// The form leaves open where the IPv4 address stands. It may stand elsewhere.
    pub(super) may_differ: bool,
}

/// Returns every IPv4 address that `address` carries. IPv4-mapped addresses (RFC 4291, section
/// 2.5.5.2) are not among the forms: those are IPv4 addresses.
pub(super) fn carried(address: Ipv6Addr) -> Vec<Carried> {
    let octets = address.octets();
    let at = |places: [usize; 4]| {
        let [a, b, c, d] = places.map(|place| octets.get(place).copied().unwrap_or_default());
        Carried {
            address: Ipv4Addr::new(a, b, c, d),
            may_differ: false,
        }
    };
    let inverted = |carried: Carried| Carried {
        address: Ipv4Addr::from_bits(!carried.address.to_bits()),
        ..carried
    };
    let unsure = |carried: Carried| Carried {
        may_differ: true,
        ..carried
    };
    let last = at([12, 13, 14, 15]);
    let bits = address.to_bits();
    let mut found = match address.segments() {
        // IPv4-compatible, deprecated (RFC 4291, section 2.5.5.1). The unspecified and the loopback
        // address are none.
        [0, 0, 0, 0, 0, 0, _, _] if bits > 1 => vec![last],
        // IPv4-translated (RFC 2765, section 2.1).
        [0, 0, 0, 0, 0xffff, 0, _, _] => vec![last],
        // NAT64 (RFC 6052, section 2.1).
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => vec![last],
        // NAT64 with a prefix of the network's own (RFC 8215), which may have any of the lengths of
        // RFC 6052, section 2.2: 48, 56, 64 or 96 bits.
        [0x64, 0xff9b, 1, ..] => vec![
            unsure(at([6, 7, 9, 10])),
            unsure(at([7, 9, 10, 11])),
            unsure(at([9, 10, 11, 12])),
            unsure(last),
        ],
        // Teredo (RFC 4380, section 4): its server, and the client with all bits inverted.
        [0x2001, 0, ..] => vec![at([4, 5, 6, 7]), inverted(last)],
        // 6to4 (RFC 3056, section 2).
        [0x2002, ..] => vec![at([2, 3, 4, 5])],
        _ => vec![],
    };
    // ISATAP (RFC 5214, section 6.1) below any prefix.
    if let [_, _, _, _, 0 | 0x200, 0x5efe, _, _] = address.segments() {
        found.push(last);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        for (address, expected) in [
            ("::192.0.2.1", vec!["192.0.2.1"]),
            ("::ffff:0:192.0.2.1", vec!["192.0.2.1"]),
            ("64:ff9b::192.0.2.1", vec!["192.0.2.1"]),
            (
                "64:ff9b:1:c000:2:100::",
                vec!["192.0.2.1", "0.2.1.0", "2.1.0.0", "0.0.0.0"],
            ),
            (
                "64:ff9b:1:c0:0:201::",
                vec!["0.192.0.2", "192.0.2.1", "0.2.1.0", "0.0.0.0"],
            ),
            (
                "64:ff9b:1:0:c0:2:100:0",
                vec!["0.0.192.0", "0.192.0.2", "192.0.2.1", "1.0.0.0"],
            ),
            (
                "64:ff9b:1::192.0.2.1",
                vec!["0.0.0.0", "0.0.0.0", "0.0.0.192", "192.0.2.1"],
            ),
            ("2001:0:c000:201::3fff:fdfe", vec!["192.0.2.1", "192.0.2.1"]),
            ("2002:c000:201::1", vec!["192.0.2.1"]),
            ("2001:db8::5efe:192.0.2.1", vec!["192.0.2.1"]),
            ("2001:db8::200:5efe:192.0.2.1", vec!["192.0.2.1"]),
            ("::", vec![]),
            ("::1", vec![]),
            ("2001:db8::192.0.2.1", vec![]),
        ] {
            let found = carried(address.parse().unwrap()).into_iter();
            let found: Vec<_> = found.map(|carried| carried.address.to_string()).collect();
            assert_eq!(found, expected, "{address}");
        }
    }
}
