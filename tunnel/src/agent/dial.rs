//! Makes the connection to a target: resolve, check, dial, all within one deadline.

use std::io;
use std::time::Duration;

use super::policy::Policy;
use crate::mux::Reason;
use crate::socket::{self, Owner, Role, Socket};
use crate::target::Target;

/// Dials the first allowed address that answers. Dropping the future drops the socket.
///
/// # Errors
///
/// The reason that the opener is told.
pub(super) async fn dial(
    target: &Target,
    owner: Owner,
    policy: &Policy,
    deadline: Duration,
) -> Result<Socket, Reason> {
    match tokio::time::timeout(deadline, dial_any(target, owner, policy)).await {
        Ok(result) => result,
        Err(_) => Err(Reason::TimedOut),
    }
}

async fn dial_any(target: &Target, owner: Owner, policy: &Policy) -> Result<Socket, Reason> {
    let addresses = socket::resolve(target.host(), target.port())
        .await
        .map_err(|error| {
            tracing::debug!(%target, %error, "cannot resolve");
            Reason::Unresolved
        })?;
    let mut failure = Reason::Unresolved;
    for address in addresses {
        if !policy.allows(target, address) {
            tracing::debug!(%target, %address, "the policy does not allow this target; --allow would");
            failure = Reason::Denied;
            continue;
        }
        match Socket::dial(address, Role::Stream, owner, &format!("target {target}")).await {
            Ok(socket) => return Ok(socket),
            Err(error) => {
                tracing::debug!(%target, %address, %error, "cannot dial");
                failure = reason(&error);
            }
        }
    }
    Err(failure)
}

fn reason(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Reason::Refused,
        io::ErrorKind::TimedOut => Reason::TimedOut,
        _ => Reason::Unreachable,
    }
}
