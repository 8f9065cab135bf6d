//! Arbitrary bytes as each kind of frame: decoding must neither panic nor allocate out of proportion, and what it accepts
//! must be a value that encodes and decodes again to itself.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_common::wire::blob::{BlobHeader, Nearer, TokenizerBundle};
use shoal_common::wire::codec::{Frame, decode, encode};
use shoal_common::wire::hello::{RouterControl, WorkerControl};
use shoal_common::wire::message::{GroupFrame, GroupOrder, StreamOpen, WorkerOpen};
use shoal_common::wire::stage::{HeadFrame, StageFrame};

fuzz_target!(|input: &[u8]| {
    let Some((kind, body)) = input.split_first() else { return };
    match kind % 11 {
        0 => check::<StreamOpen>(body),
        1 => check::<GroupOrder>(body),
        2 => check::<GroupFrame>(body),
        3 => check::<WorkerControl>(body),
        4 => check::<RouterControl>(body),
        5 => check::<BlobHeader>(body),
        6 => check::<WorkerOpen>(body),
        7 => check::<HeadFrame>(body),
        8 => check::<StageFrame>(body),
        9 => check::<Nearer>(body),
        _ => check::<TokenizerBundle>(body),
    }
});

fn check<F: Frame>(body: &[u8]) {
    let Ok(value) = decode::<F>(body) else { return };
    // A number may have been written wider than it needs, so what was accepted can shrink once and never grow.
    let canonical = encode(&value).expect("what was decoded within the limit encodes within it");
    assert!(canonical.len() <= body.len());
    let again = decode::<F>(&canonical).expect("what was encoded decodes");
    assert_eq!(encode(&again).expect("it was encoded before"), canonical);
}
