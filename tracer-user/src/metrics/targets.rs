//! The connections by target, and the piles, as families with a bounded number of labels.

use anyhow::Result;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use tracer_core::ledger::{Ledger, OTHER};

use super::findings::label;

/// How many targets and how many piles have a time series of their own. Further ones are added up
/// under [`OTHER`].
const LISTED_MAX: usize = 50;

/// Registers the families.
pub(super) fn register(registry: &Registry, ledger: &Ledger) -> Result<()> {
    let counter = |name: &str, help: &str| -> Result<IntCounterVec> {
        let family = IntCounterVec::new(Opts::new(name, help), &["target"])?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    };
    let opened = counter(
        "watertight_audit_target_opened_total",
        "Connections to a target, or from a visitor's address, that were opened or adopted.",
    )?;
    let released = counter(
        "watertight_audit_target_released_total",
        "Connections to a target, or from a visitor's address, that were released.",
    )?;
    for (n, (address, peer)) in ledger.peers().top(usize::MAX).into_iter().enumerate() {
        let target = label(if n < LISTED_MAX { address } else { OTHER });
        let target = [target.as_str()];
        opened
            .with_label_values(&target)
            .inc_by(peer.released.saturating_add(peer.open));
        released.with_label_values(&target).inc_by(peer.released);
    }
    let labels = ["program", "target"];
    let members = IntGaugeVec::new(
        Opts::new(
            "watertight_audit_pile_sockets",
            "Connections that were passed over by newer ones to the same target, and are kept.",
        ),
        &labels,
    )?;
    let growth = GaugeVec::new(
        Opts::new(
            "watertight_audit_pile_growth_per_minute",
            "Connections that joined a pile in the last ten minutes, for each minute.",
        ),
        &labels,
    )?;
    for (n, pile) in ledger.pile_sizes().iter().enumerate() {
        let is_listed = n < LISTED_MAX;
        let program = label(if is_listed { &pile.comm } else { OTHER });
        let target = label(if is_listed { &pile.target } else { OTHER });
        let values = [program.as_str(), target.as_str()];
        let size = i64::try_from(pile.size).unwrap_or(i64::MAX);
        members.with_label_values(&values).add(size);
        growth.with_label_values(&values).add(pile.growth_per_min);
    }
    registry.register(Box::new(members))?;
    registry.register(Box::new(growth))?;
    Ok(())
}
