//! Where a model is cut: contiguous layers for each of its workers, in their order, so that the slowest stage is as fast as can
//! be and every stage has room. Pure and exact. Called by the binary where a configuration leaves the layers out; equal
//! arguments give equal cuts on every machine.

use std::cmp::Ordering;

use shoal_common::ids::LayerRange;

/// What a worker has for its stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub memory: u64,
    /// How fast it goes through bytes of weights, beside the others; at least 1.
    pub speed: u32,
}

/// What the parts of a model take, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Costs {
    /// The weights of each layer.
    pub layers: Vec<u64>,
    /// Embedding and output head: the first stage has them.
    pub ends: u64,
    /// The KV of one layer, for all the tokens that are kept.
    pub kv: u64,
}

impl Costs {
    /// Weights of a stage.
    pub fn weights(&self, range: LayerRange) -> u64 {
        let layers = &self.layers[range.begin as usize..range.end as usize];
        layers.iter().sum::<u64>() + if range.begin == 0 { self.ends } else { 0 }
    }

    /// KV of a stage.
    pub fn kv(&self, range: LayerRange) -> u64 {
        self.kv.saturating_mul(u64::from(range.end - range.begin))
    }

    /// All that a stage takes.
    pub fn bytes(&self, range: LayerRange) -> u64 {
        self.weights(range).saturating_add(self.kv(range))
    }
}

/// Why there is no cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCut {
    /// It is not to be cut at all: the worker at this place has room for the whole.
    #[error("one worker has room for the whole model")]
    FitsOne(usize),
    /// A stage would have no layer.
    #[error("{stages} stages for {layers} layers: each needs one")]
    TooManyStages {
        /// Workers.
        stages: usize,
        /// Layers.
        layers: usize,
    },
    /// Wherever it is cut, some worker has not enough memory.
    #[error(
        "the model takes {needs} bytes with its KV, and cannot be cut so that each part fits its worker: together they have {has}"
    )]
    TooLarge {
        /// Bytes of the whole.
        needs: u64,
        /// Bytes of all workers.
        has: u64,
    },
}

/// A time as bytes over speed, compared exactly.
#[derive(Clone, Copy, Debug)]
struct Time {
    bytes: u64,
    speed: u32,
}

impl Time {
    const NONE: Self = Self { bytes: 0, speed: 1 };

    fn cmp(self, other: Self) -> Ordering {
        (u128::from(self.bytes) * u128::from(other.speed)).cmp(&(u128::from(other.bytes) * u128::from(self.speed)))
    }

    fn max(self, other: Self) -> Self {
        if self.cmp(other) == Ordering::Less { other } else { self }
    }
}

/// The stages of `workers`, in their order: the slowest is as fast as any cut allows; of equal cuts the one whose last cut comes
/// first. What fits on one worker is not cut.
pub fn cut(costs: &Costs, workers: &[Room]) -> Result<Vec<LayerRange>, NoCut> {
    let count = costs.layers.len();
    let whole = costs.bytes(LayerRange { begin: 0, end: count as u32 });
    if let Some(one) = workers.iter().position(|worker| worker.memory >= whole) {
        return Err(NoCut::FitsOne(one));
    }
    if workers.len() > count || workers.is_empty() {
        return Err(NoCut::TooManyStages { stages: workers.len(), layers: count });
    }
    let mut reached = vec![None; count + 1];
    reached[0] = Some(Reached { slowest: Time::NONE, begin: 0 });
    let mut stages = Vec::new();
    for worker in workers {
        reached = (0..=count).map(|end| best(costs, *worker, end, &reached)).collect();
        stages.push(reached.clone());
    }
    let too_large = NoCut::TooLarge { needs: whole, has: workers.iter().map(|worker| worker.memory).sum() };
    walk_back(&stages, count).ok_or(too_large)
}

/// The best way to have all layers up to some end hosted, by the stages so far.
#[derive(Clone, Copy, Debug)]
struct Reached {
    slowest: Time,
    /// Where the last of these stages begins.
    begin: usize,
}

/// The best last stage on `worker` that ends at `end`, after those that `before` reaches.
fn best(costs: &Costs, worker: Room, end: usize, before: &[Option<Reached>]) -> Option<Reached> {
    let mut best: Option<Reached> = None;
    for (begin, reached) in before[..end].iter().enumerate() {
        let Some(reached) = reached else { continue };
        let range = LayerRange { begin: begin as u32, end: end as u32 };
        if costs.bytes(range) > worker.memory {
            continue;
        }
        let own = Time { bytes: costs.weights(range), speed: worker.speed.max(1) };
        let slowest = reached.slowest.max(own);
        if best.is_none_or(|best| slowest.cmp(best.slowest) == Ordering::Less) {
            best = Some(Reached { slowest, begin });
        }
    }
    best
}

fn walk_back(stages: &[Vec<Option<Reached>>], count: usize) -> Option<Vec<LayerRange>> {
    let (mut end, mut ranges) = (count, Vec::new());
    for reached in stages.iter().rev() {
        let begin = reached[end]?.begin;
        ranges.push(LayerRange { begin: begin as u32, end: end as u32 });
        end = begin;
    }
    ranges.reverse();
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every way to cut `count` layers into `stages` parts.
    fn all_cuts(count: usize, stages: usize) -> Vec<Vec<LayerRange>> {
        fn go(begin: u32, count: u32, stages: usize) -> Vec<Vec<LayerRange>> {
            if stages == 1 {
                return if begin < count { vec![vec![LayerRange { begin, end: count }]] } else { Vec::new() };
            }
            let from = |end: u32| {
                let first = LayerRange { begin, end };
                go(end, count, stages - 1).into_iter().map(move |rest| [vec![first], rest].concat())
            };
            (begin + 1..count).flat_map(from).collect()
        }
        go(0, count as u32, stages)
    }

    /// The slowest stage, where all fit.
    fn slowest(costs: &Costs, workers: &[Room], cut: &[LayerRange]) -> Option<Time> {
        let fits = cut.iter().zip(workers).all(|(range, worker)| costs.bytes(*range) <= worker.memory);
        let time = |(range, worker): (&LayerRange, &Room)| Time { bytes: costs.weights(*range), speed: worker.speed };
        fits.then(|| cut.iter().zip(workers).map(time).fold(Time::NONE, Time::max))
    }

    proptest! {
        #[test]
        fn no_other_cut_is_faster_and_none_is_missed(
            layers in prop::collection::vec(1..100_u64, 1..9),
            (ends, kv) in (0..200_u64, 0..20_u64),
            workers in prop::collection::vec((1..600_u64, 1..5_u32), 1..5),
        ) {
            let workers: Vec<_> = workers.into_iter().map(|(memory, speed)| Room { memory, speed }).collect();
            let costs = Costs { layers, ends, kv };
            let count = costs.layers.len();
            let whole = costs.bytes(LayerRange { begin: 0, end: count as u32 });
            let every: Vec<_> = all_cuts(count, workers.len()).iter().filter_map(|cut| slowest(&costs, &workers, cut)).collect();
            match cut(&costs, &workers) {
                Err(NoCut::FitsOne(at)) => prop_assert!(workers[at].memory >= whole),
                Err(NoCut::TooManyStages { .. }) => prop_assert!(workers.len() > count),
                Err(NoCut::TooLarge { .. }) => prop_assert!(every.is_empty()),
                Ok(found) => {
                    prop_assert!(workers.iter().all(|worker| worker.memory < whole), "it was cut without need");
                    prop_assert_eq!(found.len(), workers.len());
                    let complete = found.iter().fold(0, |next, range| if range.begin == next { range.end } else { u32::MAX });
                    prop_assert_eq!(complete as usize, count);
                    let found = slowest(&costs, &workers, &found).expect("each part fits");
                    prop_assert!(every.iter().all(|other| found.cmp(*other) != Ordering::Greater));
                }
            }
        }
    }

    #[test]
    fn a_worker_of_twice_the_speed_has_twice_the_layers_less_the_ends() {
        let costs = Costs { layers: vec![10; 30], ends: 30, kv: 1 };
        let room = |speed| Room { memory: 300, speed };
        let ends =
            |workers: &[Room]| cut(&costs, workers).expect("a cut").iter().map(|range| range.end).collect::<Vec<_>>();
        assert_eq!(ends(&[room(1), room(1)]), [13, 30]);
        assert_eq!(ends(&[room(2), room(1)]), [19, 30]);
        assert_eq!(ends(&[room(2), Room { memory: 99, speed: 1 }]), [21, 30], "what has no room hosts less");
    }
}
