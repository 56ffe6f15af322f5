//! The datagrams of an association (RFC 1928, section 7).

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::socks5::address::Address;
use crate::target::Endpoint;

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// Its header is cut off.
    #[error("its header is cut off")]
    Short,
    /// It is a piece of a larger one.
    #[error("fragments are not served")]
    Fragment,
    /// The type of the address is unknown, or the address is not one.
    #[error("its address is not one")]
    Address,
}

/// Reads a datagram of a visitor: whom it is for, and its content.
///
/// # Errors
///
/// [`DatagramError`].
pub fn decode(datagram: &[u8]) -> Result<(Endpoint, &[u8]), DatagramError> {
    // Two reserved bytes that nobody checks, and the number of the fragment.
    let (header, rest) = datagram.split_at_checked(3).ok_or(DatagramError::Short)?;
    if header.last() != Some(&0) {
        return Err(DatagramError::Fragment);
    }
    let address = Address::read(rest).ok_or(DatagramError::Short)?;
    let address = address.map_err(|_| DatagramError::Address)?;
    let endpoint = address.endpoint().ok_or(DatagramError::Address)?;
    let content = rest.get(address.length()..).unwrap_or_default();
    Ok((endpoint, content))
}

/// Returns what stands before the content of each datagram to a visitor that comes from `endpoint`.
#[must_use]
pub fn header(endpoint: &Endpoint) -> Bytes {
    let mut header = BytesMut::new();
    header.put_slice(&[0, 0, 0]);
    Address::put(endpoint, &mut header);
    header.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text, None).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let long = format!("{}:53", ["a"; 120].join("."));
        for text in ["10.0.0.53:53", "[::1]:65535", "dns.internal:1", &long] {
            let mut datagram = header(&endpoint(text)).to_vec();
            for content in [&b""[..], b"content"] {
                datagram.extend_from_slice(content);
                assert_eq!(decode(&datagram), Ok((endpoint(text), content)), "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_datagram_is_dropped() {
        let whole = [0, 0, 0, 1, 10, 0, 0, 1, 0, 53];
        for length in 0..whole.len() {
            assert_eq!(decode(&whole[..length]), Err(DatagramError::Short));
        }
        for fragment in [1, 0x80, 0xff] {
            let mut datagram = whole;
            datagram[2] = fragment;
            assert_eq!(decode(&datagram), Err(DatagramError::Fragment));
        }
        for datagram in [
            &[0, 0, 0, 2, 1, 2, 3, 4, 0, 53][..],
            &[0, 0, 0, 1, 1, 2, 3, 4, 0, 0],
            &[0, 0, 0, 3, 0, 0, 53],
            &[0, 0, 0, 3, 2, b'a', b':', 0, 53],
            &[0, 0, 0, 3, 1, 0xff, 0, 53],
        ] {
            assert_eq!(
                decode(datagram),
                Err(DatagramError::Address),
                "{datagram:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok((endpoint, content)) = decode(&bytes) {
                let again = [&header(&endpoint)[..], content].concat();
                prop_assert_eq!(decode(&again), Ok((endpoint, content)));
            }
        }
    }
}
