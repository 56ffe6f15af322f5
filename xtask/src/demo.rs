//! The processes of `cargo xtask run` that are not the product: the upstream, the load, and the
//! scenario, which starts and stops them all.

pub(crate) mod load;
pub(crate) mod scenario;
pub(crate) mod scrape;
pub(crate) mod upstream;

/// A process says where it listens in lines of this form: `listening NAME=ADDRESS`.
pub(crate) const LISTENING: &str = "listening ";
/// The host name by which visitors ask the HTTP front.
pub(crate) const HOST: &str = "private.example";
/// The load reports its progress: `progress DONE TOTAL`.
pub(crate) const PROGRESS: &str = "progress ";
/// The load is half done: time for the agent to be killed.
pub(crate) const HALFWAY: &str = "halfway";
/// Everything is at rest; the rest of the line says as JSON what the tunnel counted.
pub(crate) const AT_REST: &str = "at-rest ";

/// Returns the byte at `position` of every large body, so that a reader can tell a wrong byte.
pub(crate) const fn pattern(position: usize) -> u8 {
    (position % 251).to_le_bytes()[0]
}
