//! Reasons as the texts of errors. Go programs pass on what their system said, so a few words are
//! all there is to know one by.

use bytes::Bytes;

use crate::mux::error::Reason;
use crate::wire::remotedialer::EOF;

/// Returns the text for `reason`.
pub(crate) fn of(reason: Reason) -> Bytes {
    Bytes::from_static(match reason {
        Reason::Done => EOF,
        Reason::Cancelled => b"operation was canceled",
        Reason::Aborted => b"connection reset by peer",
        Reason::Refused => b"connection refused",
        Reason::Unreachable => b"no route to host",
        Reason::TimedOut => b"i/o timeout",
        Reason::Denied => b"connect not allowed",
        Reason::Unresolved => b"no such host",
        Reason::Busy => b"too many connections",
        Reason::Draining => b"the agent is draining",
        Reason::SessionOver | Reason::Replaced => b"tunnel disconnect",
        Reason::Protocol => b"malformed address",
        Reason::Overrun => b"buffer overrun: the sender did not pause",
    })
}

/// Returns the reason that a text other than `EOF` stands for; what nobody knows is
/// [`Reason::Aborted`].
pub(crate) fn reason(text: &[u8]) -> Reason {
    let text = String::from_utf8_lossy(text);
    let known = [
        ("connection refused", Reason::Refused),
        ("no route to host", Reason::Unreachable),
        ("network is unreachable", Reason::Unreachable),
        ("i/o timeout", Reason::TimedOut),
        ("deadline exceeded", Reason::TimedOut),
        ("connection timed out", Reason::TimedOut),
        ("connect not allowed", Reason::Denied),
        ("no such host", Reason::Unresolved),
        ("server misbehaving", Reason::Unresolved),
        ("operation was canceled", Reason::Cancelled),
        ("connection not found", Reason::Cancelled),
        ("too many connections", Reason::Busy),
        ("draining", Reason::Draining),
        ("tunnel disconnect", Reason::SessionOver),
        ("failed to find Session", Reason::SessionOver),
        ("malformed address", Reason::Protocol),
        ("buffer overrun", Reason::Overrun),
    ];
    known
        .iter()
        .find(|(words, _)| text.contains(words))
        .map_or(Reason::Aborted, |(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::remotedialer::TEXT_MAX;

    #[test]
    fn reasons_survive_the_wire() {
        for number in 1..=13 {
            let sent = Reason::from_wire(number);
            let text = of(sent);
            assert!(text.len() <= TEXT_MAX && text != EOF);
            let expected = match sent {
                Reason::Replaced => Reason::SessionOver,
                other => other,
            };
            assert_eq!(reason(&text), expected);
        }
    }

    #[test]
    fn what_go_says_is_understood() {
        for (text, expected) in [
            (
                "dial tcp 127.0.0.1:1: connect: connection refused",
                Reason::Refused,
            ),
            ("dial tcp: lookup nowhere: no such host", Reason::Unresolved),
            ("dial tcp 192.0.2.1:80: i/o timeout", Reason::TimedOut),
            (
                "read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer",
                Reason::Aborted,
            ),
            ("io: read/write on closed pipe", Reason::Aborted),
            ("failed to find Session for client web", Reason::SessionOver),
        ] {
            assert_eq!(reason(text.as_bytes()), expected, "{text}");
        }
    }
}
