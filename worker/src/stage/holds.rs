//! Which adapters a stage holds for the groups of its head: how many need each, who waits for an answer. Pure: the line says
//! what is decided here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use shoal_common::ids::Generation;

/// An adapter that the stage was asked for.
#[derive(Debug)]
enum Need<Waiter> {
    /// It has not answered.
    Asked(Vec<Waiter>),
    /// It holds it, for so many.
    Held(usize),
}

/// What somebody who needs an adapter has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted<Waiter> {
    /// Nothing: it is held.
    Held(Waiter),
    /// Ask the stage.
    Ask,
    /// Wait for an answer that is on its way.
    Wait,
}

/// Whether a stage needs to hold an adapter any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Returned {
    /// Somebody else does.
    Needed,
    /// It was the last who did.
    Last,
}

/// All of them. Bound: as many waiters as the head has groups.
#[derive(Debug)]
pub(super) struct Holds<Waiter>(HashMap<Generation, Need<Waiter>>);

impl<Waiter> Default for Holds<Waiter> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<Waiter> Holds<Waiter> {
    /// Somebody needs the adapter.
    pub(super) fn want(&mut self, generation: Generation, waiter: Waiter) -> Wanted<Waiter> {
        match self.0.entry(generation) {
            Entry::Vacant(place) => {
                place.insert(Need::Asked(vec![waiter]));
                Wanted::Ask
            }
            Entry::Occupied(mut place) => match place.get_mut() {
                Need::Asked(waiting) => {
                    waiting.push(waiter);
                    Wanted::Wait
                }
                Need::Held(users) => {
                    *users += 1;
                    Wanted::Held(waiter)
                }
            },
        }
    }

    /// The stage holds it for all who wait for that; nothing where it was not asked.
    pub(super) fn held(&mut self, generation: Generation) -> Option<Vec<Waiter>> {
        let need = self.0.get_mut(&generation)?;
        let Need::Asked(waiting) = need else { return None };
        let waiting = std::mem::take(waiting);
        *need = Need::Held(waiting.len());
        Some(waiting)
    }

    /// The stage cannot hold it; nothing where it was not asked.
    pub(super) fn refused(&mut self, generation: Generation) -> Option<Vec<Waiter>> {
        match self.0.remove(&generation)? {
            Need::Asked(waiting) => Some(waiting),
            Need::Held(_) => None,
        }
    }

    /// One of those for whom it is held needs it no more.
    pub(super) fn give_back(&mut self, generation: Generation) -> Returned {
        match self.0.get_mut(&generation) {
            Some(Need::Held(users)) if *users > 1 => *users -= 1,
            Some(Need::Held(_)) => {
                self.0.remove(&generation);
                return Returned::Last;
            }
            Some(Need::Asked(_)) | None => {}
        }
        Returned::Needed
    }
}

#[cfg(test)]
mod tests {
    use shoal_common::ids::Digest;

    use super::*;

    const A: Generation = Generation(Digest([1; 32]));

    #[test]
    fn the_stage_is_asked_once_and_released_by_the_last() {
        let mut holds = Holds::default();
        assert_eq!(holds.want(A, 1), Wanted::Ask);
        assert_eq!(holds.want(A, 2), Wanted::Wait);
        assert_eq!(holds.held(A), Some(vec![1, 2]));
        assert_eq!(holds.want(A, 3), Wanted::Held(3));
        assert_eq!([(); 3].map(|()| holds.give_back(A)), [Returned::Needed, Returned::Needed, Returned::Last]);
        assert_eq!(holds.want(A, 4), Wanted::Ask, "it may be gone by now");
    }

    #[test]
    fn who_waits_hears_a_refusal_and_an_answer_to_no_question_is_none() {
        let mut holds = Holds::default();
        assert_eq!(holds.held(A), None);
        holds.want(A, 1);
        assert_eq!(holds.refused(A), Some(vec![1]));
        assert_eq!(holds.refused(A), None);
        holds.want(A, 2);
        holds.held(A);
        assert_eq!(holds.held(A), None);
    }
}
