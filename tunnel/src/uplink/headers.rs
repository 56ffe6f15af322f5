//! Further headers of the handshake, for what stands before a server.

use std::path::Path;

use data_encoding::BASE64;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

/// The headers that every handshake sends besides its own. Their values are secrets and are never
/// printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkHeaders(HeaderMap);

/// Why a file of headers is not taken. No value of it is told.
#[derive(Debug, thiserror::Error)]
pub enum LinkHeadersError {
    /// The file cannot be read.
    #[error("cannot read the headers in {path}: {error}")]
    File {
        /// Which file.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// A line is not a header.
    #[error("{path}, line {line}: write NAME: VALUE, one header a line")]
    Malformed {
        /// Which file.
        path: String,
        /// Which line, counted from 1.
        line: usize,
    },
    /// The handshake has this header itself.
    #[error("{path}: the handshake sets {name} itself")]
    Reserved {
        /// Which file.
        path: String,
        /// Which header.
        name: HeaderName,
    },
}

/// The headers that decide what the handshake is.
const RESERVED: [&str; 6] = [
    "connection",
    "content-length",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
];

impl LinkHeaders {
    /// Reads a file with one `NAME: VALUE` a line. Empty lines and lines that begin with `#` are
    /// skipped. The value `Basic USER:PASSWORD` of `Authorization` is encoded (RFC 7617).
    ///
    /// # Errors
    ///
    /// [`LinkHeadersError`].
    pub fn from_file(file: &Path) -> Result<Self, LinkHeadersError> {
        let path = file.display().to_string();
        match std::fs::read_to_string(file) {
            Ok(text) => Self::parse(&text, &path),
            Err(error) => Err(LinkHeadersError::File { path, error }),
        }
    }

    fn parse(text: &str, path: &str) -> Result<Self, LinkHeadersError> {
        let mut headers = HeaderMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, value)) = header(line) else {
                return Err(LinkHeadersError::Malformed {
                    path: path.to_owned(),
                    line: at + 1,
                });
            };
            let of_ours = ["sec-websocket-", "x-tunnel-"];
            if RESERVED.contains(&name.as_str())
                || of_ours.iter().any(|own| name.as_str().starts_with(own))
            {
                return Err(LinkHeadersError::Reserved {
                    path: path.to_owned(),
                    name,
                });
            }
            headers.append(name, value);
        }
        Ok(Self(headers))
    }

    /// Whether `Authorization` is among them, so that the token needs another header.
    pub(crate) fn has_authorization(&self) -> bool {
        self.0.contains_key(AUTHORIZATION)
    }

    /// Adds the headers to a request.
    pub(crate) fn add_to(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0 {
            headers.append(name.clone(), value.clone());
        }
    }
}

fn header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    let name: HeaderName = name.trim_end().parse().ok()?;
    let value = value.trim();
    let credentials = value.strip_prefix("Basic ").map(str::trim);
    let encoded = match credentials {
        // Base64 has no colon.
        Some(plain) if name == AUTHORIZATION && plain.contains(':') => {
            Some(format!("Basic {}", BASE64.encode(plain.as_bytes())))
        }
        Some(_) | None => None,
    };
    let mut value = HeaderValue::from_str(encoded.as_deref().unwrap_or(value)).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_no_value_is_told() {
        let text = "# for the gateway\r\n\r\nAuthorization: Basic Aladdin:open sesame\n\
                    CF-Access-Client-Secret:canary\nX-A: 1\nX-A: 2\n";
        let headers = LinkHeaders::parse(text, "file").unwrap();
        assert!(headers.has_authorization());
        assert!(!format!("{headers:?}").contains("canary"));
        let mut map = HeaderMap::new();
        headers.add_to(&mut map);
        // The example of RFC 7617, section 2.
        assert_eq!(map["authorization"], "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(map["cf-access-client-secret"], "canary");
        assert_eq!(map.get_all("x-a").iter().count(), 2);
        let encoded = LinkHeaders::parse("Authorization: Basic QTpi", "file").unwrap();
        assert_eq!(encoded.0["authorization"], "Basic QTpi");
        for (text, words) in [
            ("X-A: 1\ncanary", "file, line 2"),
            ("a b: canary", "file, line 1"),
            (": canary", "file, line 1"),
            ("X-A: can\u{1}ary", "file, line 1"),
            ("Host: canary", "sets host itself"),
            ("x-tunnel-id: canary", "sets x-tunnel-id itself"),
            ("Sec-WebSocket-Key: canary", "sets sec-websocket-key itself"),
        ] {
            let error = LinkHeaders::parse(text, "file").unwrap_err().to_string();
            assert!(
                error.contains(words) && !error.contains("canary"),
                "{error}"
            );
        }
    }
}
