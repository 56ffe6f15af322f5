//! The connections by target and by listener, and the piles, as families with a bounded number of labels.

use std::net::IpAddr;

use anyhow::Result;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use tracer_core::ledger::{Ledger, OTHER, Tally};

use super::findings::label;

/// How many targets, listeners and piles have a time series of their own. Further ones are added up
/// under [`OTHER`].
const LISTED_MAX: usize = 50;

/// Registers the families.
pub(super) fn register(registry: &Registry, ledger: &Ledger) -> Result<()> {
    let counter = |name: &str, label: &str, help: &str| -> Result<IntCounterVec> {
        let family = IntCounterVec::new(Opts::new(name, help), &[label])?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    };
    let opened = counter(
        "watertight_audit_target_opened_total",
        "target",
        "Connections to a target that were opened or adopted.",
    )?;
    let released = counter(
        "watertight_audit_target_released_total",
        "target",
        "Connections to a target that were released.",
    )?;
    // Those of visitors have no port, and are counted by listener.
    let targets = ledger.peers().top(usize::MAX).into_iter();
    let targets = targets.filter(|(address, _)| address.parse::<IpAddr>().is_err());
    count(targets, &opened, &released);
    let accepted = counter(
        "watertight_audit_listener_accepted_total",
        "listener",
        "Connections that were accepted on a port, or adopted.",
    )?;
    let released = counter(
        "watertight_audit_listener_released_total",
        "listener",
        "Connections that were accepted on a port and released.",
    )?;
    let listeners = ledger.listeners().top(usize::MAX).into_iter();
    count(listeners, &accepted, &released);
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

/// Adds up what was opened and released.
fn count<'a>(
    rows: impl Iterator<Item = (&'a str, &'a Tally)>,
    opened: &IntCounterVec,
    released: &IntCounterVec,
) {
    for (n, (name, tally)) in rows.enumerate() {
        let name = label(if n < LISTED_MAX { name } else { OTHER });
        let name = [name.as_str()];
        opened.with_label_values(&name).inc_by(tally.opened());
        released.with_label_values(&name).inc_by(tally.released());
    }
}
