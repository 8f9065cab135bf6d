//! From adjusted logits to a token: temperature, min_p, top_k, top_p and the draw over the sorted candidates. Sorting is
//! lazy, the result is that of the full sort. Called by the sampler; never changes a logit.

use shoal_common::ids::TokenId;
use shoal_common::sampling::SamplingParams;

use super::exp::{exp, sum};

/// How far below the best logit the bands of candidates end, in units of the temperature: a weight of e^-3 and so on. A
/// model's answer is nearly always in the first two; a nucleus of 0.999 ends in a narrow one of the middle, before most of
/// the vocabulary. What is below the last edge is the last band.
const BAND_EDGES: [f64; 8] = [3.0, 6.0, 8.0, 10.0, 12.0, 14.0, 17.0, 24.0];

/// Independent maxima of [`best`]: four vector registers of the widest instruction set.
const BEST_LANES: usize = 64;

/// Elements that are asked together whether one of them belongs to a band.
const BAND_BLOCK: usize = 64;

/// Elements that [`best`] compares before it looks whether the highest was among them.
const BEST_BLOCK: usize = 256;

/// The best candidate: the highest logit, the lowest id among equals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Best {
    pub(super) token: TokenId,
    pub(super) logit: f64,
}

/// The best of a row, unless all are -inf. NaN counts as -inf. Two passes, the highest value and then its first place,
/// because either can be computed many elements at a time.
#[inline(always)]
pub(super) fn best<Logit: Copy + PartialOrd + Into<f64>>(row: &[Logit], lowest: Logit) -> Option<Best> {
    let mut lanes = [lowest; BEST_LANES];
    let (chunks, rest) = row.as_chunks::<BEST_LANES>();
    for chunk in chunks.iter().map(<[Logit; BEST_LANES]>::as_slice).chain([rest]) {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    let highest = lanes.into_iter().fold(lowest, |best, lane| if lane > best { lane } else { best });
    if highest.into() == f64::NEG_INFINITY {
        return None;
    }
    let holds = |chunk: &[Logit]| chunk.iter().fold(false, |found, &logit| found | (logit == highest));
    let block = row.chunks(BEST_BLOCK).position(holds)?;
    let within = row.chunks(BEST_BLOCK).nth(block)?.iter().position(|&logit| logit == highest)?;
    let id = u32::try_from(block * BEST_BLOCK + within).expect("token ids are u32");
    Some(Best { token: TokenId(id), logit: highest.into() })
}

/// The candidates of one draw, the best first. Buffers are reused from draw to draw.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// By id, `[vocab]`: exp((logit - best) / temperature), 0 for what min_p drops.
    weights: Vec<f64>,
    /// The candidates sorted so far, by (logit descending, id ascending); all with a weight above 0.
    sorted: Vec<u32>,
    /// Bands of which `sorted` is made.
    bands: usize,
}

/// The survivors of all filters: a prefix of the sorted candidates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Survivors {
    /// How many; absent: all that have a weight.
    pub(super) count: Option<usize>,
    /// Sum of their weights.
    pub(super) mass: f64,
}

/// The logits of a draw, `[vocab]`, with what is needed to rank them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranking<'a> {
    pub(super) adjusted: &'a [f64],
    pub(super) best: Best,
    pub(super) temperature: f64,
}

impl Candidates {
    /// Applies the filters. `ranking.temperature` is above 0.
    #[inline(always)]
    pub(super) fn filter(&mut self, ranking: &Ranking<'_>, params: &SamplingParams) -> Survivors {
        self.weigh(ranking, params.min_p.get());
        let top_k = params.top_k.map(|k| k.get() as usize).filter(|&k| k < ranking.adjusted.len());
        let before_nucleus = match top_k {
            None => Survivors { count: None, mass: sum(&self.weights) },
            Some(k) => self.heads(ranking, |taken, _| taken < k),
        };
        let top_p = params.top_p.get();
        if top_p == 1.0 {
            return before_nucleus;
        }
        let wanted = top_p * before_nucleus.mass;
        let limit = before_nucleus.count.unwrap_or(usize::MAX);
        self.heads(ranking, |taken, mass| taken == 0 || (taken < limit && mass < wanted))
    }

    /// The survivor at which the cumulative weight passes `uniform` (in `[0, 1)`) times their mass.
    #[inline(always)]
    pub(super) fn pick(&mut self, ranking: &Ranking<'_>, survivors: Survivors, uniform: f64) -> TokenId {
        let wanted = uniform * survivors.mass;
        let limit = survivors.count.unwrap_or(usize::MAX);
        // Where rounding leaves the whole cumulative weight under `wanted`, the last survivor is drawn.
        let passed = self.heads(ranking, |taken, mass| taken == 0 || (taken < limit && mass <= wanted));
        let last = passed.count.and_then(|count| self.sorted.get(count - 1));
        last.map_or(ranking.best.token, |&id| TokenId(id))
    }

    /// Walks down the sorted candidates as long as `goes_on(taken, cumulative weight)`.
    #[inline(always)]
    fn heads(&mut self, ranking: &Ranking<'_>, goes_on: impl Fn(usize, f64) -> bool) -> Survivors {
        let (mut taken, mut mass) = (0, 0.0);
        while goes_on(taken, mass) {
            while taken == self.sorted.len() && self.bands <= BAND_EDGES.len() {
                self.sort_next_band(ranking);
            }
            let Some(&id) = self.sorted.get(taken) else { break };
            mass += self.weights[id as usize];
            taken += 1;
        }
        Survivors { count: Some(taken), mass }
    }

    #[inline(always)]
    fn weigh(&mut self, ranking: &Ranking<'_>, min_p: f64) {
        let Ranking { adjusted, best, temperature } = *ranking;
        self.sorted.clear();
        self.bands = 0;
        self.weights.resize(adjusted.len(), 0.0);
        // Loops and not iterator chains: a chain that is not inlined is not compiled for the instruction set at hand.
        for (weight, logit) in self.weights.iter_mut().zip(adjusted) {
            *weight = exp((logit - best.logit) / temperature);
        }
        if min_p > 0.0 {
            // The best has exactly weight 1, so its relative floor is `min_p` itself and ties with it stay.
            for weight in &mut self.weights {
                *weight = if *weight >= min_p { *weight } else { 0.0 };
            }
        }
    }

    /// A band holds the candidates between two edges. Edges are logits, not weights: a rounded weight could put two
    /// neighbours into the wrong bands, and the order would not be that of the full sort.
    #[inline(always)]
    fn sort_next_band(&mut self, ranking: &Ranking<'_>) {
        let Ranking { adjusted, best, temperature } = *ranking;
        let edge = |band: usize| BAND_EDGES.get(band).map(|below| best.logit - below * temperature);
        let low = edge(self.bands).unwrap_or(f64::NEG_INFINITY);
        let high = self.bands.checked_sub(1).and_then(edge).unwrap_or(f64::INFINITY);
        let start = self.sorted.len();
        // Few blocks hold a candidate of the band, and whether one does is computed many elements at a time.
        for ((block, logits), weights) in (0..).zip(adjusted.chunks(BAND_BLOCK)).zip(self.weights.chunks(BAND_BLOCK)) {
            let in_band = |logit: f64, weight: f64| (logit >= low) & (logit < high) & (weight > 0.0);
            let mut any = false;
            for (&logit, &weight) in logits.iter().zip(weights) {
                any |= in_band(logit, weight);
            }
            if any {
                let found =
                    (0..).zip(logits.iter().zip(weights)).filter(|&(_, (&logit, &weight))| in_band(logit, weight));
                self.sorted.extend(found.map(|(within, _): (u32, _)| block * BAND_BLOCK as u32 + within));
            }
        }
        self.sorted[start..]
            .sort_unstable_by(|&a, &b| adjusted[b as usize].total_cmp(&adjusted[a as usize]).then(a.cmp(&b)));
        self.bands += 1;
    }
}

#[cfg(test)]
impl Candidates {
    /// The survivors with their probabilities, the most likely first.
    pub(super) fn distribution(&mut self, ranking: &Ranking<'_>, survivors: Survivors) -> Vec<(TokenId, f64)> {
        let limit = survivors.count.unwrap_or(usize::MAX);
        let all = self.heads(ranking, |taken, _| taken < limit);
        let ids = self.sorted.iter().take(all.count.unwrap_or_default());
        ids.map(|&id| (TokenId(id), self.weights[id as usize] / survivors.mass)).collect()
    }
}
