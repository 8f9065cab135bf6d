//! What a head tells routers of its stages: who is there, why somebody is not, and how busy each is. A session makes a
//! [`Teller`] of the [`Board`] and asks it what is new. Pure but for the counters: the time is an argument.

use std::time::{Duration, Instant};

use shoal_common::ids::{Incarnation, LayerRange, Name};
use shoal_common::wire::hello::{AdapterState, StageReport};
use tokio::sync::watch;

use super::meter::{Computed, Meter};
use super::replica::StageState;

/// Over which a share of time is taken, and between two reports of nothing but shares.
const SHARE_OVER: Duration = Duration::from_secs(1);

/// The head's view of its replica. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Board {
    head: StageReport,
    states: watch::Receiver<Vec<StageState>>,
    /// The head's, then the others' in their order.
    meters: Vec<Meter>,
}

impl Board {
    /// `meters` are as many as `states`, and the head's before them.
    pub(super) fn new(
        (worker, incarnation, layers): (Name, Incarnation, LayerRange),
        states: watch::Receiver<Vec<StageState>>,
        meters: Vec<Meter>,
    ) -> Self {
        let head = StageReport {
            worker,
            incarnation: Some(incarnation),
            address: None,
            layers,
            reason: None,
            steps: 0,
            computing_us: 0,
            busy_permille: 0,
        };
        Self { head, states, meters }
    }

    /// For one router.
    pub fn teller(&self, now: Instant) -> Teller {
        let marks = self.meters.iter().map(Meter::read).collect();
        Teller { board: self.clone(), told: Vec::new(), marks, marked: now }
    }

    /// What is so now, but for the shares.
    fn look(&self) -> Vec<StageReport> {
        let states = self.states.borrow();
        let others = states.iter().map(report);
        let counted = |(report, meter): (StageReport, &Meter)| {
            let Computed { steps, computing_us } = meter.read();
            StageReport { steps, computing_us, ..report }
        };
        [self.head.clone()].into_iter().chain(others).zip(&self.meters).map(counted).collect()
    }
}

fn report(state: &StageState) -> StageReport {
    let mut reason = state.reason.clone();
    reason.iter_mut().for_each(AdapterState::cut_reason);
    StageReport {
        worker: state.member.worker.clone(),
        incarnation: state.incarnation,
        address: Some(state.member.address.clone()),
        layers: state.member.layers,
        reason,
        steps: 0,
        computing_us: 0,
        busy_permille: 0,
    }
}

/// What one router has been told.
#[derive(Debug)]
pub struct Teller {
    board: Board,
    told: Vec<StageReport>,
    /// What the meters showed when shares were last taken.
    marks: Vec<Computed>,
    marked: Instant,
}

impl Teller {
    /// What is to be told now, if anything: at once when a stage came or went, else once a second while something computes.
    pub fn news(&mut self, now: Instant) -> Option<Vec<StageReport>> {
        let mut reports = self.board.look();
        let over = now.saturating_duration_since(self.marked);
        let is_due = over >= SHARE_OVER;
        for (at, report) in reports.iter_mut().enumerate() {
            let before = self.told.get(at).map_or(0, |told| told.busy_permille);
            report.busy_permille = if is_due { share(self.marks[at], report, over) } else { before };
        }
        if is_due {
            let marks =
                reports.iter().map(|report| Computed { steps: report.steps, computing_us: report.computing_us });
            (self.marks, self.marked) = (marks.collect(), now);
        }
        let is_new = if is_due { reports != self.told } else { !same_members(&reports, &self.told) };
        is_new.then(|| {
            self.told.clone_from(&reports);
            reports
        })
    }
}

/// Whether nobody came or went.
fn same_members(one: &[StageReport], other: &[StageReport]) -> bool {
    let of = |report: &StageReport| (report.incarnation, report.reason.clone());
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| of(one) == of(other))
}

fn share(mark: Computed, now: &StageReport, over: Duration) -> u16 {
    let computing = now.computing_us.saturating_sub(mark.computing_us);
    let permille = u128::from(computing) * 1000 / over.as_micros().max(1);
    // A step that ends in one second may have begun in the one before.
    u16::try_from(permille.min(1000)).unwrap_or(1000)
}

#[cfg(test)]
mod tests {
    use super::super::replica::Member;
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn board() -> (Board, watch::Sender<Vec<StageState>>, Vec<Meter>) {
        let layers = LayerRange { begin: 2, end: 4 };
        let member = Member { worker: name("beta"), address: "gpu2:8444".to_owned(), layers };
        let (tell, states) = watch::channel(vec![StageState { member, incarnation: None, reason: None }]);
        let meters = vec![Meter::default(), Meter::default()];
        let head = (name("alpha"), Incarnation(7), LayerRange { begin: 0, end: 2 });
        (Board::new(head, states, meters.clone()), tell, meters)
    }

    #[test]
    fn who_comes_and_goes_is_told_at_once_and_nothing_twice() {
        let (board, tell, _) = board();
        let start = Instant::now();
        let mut teller = board.teller(start);
        let first = teller.news(start).expect("nothing was told yet");
        assert_eq!((first[0].worker.as_str(), first[0].incarnation), ("alpha", Some(Incarnation(7))));
        assert_eq!((first[1].address.as_deref(), first[1].incarnation), (Some("gpu2:8444"), None));
        assert_eq!(teller.news(start + Duration::from_millis(25)), None);
        tell.send_modify(|states| states[0].reason = Some("ä".repeat(1000)));
        let reason = teller.news(start + Duration::from_millis(50)).expect("it says why")[1].reason.clone();
        assert_eq!(reason.expect("a reason").len(), AdapterState::MAX_REASON);
        tell.send_modify(|states| (states[0].incarnation, states[0].reason) = (Some(Incarnation(9)), None));
        assert_eq!(
            teller.news(start + Duration::from_millis(75)).expect("it is there")[1].incarnation,
            Some(Incarnation(9))
        );
        assert_eq!(teller.news(start + Duration::from_secs(2)), None, "an idle replica says nothing");
    }

    #[test]
    fn shares_are_of_the_last_second_and_end_at_all_of_it() {
        let (board, _tell, meters) = board();
        let start = Instant::now();
        let mut teller = board.teller(start);
        teller.news(start);
        meters[0].add(Duration::from_millis(250));
        meters[1].add(Duration::from_millis(1500));
        assert_eq!(teller.news(start + Duration::from_millis(900)), None);
        let shares = |reports: Vec<StageReport>| reports.iter().map(|report| report.busy_permille).collect::<Vec<_>>();
        let busy = teller.news(start + Duration::from_millis(1000)).expect("a second is over");
        assert_eq!((busy[0].steps, busy[1].computing_us), (1, 1_500_000));
        assert_eq!(shares(busy), [250, 1000]);
        assert_eq!(shares(teller.news(start + Duration::from_secs(2)).expect("they rest")), [0, 0]);
        assert_eq!(teller.news(start + Duration::from_secs(4)), None);
    }
}
