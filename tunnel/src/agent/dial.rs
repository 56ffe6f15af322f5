//! Connects to a target: resolves its name, checks the policy and dials, all within one deadline.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use std::{fmt, io};

use tunnel_proto::mux::Reason;
use tunnel_proto::policy::{Coverage, Policy, Protocol};
use tunnel_proto::target::{Endpoint, SocketPath, Target};

use crate::io::race::race;
use crate::io::resolver::Resolver;
use crate::io::socket::{DatagramSocket, Owner, PeerAddr, Role, Socket, SocketFile};

#[cfg(test)]
mod tests;

/// What was dialed.
pub(crate) enum Dialed {
    Stream(Socket),
    Datagrams(DatagramSocket),
}

/// Dials the first allowed address that answers. Dropping the future drops every socket of the
/// attempt.
///
/// # Errors
///
/// The reason that is sent to the opener.
pub(crate) async fn dial(
    target: &Target,
    owner: Owner,
    policy: &Policy,
    resolver: &Resolver,
    deadline: Duration,
) -> Result<Dialed, Reason> {
    let dialed = async {
        match target {
            Target::Tcp(endpoint) => {
                let addresses = resolve(endpoint, owner, policy, resolver, Protocol::Tcp).await?;
                dial_first(addresses, target, owner)
                    .await
                    .map(Dialed::Stream)
            }
            Target::Udp(endpoint) => {
                let addresses = resolve(endpoint, owner, policy, resolver, Protocol::Udp).await?;
                let dialed = dial_datagrams(addresses, target, owner).await;
                dialed.map(Dialed::Datagrams)
            }
            Target::Unix(path) => {
                let dialed = dial_unix(target, path, owner, policy).await;
                dialed.map(Dialed::Stream)
            }
        }
    };
    match tokio::time::timeout(deadline, dialed).await {
        Ok(result) => result,
        Err(_) => Err(Reason::TimedOut),
    }
}

async fn dial_first(
    addresses: Vec<SocketAddr>,
    target: &Target,
    owner: Owner,
) -> Result<Socket, Reason> {
    let label = label(target);
    race(addresses, Reason::Unresolved, async |address| {
        let dialed = Socket::dial(address, Role::Stream, owner, &label).await;
        dialed.map_err(|error| reason(target, address, &error))
    })
    .await
}

/// Takes the first address that has a route. UDP has no answer to wait for.
async fn dial_datagrams(
    addresses: Vec<SocketAddr>,
    target: &Target,
    owner: Owner,
) -> Result<DatagramSocket, Reason> {
    let mut failure = Reason::Unresolved;
    for address in addresses {
        match DatagramSocket::dial(address, Role::Stream, owner, &label(target)).await {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = reason(target, address, &error),
        }
    }
    Err(failure)
}

/// Returns the addresses of `endpoint` that may be dialed. The name is not resolved again. One that
/// no rule could allow is not looked up. Where no rule has the name, the opener does not learn
/// whether it exists.
async fn resolve(
    endpoint: &Endpoint,
    owner: Owner,
    policy: &Policy,
    resolver: &Resolver,
    by: Protocol,
) -> Result<Vec<SocketAddr>, Reason> {
    let coverage = policy.coverage(by, endpoint);
    if coverage == Coverage::None {
        tracing::debug!(%endpoint, "the policy does not allow this; an --allow for it would");
        return Err(Reason::Denied);
    }
    let answers = resolver.resolve(endpoint, owner).await;
    let found = match answers {
        Ok(answers) => allowed(endpoint, answers, policy, by),
        Err(error) => {
            tracing::debug!(%endpoint, %error, "cannot resolve");
            Err(Reason::Unresolved)
        }
    };
    match coverage {
        Coverage::None | Coverage::Address => found.map_err(|_| Reason::Denied),
        Coverage::Host => found,
    }
}

fn allowed(
    endpoint: &Endpoint,
    mut answers: Vec<SocketAddr>,
    policy: &Policy,
    by: Protocol,
) -> Result<Vec<SocketAddr>, Reason> {
    if answers.is_empty() {
        return Err(Reason::Unresolved);
    }
    answers.retain_mut(|address| {
        address.set_ip(address.ip().to_canonical());
        let allowed = policy.allows(by, endpoint, *address);
        if !allowed {
            tracing::debug!(
                %endpoint,
                %address,
                "the policy does not allow this address; an --allow for it would"
            );
        }
        allowed
    });
    if answers.is_empty() {
        return Err(Reason::Denied);
    }
    Ok(answers)
}

async fn dial_unix(
    target: &Target,
    path: &SocketPath,
    owner: Owner,
    policy: &Policy,
) -> Result<Socket, Reason> {
    let (policy, path) = (policy.clone(), path.clone());
    // A hanging file system call cannot be cancelled. It holds nothing but the file.
    let found = tokio::task::spawn_blocking(move || find(Path::new(path.as_str()), &policy)).await;
    let file = found.unwrap_or(Err(Reason::Unreachable))?;
    let dialed = file.dial(Role::Stream, owner, &label(target)).await;
    dialed.map_err(|error| reason(target, PeerAddr::Unix, &error))
}

/// Finds the file of a socket that may be dialed. A path that no rule covers is not looked up, so
/// that the answer does not reveal which files exist.
fn find(path: &Path, policy: &Policy) -> Result<SocketFile, Reason> {
    let as_written = |directory: &Path| Some(directory.to_owned());
    let resolved = |directory: &Path| directory.canonicalize().ok();
    if !policy.allows_unix(path, as_written) && !policy.allows_unix(path, resolved) {
        tracing::debug!(
            path = %path.display(),
            "the policy does not allow this socket; --allow unix:PATH would"
        );
        return Err(Reason::Denied);
    }
    let file = SocketFile::find(path).map_err(|error| {
        tracing::debug!(path = %path.display(), %error, "cannot find the socket");
        Reason::Unresolved
    })?;
    if !policy.allows_unix(file.path(), resolved) {
        tracing::debug!(
            path = %path.display(),
            file = %file.path().display(),
            "the path leads to a socket that the policy does not allow"
        );
        return Err(Reason::Denied);
    }
    Ok(file)
}

fn label(target: &Target) -> String {
    format!("target {target}")
}

fn reason(target: &Target, at: impl fmt::Display, error: &io::Error) -> Reason {
    tracing::debug!(%target, %at, %error, "cannot dial");
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Reason::Refused,
        io::ErrorKind::TimedOut => Reason::TimedOut,
        _ => Reason::Unreachable,
    }
}
