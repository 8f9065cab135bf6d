//! The definition written down as plainly as possible (every candidate sorted, the standard library's exp), and the
//! sampler against it on random rows, with ties.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use proptest::prelude::*;
use shoal_common::sampling::{Penalty, RepetitionPenalty};

use super::super::exp::{exp, sum};
use super::super::rng;
use super::*;

/// A draw with everything it borrows.
#[derive(Clone, Debug)]
struct Case {
    logits: Vec<f32>,
    params: SamplingParams,
    prompt: Vec<TokenId>,
    output: Vec<TokenId>,
    banned: Vec<TokenId>,
    choice: u32,
    position: u32,
}

impl Case {
    fn history(&self) -> TokenHistory {
        let mut history = TokenHistory::new(&self.prompt);
        self.output.iter().for_each(|&token| history.push(token));
        history
    }

    fn draw<'a>(&'a self, history: &'a TokenHistory) -> Draw<'a> {
        Draw { params: &self.params, history, banned: &self.banned, choice: self.choice, position: self.position }
    }

    fn sample(&self, sampler: &mut Sampler) -> TokenId {
        sampler.sample(&self.logits, &self.draw(&self.history()))
    }

    fn distribution(&self) -> Vec<(TokenId, f64)> {
        Sampler::new().distribution(&self.logits, &self.draw(&self.history()))
    }
}

/// Logits after bias and penalties, token by token. Only finite logits and plain biases.
fn adjusted(case: &Case) -> Vec<f64> {
    let p = &case.params;
    let one = |id: u32| {
        let token = TokenId(id);
        let count = case.output.iter().filter(|&&other| other == token).count();
        let mut logit = f64::from(case.logits[id as usize]);
        logit += p.logit_bias.iter().find(|(biased, _)| *biased == token).map_or(0.0, |(_, bias)| bias.get());
        if count > 0 || case.prompt.contains(&token) {
            let r = p.repetition_penalty.get();
            logit = if logit > 0.0 { logit / r } else { logit * r };
        }
        if count > 0 {
            logit = logit - p.frequency_penalty.get() * count as f64 - p.presence_penalty.get();
        }
        if case.banned.contains(&token) { f64::NEG_INFINITY } else { logit }
    };
    (0..case.logits.len() as u32).map(one).collect()
}

/// (id, weight) of the survivors in order, and the mass that a draw refers to: the whole definition with a full sort.
fn by_full_sort(case: &Case) -> (Vec<(u32, f64)>, f64) {
    let logits = adjusted(case);
    let p = &case.params;
    let best = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> = logits.iter().map(|logit| exp((logit - best) / p.temperature.get())).collect();
    weights.iter_mut().for_each(|w| {
        if *w < p.min_p.get() {
            *w = 0.0
        }
    });
    let mut order: Vec<u32> = (0..logits.len() as u32).filter(|&id| weights[id as usize] > 0.0).collect();
    order.sort_by(|&a, &b| logits[b as usize].partial_cmp(&logits[a as usize]).unwrap().then(a.cmp(&b)));
    let mut kept: Vec<(u32, f64)> = order.into_iter().map(|id| (id, weights[id as usize])).collect();
    let running_total = |list: &[(u32, f64)]| list.iter().fold(0.0, |total, (_, w)| total + w);
    let mut mass = sum(&weights);
    if let Some(k) = p.top_k.map(|k| k.get() as usize).filter(|&k| k < logits.len()) {
        kept.truncate(k);
        mass = running_total(&kept);
    }
    if p.top_p.get() < 1.0 {
        let stays = |i: usize| i == 0 || running_total(&kept[..i]) < p.top_p.get() * mass;
        let count = (0..kept.len()).take_while(|&i| stays(i)).count();
        kept.truncate(count);
        mass = running_total(&kept);
    }
    (kept, mass)
}

fn draw_by_full_sort(case: &Case) -> u32 {
    let (kept, mass) = by_full_sort(case);
    if case.params.temperature.is_greedy() {
        return kept[0].0;
    }
    let wanted = rng::uniform(case.params.seed, case.choice, case.position) * mass;
    let mut cumulative = 0.0;
    for (id, weight) in &kept {
        cumulative += weight;
        if cumulative > wanted {
            return *id;
        }
    }
    kept.last().unwrap().0
}

/// Half of the rows take their logits from few values, so that ties are everywhere.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let few = prop::sample::select(vec![-3.0_f32, -0.0, 0.0, 1.0, 1.5, 2.0, 2.000_000_2]);
    prop_oneof![prop::collection::vec(few, 1..200), prop::collection::vec(-40.0_f32..15.0, 1..400)]
}

fn params() -> impl Strategy<Value = SamplingParams> {
    let or_off = |off: f64, range: std::ops::Range<f64>| prop_oneof![Just(off), range];
    let filters = (or_off(0.0, 0.0..1.0), prop::option::of(1_u32..60), or_off(1.0, 0.0..1.0));
    let penalties = (or_off(1.0, 0.1..3.0), or_off(0.0, -2.0..2.0), or_off(0.0, -2.0..2.0));
    let bias = prop::collection::btree_map(0_u32..60, -20.0..20.0_f64, 0..4);
    (bias, penalties, 0.05..2.0_f64, filters, any::<u64>()).prop_map(|(bias, penalties, temperature, filters, seed)| {
        SamplingParams {
            logit_bias: bias.into_iter().map(|(id, value)| (TokenId(id), Bias::new(value).unwrap())).collect(),
            repetition_penalty: RepetitionPenalty::new(penalties.0).unwrap(),
            frequency_penalty: Penalty::new(penalties.1).unwrap(),
            presence_penalty: Penalty::new(penalties.2).unwrap(),
            temperature: Temperature::new(temperature).unwrap(),
            min_p: MinP::new(filters.0).unwrap(),
            top_k: filters.1.and_then(NonZeroU32::new),
            top_p: TopP::new(filters.2).unwrap(),
            seed,
        }
    })
}

fn case() -> impl Strategy<Value = Case> {
    let tokens = || prop::collection::vec((0_u32..80).prop_map(TokenId), 0..12);
    let banned = prop::collection::vec((1_u32..80).prop_map(TokenId), 0..3);
    (logits(), params(), tokens(), tokens(), banned, any::<u32>(), any::<u32>()).prop_map(
        |(logits, params, prompt, output, banned, choice, position)| Case {
            logits,
            params,
            prompt,
            output,
            banned,
            choice,
            position,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn lazy_sorting_gives_the_full_sort_s_survivors_and_draw(case in case()) {
        let (kept, mass) = by_full_sort(&case);
        let expected: Vec<_> = kept.iter().map(|&(id, weight)| (TokenId(id), weight / mass)).collect();
        prop_assert_eq!(case.distribution(), expected);
        prop_assert_eq!(case.sample(&mut Sampler::new()).0, draw_by_full_sort(&case));
    }

    #[test]
    fn greedy_is_the_first_of_the_full_sort(case in case()) {
        let greedy = SamplingParams { temperature: Temperature::new(0.0).unwrap(), ..case.params.clone() };
        let first = by_full_sort(&Case { params: SamplingParams { top_k: None, ..case.params.clone() }, ..case.clone() }).0[0].0;
        prop_assert_eq!(Case { params: greedy, ..case }.sample(&mut Sampler::new()).0, first);
    }

    #[test]
    fn slot_reuse_equals_fresh(before in case(), after in case(), alternatives in 0_u8..30) {
        let mut reused = Sampler::new();
        let first = before.sample(&mut reused);
        reused.score(&before.logits, first, alternatives);
        let drawn = after.sample(&mut reused);
        prop_assert_eq!(drawn, after.sample(&mut Sampler::new()));
        let scored = reused.score(&after.logits, drawn, alternatives);
        prop_assert_eq!(scored, Sampler::new().score(&after.logits, drawn, alternatives));
    }

    #[test]
    fn alternatives_are_the_head_of_the_sorted_logprobs(row in logits(), count in 0_u8..30) {
        let mut sampler = Sampler::new();
        let of = |id: u32, sampler: &mut Sampler| (TokenId(id), sampler.score(&row, TokenId(id), 0).logprob);
        let mut all: Vec<_> = (0..row.len() as u32).map(|id| of(id, &mut sampler)).collect();
        all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        all.truncate(usize::from(count));
        prop_assert_eq!(sampler.score(&row, TokenId(0), count).alternatives, all);
    }

    #[test]
    fn no_row_of_bits_makes_the_sampler_panic(bits in prop::collection::vec(any::<u32>(), 0..50), params in params()) {
        let row: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let token = Sampler::new().sample(&row, &plain(&params, &TokenHistory::new(&ids(&[1, 2, 3]))));
        prop_assert!(token.index() < row.len().max(1));
        prop_assert!(!Sampler::new().score(&row, token, 20).logprob.is_nan());
    }
}

#[test]
fn draws_over_many_positions_follow_the_distribution() {
    let row: Vec<f32> = (0..40).map(|id| (id % 9) as f32 * 0.35).collect();
    let params = SamplingParams { min_p: MinP::new(0.1).unwrap(), ..top_p(0.9) };
    let params = SamplingParams { seed: 20_260_101, ..params };
    let history = TokenHistory::default();
    let mut sampler = Sampler::new();
    let expected = sampler.distribution(&row, &plain(&params, &history));
    let draws = 200_000;
    let mut counts = vec![0_u32; row.len()];
    for position in 0..draws {
        counts[sampler.sample(&row, &Draw { position, ..plain(&params, &history) }).index()] += 1;
    }
    let chi_square: f64 = expected
        .iter()
        .map(|(token, p)| {
            let mean = p * f64::from(draws);
            (f64::from(counts[token.index()]) - mean).powi(2) / mean
        })
        .sum();
    let drawn: BTreeSet<_> = (0..).zip(&counts).filter(|(_, count)| **count > 0).map(|(id, _)| TokenId(id)).collect();
    assert_eq!(drawn, expected.iter().map(|&(token, _)| token).collect(), "only survivors, all of them");
    // Mean k and deviation sqrt(2k) for k degrees of freedom; the seed is fixed, so this never flickers.
    let degrees = (expected.len() - 1) as f64;
    assert!(chi_square < degrees + 4.0 * (2.0 * degrees).sqrt(), "chi square {chi_square} for {degrees} degrees");
}

#[test]
fn the_order_of_a_large_row_is_that_of_the_full_sort() {
    let logits: Vec<f32> = (0..49_152_u32).map(|id| (id.wrapping_mul(2_654_435_761) >> 20) as f32 / 256.0).collect();
    for temperature in [0.3, 1.0, 2.0] {
        let mut case = Case {
            logits: logits.clone(),
            params: with_temperature(temperature),
            prompt: vec![],
            output: vec![],
            banned: vec![],
            choice: 0,
            position: 0,
        };
        for position in 0..20 {
            case.position = position;
            assert_eq!(case.sample(&mut Sampler::new()).0, draw_by_full_sort(&case));
        }
    }
}
