//! That a broken promise is seen: what cannot be complained of is not checked.

use super::*;
use crate::requests::Prompt;
use crate::scenario::Shape;

/// A request for one greedy choice, which nothing befalls, and its whole answer.
struct Trial {
    scenario: Scenario,
    faults: Vec<Planned>,
    heard: Heard,
}

impl Trial {
    fn new() -> Self {
        let mut scenario = Scenario::draw(0);
        scenario.shape = Shape { deadline: None, workers: 2, routers: 1, room: Room::Ample, ..scenario.shape };
        let mut request = scenario.requests[0].clone();
        (request.id, request.router, request.reader, request.delivery) = (0, 0, Reader::Steady, Delivery::Stream);
        request.health = Health::Harmless;
        let ask = &mut request.ask;
        ask.prompts = vec![Prompt::Text("tell me more".to_owned())];
        (ask.max_tokens, ask.min_tokens, ask.n, ask.best_of) = (20, 20, 1, 1);
        (ask.temperature, ask.seed, ask.loglikelihood, ask.logprobs) = (0.0, Some(5), false, None);
        (ask.stop, ask.stop_ids, ask.ignore_eos) = (Vec::new(), Vec::new(), false);
        let whole = oracle::answer(ask, &scenario.shape.script);
        scenario.requests = vec![request];
        let heard = Heard {
            choices: (0..).zip(whole.choices).collect(),
            usage: Some((whole.prompt_tokens, whole.completion_tokens)),
            seed: Some(5),
            error: None,
            is_over: true,
        };
        Self { scenario, faults: Vec::new(), heard }
    }

    fn judge(&self, end: fn(Heard) -> End) -> Option<String> {
        let life = (Duration::from_secs(1), Duration::from_secs(2));
        let told = Told { id: 0, life, end: end(self.heard.clone()) };
        judge(&told, &self.scenario, &self.faults)
    }

    fn choice(&mut self) -> &mut Choice {
        self.heard.choices.get_mut(&0).unwrap()
    }

    fn befalls(&mut self, faults: impl IntoIterator<Item = Fault>) {
        let planned = |fault| Planned { fault, from: Duration::from_millis(1500), until: Duration::from_millis(1600) };
        self.faults = faults.into_iter().map(planned).collect();
    }
}

#[test]
fn a_whole_answer_is_right() {
    assert_eq!(Trial::new().judge(End::Answered), None);
}

#[test]
fn a_gap_a_double_and_another_character_are_seen() {
    for edit in [
        (|text| text.replace_range(5..6, "")) as fn(&mut String),
        |text| text.insert(5, char::from(text.as_bytes()[5])),
        |text| text.replace_range(5..6, "\u{7}"),
        |text| text.truncate(text.len() - 1),
        |text| text.push('x'),
    ] {
        let mut trial = Trial::new();
        edit(&mut trial.choice().text);
        assert!(trial.judge(End::Answered).is_some(), "{:?}", trial.choice().text);
    }
}

#[test]
fn a_silent_end_is_seen_even_where_everything_fails() {
    let mut trial = Trial::new();
    trial.befalls([Fault::WorkerCrash(0), Fault::WorkerCrash(1), Fault::RouterCrash(0)]);
    (trial.heard.is_over, trial.choice().finish) = (false, String::new());
    assert!(trial.judge(End::Answered).is_some());
}

#[test]
fn an_answer_that_is_cut_must_say_why_and_be_the_beginning_of_the_whole_one() {
    let mut trial = Trial::new();
    trial.choice().text.truncate(7);
    trial.choice().finish = "cancelled".to_owned();
    assert!(trial.judge(End::Answered).is_some(), "nothing befell it");
    trial.heard.error = Some("worker_failed".to_owned());
    assert!(trial.judge(End::Answered).is_some(), "no worker was lost");
    trial.befalls([Fault::WorkerCrash(0), Fault::WorkerCrash(1)]);
    assert_eq!(trial.judge(End::Answered), None, "all workers were gone");
    trial.choice().text.push('\u{7}');
    assert!(trial.judge(End::Answered).is_some(), "what was told is no beginning");
}

#[test]
fn a_failure_needs_a_fault_that_may_be_felt_at_its_time() {
    let refused = |_| End::Refused { status: 503, code: "no_worker".to_owned() };
    let mut trial = Trial::new();
    assert!(trial.judge(refused).is_some());
    trial.befalls([Fault::WorkerCrash(0)]);
    assert!(trial.judge(refused).is_some(), "a worker was left");
    trial.befalls([Fault::WorkerCrash(0), Fault::WorkerDrain(1)]);
    assert_eq!(trial.judge(refused), None);
    let later = Duration::from_secs(60);
    trial.faults.iter_mut().for_each(|planned| (planned.from, planned.until) = (later, later));
    assert!(trial.judge(refused).is_some(), "it had failed before");
}

#[test]
fn a_connection_breaks_only_with_its_router() {
    let mut trial = Trial::new();
    trial.befalls([Fault::WorkerCrash(0), Fault::WorkerCrash(1)]);
    assert!(trial.judge(End::Broken).is_some());
    trial.befalls([Fault::RouterCrash(0)]);
    assert_eq!(trial.judge(End::Broken), None);
}
