//! Who a visitor of an HTTP port is.

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};

use crate::http::authorization::Sent;
use crate::io::tls::Identity;
use crate::server::config::HttpPort;
use crate::server::front::{FrontBody, plain_text};
use crate::server::login::LoginRefused;
use crate::server::shared::Shared;

/// Returns the user who sends the request, where the port needs a login: by the client's
/// certificate, or else by `Proxy-Authorization`, or else by `Authorization`. The target gets an
/// `Authorization` that was not used here.
pub(super) fn login(
    shared: &Shared,
    port: &HttpPort,
    identity: &Identity,
    request: &mut Request<Incoming>,
) -> Result<Option<String>, LoginRefused> {
    if !port.login {
        return Ok(None);
    }
    if let Some(user) = shared.admission.access().users().certified(identity) {
        return Ok(Some(user.to_owned()));
    }
    let headers = request.headers_mut();
    let sent = match Sent::read(headers, &header::PROXY_AUTHORIZATION) {
        Some(sent) => Some(sent),
        None => {
            let sent = Sent::read(headers, &header::AUTHORIZATION);
            headers.remove(header::AUTHORIZATION);
            sent
        }
    };
    let presented = sent.as_ref().and_then(Sent::presented);
    shared.log_in(presented).map(Some)
}

/// Returns the response to a visitor that is not logged in.
pub(super) fn refusal(refused: LoginRefused) -> Response<FrontBody> {
    let mut response = plain_text(StatusCode::UNAUTHORIZED, &refused.to_string());
    response.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Basic realm=\"tunnel\", charset=\"UTF-8\""),
    );
    response
}
