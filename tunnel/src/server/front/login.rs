//! Who a visitor of an HTTP port is.

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};

use crate::http::authorization::Sent;
use crate::io::socket::PeerAddr;
use crate::io::tls::Identity;
use crate::login::{LoginPort, LoginRefused};
use crate::server::config::HttpPort;
use crate::server::front::{FrontBody, plain_text};
use crate::server::shared::Shared;

/// Returns the user who sends the request, where the port needs a login: by the client's
/// certificate, or else by `Proxy-Authorization`, or else by `Authorization`. The target gets an
/// `Authorization` that was not used here.
pub(super) async fn login(
    shared: &Shared,
    port: &HttpPort,
    from: PeerAddr,
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
    let login = shared.log_in(LoginPort::Http, from, presented);
    login.await.map(Some)
}

/// Returns the response to a visitor that is not logged in.
pub(super) fn refusal(refused: LoginRefused) -> Response<FrontBody> {
    let status = refused.status(StatusCode::UNAUTHORIZED);
    let mut response = plain_text(status, &refused.to_string());
    refused.add_retry_after(response.headers_mut());
    if status != StatusCode::UNAUTHORIZED {
        return response;
    }
    response.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Basic realm=\"tunnel\", charset=\"UTF-8\""),
    );
    response
}
