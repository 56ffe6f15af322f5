//! How tunnels are known to leak or hang, one test each. `docs/leaks.md` says where each was met.

mod dials;
mod kept;
mod links;
mod stuck;

use crate::rig::Rig;

/// A tunnel in each dialect.
pub(crate) async fn rigs() -> [Rig; 2] {
    [Rig::start().await, crate::remotedialer::rig().await]
}
