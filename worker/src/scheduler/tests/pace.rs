//! The pace on machines that are known exactly.

use proptest::prelude::*;

use crate::scheduler::Pace;

const STEP_TOKENS: usize = 512;

/// Seconds of a step of so many decodes and prefill tokens.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// For the weights to pass.
    weights: f64,
    /// For a row's arithmetic.
    row: f64,
    /// Whether the two overlap, as on a machine that computes while it reads, or add up.
    overlap: bool,
}

impl Machine {
    fn step(&self, decodes: usize, prefill: usize) -> f64 {
        let rows = (decodes + prefill) as f64 * self.row;
        if self.overlap { rows.max(self.weights) + 0.05 * self.weights } else { rows + self.weights }
    }
}

/// A machine as fast as a small model on a few cores, one that is slow at arithmetic, and one that is good at it.
const MACHINES: [Machine; 4] = [
    Machine { weights: 2e-3, row: 5e-5, overlap: true },
    Machine { weights: 2e-3, row: 5e-5, overlap: false },
    Machine { weights: 20e-3, row: 1e-4, overlap: true },
    Machine { weights: 10e-3, row: 4e-4, overlap: true },
];

/// Some noise: every step takes up to so much longer.
fn noise(step: usize) -> f64 {
    1.0 + 0.05 * ((step * 7919 % 101) as f64 / 101.0)
}

/// Times of the steps of `streams` streams, among which prompts of `lengths` tokens come, one every `every` steps.
fn run(machine: &Machine, streams: usize, lengths: &[usize], every: usize) -> (Vec<f64>, Vec<usize>) {
    let mut pace = Pace::new(64);
    pace.observe(0, 100, machine.step(0, 100));
    let (mut waiting, mut times, mut chunks) = (0, Vec::new(), Vec::new());
    for step in 0..lengths.len() * every + 200 {
        if step % every == every / 2 && step / every < lengths.len() {
            waiting += lengths[step / every];
        }
        let chunk = pace.prefill_tokens(streams).min(STEP_TOKENS).min(waiting);
        waiting -= chunk;
        let seconds = machine.step(streams, chunk) * noise(step);
        pace.observe(streams, chunk, seconds);
        times.push(seconds);
        if chunk > 0 {
            chunks.push(chunk);
        }
    }
    (times, chunks)
}

fn percentile(times: &[f64], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * percent / 100]
}

#[test]
fn a_long_prompt_does_not_lift_the_p99_of_running_streams_above_twice_their_median() {
    for machine in MACHINES {
        for streams in [1, 8, 24] {
            let (times, _) = run(&machine, streams, &[2000], 400);
            let (median, p99) = (percentile(&times, 50), percentile(&times, 99));
            assert!(p99 <= 2.0 * median, "{machine:?}, {streams} streams: {p99} is more than twice {median}");
        }
    }
}

#[test]
fn prompts_that_come_all_the_time_are_held_to_the_same() {
    for machine in MACHINES {
        let (times, _) = run(&machine, 8, &[2000; 20], 40);
        let (alone, p99) = (machine.step(8, 0), percentile(&times, 99));
        assert!(p99 <= 2.0 * alone, "{machine:?}: {p99} is more than twice {alone}");
    }
}

#[test]
fn what_the_streams_leave_is_used() {
    for machine in MACHINES {
        let (_, chunks) = run(&machine, 8, &[4000; 4], 300);
        // What fits into twice the time of the decodes.
        let fits = (1..=STEP_TOKENS).take_while(|chunk| machine.step(8, *chunk) <= 2.0 * machine.step(8, 0)).count();
        let last = &chunks[chunks.len() / 2..];
        let mean = last.iter().sum::<usize>() / last.len();
        assert!(mean * 3 >= fits * 2, "{machine:?}: {mean} of {fits} tokens");
    }
}

#[test]
fn without_decodes_only_the_step_limits_a_prompt() {
    assert_eq!(Pace::new(4).prefill_tokens(0), usize::MAX);
}

#[test]
fn a_machine_that_was_stopped_for_a_moment_is_believed_again_soon() {
    let machine = MACHINES[0];
    let mut pace = Pace::new(8);
    let steps = |pace: &mut Pace, count: usize| {
        (0..count).for_each(|_| {
            let chunk = pace.prefill_tokens(4).min(STEP_TOKENS);
            pace.observe(4, chunk, machine.step(4, chunk));
        });
    };
    steps(&mut pace, 200);
    let before = pace.prefill_tokens(4);
    pace.observe(4, before, 3.0);
    assert!(pace.prefill_tokens(4) >= 8);
    steps(&mut pace, 100);
    let after = (0..2).map(|_| {
        steps(&mut pace, 1);
        pace.prefill_tokens(4)
    });
    assert!(after.max().unwrap() * 10 >= before * 8, "of {before} tokens");
}

#[test]
fn the_last_tokens_of_a_prompt_do_not_make_the_others_dearer() {
    let machine = MACHINES[0];
    let mut pace = Pace::new(8);
    for _ in 0..200 {
        let chunk = pace.prefill_tokens(4).min(STEP_TOKENS);
        pace.observe(4, chunk, machine.step(4, chunk));
    }
    let before = pace.prefill_tokens(4);
    (0..20).for_each(|_| pace.observe(4, 1, machine.step(4, 1) * 1.5));
    assert_eq!(pace.prefill_tokens(4), before);
}

proptest! {
    #[test]
    fn whatever_is_measured_prompts_go_on(
        steps in prop::collection::vec((0..10usize, 0..600usize, prop::num::f64::POSITIVE | prop::num::f64::ZERO), 1..300),
        decodes in 1..10usize,
    ) {
        let mut pace = Pace::new(8);
        let mut probes = 0;
        for (decodes, prefill, seconds) in steps {
            pace.observe(decodes, prefill, seconds);
        }
        for _ in 0..200 {
            let tokens = pace.prefill_tokens(decodes);
            prop_assert!(tokens == 0 || tokens >= 8, "{tokens} tokens");
            probes += usize::from(tokens == 0);
            pace.observe(decodes, tokens.min(STEP_TOKENS), 0.01);
        }
        prop_assert!(probes <= 8, "{probes} of 200 steps went without prefills");
    }
}
