//! What is known of one worker's adapters.

use proptest::prelude::*;

use super::*;
use crate::fleet::adapters::{Adapters, LoadKind, News, Room, TOLD};

fn told(states: impl IntoIterator<Item = AdapterState>) -> Adapters {
    let mut adapters = Adapters::default();
    states.into_iter().for_each(|state| adapters.note(state, News::Change));
    adapters
}

fn pinned(of: u64) -> AdapterState {
    AdapterState { pinned: true, ..adapter(of, AdapterTier::Memory) }
}

fn loaded(of: u64, ms: u32) -> AdapterState {
    AdapterState { load_ms: Some(ms), ..adapter(of, AdapterTier::Memory) }
}

#[test]
fn reads_and_fetches_are_timed_apart_and_only_as_they_end() {
    use AdapterTier::{Disk, Loading};
    let mut adapters = Adapters::default();
    let times = |adapters: &Adapters| [LoadKind::Read, LoadKind::Fetch].map(|kind| adapters.predict_ms(kind));
    let unknown = times(&adapters);
    // What was there before is no measurement, nor is what is told again.
    adapters.note(loaded(1, 9_000), News::Introduction);
    adapters.note(loaded(1, 9_000), News::Change);
    assert_eq!(times(&adapters), unknown);
    let mut tell = |states: &[AdapterState]| {
        states.iter().for_each(|state| adapters.note(state.clone(), News::Change));
        times(&adapters)
    };
    assert_eq!(tell(&[adapter(2, Disk), adapter(2, Loading), loaded(2, 40)]), [40, unknown[1]]);
    assert_eq!(tell(&[adapter(3, Loading), loaded(3, 800)]), [40, 800]);
    // News of a load may come together with its end.
    assert_eq!(tell(&[adapter(4, Disk), loaded(4, 80)]), [50, 800]);
    assert_eq!(tell(&[loaded(5, 400)]), [50, 700]);
    tell(&[adapter(6, Loading)]);
    assert_eq!([6, 5, 7].map(|of| adapters.ready_in_ms(generation(of))), [350, 0, 700]);
}

#[test]
fn room_is_what_neither_pins_nor_groups_hold() {
    let memory = |of| adapter(of, AdapterTier::Memory);
    let room = |adapters: &Adapters, of, in_use: &[u64]| {
        let in_use: Vec<_> = in_use.iter().map(|of| generation(*of)).collect();
        adapters.room_for(generation(of), 1 << 20, &in_use, &CAPACITY)
    };
    let three = told([memory(1), memory(2), pinned(3)]);
    assert_eq!(room(&three, 9, &[]), Room::Free);
    assert_eq!(room(&three, 9, &[8]), Room::Evicts, "one that is on its way there was not counted");
    assert_eq!(room(&three, 9, &[1, 2, 8]), Room::Waits);
    assert_eq!(room(&three, 1, &[1, 2, 8]), Room::Free, "it is there");
    assert_eq!(room(&told((1..5).map(memory)), 9, &[]), Room::Evicts);
    assert_eq!(room(&told((1..5).map(pinned)), 9, &[]), Room::Never);
    assert_eq!(room(&told((1..5).map(pinned)), 2, &[]), Room::Free);
}

#[test]
fn bytes_are_a_budget_as_slots_are() {
    let large = |of, pinned| AdapterState { bytes: 3 << 20, pinned, ..adapter(of, AdapterTier::Memory) };
    let room = |adapters: &Adapters, bytes| adapters.room_for(generation(9), bytes, &[], &CAPACITY);
    assert_eq!(room(&told([large(1, false)]), 1 << 20), Room::Free);
    assert_eq!(room(&told([large(1, false)]), 2 << 20), Room::Evicts);
    assert_eq!(room(&told([large(1, true)]), 2 << 20), Room::Never);
    assert_eq!(room(&told([]), 5 << 20), Room::Never, "it is larger than all there is");
    let none = Capacity { adapter_slots: 0, ..CAPACITY };
    assert_eq!(told([]).room_for(generation(9), 0, &[], &none), Room::Never);
}

#[test]
fn of_too_many_adapters_the_oldest_on_disk_are_forgotten() {
    let on_disk = (0..TOLD as u64 + 50).map(|of| adapter(of, AdapterTier::Disk));
    let adapters = told([adapter(u64::MAX, AdapterTier::Memory)].into_iter().chain(on_disk));
    assert_eq!(adapters.len(), TOLD);
    assert_eq!(adapters.iter().count(), TOLD);
    assert!(adapters.get(generation(u64::MAX)).is_some(), "one in memory was forgotten before those on disk");
    assert!(adapters.get(generation(0)).is_none() && adapters.get(generation(TOLD as u64 + 49)).is_some());
}

#[test]
fn an_endless_reason_is_cut_between_characters() {
    let reason = Some("ä".repeat(AdapterState::MAX_REASON));
    let adapters = told([AdapterState { reason, ..adapter(1, AdapterTier::Quarantined) }]);
    let kept = adapters.get(generation(1)).and_then(|state| state.reason.clone()).unwrap();
    assert_eq!(kept, "ä".repeat(AdapterState::MAX_REASON / 2));
}

#[test]
fn a_copy_keeps_what_it_showed() {
    let mut adapters = told([adapter(1, AdapterTier::Memory)]);
    let copy = adapters.clone();
    adapters.note(adapter(1, AdapterTier::Gone), News::Change);
    assert!(adapters.is_empty() && copy.get(generation(1)).is_some());
}

fn any_state() -> impl Strategy<Value = AdapterState> {
    use AdapterTier::{Disk, Gone, Loading, Memory, Quarantined};
    let tier = prop::sample::select(vec![Memory, Disk, Loading, Quarantined, Gone]);
    (0u64..12, tier, 0u64..9, any::<bool>(), any::<Option<u32>>())
        .prop_map(|(of, tier, bytes, pinned, load_ms)| AdapterState { bytes, pinned, load_ms, ..adapter(of, tier) })
}

proptest! {
    #[test]
    fn what_memory_holds_is_what_the_states_say(states in prop::collection::vec(any_state(), 0..60)) {
        let adapters = told(states);
        let in_memory = |state: &&AdapterState| matches!(state.tier, AdapterTier::Memory | AdapterTier::Loading);
        let resident: Vec<_> = adapters.iter().filter(in_memory).collect();
        prop_assert_eq!(adapters.resident().slots as usize, resident.len());
        prop_assert_eq!(adapters.resident().bytes, resident.iter().map(|state| state.bytes).sum::<u64>());
        prop_assert_eq!(adapters.len(), adapters.iter().count());
        prop_assert!(adapters.iter().all(|state| state.tier != AdapterTier::Gone));
    }
}
