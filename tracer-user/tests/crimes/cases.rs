//! Every program that is run under audit, with the expected report.

mod environment;
mod holders;
mod load;
mod owners;
mod piles;
mod real;
mod reuse;
mod sockets;
mod stuck;
mod tcp;
mod tracer;

use crate::case::Case;

pub(crate) fn all() -> Vec<Case> {
    [
        holders::cases(),
        tcp::cases(),
        reuse::cases(),
        owners::cases(),
        piles::cases(),
        sockets::cases(),
        stuck::cases(),
        environment::cases(),
        real::cases(),
        tracer::cases(),
        load::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
