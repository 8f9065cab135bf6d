//! Reports as lines of a table.

use std::collections::BTreeMap;

use crate::fleet::pick::Why;
use crate::sim::Report;

/// The head of the table.
pub(crate) const HEAD: &str = "policy              groups  hit rate   reads  fetches  wait p50  wait p99  spills";

/// A report as a line below it.
pub(crate) fn line(policy: &str, report: &Report) -> String {
    let ms = |percent| format!("{} ms", report.wait(percent).as_millis());
    let spills = report.routed.iter().filter(|routed| routed.why == Why::Spill).count();
    format!(
        "{policy:<18} {:>7}  {:>7.1}%  {:>6}  {:>7}  {:>8}  {:>8}  {spills:>6}",
        report.routed.len(),
        100.0 * report.hit_rate(),
        report.reads,
        report.fetches,
        ms(50.0),
        ms(99.0),
    )
}

/// How many groups were routed for each reason.
pub(crate) fn reasons(report: &Report) -> BTreeMap<&'static str, usize> {
    let mut reasons = BTreeMap::new();
    report.routed.iter().for_each(|routed| *reasons.entry(routed.why.label()).or_default() += 1);
    reasons
}
