//! What the times of a run come to: percentiles, and one figure out of several runs. Pure: called by `figures` and
//! `arrive`, never reads a clock.

use std::time::Duration;

use serde::Serialize;

/// How a set of durations is spread, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Spread {
    /// `None` of nothing: there is no percentile without a duration.
    pub(super) fn of(durations: impl IntoIterator<Item = Duration>) -> Option<Self> {
        let mut sorted: Vec<f64> = durations.into_iter().map(|duration| duration.as_secs_f64() * 1e3).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let max = *sorted.last()?;
        let at = |percent| percentile(&sorted, percent);
        Some(Self { p50: at(50.0), p90: at(90.0), p99: at(99.0), max })
    }

    /// One spread out of those of several runs, each member by itself.
    pub(super) fn over(runs: &[Self], pick: Pick) -> Option<Self> {
        let of = |member: fn(&Self) -> f64| pick.of(runs.iter().map(member));
        Some(Self { p50: of(|s| s.p50)?, p90: of(|s| s.p90)?, p99: of(|s| s.p99)?, max: of(|s| s.max)? })
    }
}

/// Which of several runs' figures is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    Median,
    Least,
    Most,
}

impl Pick {
    /// `None` of nothing.
    pub(super) fn of(self, figures: impl IntoIterator<Item = f64>) -> Option<f64> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        Some(match self {
            Self::Median => percentile(&sorted, 50.0),
            Self::Least => least,
            Self::Most => most,
        })
    }
}

/// The value below which `percent` of `sorted` lies, with a straight line between neighbours. `sorted` is ascending and not
/// empty.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let place = (sorted.len() - 1) as f64 * percent / 100.0;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - place.floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(values: impl IntoIterator<Item = u64>) -> impl Iterator<Item = Duration> {
        values.into_iter().map(Duration::from_millis)
    }

    #[test]
    fn percentiles_do_not_depend_on_the_order_of_what_came() {
        let up = Spread::of(milliseconds(0..=100)).expect("not empty");
        let down = Spread::of(milliseconds((0..=100).rev())).expect("not empty");
        assert_eq!(up, down);
        assert_eq!((up.p50, up.p90, up.p99, up.max), (50.0, 90.0, 99.0, 100.0));
    }

    #[test]
    fn between_two_durations_the_percentile_lies_on_a_straight_line() {
        let spread = Spread::of(milliseconds([10, 20])).expect("not empty");
        assert!((spread.p50 - 15.0).abs() < 1e-9 && (spread.p90 - 19.0).abs() < 1e-9, "{spread:?}");
        assert!((spread.p99 - 19.9).abs() < 1e-9, "{spread:?}");
    }

    #[test]
    fn one_duration_is_every_percentile_and_none_is_no_spread() {
        let spread = Spread::of(milliseconds([7])).expect("not empty");
        assert_eq!((spread.p50, spread.p90, spread.p99, spread.max), (7.0, 7.0, 7.0, 7.0));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn runs_are_told_by_their_median_and_their_ends() {
        let runs = [30.0, 10.0, 20.0, 1000.0];
        assert_eq!(Pick::Median.of(runs), Some(25.0));
        assert_eq!((Pick::Least.of(runs), Pick::Most.of(runs)), (Some(10.0), Some(1000.0)));
        assert_eq!(Pick::Median.of([]), None);
    }

    #[test]
    fn a_spread_over_runs_takes_each_percentile_by_itself() {
        let run = |p50, max| Spread { p50, p90: 0.0, p99: 0.0, max };
        let over = Spread::over(&[run(1.0, 9.0), run(2.0, 7.0), run(3.0, 8.0)], Pick::Median).expect("not empty");
        assert_eq!((over.p50, over.max), (2.0, 8.0));
    }
}
