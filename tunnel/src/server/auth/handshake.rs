//! Checks the request of an agent or a peer for a link.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tunnel_proto::Time;
use tunnel_proto::wire::Dialect;
use tunnel_proto::wire::handshake::{
    LINK_HEADER, LinkId, NAME_HEADER, PEER_NAME_HEADER, PEER_TOKEN_HEADER, Party, TOKEN_HEADER,
    is_name,
};
use tunnel_proto::wire::native::SUBPROTOCOL;

use crate::io::tls::Identity;
use crate::io::token::Token;
use crate::server::auth::access::Credential;
use crate::server::auth::admission::{Admission, AdmittedBy};
use crate::server::auth::peers::Peers;

/// How clients of remotedialer's dialect authenticate. They ask for no subprotocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remotedialer {
    /// The request header whose whole value is the token. Without it `Authorization: Bearer` is
    /// read.
    pub token_header: Option<HeaderName>,
}

/// A handshake that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) party: Party,
    pub(crate) name: String,
    pub(crate) dialect: Dialect,
    pub(crate) admitted_by: AdmittedBy,
    /// Which of the agent's links it is. An agent that sends no header has one link.
    pub(crate) link: Option<LinkId>,
    pub(crate) accept_key: String,
}

/// Why a handshake was refused, for the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) why: &'static str,
}

/// What the server checks a handshake against.
#[derive(Clone, Copy)]
pub(crate) struct HandshakeContext<'a> {
    pub(crate) admission: &'a Admission,
    pub(crate) now: Time,
    pub(crate) remotedialer: Option<&'a Remotedialer>,
    /// The peers, and the token that they share now.
    pub(crate) peers: Option<(&'a Peers, &'a Token)>,
    /// The identity in the client's certificate.
    pub(crate) identity: &'a Identity,
}

/// Checks a request for `/connect`. The token is checked first, so that an unauthenticated client
/// learns nothing but that its request is malformed.
pub(crate) fn check<B>(
    request: &Request<B>,
    context: HandshakeContext<'_>,
) -> Result<Accepted, Refused> {
    let headers = request.headers();
    if request.method() != Method::GET {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "an agent connects with GET");
    }
    if headers.contains_key(header::ORIGIN) {
        return refuse(
            StatusCode::FORBIDDEN,
            "browsers are not agents: an Origin header is refused",
        );
    }
    // Clients of remotedialer's dialect ask for no subprotocol.
    let plain = !headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL);
    let remotedialer = context.remotedialer.filter(|_| plain);
    let peer = match context.peers {
        Some((peers, token)) if plain => peer(headers, peers, token)?,
        Some(_) | None => None,
    };
    let (party, name, admitted_by) = match peer {
        Some((id, credential)) => (Party::Peer, id, AdmittedBy::Known(credential)),
        None => {
            // The error is kept: an unauthenticated client must not learn what is wrong with its
            // name.
            let name = agents_name(headers);
            let secret = agents_secret(headers, remotedialer)?;
            let asked = name.unwrap_or_default();
            let Some(admitted_by) = context.admission.admit(asked, secret, context.now) else {
                return refuse(
                    StatusCode::UNAUTHORIZED,
                    "the token is missing, wrong, or not for an agent of this name",
                );
            };
            (Party::Agent, name?, admitted_by)
        }
    };
    let is_websocket = has_token(headers, &header::UPGRADE, "websocket")
        && has_token(headers, &header::CONNECTION, "upgrade")
        && one(headers, &header::SEC_WEBSOCKET_VERSION)?.is_some_and(|version| version == "13");
    if !is_websocket {
        return refuse(
            StatusCode::UPGRADE_REQUIRED,
            "an agent asks for a WebSocket, version 13",
        );
    }
    let Some(key) = one(headers, &header::SEC_WEBSOCKET_KEY)? else {
        return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    };
    let dialect = match party {
        Party::Agent => agents_dialect(headers, remotedialer)?,
        Party::Peer | Party::Server => Dialect::Remotedialer,
    };
    if let Err(why) = context.identity.allows(name) {
        return refuse(StatusCode::FORBIDDEN, why);
    }
    let link = match one(headers, &HeaderName::from_static(LINK_HEADER))? {
        None => None,
        Some(value) => match value.to_str().ok().and_then(LinkId::parse) {
            Some(link) => Some(link),
            None => return refuse(StatusCode::BAD_REQUEST, "X-Tunnel-Link is malformed"),
        },
    };
    Ok(Accepted {
        party,
        name: name.to_owned(),
        dialect,
        admitted_by,
        link,
        accept_key: derive_accept_key(key.as_bytes()),
    })
}

/// Returns the name and the credential of the peer that sent the request. Without one it may still
/// be an agent: agents of rancher/remotedialer use the same headers.
fn peer<'a>(
    headers: &HeaderMap,
    peers: &'a Peers,
    token: &Token,
) -> Result<Option<(&'a str, Credential)>, Refused> {
    let id = one(headers, &HeaderName::from_static(PEER_NAME_HEADER))?;
    let secret = one(headers, &HeaderName::from_static(PEER_TOKEN_HEADER))?;
    let (Some(id), Some(secret)) = (id, secret) else {
        return Ok(None);
    };
    let mut known = peers.table.iter().map(|peer| peer.id.as_str());
    let known = known.find(|known| id == known);
    let known = known.filter(|_| token.accepts(secret.as_bytes()));
    Ok(known.map(|id| (id, Credential::of(token))))
}

/// Returns the name that an agent or a peer claims, whatever it is. It is empty if there is none.
pub(crate) fn claimed_name(headers: &HeaderMap) -> String {
    let names = [NAME_HEADER, PEER_NAME_HEADER];
    let name = names.into_iter().find_map(|name| headers.get(name));
    let name = name.map_or(&[][..], HeaderValue::as_bytes);
    String::from_utf8_lossy(name).into_owned()
}

fn agents_secret<'a>(
    headers: &'a HeaderMap,
    remotedialer: Option<&Remotedialer>,
) -> Result<&'a [u8], Refused> {
    let secret = match remotedialer.and_then(|accepted| accepted.token_header.as_ref()) {
        Some(name) => one(headers, name)?.map(HeaderValue::as_bytes),
        None => match one(headers, &HeaderName::from_static(TOKEN_HEADER))? {
            Some(value) => Some(value.as_bytes()),
            None => one(headers, &header::AUTHORIZATION)?
                .and_then(|value| value.as_bytes().strip_prefix(b"Bearer ")),
        },
    };
    Ok(secret.unwrap_or_default())
}

fn agents_dialect(
    headers: &HeaderMap,
    remotedialer: Option<&Remotedialer>,
) -> Result<Dialect, Refused> {
    if remotedialer.is_some() {
        return Ok(Dialect::Remotedialer);
    }
    if has_token(headers, &header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Ok(Dialect::Native);
    }
    refuse(
        StatusCode::BAD_REQUEST,
        "this server speaks the subprotocol watertight.v1; --accept-remotedialer takes clients \
         that ask for none",
    )
}

fn agents_name(headers: &HeaderMap) -> Result<&str, Refused> {
    let name = one(headers, &HeaderName::from_static(NAME_HEADER))?;
    match name.and_then(|name| name.to_str().ok()) {
        Some(name) if is_name(name) => Ok(name),
        Some(_) | None => refuse(
            StatusCode::BAD_REQUEST,
            "X-Tunnel-ID is missing or not a name: 1 to 253 letters, digits, '-', '_', '.', '@', \
             '+', '~', or ':' between others",
        ),
    }
}

fn refuse<T>(status: StatusCode, why: &'static str) -> Result<T, Refused> {
    Err(Refused { status, why })
}

/// Returns the value of a header that must not be repeated: two parsers could pick different
/// values.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Refused> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return refuse(
            StatusCode::BAD_REQUEST,
            "a header of the handshake came twice",
        );
    }
    Ok(first)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use tunnel_proto::wire::handshake::LINKS_MAX;

    use super::*;
    use crate::io::token::Token;
    use crate::server::auth::access::Access;

    fn request(change: impl FnOnce(&mut HeaderMap)) -> Request<()> {
        let mut request = Request::get("/connect")
            .header("host", "a")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", SUBPROTOCOL)
            .header("authorization", "Bearer secret")
            .header(NAME_HEADER, "web")
            .body(())
            .unwrap();
        change(request.headers_mut());
        request
    }

    fn admission() -> Admission {
        let token = Token::new("secret", "test").unwrap();
        Admission::new(Access::from(token), None).unwrap()
    }

    const fn context(admission: &Admission) -> HandshakeContext<'_> {
        HandshakeContext {
            admission,
            now: Time::ZERO,
            remotedialer: None,
            peers: None,
            identity: &Identity::Unasked,
        }
    }

    fn status(change: impl FnOnce(&mut HeaderMap)) -> Option<u16> {
        let admission = admission();
        check(&request(change), context(&admission))
            .err()
            .map(|refused| refused.status.as_u16())
    }

    #[test]
    fn a_good_handshake_is_accepted() {
        let admission = admission();
        let accepted = check(&request(|_| {}), context(&admission)).unwrap();
        assert_eq!((accepted.name.as_str(), accepted.link), ("web", None));
        // RFC 6455, section 1.3.
        assert_eq!(accepted.accept_key, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn links_are_read() {
        let admission = admission();
        let link = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            let with = request(|headers| drop(headers.insert(LINK_HEADER, value)));
            check(&with, context(&admission)).map(|accepted| accepted.link.unwrap())
        };
        let (instance, slot) = (u64::MAX, LINKS_MAX - 1);
        let written = LinkId { instance, slot }.to_string();
        assert_eq!(link(&written), Ok(LinkId { instance, slot }));
        for text in ["", "1", "1/", "/1", "1/16", "1/-1", "x/1", "1/1/1"] {
            assert_eq!(link(text).unwrap_err().status.as_u16(), 400, "{text}");
        }
    }

    #[test]
    fn a_client_without_a_subprotocol_is_taken_only_when_that_is_wanted() {
        let admission = admission();
        let plain = || request(|headers| drop(headers.remove("sec-websocket-protocol")));
        let status = |request: &Request<()>, wanted: Option<&Remotedialer>| {
            let context = HandshakeContext {
                remotedialer: wanted,
                ..context(&admission)
            };
            check(request, context)
                .map(|accepted| accepted.dialect)
                .map_err(|refused| refused.status.as_u16())
        };
        let bearer = Remotedialer::default();
        assert_eq!(status(&plain(), None), Err(400));
        assert_eq!(status(&plain(), Some(&bearer)), Ok(Dialect::Remotedialer));
        assert_eq!(status(&request(|_| {}), Some(&bearer)), Ok(Dialect::Native));
        let own = Remotedialer {
            token_header: Some(HeaderName::from_static("x-api-tunnel-token")),
        };
        // The bearer token counts no longer, and a native agent still needs it.
        assert_eq!(status(&plain(), Some(&own)), Err(401));
        let mut with = plain();
        let header = HeaderValue::from_static("secret");
        with.headers_mut().insert("x-api-tunnel-token", header);
        with.headers_mut().remove("authorization");
        assert_eq!(status(&with, Some(&own)), Ok(Dialect::Remotedialer));
        assert_eq!(status(&with, Some(&bearer)), Err(401));
        let wrong = HeaderValue::from_static("Bearer secret");
        with.headers_mut().insert("x-api-tunnel-token", wrong);
        assert_eq!(status(&with, Some(&own)), Err(401));
    }

    #[test]
    fn who_has_a_certificate_is_only_who_it_says() {
        let admission = admission();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = |names: &[&str]| {
            rcgen::CertificateParams::new(Vec::from_iter(names.iter().map(ToString::to_string)))
                .unwrap()
        };
        let ask = |identity: &Identity, name: &'static str| {
            let name = HeaderValue::from_static(name);
            let request = request(|headers| drop(headers.insert(NAME_HEADER, name)));
            let context = HandshakeContext {
                identity,
                ..context(&admission)
            };
            check(&request, context)
                .map(|_| ())
                .map_err(|refused| refused.status.as_u16())
        };
        let names = params(&["web", "a.example", "*.example", "10.0.0.1"]);
        let certificate = names.self_signed(&key).unwrap();
        let identity = Identity::Verified(certificate.der().clone());
        assert_eq!(ask(&identity, "web"), Ok(()));
        assert_eq!(ask(&identity, "a.example"), Ok(()));
        for other in ["other", "WEB", "b.example", "10.0.0.1", "we", "web."] {
            assert_eq!(ask(&identity, other), Err(403), "{other}");
        }
        let nobody = params(&[]).self_signed(&key).unwrap();
        assert_eq!(
            ask(&Identity::Verified(nobody.der().clone()), "web"),
            Err(403)
        );
        assert_eq!(ask(&Identity::Missing, "web"), Err(403));
    }

    #[test]
    fn a_peer_is_who_is_in_the_table_and_has_its_token() {
        let (admission, secret) = (admission(), Token::new("shared", "test").unwrap());
        let table = vec!["east=ws://127.0.0.1:1/connect".parse().unwrap()];
        let peers = Peers::new("west".to_owned(), secret.clone(), table);
        let ask = |id: &str, token: &str, change: fn(&mut HeaderMap)| {
            let request = request(|headers| {
                for name in ["sec-websocket-protocol", "authorization", NAME_HEADER] {
                    headers.remove(name);
                }
                headers.insert(PEER_NAME_HEADER, id.parse().unwrap());
                headers.insert(PEER_TOKEN_HEADER, token.parse().unwrap());
                change(headers);
            });
            let context = HandshakeContext {
                peers: Some((&peers, &secret)),
                ..context(&admission)
            };
            check(&request, context)
                .map(|accepted| (accepted.party, accepted.name, accepted.dialect))
                .map_err(|refused| refused.status.as_u16())
        };
        let east = (Party::Peer, "east".to_owned(), Dialect::Remotedialer);
        assert_eq!(ask("east", "shared", |_| {}), Ok(east));
        assert_eq!(ask("west", "shared", |_| {}), Err(401));
        assert_eq!(ask("east", "Shared", |_| {}), Err(401));
        assert_eq!(ask("east", "secret", |_| {}), Err(401));
        let twice = |headers: &mut HeaderMap| {
            assert!(headers.append(PEER_TOKEN_HEADER, HeaderValue::from_static("shared")));
        };
        assert_eq!(ask("east", "shared", twice), Err(400));
        let native = |headers: &mut HeaderMap| {
            let subprotocol = HeaderValue::from_static(SUBPROTOCOL);
            headers.insert("sec-websocket-protocol", subprotocol);
        };
        assert_eq!(ask("east", "shared", native), Err(401));
        // An agent may use these headers for something else.
        let agent = |headers: &mut HeaderMap| {
            let subprotocol = HeaderValue::from_static(SUBPROTOCOL);
            headers.insert("sec-websocket-protocol", subprotocol);
            headers.insert("authorization", HeaderValue::from_static("Bearer secret"));
            headers.insert(NAME_HEADER, HeaderValue::from_static("web"));
        };
        let web = (Party::Agent, "web".to_owned(), Dialect::Native);
        assert_eq!(ask("east", "wrong", agent), Ok(web));
    }

    #[test]
    fn everything_else_is_refused() {
        type Change = fn(&mut HeaderMap);
        let cases: [(Change, u16); 11] = [
            (|h| drop(h.remove("authorization")), 401),
            (
                |h| drop(h.insert("authorization", HeaderValue::from_static("Bearer Secret"))),
                401,
            ),
            (
                |h| drop(h.insert("authorization", HeaderValue::from_static("Basic secret"))),
                401,
            ),
            (
                |h| assert!(h.append("authorization", HeaderValue::from_static("Bearer secret"))),
                400,
            ),
            (
                |h| drop(h.insert("origin", HeaderValue::from_static("http://a"))),
                403,
            ),
            (|h| drop(h.remove("upgrade")), 426),
            (
                |h| drop(h.insert("sec-websocket-version", HeaderValue::from_static("8"))),
                426,
            ),
            (|h| drop(h.remove("sec-websocket-protocol")), 400),
            (
                |h| assert!(h.append(NAME_HEADER, HeaderValue::from_static("other"))),
                400,
            ),
            (
                |h| drop(h.insert(NAME_HEADER, HeaderValue::from_static("a/b"))),
                400,
            ),
            (|h| drop(h.remove("sec-websocket-key")), 400),
        ];
        for (case, (change, expected)) in cases.into_iter().enumerate() {
            assert_eq!(status(change), Some(expected), "case {case}");
        }
    }
}
