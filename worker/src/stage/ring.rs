//! How many steps are worth being under way at once: as many as the slowest part can compute while one goes all the way
//! round. Fewer leave it idle, more only wait for it. Pure: fed with what each step took, and where.

use std::time::Duration;

/// Weight of a step in the average of the last ones.
const SMOOTH: f64 = 1.0 / 16.0;
/// A way is as long as the fastest answer over it; a slower one counts so little, for it may have waited for the stage.
const SLOWER: f64 = 1.0 / 64.0;
/// How far the measure must be beyond a number of steps before that changes: who changes it splits its groups anew.
const BAND: f64 = 0.15;

/// What a step took at a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leg {
    /// To compute.
    pub(super) took: Duration,
    /// From the head and back, computing and waiting included.
    pub(super) around: Duration,
}

/// The measure.
#[derive(Debug)]
pub(super) struct Ring {
    /// Seconds to each stage and back.
    ways: Vec<Option<f64>>,
    /// A step's time all the way round, as a multiple of its time where that is longest.
    ratio: Option<f64>,
    depth: usize,
    /// 0 where the depth is fixed.
    most: usize,
}

impl Ring {
    /// `stages` beside the head, and never more than `most` steps. Until something is known, one for each part.
    pub(super) fn new(stages: usize, most: usize) -> Self {
        Self { ways: vec![None; stages], ratio: None, depth: (stages + 1).min(most), most }
    }

    /// Always `depth`, whatever is observed.
    pub(super) fn fixed(stages: usize, depth: usize) -> Self {
        Self { depth, most: 0, ..Self::new(stages, depth) }
    }

    /// Steps worth being under way.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// A step came back: the head's part of it took `head`, the stages' theirs.
    pub(super) fn observe(&mut self, head: Duration, legs: &[Leg]) {
        let (mut round, mut slowest) = (head.as_secs_f64(), head.as_secs_f64());
        for (leg, way) in legs.iter().zip(&mut self.ways) {
            let took = leg.took.as_secs_f64();
            let seen = (leg.around.as_secs_f64() - took).max(0.0);
            let way = way.insert(way.map_or(seen, |before| seen.min(before + (seen - before) * SLOWER)));
            round += took + *way;
            slowest = slowest.max(took);
        }
        let now = round / slowest.max(1e-9);
        let ratio = *self.ratio.insert(self.ratio.map_or(now, |before| before + (now - before) * SMOOTH));
        self.settle(ratio);
    }

    fn settle(&mut self, ratio: f64) {
        let within = self.depth as f64 - 1.0 - BAND < ratio && ratio <= self.depth as f64 + BAND;
        if !within && self.most > 0 {
            self.depth = (ratio.ceil() as usize).clamp(1, self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn leg(took: u32, around: u32) -> Leg {
        Leg { took: took * MS, around: around * MS }
    }

    fn settled(head: u32, legs: &[Leg]) -> usize {
        let mut ring = Ring::new(legs.len(), 8);
        (0..200).for_each(|_| ring.observe(head * MS, legs));
        ring.depth()
    }

    #[test]
    fn as_many_steps_as_the_slowest_part_computes_in_a_round() {
        assert_eq!(settled(10, &[leg(20, 20), leg(15, 15)]), 3);
        assert_eq!(settled(10, &[leg(10, 10)]), 2);
        assert_eq!(settled(10, &[leg(10, 11), leg(10, 11), leg(10, 11)]), 5);
        assert_eq!(settled(10, &[leg(10, 100)]), 8, "a long way asks for more than is allowed");
        assert_eq!(Ring::new(2, 8).depth(), 3);
    }

    #[test]
    fn what_waits_for_a_stage_is_no_longer_way() {
        let mut ring = Ring::new(2, 8);
        (0..20).for_each(|_| ring.observe(10 * MS, &[leg(20, 22), leg(15, 17)]));
        let alone = ring.depth();
        // Each waits for two others.
        (0..20).for_each(|_| ring.observe(10 * MS, &[leg(20, 60), leg(15, 17)]));
        assert_eq!((alone, ring.depth()), (3, 3));
    }

    #[test]
    fn a_measure_at_the_edge_does_not_swing() {
        let mut ring = Ring::new(2, 8);
        let mut changes = 0;
        for at in 0..1000_u32 {
            // Between 2.9 and 3.1 times the slowest.
            let other = 19 + 2 * (at / 50 % 2);
            let before = ring.depth();
            ring.observe(20 * MS, &[leg(20, 20), leg(other, other)]);
            changes += u32::from(ring.depth() != before);
        }
        assert!(changes <= 1, "{changes} changes");
    }
}
