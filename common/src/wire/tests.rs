//! What the codec refuses, and that a refusal costs next to nothing.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

use super::blob::{BlobHeader, Nearer, TokenizerBundle};
use super::codec::{CodecError, Frame, FrameReader, decode, encode, encode_frame, write_frame};
use super::hello::{RouterControl, WorkerControl};
use super::message::{BranchStart, GroupFrame, GroupOrder, MAX_BRANCHES, PromptIds, StreamOpen, Submit};
use super::snapshot_tests::{examples, submit};
use crate::ids::{BranchIndex, TokenId};

/// Hands out its bytes and then fails the test: nothing after them may be asked for.
struct Nothing<'a>(&'a [u8]);

impl AsyncRead for Nothing<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        assert!(!self.0.is_empty(), "the codec read on");
        let take = self.0.len().min(buf.remaining());
        buf.put_slice(&self.0[..take]);
        self.0 = &self.0[take..];
        Poll::Ready(Ok(()))
    }
}

async fn refuses_length<F: Frame + std::fmt::Debug>() {
    for len in [F::LIMIT + 1, 1 << 31, u32::MAX as usize] {
        let prefix = u32::try_from(len).unwrap().to_le_bytes();
        match FrameReader::new(Nothing(&prefix)).next::<F>().await.unwrap_err() {
            CodecError::TooLong { len: told, limit } => assert_eq!((told, limit), (len, F::LIMIT)),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_length_over_the_limit_is_refused_before_the_body_is_read() {
    refuses_length::<WorkerControl>().await;
    refuses_length::<RouterControl>().await;
    refuses_length::<StreamOpen>().await;
    refuses_length::<GroupOrder>().await;
    refuses_length::<GroupFrame>().await;
    refuses_length::<BlobHeader>().await;
    refuses_length::<Nearer>().await;
    refuses_length::<TokenizerBundle>().await;
}

#[tokio::test]
async fn what_is_too_long_is_not_sent_either() {
    // Two bytes of UTF-8 a character: over the limit of a control frame.
    let long = RouterControl::Refused(super::hello::Refusal::BadTokenizer("ä".repeat(RouterControl::LIMIT / 2)));
    let mut out = b"kept".to_vec();
    assert!(matches!(encode_frame(&long, &mut out), Err(CodecError::TooLong { .. })));
    assert_eq!(out, b"kept");
    assert!(matches!(write_frame(&mut out, &long).await, Err(CodecError::TooLong { .. })));
    assert_eq!(out, b"kept");
}

#[tokio::test]
async fn the_end_between_frames_is_told_from_the_end_within_one() {
    let mut frame = Vec::new();
    encode_frame(&RouterControl::Drain, &mut frame).unwrap();
    assert!(matches!(FrameReader::new(&frame[..0]).next::<RouterControl>().await, Err(CodecError::Ended)));
    for cut in 1..frame.len() {
        match FrameReader::new(&frame[..cut]).next::<RouterControl>().await {
            Err(CodecError::Io(error)) => assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{cut}"),
            other => panic!("{other:?} after {cut} bytes"),
        }
    }
    assert_eq!(FrameReader::new(&frame[..]).next::<RouterControl>().await.unwrap(), RouterControl::Drain);
}

#[test]
fn every_message_is_refused_when_a_byte_is_missing_or_too_many() {
    for example in examples() {
        assert_eq!((example.again)(&example.body).unwrap(), example.body, "{}", example.name);
        for cut in 0..example.body.len() {
            let refused = (example.again)(&example.body[..cut]);
            assert!(matches!(refused, Err(CodecError::Malformed(_))), "{} cut at {cut}: {refused:?}", example.name);
        }
        let longer = [&example.body[..], &[0, 0]].concat();
        let refused = (example.again)(&longer);
        // The smallest kinds meet their limit first.
        assert!(matches!(refused, Err(CodecError::Trailing(2))), "{}: {refused:?}", example.name);
    }
}

#[test]
fn an_unknown_variant_is_refused() {
    for example in examples().iter().filter(|example| example.name != "tokenizer_bundle") {
        for variant in [40, 250] {
            let mut body = example.body.clone();
            body[0] = variant;
            let refused = (example.again)(&body);
            assert!(matches!(refused, Err(CodecError::Malformed(_))), "{}: {refused:?}", example.name);
        }
    }
}

/// bincode's variable-length form of a `u64`.
fn huge(value: u64) -> Vec<u8> {
    [&[253][..], &value.to_le_bytes()].concat()
}

#[test]
fn a_list_that_announces_2_to_the_60_elements_is_refused() {
    let announced = huge(1 << 60);
    // `GroupFrame::Step` with its list; `Step([token])` with its list of alternatives; the prompt of a submission.
    let step = [&[2][..], &announced].concat();
    let alternatives = [&[2, 1, 0, 0, 5, 1, 5][..], &[0; 4], &announced].concat();
    for body in [step, alternatives] {
        assert!(matches!(decode::<GroupFrame>(&body), Err(CodecError::Malformed(_))), "{body:?}");
    }
    let prompt = [&[0][..], &[7; 32], &announced, &[1; 64]].concat();
    assert!(matches!(decode::<StreamOpen>(&prompt), Err(CodecError::Malformed(_))));
}

#[test]
fn a_string_that_announces_more_than_its_frame_holds_is_refused_before_it_is_allocated() {
    // `Refused(BadTokenizer(string))` with nothing behind the length.
    for announced in [16 << 10, 32 << 20, 1 << 60, u64::MAX] {
        let body = [&[1, 3][..], &huge(announced)].concat();
        match decode::<RouterControl>(&body) {
            Err(CodecError::Malformed(error)) => assert!(
                matches!(
                    *error,
                    bincode::error::DecodeError::LimitExceeded | bincode::error::DecodeError::OutsideUsizeRange(_)
                ),
                "{announced}: {error:?}"
            ),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn more_branches_than_a_group_may_have_are_refused_where_they_are_decoded() {
    let open = |count: usize| {
        let branches = vec![BranchStart { choice: 0, emitted: PromptIds::default() }; count];
        StreamOpen::Group(Box::new(Submit { branches, ..submit() }))
    };
    let decoded = |count| decode::<StreamOpen>(&encode(&open(count)).unwrap());
    assert_eq!(decoded(MAX_BRANCHES).unwrap(), open(MAX_BRANCHES));
    for count in [MAX_BRANCHES + 1, 4_000_000] {
        assert!(matches!(decoded(count), Err(CodecError::Malformed(_))));
    }
}

#[test]
fn the_longest_frames_are_taken() {
    let ids = |count: usize, id| PromptIds(vec![TokenId(id); count]);
    // A million of the widest ids, and as many one-byte ids as a frame holds: the latter claim the most memory a byte.
    for prompt in [ids(1 << 20, u32::MAX), ids(StreamOpen::LIMIT - 512, 1)] {
        let open = StreamOpen::Group(Box::new(Submit { prompt, ..submit() }));
        assert_eq!(decode::<StreamOpen>(&encode(&open).unwrap()).unwrap(), open);
    }
    let json = vec![b'x'; TokenizerBundle::LIMIT - 64];
    let bundle = TokenizerBundle {
        tokenizer_json: json,
        bos: None,
        add_bos: false,
        eos: Vec::new(),
        document_separator: None,
        fim: None,
        chat_template: None,
    };
    assert!(decode::<TokenizerBundle>(&encode(&bundle).unwrap()).unwrap() == bundle);
}

#[test]
fn a_body_over_the_limit_is_refused_however_it_came() {
    let body = vec![0; GroupOrder::LIMIT + 1];
    assert!(matches!(decode::<GroupOrder>(&body), Err(CodecError::TooLong { .. })));
}

/// `body` with the one place where `from` stands changed to `to`.
fn patched(body: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let places: Vec<usize> =
        body.windows(from.len()).enumerate().filter(|(_, window)| *window == from).map(|(at, _)| at).collect();
    assert_eq!(places.len(), 1, "{from:?} is not in one place");
    [&body[..places[0]], to, &body[places[0] + from.len()..]].concat()
}

#[test]
fn a_sampling_value_out_of_range_is_refused_where_it_is_decoded() {
    let body = encode(&StreamOpen::Group(Box::new(submit()))).unwrap();
    // The values of the example, by which the fields are found, and what each field refuses beside what all refuse.
    let fields: [(f64, &[f64]); 7] = [
        (-99.5, &[-100.001, 100.001]),
        (1.125, &[0.0, -1.0, 10.001]),
        (-0.375, &[-2.001, 2.001]),
        (0.625, &[-2.001, 2.001]),
        (0.8125, &[-0.001, 2.001]),
        (0.0625, &[-0.001, 1.001]),
        (0.9375, &[-0.001, 1.001]),
    ];
    for (good, bad) in fields {
        for value in bad.iter().copied().chain([f64::NAN, f64::INFINITY, f64::NEG_INFINITY]) {
            let refused = decode::<StreamOpen>(&patched(&body, &good.to_le_bytes(), &value.to_le_bytes()));
            assert!(matches!(refused, Err(CodecError::Malformed(_))), "{value} in place of {good} was taken");
        }
    }
    // `top_k` 0 has no meaning: off is absent.
    let top_k = [&[252][..], &0x7fff_1234_u32.to_le_bytes()].concat();
    assert!(decode::<StreamOpen>(&patched(&body, &top_k, &[40])).is_ok());
    assert!(matches!(decode::<StreamOpen>(&patched(&body, &top_k, &[0])), Err(CodecError::Malformed(_))));
}

#[test]
fn a_name_outside_its_alphabet_is_refused_where_it_is_decoded() {
    let hello = examples().into_iter().find(|example| example.name == "worker_control_hello").unwrap();
    for bad in [b"../", b"w\0w", b" w1", b"w\n1"] {
        let refused = decode::<WorkerControl>(&patched(&hello.body, b"w-1", bad));
        assert!(matches!(refused, Err(CodecError::Malformed(_))), "{bad:?} was taken");
    }
}

#[test]
fn an_index_that_does_not_fit_its_type_is_refused() {
    let too_wide = [&[0, 252][..], &65_536_u32.to_le_bytes()].concat();
    assert!(matches!(decode::<GroupOrder>(&too_wide), Err(CodecError::Malformed(_))));
    let widest = [&[0, 251][..], &u16::MAX.to_le_bytes()].concat();
    assert_eq!(decode::<GroupOrder>(&widest).unwrap(), GroupOrder::StopBranch(BranchIndex(u16::MAX)));
}
