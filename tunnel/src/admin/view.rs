//! Sessions and streams with whose they are, as the page and the JSON answers show them.

use serde::{Serialize, Serializer};
use tunnel_proto::wire::handshake::Party;

use crate::session::stats::{SessionStats, StreamStats, as_text};

/// A session, and who is at its other end.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SessionView {
    #[serde(serialize_with = "party_name")]
    pub(crate) party: Party,
    /// The name of the agent or the peer.
    pub(crate) name: String,
    pub(crate) link: Option<String>,
    /// Where the other end is.
    pub(crate) address: String,
    #[serde(flatten)]
    pub(crate) stats: SessionStats,
}

/// The answer to `/admin/sessions`.
#[derive(Debug, Serialize)]
pub(super) struct Sessions {
    pub(super) sessions: Vec<SessionView>,
}

/// The answer to `/admin/streams`.
#[derive(Debug, Serialize)]
pub(super) struct Streams {
    /// How many there are, listed or not.
    pub(super) total: usize,
    pub(super) streams: Vec<StreamView>,
}

/// A stream, and whose it is.
#[derive(Debug, Serialize)]
pub(super) struct StreamView {
    #[serde(serialize_with = "as_text")]
    pub(super) session: u64,
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) stats: StreamStats,
}

impl Streams {
    pub(super) fn of(sessions: Vec<SessionView>) -> Self {
        let total = sessions.iter().map(|session| session.stats.streams).sum();
        let streams = sessions.into_iter().flat_map(|session| {
            let (id, name) = (session.stats.session, session.name);
            let sample = session.stats.sample.into_iter();
            sample.map(move |stats| StreamView {
                session: id,
                name: name.clone(),
                stats,
            })
        });
        Self {
            total,
            streams: streams.collect(),
        }
    }
}

/// Returns what the party at the other end of a session is called.
pub(super) const fn name_of(party: Party) -> &'static str {
    match party {
        Party::Agent => "agent",
        Party::Peer => "peer",
        Party::Server => "server",
    }
}

fn party_name<S: Serializer>(party: &Party, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(name_of(*party))
}
