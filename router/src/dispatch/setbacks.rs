//! Whether a group whose worker was lost goes on elsewhere. Pure.
//!
//! What a group makes a worker compute depends on nothing but the group, to the bit. So one that kills its worker kills the
//! next one too, at the same place: soon after it got there. A group whose workers die soon after they got it, two in a row,
//! is *poisonous*. One that had stayed for a while when its worker died is not blamed, nor for what was before: else those
//! that shared a worker with a poisonous group would end with it.

/// Workers in a row that may die soon after they got a group before it is blamed.
const DEATHS: u32 = 2;
/// Steps after which a group has stayed for a while. A dying worker takes the frames with it that it had not sent, so that
/// a group may be a few steps behind the place that kills.
const A_WHILE: u32 = 16;

/// How a group came to lose its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Nothing is heard of it any more: its machine, its process or the way there is gone.
    OutOfReach,
    /// It has closed its connection because it failed.
    Died,
    /// Its engine failed, got stuck or lost a part of its model.
    Broken,
    /// It has parted in order.
    Parted,
    /// It broke the protocol on the group's stream.
    Misbehaved,
}

impl Loss {
    fn may_be_the_group_s_doing(self) -> bool {
        matches!(self, Self::OutOfReach | Self::Died | Self::Broken)
    }
}

/// How long the worker's engine had turned with the group, by its own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    /// Not long.
    Short,
    /// For a while, whether the group had a token of it or not: prompts wait for their turn.
    Long,
}

/// What follows from a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The group goes on elsewhere.
    Replay,
    /// Workers die of it.
    Poisonous,
    /// It has gone on elsewhere as often as is allowed.
    Exhausted,
}

/// What has befallen a group so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Setbacks {
    replays: u32,
    /// Deaths in a row soon after a worker got it.
    deaths: u32,
    /// Steps since the last loss.
    steps: u32,
}

impl Setbacks {
    /// A step of the group has come.
    pub(super) fn step(&mut self) {
        self.steps = self.steps.saturating_add(1);
    }

    /// A worker was lost after a stay of so long; the group goes on elsewhere `allowed` times at most, orderly partings apart.
    pub(super) fn suffer(&mut self, loss: Loss, stay: Stay, allowed: u32) -> Verdict {
        let is_long = std::mem::take(&mut self.steps) >= A_WHILE || stay == Stay::Long;
        self.deaths = if is_long { 0 } else { self.deaths + u32::from(loss.may_be_the_group_s_doing()) };
        if loss == Loss::Parted {
            return Verdict::Replay;
        }
        if self.deaths >= DEATHS {
            return Verdict::Poisonous;
        }
        if self.replays >= allowed {
            return Verdict::Exhausted;
        }
        self.replays += 1;
        Verdict::Replay
    }

    /// A worker was lost after it was sent the group and before it had said that it has it.
    pub(super) fn unheard(&mut self, loss: Loss) -> Verdict {
        self.deaths += u32::from(loss.may_be_the_group_s_doing());
        if self.deaths >= DEATHS { Verdict::Poisonous } else { Verdict::Replay }
    }

    /// How often it has gone on elsewhere.
    pub(super) fn replays(&self) -> u32 {
        self.replays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(losses: &[(u32, Loss)], allowed: u32) -> Vec<Verdict> {
        let mut setbacks = Setbacks::default();
        let suffer = |(steps, loss): &(u32, Loss)| {
            (0..*steps).for_each(|_| setbacks.step());
            setbacks.suffer(*loss, Stay::Short, allowed)
        };
        losses.iter().map(suffer).collect()
    }

    #[test]
    fn a_group_of_which_two_workers_died_soon_is_not_given_to_a_third() {
        for first in [Loss::OutOfReach, Loss::Died, Loss::Broken] {
            for second in [Loss::OutOfReach, Loss::Died, Loss::Broken] {
                assert_eq!(verdicts(&[(15, first), (0, second)], 9), [Verdict::Replay, Verdict::Poisonous]);
            }
        }
    }

    #[test]
    fn a_group_that_had_gone_on_for_a_while_is_not_blamed() {
        let died = Loss::OutOfReach;
        let verdicts = verdicts(&[(0, died), (16, died), (500, died), (3, died), (3, died)], 9);
        assert_eq!(verdicts[..4], [Verdict::Replay; 4]);
        assert_eq!(verdicts[4], Verdict::Poisonous);
    }

    #[test]
    fn a_worker_that_dies_before_it_can_say_that_it_has_the_group_counts() {
        let mut setbacks = Setbacks::default();
        assert_eq!(setbacks.unheard(Loss::Parted), Verdict::Replay);
        assert_eq!(setbacks.suffer(Loss::OutOfReach, Stay::Short, 9), Verdict::Replay);
        assert_eq!(setbacks.unheard(Loss::OutOfReach), Verdict::Poisonous);
        assert_eq!(setbacks.replays(), 1);
    }

    #[test]
    fn a_group_whose_prompt_waited_for_its_turn_on_workers_that_died_is_not_blamed() {
        let mut setbacks = Setbacks::default();
        let mut suffer = |stay| setbacks.suffer(Loss::OutOfReach, stay, 9);
        assert_eq!([Stay::Short, Stay::Long, Stay::Short].map(&mut suffer), [Verdict::Replay; 3]);
        assert_eq!(suffer(Stay::Short), Verdict::Poisonous);
    }

    #[test]
    fn workers_that_part_in_order_are_nobody_s_fault() {
        let losses = [(0, Loss::Parted), (0, Loss::OutOfReach), (0, Loss::Parted), (0, Loss::Parted)];
        assert_eq!(verdicts(&losses, 1), [Verdict::Replay; 4]);
    }

    #[test]
    fn nothing_is_tried_for_ever() {
        let losses = [(99, Loss::OutOfReach); 4];
        assert_eq!(verdicts(&losses, 3), [Verdict::Replay, Verdict::Replay, Verdict::Replay, Verdict::Exhausted]);
        assert_eq!(verdicts(&[(0, Loss::Misbehaved)], 0), [Verdict::Exhausted]);
    }
}
