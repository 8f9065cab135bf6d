//! The pace on machines that are known exactly.

use std::collections::VecDeque;
use std::ops::Range;

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
    /// For a row to look at a position before it.
    look: f64,
    /// Whether the two overlap, as on a machine that computes while it reads, or add up.
    overlap: bool,
}

impl Machine {
    fn step(&self, decodes: usize, prefill: &Range<usize>) -> f64 {
        let looks = (prefill.start + prefill.end) as f64 / 2.0 * prefill.len() as f64;
        let rows = (decodes + prefill.len()) as f64 * self.row;
        let rows = if self.overlap { rows.max(self.weights) + 0.05 * self.weights } else { rows + self.weights };
        rows + looks * self.look
    }

    fn decode(&self, decodes: usize) -> f64 {
        self.step(decodes, &(0..0))
    }
}

/// A machine as fast as a small model on a few cores, one that is slow at arithmetic, one that is good at it, and one on
/// which a token deep in a prompt costs three times what one at its beginning does.
const MACHINES: [Machine; 5] = [
    Machine { weights: 2e-3, row: 5e-5, look: 0.0, overlap: true },
    Machine { weights: 2e-3, row: 5e-5, look: 0.0, overlap: false },
    Machine { weights: 20e-3, row: 1e-4, look: 0.0, overlap: true },
    Machine { weights: 10e-3, row: 4e-4, look: 1e-7, overlap: true },
    Machine { weights: 4e-3, row: 5e-4, look: 5e-7, overlap: false },
];

/// Some noise: every step takes up to so much longer.
fn noise(step: usize) -> f64 {
    1.0 + 0.05 * ((step * 7919 % 101) as f64 / 101.0)
}

/// The next chunk of a prompt of which `done` tokens are computed.
fn chunk(pace: &Pace, decodes: usize, done: usize, length: usize) -> Range<usize> {
    let most = pace.fits(&pace.spare(decodes, 1), done).min(STEP_TOKENS);
    done..length.min(done + most)
}

fn observe(pace: &mut Pace, decodes: usize, chunk: Range<usize>, seconds: f64) {
    pace.observe(decodes, std::iter::once(chunk), seconds);
}

/// Times of the steps of `streams` streams, among which prompts of `lengths` tokens come, one every `every` steps; and the
/// chunks in which they were computed.
fn run(machine: &Machine, streams: usize, lengths: &[usize], every: usize) -> (Vec<f64>, Vec<Range<usize>>) {
    let mut pace = Pace::new(64);
    observe(&mut pace, 0, 0..100, machine.step(0, &(0..100)));
    let (mut come, mut done, mut times, mut chunks) = (VecDeque::new(), 0, Vec::new(), Vec::new());
    for step in 0..lengths.len() * every + 200 {
        if step % every == every / 2 && step / every < lengths.len() {
            come.push_back(lengths[step / every]);
        }
        let chunk = come.front().map_or(0..0, |length| chunk(&pace, streams, done, *length));
        let seconds = machine.step(streams, &chunk) * noise(step);
        observe(&mut pace, streams, chunk.clone(), seconds);
        times.push(seconds);
        if !chunk.is_empty() {
            done = chunk.end;
            chunks.push(chunk);
        }
        if come.front() == Some(&done) {
            come.pop_front();
            done = 0;
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
        let (alone, p99) = (machine.decode(8), percentile(&times, 99));
        assert!(p99 <= 2.0 * alone, "{machine:?}: {p99} is more than twice {alone}");
    }
}

#[test]
fn what_the_streams_leave_is_used() {
    for machine in MACHINES {
        let (_, chunks) = run(&machine, 8, &[4000; 4], 300);
        // What fits into half as much again as the decodes take.
        let fits = |start: usize| {
            let fits = |tokens: &usize| machine.step(8, &(start..start + tokens)) <= 1.5 * machine.decode(8);
            (1..=STEP_TOKENS).take_while(fits).count()
        };
        // The last of a prompt are what is left of it.
        let last = chunks[chunks.len() / 2..].iter().filter(|chunk| chunk.end % 4000 != 0);
        let (used, fits) = last.fold((0, 0), |(used, sum), chunk| (used + chunk.len(), sum + fits(chunk.start)));
        assert!(used * 2 >= fits, "{machine:?}: {used} of {fits} tokens");
    }
}

#[test]
fn without_decodes_only_the_step_limits_a_prompt() {
    let pace = Pace::new(4);
    assert_eq!(pace.fits(&pace.spare(0, 1), 1000), usize::MAX);
}

#[test]
fn a_machine_that_was_stopped_for_a_moment_is_believed_again_soon() {
    let machine = MACHINES[0];
    let mut pace = Pace::new(8);
    let steps = |pace: &mut Pace, count: usize| {
        (0..count).for_each(|_| {
            let chunk = chunk(pace, 4, 0, usize::MAX);
            observe(pace, 4, chunk.clone(), machine.step(4, &chunk));
        });
    };
    let fits = |pace: &Pace| chunk(pace, 4, 0, usize::MAX).len();
    steps(&mut pace, 200);
    let before = fits(&pace);
    observe(&mut pace, 4, 0..before, 3.0);
    assert!(fits(&pace) >= 8);
    steps(&mut pace, 100);
    let after = (0..2).map(|_| {
        steps(&mut pace, 1);
        fits(&pace)
    });
    assert!(after.max().unwrap() * 10 >= before * 8, "of {before} tokens");
}

#[test]
fn spare_time_is_shared_between_prompts() {
    let machine = MACHINES[4];
    let mut pace = Pace::new(8);
    for done in (0..4000).step_by(4) {
        let chunk = chunk(&pace, 4, done, usize::MAX);
        observe(&mut pace, 4, chunk.clone(), machine.step(4, &chunk));
    }
    let mut spare = pace.spare(4, 1);
    let most = pace.fits(&spare, 0);
    let kept = spare.split();
    let deep = pace.fits(&spare, 3000);
    pace.charge(&mut spare, 3000..3000 + deep);
    assert!(pace.fits(&spare, 0) <= 2);
    spare.join(kept);
    let left = pace.fits(&spare, 0);
    assert!((most / 2 - 2..=most / 2 + 2).contains(&left), "{left} of {most} tokens after half of the time was spent");
}

#[test]
fn what_is_added_beyond_the_spare_time_is_owed_by_the_next_prompt() {
    let machine = MACHINES[4];
    let mut pace = Pace::new(8);
    for _ in 0..1000 {
        let chunk = chunk(&pace, 4, 0, usize::MAX);
        observe(&mut pace, 4, chunk.clone(), machine.step(4, &chunk));
    }
    let mut spare = pace.spare(4, 1);
    let kept = spare.split();
    let fits = pace.fits(&spare, 0);
    pace.charge(&mut spare, 0..2 * fits + 2);
    spare.join(kept);
    assert!(spare.is_used_up(), "half of the time was overdrawn by as much: {spare:?}");
}

#[test]
fn the_last_tokens_of_a_prompt_do_not_make_the_others_dearer() {
    let machine = MACHINES[0];
    let mut pace = Pace::new(8);
    let fits = |pace: &Pace| chunk(pace, 4, 0, usize::MAX).len();
    for _ in 0..200 {
        let chunk = chunk(&pace, 4, 0, usize::MAX);
        observe(&mut pace, 4, chunk.clone(), machine.step(4, &chunk));
    }
    let before = fits(&pace);
    for tokens in [1, 2, 5].repeat(10) {
        observe(&mut pace, 4, 0..tokens, machine.step(4, &(0..tokens)) * 1.5);
    }
    assert!(fits(&pace) * 10 >= before * 9, "{} of {before} tokens", fits(&pace));
}

proptest! {
    #[test]
    fn whatever_is_measured_prompts_go_on(
        steps in prop::collection::vec(
            (0..10usize, 0..10_000usize, 0..600usize, prop::num::f64::POSITIVE | prop::num::f64::ZERO), 1..300,
        ),
        decodes in 1..10usize,
        start in 0..10_000usize,
    ) {
        let mut pace = Pace::new(8);
        let mut probes = 0;
        for (decodes, start, prefill, seconds) in steps {
            observe(&mut pace, decodes, start..start + prefill, seconds);
        }
        for _ in 0..200 {
            let chunk = chunk(&pace, decodes, start, usize::MAX);
            prop_assert!(chunk.is_empty() || chunk.len() >= 2, "{chunk:?}");
            probes += usize::from(chunk.is_empty());
            observe(&mut pace, decodes, chunk, 0.01);
        }
        prop_assert!(probes <= 8, "{probes} of 200 steps went without prefills");
    }
}

#[test]
fn where_more_prompts_wait_than_streams_they_get_more_of_a_step_up_to_a_bound() {
    let machine = MACHINES[4];
    let tokens = |decodes: usize, prompts: usize| {
        let mut pace = Pace::new(64);
        for _ in 0..64 {
            observe(&mut pace, decodes, 0..0, machine.decode(decodes));
            let chunk = 0..pace.fits(&pace.spare(decodes, prompts), 0);
            observe(&mut pace, decodes, chunk.clone(), machine.step(decodes, &chunk));
        }
        pace.fits(&pace.spare(decodes, prompts), 0)
    };
    let one = tokens(8, 1);
    assert_eq!(tokens(8, 8), one, "as many prompts as streams are no more than one");
    assert!(tokens(8, 16) > one * 3 / 2 && tokens(8, 32) > one * 3, "{one}");
    assert_eq!(tokens(8, 32), tokens(8, 500));
    // Half as much again for each prompt to a stream.
    assert!(machine.step(8, &(0..tokens(8, 500))) <= 3.1 * machine.decode(8));
}
