//! Rows and parameters at their edges.

use std::num::NonZeroU32;

use super::*;

fn sample(logits: &[f32], params: &SamplingParams) -> u32 {
    Sampler::new().sample(logits, &plain(params, &TokenHistory::default())).0
}

#[test]
fn greedy_takes_the_lowest_id_of_a_tie() {
    assert_eq!(sample(&[1.0, 3.0, 3.0, 2.0], &with_temperature(0.0)), 1);
    assert_eq!(sample(&[-0.0, 0.0], &with_temperature(0.0)), 0);
    assert_eq!(survivor_ids(&[-0.0, 0.0], &with_temperature(1.0)), [0, 1]);
}

#[test]
fn a_nan_is_never_drawn() {
    let row = [f32::NAN, 1.0, f32::NAN];
    assert_eq!(survivor_ids(&row, &with_temperature(1.0)), [1]);
    assert_eq!(sample(&row, &with_temperature(0.0)), 1);
}

#[test]
fn an_infinite_logit_takes_all_and_shares_with_its_equals() {
    let row = [1.0, f32::INFINITY, 5.0, f32::INFINITY, f32::NEG_INFINITY];
    assert_eq!(survivors(&row, &with_temperature(1.0)), [(TokenId(1), 0.5), (TokenId(3), 0.5)]);
    assert_eq!(sample(&row, &with_temperature(0.0)), 1);
}

#[test]
fn a_row_without_a_finite_logit_gives_token_0() {
    for row in [&[][..], &[f32::NEG_INFINITY; 4], &[f32::NAN; 3]] {
        for temperature in [0.0, 1.0] {
            assert_eq!(sample(row, &with_temperature(temperature)), 0);
        }
    }
}

#[test]
fn equal_logits_are_equally_likely_and_ordered_by_id() {
    let drawn = survivors(&[0.25; 100], &with_temperature(0.7));
    assert_eq!(drawn, (0..100).map(|id| (TokenId(id), 0.01)).collect::<Vec<_>>());
}

#[test]
fn a_vocabulary_of_one_has_one_answer() {
    for temperature in [0.0, 1e-6, 2.0] {
        assert_eq!(sample(&[-7.5], &with_temperature(temperature)), 0);
    }
}

#[test]
fn a_tiny_temperature_is_nearly_greedy() {
    assert_eq!(survivors(&[1.0, 1.5, 1.499], &with_temperature(1e-6)), [(TokenId(1), 1.0)]);
    assert_eq!(survivors(&[1.0, 1.5, 1.5], &with_temperature(f64::MIN_POSITIVE)).len(), 2);
}

#[test]
fn top_p_of_0_keeps_the_best_only() {
    assert_eq!(survivors(&[2.0, 3.0, 3.0], &top_p(0.0)), [(TokenId(1), 1.0)]);
}

#[test]
fn top_p_keeps_a_candidate_while_the_weight_before_it_is_too_little() {
    let quarters = [0.0_f32; 4];
    assert_eq!(survivor_ids(&quarters, &top_p(0.5)), [0, 1]);
    assert_eq!(survivor_ids(&quarters, &top_p(0.51)), [0, 1, 2]);
}

#[test]
fn min_p_of_1_keeps_the_ties_at_the_maximum() {
    assert_eq!(survivors(&[3.0, 1.0, 3.0, 2.9], &min_p(1.0)), [(TokenId(0), 0.5), (TokenId(2), 0.5)]);
}

#[test]
fn top_k_of_1_is_greedy() {
    let params = SamplingParams { top_k: NonZeroU32::new(1), ..with_temperature(2.0) };
    assert_eq!(survivors(&[1.0, 4.0, 4.0], &params), [(TokenId(1), 1.0)]);
}

#[test]
fn top_k_beyond_the_vocabulary_is_off() {
    let row = [0.5, 1.5, -2.0];
    let params = SamplingParams { top_k: NonZeroU32::new(u32::MAX), ..with_temperature(1.0) };
    assert_eq!(survivors(&row, &params), survivors(&row, &with_temperature(1.0)));
}

#[test]
fn a_bias_of_minus_100_bans_and_a_bias_of_100_leaves_only_such_tokens() {
    let row = [5.0, 4.0, 3.0, 2.0];
    assert_eq!(survivor_ids(&row, &biased(&[(0, -100.0)])), [1, 2, 3]);
    assert_eq!(survivor_ids(&row, &biased(&[(2, 100.0), (3, 100.0)])), [2, 3]);
    assert_eq!(survivor_ids(&row, &biased(&[(1, 50.0), (3, 100.0)])), [3]);
    let apart = survivors(&row, &biased(&[(2, 100.0), (3, 100.0)]));
    let unbiased = survivors(&row[2..], &with_temperature(1.0));
    assert_eq!(apart[0].1, unbiased[0].1, "only-tokens keep their ratio");
}

#[test]
fn a_bias_on_a_token_outside_the_vocabulary_is_passed_over() {
    assert_eq!(survivor_ids(&[1.0, 2.0], &biased(&[(7, 3.0), (8, -100.0)])), [1, 0]);
}

#[test]
fn a_banned_token_cannot_be_drawn() {
    let (params, history) = (with_temperature(1.0), TokenHistory::default());
    let banned = ids(&[0, 2, 99]);
    let draw = Draw { banned: &banned, ..plain(&params, &history) };
    assert_eq!(Sampler::new().distribution(&[9.0, 1.0, 8.0], &draw), [(TokenId(1), 1.0)]);
}

#[test]
fn restrictions_that_forbid_everything_give_way_weakest_first() {
    let history = TokenHistory::default();
    let row = [1.0, 2.0, 9.0, 3.0];
    let banned = ids(&[2]);
    let only_the_banned = biased(&[(2, 100.0)]);
    let draw = Draw { banned: &banned, ..plain(&only_the_banned, &history) };
    assert_eq!(Sampler::new().sample(&row, &draw), TokenId(3), "only gives way, the ban holds");
    let all = ids(&[0, 1, 2, 3]);
    let draw = Draw { banned: &all, ..plain(&only_the_banned, &history) };
    assert_eq!(Sampler::new().sample(&row, &draw), TokenId(2), "bans give way last");
    let every_token = biased(&[(0, -100.0), (1, -100.0), (2, -100.0), (3, -100.0)]);
    assert_eq!(sample(&row, &every_token), 2);
}

#[test]
fn extreme_penalties_stay_finite() {
    let mut history = TokenHistory::new(&ids(&[0, 1]));
    (0..5).for_each(|_| history.push(TokenId(2)));
    let params = SamplingParams {
        repetition_penalty: shoal_common::sampling::RepetitionPenalty::new(f64::MIN_POSITIVE).unwrap(),
        frequency_penalty: shoal_common::sampling::Penalty::new(2.0).unwrap(),
        ..with_temperature(1.0)
    };
    let row = [3e38, f32::INFINITY, f32::NEG_INFINITY, -1.0];
    let drawn = Sampler::new().distribution(&row, &plain(&params, &history));
    assert_eq!(drawn, [(TokenId(0), 0.5), (TokenId(1), 0.5)]);
}

#[test]
fn the_prompt_counts_for_repetition_only() {
    let params = SamplingParams {
        presence_penalty: shoal_common::sampling::Penalty::new(1.0).unwrap(),
        frequency_penalty: shoal_common::sampling::Penalty::new(0.5).unwrap(),
        ..with_temperature(0.0)
    };
    let mut history = TokenHistory::new(&ids(&[0, 0, 0]));
    let pick = |history: &TokenHistory| Sampler::new().sample(&[2.0, 1.9, 0.3], &plain(&params, history)).0;
    assert_eq!(pick(&history), 0);
    history.push(TokenId(0));
    assert_eq!(pick(&history), 1, "2.0 - 1.0 - 0.5 is below 1.9");
    history.push(TokenId(1));
    assert_eq!(pick(&history), 0, "1.9 - 1.0 - 0.5 is below 2.0 - 1.5");
    history.push(TokenId(0));
    history.push(TokenId(1));
    assert_eq!(pick(&history), 2, "counts add up");
}

#[test]
fn scores_come_from_the_raw_row() {
    let row = [1.0, f32::NEG_INFINITY, 3.0, 2.0, 3.0];
    let score = Sampler::new().score(&row, TokenId(0), 3);
    let log_total = row.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
    assert!((f64::from(score.logprob) - (1.0 - log_total)).abs() < 1e-6);
    assert_eq!(score.alternatives.iter().map(|(token, _)| token.0).collect::<Vec<_>>(), [2, 4, 3]);
    assert_eq!(Sampler::new().score(&row, TokenId(1), 0).logprob, f32::NEG_INFINITY);
    assert!(Sampler::new().score(&row, TokenId(1), 0).alternatives.is_empty());
}

#[test]
fn scores_of_odd_rows_are_never_nan() {
    let hopeless = [f32::NEG_INFINITY, f32::NAN];
    let score = Sampler::new().score(&hopeless, TokenId(0), 5);
    assert_eq!((score.logprob, score.alternatives.len()), (f32::NEG_INFINITY, 2));
    assert!(score.alternatives.iter().all(|&(_, logprob)| logprob == f32::NEG_INFINITY));
    assert_eq!(Sampler::new().score(&[0.0, f32::INFINITY], TokenId(1), 1).logprob, 0.0);
    assert_eq!(Sampler::new().score(&[0.0], TokenId(9), 1).logprob, f32::NEG_INFINITY);
    assert_eq!(Sampler::new().score(&[], TokenId(0), 1).logprob, f32::NEG_INFINITY);
}

#[test]
fn alternatives_with_one_logprob_are_listed_by_id() {
    // Far from the best, neighbouring f32 logits round to one f32 logprob.
    let (less, more) = (1.0_f32, 1.000_000_1_f32);
    let score = Sampler::new().score(&[60.0, less, more], TokenId(0), 3);
    assert_eq!(score.alternatives[1].1, score.alternatives[2].1);
    assert_eq!(score.alternatives.iter().map(|(token, _)| token.0).collect::<Vec<_>>(), [0, 1, 2]);
}
