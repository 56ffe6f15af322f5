//! One session of an agent or a peer.

use crate::io::scope;
use crate::io::socket::PeerAddr;
use crate::server::auth::access::Credential;
use crate::session::Session;

/// One session, and the scope that owns the tasks of its streams.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) session: Session,
    pub(crate) scope: scope::Handle,
    /// The token that the agent authenticated with.
    pub(crate) credential: Option<Credential>,
    /// Whether it is the first link of an agent's instance, or the only one.
    pub(crate) is_first: bool,
    /// The address of the link's other end.
    pub(crate) from: PeerAddr,
}
