use proptest::prelude::*;

use crate::request::ClientText;
use crate::text::stop::*;

fn matcher(stops: &[&str]) -> StopMatcher {
    let stops: Vec<_> = stops.iter().map(|stop| ClientText((*stop).to_owned())).collect();
    StopMatcher::new(&stops)
}

fn released(text: &str) -> StopOutcome {
    StopOutcome { released: text.to_owned(), matched: None }
}

fn matched(text: &str, index: usize) -> StopOutcome {
    StopOutcome { released: text.to_owned(), matched: Some(index) }
}

#[test]
fn only_a_tail_that_may_become_a_stop_is_held_back() {
    let mut matcher = matcher(&["\n\nHuman:"]);
    assert_eq!(matcher.push("one\n"), released("one"));
    assert_eq!(matcher.push("two\n\n"), released("\ntwo"));
    assert_eq!(matcher.push("\nHu"), released("\n"));
    assert_eq!(matcher.push("ge"), released("\n\nHuge"));
}

#[test]
fn a_stop_over_several_deltas_is_cut_out_whole_and_ends_the_text() {
    let mut matcher = matcher(&["never", "END."]);
    assert_eq!(matcher.push("the E"), released("the "));
    assert_eq!(matcher.push("ND"), released(""));
    assert_eq!(matcher.push(". more"), matched("", 1));
    assert_eq!(matcher.push("never"), released(""));
    assert_eq!(matcher.pass("x"), "");
    assert_eq!(matcher.finish(), "");
}

#[test]
fn of_stops_completed_together_the_one_that_begins_first_wins() {
    assert_eq!(matcher(&["c", "bcd"]).push("abcd"), matched("a", 1));
    assert_eq!(matcher(&["abc", "ab"]).push("abc"), matched("", 1));
    assert_eq!(matcher(&["x", "x"]).push("ax"), matched("a", 0));
}

#[test]
fn a_stop_completed_by_an_earlier_delta_beats_a_longer_one_that_began_before_it() {
    let mut matcher = matcher(&["bcd", "c"]);
    assert_eq!(matcher.push("abc"), matched("ab", 1));
}

#[test]
fn what_was_held_at_the_end_is_not_lost() {
    let mut matcher = matcher(&["42.ZZ"]);
    assert_eq!(matcher.push("is 42."), released("is "));
    assert_eq!(matcher.finish(), "42.");
    assert_eq!(matcher.finish(), "");
}

#[test]
fn a_stop_within_a_character_sequence_holds_whole_characters() {
    let mut matcher = matcher(&["é世"]);
    assert_eq!(matcher.push("aé"), released("a"));
    assert_eq!(matcher.push("é"), released("é"));
    assert_eq!(matcher.push("世"), matched("", 0));
}

#[test]
fn a_stop_completed_within_the_minimum_is_text_and_one_begun_there_counts() {
    let mut matcher = matcher(&["aba"]);
    assert_eq!(matcher.pass("xaba"), "xab");
    assert_eq!(matcher.push("ba"), matched("", 0));
}

#[test]
fn without_stops_everything_passes_at_once() {
    let mut none = matcher(&[]);
    assert_eq!(none.push("abc"), released("abc"));
    let mut empty = matcher(&[""]);
    assert_eq!(empty.push("abc"), released("abc"));
    assert_eq!(empty.finish(), "");
}

#[test]
fn neither_stops_nor_held_text_can_be_printed() {
    let mut matcher = matcher(&["secret"]);
    let outcome = matcher.push("my sec");
    let shown = format!("{matcher:?} {outcome:?}");
    assert!(!shown.contains("sec") && !shown.contains("my"), "{shown}");
}

/// The rule in words, by searching the whole text again after every delta.
struct Naive {
    stops: Vec<String>,
    text: String,
    passed: usize,
}

impl Naive {
    /// The winning occurrence as (start, length, index).
    fn winner(&self) -> Option<(usize, usize, usize)> {
        let occurrences = self.stops.iter().enumerate().flat_map(|(index, stop)| {
            let starts = (0..self.text.len()).filter(|at| self.text.as_bytes()[*at..].starts_with(stop.as_bytes()));
            starts.map(move |start| (start, stop.len(), index))
        });
        occurrences.filter(|(start, len, _)| start + len > self.passed).min()
    }

    /// How much of the text may be shown while nothing is matched.
    fn safe(&self) -> usize {
        let may_grow = |at: &usize| {
            self.stops
                .iter()
                .any(|s| s.len() > self.text.len() - at && s.as_bytes().starts_with(&self.text.as_bytes()[*at..]))
        };
        (0..self.text.len()).find(may_grow).unwrap_or(self.text.len())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_cut_gives_what_a_search_of_the_whole_text_after_each_delta_gives(
        stops in prop::collection::vec("[abé]{1,5}", 0..4),
        deltas in prop::collection::vec("[abé]{0,4}", 0..12),
        minimum in 0usize..4,
    ) {
        let texts: Vec<_> = stops.iter().cloned().map(ClientText).collect();
        let mut matcher = StopMatcher::new(&texts);
        let mut naive = Naive { stops, text: String::new(), passed: 0 };
        let mut shown = String::new();
        for (index, delta) in deltas.iter().enumerate() {
            naive.text.push_str(delta);
            if index < minimum {
                shown.push_str(&matcher.pass(delta));
                naive.passed = naive.text.len();
            } else {
                let outcome = matcher.push(delta);
                shown.push_str(&outcome.released);
                let winner = naive.winner();
                prop_assert_eq!(outcome.matched, winner.map(|(_, _, index)| index));
                if let Some((start, _, _)) = winner {
                    prop_assert_eq!(&shown, &naive.text[..start]);
                    return Ok(());
                }
            }
            prop_assert_eq!(&shown, &naive.text[..naive.safe()]);
        }
        shown.push_str(&matcher.finish());
        prop_assert_eq!(shown, naive.text);
    }
}
