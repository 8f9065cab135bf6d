//! Judges each request of a run: the bytes against the oracle, and a failure against what befell the cluster meanwhile. A
//! request may fail only where the promises allow it, and is never cut in silence. Pure.

use std::time::Duration;

use crate::faults::{Fault, Planned};
use crate::heard::Heard;
use crate::load::{End, Told};
use crate::oracle::{self, Answer, Choice};
use crate::requests::{Ask, Delivery, Health, Reader, Request};
use crate::scenario::{Room, Scenario};

/// So many lost workers end a request: one that loses two soon after they got it is given up, as if it had killed them.
const LOSSES: usize = 2;

/// What is wrong with a request's end, in words; nothing, if it is as promised. `faults` are those that came to pass.
pub fn judge(told: &Told, scenario: &Scenario, faults: &[Planned]) -> Option<String> {
    let request = &scenario.requests[told.id];
    let case = Case { request, scenario, life: told.life, faults };
    let wrong = match &told.end {
        End::Left => None,
        End::BadForm(bad) => Some((*bad).to_owned()),
        End::Refused { code, .. } => case.refusal(code),
        End::Broken(heard) => case.break_off(heard),
        End::Answered(heard) => case.answer(heard),
    };
    wrong.map(|wrong| format!("request {}: {wrong}", told.id))
}

struct Case<'a> {
    request: &'a Request,
    scenario: &'a Scenario,
    life: (Duration, Duration),
    faults: &'a [Planned],
}

impl Case<'_> {
    fn answer(&self, heard: &Heard) -> Option<String> {
        if !heard.is_over {
            return Some("the stream ended without [DONE]".to_owned());
        }
        if heard.seed.is_none() || self.request.ask.seed.is_some_and(|asked| heard.seed != Some(asked)) {
            return Some(format!("the seed in force is {:?}", heard.seed));
        }
        let expected = self.expected(heard);
        if let Some(code) = &heard.error {
            return self.part_of(heard, &expected).or_else(|| self.refusal(code));
        }
        let cancelled = heard.choices.values().any(|choice| choice.finish == "cancelled");
        if cancelled {
            let cut = self.deadline_passed() || self.faults_now().any(|fault| fault.breaks(self.request.router));
            let wrong = (!cut).then(|| "it was cancelled without a deadline or a shutdown".to_owned());
            return self.part_of(heard, &expected).or(wrong);
        }
        whole(heard, &expected)
    }

    /// A failure told by its code.
    fn refusal(&self, code: &str) -> Option<String> {
        let excused = match code {
            "busy" => self.scenario.shape.room == Room::Tight || self.all_gone(),
            "no_worker" => self.all_gone() || self.router_was_new(),
            "worker_failed" => self.all_gone() || self.losses() >= LOSSES || self.request.health == Health::Poisonous,
            "shutting_down" => self.faults_now().any(|fault| fault.breaks(self.request.router)),
            "deadline_passed" => self.deadline_passed(),
            _ => false,
        };
        (!excused).then(|| format!("it failed with {code}, and nothing excuses that"))
    }

    fn break_off(&self, heard: &Heard) -> Option<String> {
        let broken = self.faults_now().any(|fault| fault.breaks(self.request.router));
        let stalls = matches!(self.request.reader, Reader::Stalls(_));
        let evicted = stalls && self.request.delivery == Delivery::Stream;
        let wrong = (!broken && !evicted).then(|| "the connection broke".to_owned());
        self.part_of(heard, &self.expected(heard)).or(wrong)
    }

    /// The whole answer, by the seed in force.
    fn expected(&self, heard: &Heard) -> Answer {
        let ask = Ask { seed: heard.seed.or(self.request.ask.seed), ..self.request.ask.clone() };
        oracle::answer(&ask, &self.scenario.shape.script)
    }

    /// Whether what has come is the beginning of what was to come.
    fn part_of(&self, heard: &Heard, expected: &Answer) -> Option<String> {
        if self.request.ask.best_of > self.request.ask.n {
            // Those that were cut are ranked as far as they went.
            return None;
        }
        heard.choices.iter().find_map(|(index, choice)| {
            let Some(whole) = expected.choices.get(*index as usize) else {
                return Some("a choice too many".to_owned());
            };
            let is_part = match choice.finish.as_str() {
                "" | "cancelled" => whole.text.starts_with(&choice.text) && whole.tokens.starts_with(&choice.tokens),
                _ => choice == whole,
            };
            (!is_part).then(|| format!("choice {index} is no part of what it must be: {}", differ(choice, whole)))
        })
    }

    /// Faults that could be felt between the request's beginning and its end.
    fn faults_now(&self) -> impl Iterator<Item = &Fault> {
        let felt = |fault: &&Planned| fault.from <= self.life.1 && self.life.0 <= fault.felt_until();
        self.faults.iter().filter(felt).map(|planned| &planned.fault)
    }

    /// Whether at some time every worker may have been out of the router's reach.
    fn all_gone(&self) -> bool {
        // If there is such a time, then also one at which the last of their faults begins.
        let begins = self.faults.iter().map(|fault| fault.from).filter(|from| *from <= self.life.1);
        begins.chain([self.life.0]).any(|time| {
            let time = time.max(self.life.0);
            let felt = |fault: &Planned| fault.from <= time && time <= fault.felt_until();
            let is_gone =
                |worker| self.faults.iter().any(|fault| felt(fault) && fault.fault.parts(self.request.router, worker));
            (0..self.scenario.shape.workers).all(is_gone)
        })
    }

    /// How many workers may have been lost under it.
    fn losses(&self) -> usize {
        let parts = |fault: &&Fault| (0..self.scenario.shape.workers).any(|it| fault.parts(self.request.router, it));
        self.faults_now().filter(parts).count()
    }

    /// Whether the router may not have known its workers yet.
    fn router_was_new(&self) -> bool {
        self.faults_now().any(|fault| fault.breaks(self.request.router))
    }

    fn deadline_passed(&self) -> bool {
        self.scenario.shape.deadline.is_some_and(|deadline| self.life.1 - self.life.0 >= deadline)
    }
}

fn whole(heard: &Heard, expected: &Answer) -> Option<String> {
    let heard_choices: Vec<u64> = heard.choices.keys().copied().collect();
    let expected_choices: Vec<u64> = (0..expected.choices.len() as u64).collect();
    if heard_choices != expected_choices {
        return Some(format!("it has the choices {heard_choices:?} and must have {expected_choices:?}"));
    }
    for (choice, whole) in heard.choices.values().zip(&expected.choices) {
        if choice != whole {
            return Some(format!("it is not what it must be: {}", differ(choice, whole)));
        }
    }
    let usage = Some((expected.prompt_tokens, expected.completion_tokens));
    (heard.usage != usage).then(|| format!("usage is {:?} and must be {usage:?}", heard.usage))
}

/// Where two choices part.
fn differ(heard: &Choice, expected: &Choice) -> String {
    if heard.text != expected.text {
        let same = heard.text.chars().zip(expected.text.chars()).take_while(|(a, b)| a == b).count();
        let tail = |text: &str| text.chars().skip(same).take(12).collect::<String>();
        return format!(
            "the text parts after {same} characters: {:?}, not {:?}",
            tail(&heard.text),
            tail(&expected.text)
        );
    }
    if heard.finish != expected.finish {
        return format!("it finishes with {:?}, not {:?}", heard.finish, expected.finish);
    }
    let pairs = heard.tokens.iter().zip(&expected.tokens).enumerate();
    match pairs.into_iter().find(|(_, (a, b))| a != b) {
        Some((at, (a, b))) => format!("token {at} is {a:?}, not {b:?}"),
        None => format!("it tells {} tokens, not {}", heard.tokens.len(), expected.tokens.len()),
    }
}

#[cfg(test)]
mod tests;
