//! When files that somebody may still be copying are ready to be read: once their stamp has stayed the same for a while. Pure:
//! time comes in as an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shoal_common::ids::Name;

use super::stamp::Stamp;

/// What is known of each place.
#[derive(Debug)]
pub struct Quiet {
    seen: BTreeMap<Name, Seen>,
    period: Duration,
}

#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    since: Instant,
    attention: Attention,
}

/// Whether anything is still to be done about a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attention {
    Due,
    Given,
}

/// What a look found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Changed, and quiet since.
    pub ready: Vec<Name>,
    /// Changed, and perhaps changing still: to be looked at again after the period.
    pub restless: Vec<Name>,
}

impl Quiet {
    /// Nothing seen yet. What has not changed for `period` is quiet.
    pub fn new(period: Duration) -> Self {
        Self { seen: BTreeMap::new(), period }
    }

    /// Notes how everything looks now. What is not among `stamps` is forgotten.
    pub fn look(&mut self, stamps: &BTreeMap<Name, Stamp>, now: Instant) -> Look {
        self.seen.retain(|name, _| stamps.contains_key(name));
        let mut look = Look::default();
        for (name, stamp) in stamps {
            let fresh = || Seen { stamp: stamp.clone(), since: now, attention: Attention::Due };
            let seen = self.seen.entry(name.clone()).or_insert_with(fresh);
            if seen.stamp != *stamp {
                *seen = fresh();
            }
            match seen.attention {
                Attention::Given => {}
                Attention::Due if now.saturating_duration_since(seen.since) >= self.period => {
                    look.ready.push(name.clone());
                }
                Attention::Due => look.restless.push(name.clone()),
            }
        }
        look
    }

    /// Nothing more is to be done about `name` until it changes.
    pub fn done(&mut self, name: &Name) {
        self.set(name, Attention::Given);
    }

    /// `name` is to be done again, as it is.
    pub fn again(&mut self, name: &Name) {
        self.set(name, Attention::Due);
    }

    fn set(&mut self, name: &Name, attention: Attention) {
        if let Some(seen) = self.seen.get_mut(name) {
            seen.attention = attention;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One place whose files are replaced as the test goes.
    struct Place {
        dir: tempfile::TempDir,
        quiet: Quiet,
        begin: Instant,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { dir, quiet: Quiet::new(Duration::from_secs(1)), begin: Instant::now() }
        }

        fn write(&self, text: &str) {
            std::fs::write(self.dir.path().join("adapter_config.json"), text).unwrap();
        }

        /// What a look after `seconds` finds: `ready`, `restless` or nothing to do.
        fn look(&mut self, seconds: f64) -> &'static str {
            let stamps = BTreeMap::from([(name(), Stamp::of(self.dir.path()))]);
            let look = self.quiet.look(&stamps, self.begin + Duration::from_secs_f64(seconds));
            match (look.ready.len(), look.restless.len()) {
                (1, 0) => "ready",
                (0, 1) => "restless",
                (0, 0) => "nothing",
                _ => panic!("{look:?}"),
            }
        }
    }

    fn name() -> Name {
        Name::new("a").unwrap()
    }

    #[test]
    fn files_that_are_being_copied_are_left_alone_until_they_stay_the_same() {
        let mut place = Place::new();
        assert_eq!(place.look(0.0), "restless");
        assert_eq!(place.look(0.9), "restless");
        place.write("half");
        assert_eq!(place.look(1.1), "restless", "a change was not noticed");
        place.write("the whole of it");
        assert_eq!(place.look(1.9), "restless");
        assert_eq!(place.look(2.8), "restless", "the last change is not a second ago");
        assert_eq!(place.look(2.9), "ready");
    }

    #[test]
    fn what_is_done_is_done_until_it_changes_or_is_asked_for_again() {
        let mut place = Place::new();
        place.look(0.0);
        assert_eq!(place.look(1.0), "ready");
        assert_eq!(place.look(1.1), "ready", "nobody has taken it in yet");
        place.quiet.done(&name());
        assert_eq!(place.look(9.0), "nothing");
        place.quiet.again(&name());
        assert_eq!(place.look(9.1), "ready");
        place.quiet.done(&name());
        place.write("new");
        assert_eq!(place.look(9.2), "restless");
    }

    #[test]
    fn what_was_gone_in_between_is_new() {
        let mut place = Place::new();
        place.look(0.0);
        place.quiet.done(&name());
        place.quiet.look(&BTreeMap::new(), place.begin);
        assert_eq!(place.look(5.0), "restless");
    }
}
