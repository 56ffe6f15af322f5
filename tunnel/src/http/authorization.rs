//! Credentials in a header (RFC 7617, RFC 6750).

use data_encoding::BASE64;
use hyper::header::{HeaderMap, HeaderName};

use crate::login::Presented;

/// Credentials as they were sent.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Sent {
    /// `Basic`: a name and a password.
    Basic(Vec<u8>, Vec<u8>),
    /// `Bearer`: a token.
    Bearer(Vec<u8>),
    /// Something else. It lets nobody in.
    Malformed,
}

impl Sent {
    /// Reads a header. Returns `None` if there is none.
    pub(crate) fn read(headers: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let mut values = headers.get_all(name).iter();
        let first = values.next()?;
        // Two parsers could pick different values.
        let only = values.next().is_none();
        let sent = only.then(|| first.to_str().ok().and_then(parse)).flatten();
        Some(sent.unwrap_or(Self::Malformed))
    }

    /// Returns what was presented.
    pub(crate) fn presented(&self) -> Option<Presented<'_>> {
        match self {
            Self::Basic(user, password) => Some(Presented::Pair { user, password }),
            Self::Bearer(token) => Some(Presented::Bearer(token)),
            Self::Malformed => None,
        }
    }
}

fn parse(value: &str) -> Option<Sent> {
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim().as_bytes();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Sent::Bearer(rest.to_vec()));
    }
    let is_basic = scheme.eq_ignore_ascii_case("basic");
    let pair = is_basic.then(|| BASE64.decode(rest).ok()).flatten()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    let (user, password) = pair.split_at_checked(colon)?;
    Some(Sent::Basic(user.to_vec(), password.get(1..)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use hyper::header::{AUTHORIZATION, HeaderValue};

    use super::*;

    #[test]
    fn credentials_are_read() {
        let read = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                assert!(headers.len() < 3);
                headers.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            Sent::read(&headers, &AUTHORIZATION)
        };
        let anna = Sent::Basic(b"anna".to_vec(), b"sec:ret".to_vec());
        assert!(read(&["basic YW5uYTpzZWM6cmV0"]) == Some(anna));
        assert!(read(&["Bearer t0ken"]) == Some(Sent::Bearer(b"t0ken".to_vec())));
        assert!(read(&[]).is_none());
        for wrong in [
            &["Basic"][..],
            &["Basic !"],
            &["Basic YW5uYQ=="],
            &["Digest a"],
            &["Bearer a", "Bearer a"],
        ] {
            assert!(read(wrong) == Some(Sent::Malformed), "{wrong:?}");
        }
    }
}
