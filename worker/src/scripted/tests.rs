//! The scripted engine as a backend like any other, and its promises to tests.

use std::num::NonZeroU32;

use proptest::prelude::*;
use shoal_common::wire::blob::TokenizerBundle;

use super::*;

const SEQUENCE: SequenceId = SequenceId(1);

fn script() -> Script {
    Script { step: Duration::ZERO, salt: 7, ..Script::default() }
}

fn text_ids(text: &str) -> Vec<TokenId> {
    text.bytes().map(|byte| TokenId(u32::from(byte))).collect()
}

fn slice<'a>(sequence: SequenceId, start: usize, tokens: &'a [TokenId], logits: LogitsOf) -> Slice<'a> {
    Slice { sequence, start, tokens, logits }
}

/// All rows of `tokens` fed from `start` on, cut into chunks.
fn rows_by_chunks(
    engine: &mut Scripted,
    id: SequenceId,
    start: usize,
    tokens: &[TokenId],
    chunk: usize,
) -> Vec<Vec<f32>> {
    let mut buffer = LogitsBuffer::default();
    let mut rows = Vec::new();
    for (index, part) in tokens.chunks(chunk).enumerate() {
        engine.forward(&[slice(id, start + index * chunk, part, LogitsOf::All)], &mut buffer).unwrap();
        rows.extend((0..part.len()).map(|row| buffer.row(row).to_vec()));
    }
    rows
}

fn refusal(result: Result<(), BackendError>) -> ScriptedError {
    let error = result.expect_err("was accepted");
    error.source.downcast_ref::<ScriptedError>().expect("is one of ours").clone()
}

fn tokens(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<TokenId>> {
    prop::collection::vec((0..VOCAB as u32).prop_map(TokenId), length)
}

proptest! {
    #[test]
    fn every_chunking_gives_the_same_bits(tokens in tokens(1..150)) {
        let whole: Vec<_> = (1..=tokens.len()).map(|end| logits(&script(), &tokens[..end])).collect();
        for chunk in [1, 7, 64, tokens.len()] {
            prop_assert_eq!(&rows_by_chunks(&mut Scripted::new(&script()), SEQUENCE, 0, &tokens, chunk), &whole);
        }
    }

    #[test]
    fn a_fork_equals_recomputing_its_prefix(tokens in tokens(2..60), rest in tokens(1..20), cut in 1_usize..60) {
        let cut = cut.min(tokens.len());
        let mut engine = Scripted::new(&script());
        rows_by_chunks(&mut engine, SEQUENCE, 0, &tokens, 64);
        engine.fork(SEQUENCE, SequenceId(2), cut).unwrap();
        let forked = rows_by_chunks(&mut engine, SequenceId(2), cut, &rest, 64);
        let joined = [&tokens[..cut], &rest[..]].concat();
        let fresh = rows_by_chunks(&mut Scripted::new(&script()), SEQUENCE, 0, &joined, 64);
        prop_assert_eq!(forked, fresh[cut..].to_vec());
        // The source is as it was.
        let more = rows_by_chunks(&mut engine, SEQUENCE, tokens.len(), &rest, 64);
        let all = rows_by_chunks(&mut Scripted::new(&script()), SEQUENCE, 0, &[&tokens[..], &rest[..]].concat(), 64);
        prop_assert_eq!(more, all[tokens.len()..].to_vec());
    }

    #[test]
    fn strangers_in_a_step_change_nothing(ours in tokens(1..40), theirs in tokens(1..40)) {
        let mut buffer = LogitsBuffer::default();
        let step = [
            slice(SequenceId(9), 0, &theirs, LogitsOf::None),
            slice(SEQUENCE, 0, &ours, LogitsOf::Last),
            slice(SequenceId(8), 0, &theirs, LogitsOf::All),
        ];
        Scripted::new(&script()).forward(&step, &mut buffer).unwrap();
        prop_assert_eq!(buffer.row(0), &logits(&script(), &ours)[..]);
        prop_assert_eq!(buffer.row(theirs.len()), &logits(&script(), &theirs)[..]);
    }

    #[test]
    fn the_best_token_leads_by_a_clear_margin(history in tokens(0..40), salt in any::<u64>()) {
        let mut row = logits(&Script { salt, ..script() }, &history);
        row.sort_by(|a, b| b.total_cmp(a));
        prop_assert!(row[0] - row[1] >= 0.5 && row.iter().all(|logit| logit.is_finite()));
    }
}

#[test]
fn the_oracle_is_the_argmax_of_the_engine_s_rows() {
    let mut history = text_ids("Once upon a time");
    let expected = greedy(&script(), &history, 50);
    for token in expected {
        let row = logits(&script(), &history);
        assert!(row.iter().all(|&logit| logit <= row[token.index()]));
        history.push(token);
    }
}

#[test]
fn a_wrong_step_is_refused_and_changes_nothing() {
    let mut engine = Scripted::new(&Script { context: 5, ..script() });
    let mut buffer = LogitsBuffer::default();
    let abc = text_ids("abc");
    let mut refuse = |engine: &mut Scripted, step: &[Slice<'_>]| refusal(engine.forward(step, &mut buffer));
    let last = LogitsOf::Last;
    assert_eq!(refuse(&mut engine, &[slice(SEQUENCE, 1, &abc, last)]), ScriptedError::Unknown(SEQUENCE));
    rows_by_chunks(&mut engine, SEQUENCE, 0, &abc, 3);
    for start in [0, 2, 4] {
        let wrong = ScriptedError::WrongStart { sequence: SEQUENCE, start, held: 3 };
        assert_eq!(refuse(&mut engine, &[slice(SEQUENCE, start, &abc[..1], last)]), wrong);
    }
    assert_eq!(refuse(&mut engine, &[slice(SEQUENCE, 3, &[], last)]), ScriptedError::Empty(SEQUENCE));
    assert_eq!(refuse(&mut engine, &[slice(SEQUENCE, 3, &abc, last)]), ScriptedError::TooLong(SEQUENCE));
    let outside = [TokenId(VOCAB as u32)];
    assert_eq!(refuse(&mut engine, &[slice(SEQUENCE, 3, &outside, last)]), ScriptedError::OutsideVocabulary(SEQUENCE));
    let one = slice(SEQUENCE, 3, &abc[..1], last);
    assert_eq!(refuse(&mut engine, &[one, one]), ScriptedError::Twice(SEQUENCE));
    let good_then_bad = [one, slice(SequenceId(2), 0, &outside, last)];
    assert_eq!(refuse(&mut engine, &good_then_bad), ScriptedError::OutsideVocabulary(SequenceId(2)));
    assert_eq!(rows_by_chunks(&mut engine, SEQUENCE, 3, &abc[..1], 1), [logits(&script(), &text_ids("abca"))]);
}

#[test]
fn a_wrong_fork_is_refused() {
    let mut engine = Scripted::new(&script());
    let other = SequenceId(2);
    assert_eq!(refusal(engine.fork(SEQUENCE, other, 0)), ScriptedError::Unknown(SEQUENCE));
    rows_by_chunks(&mut engine, SEQUENCE, 0, &text_ids("abc"), 3);
    let too_long = ScriptedError::ForkTooLong { sequence: SEQUENCE, length: 4, held: 3 };
    assert_eq!(refusal(engine.fork(SEQUENCE, other, 4)), too_long);
    engine.fork(SEQUENCE, other, 3).unwrap();
    assert_eq!(refusal(engine.fork(SEQUENCE, other, 3)), ScriptedError::Exists(other));
    engine.release(SEQUENCE);
    engine.release(SEQUENCE);
    assert_eq!(refusal(engine.fork(SEQUENCE, SequenceId(3), 1)), ScriptedError::Unknown(SEQUENCE));
    rows_by_chunks(&mut engine, other, 3, &text_ids("d"), 1);
}

#[test]
fn a_failing_prompt_fails_its_step_and_only_where_faults_are_on() {
    let poisoned = text_ids("please !!fail!! now");
    let mut buffer = LogitsBuffer::default();
    let step = [slice(SEQUENCE, 0, &poisoned, LogitsOf::Last)];
    Scripted::new(&script()).forward(&step, &mut buffer).unwrap();
    let mut faulty = Scripted::new(&Script { faults: Faults::On, ..script() });
    assert_eq!(refusal(faulty.forward(&step, &mut buffer)), ScriptedError::Scripted);
    rows_by_chunks(&mut faulty, SEQUENCE, 0, &text_ids("harmless"), 64);
}

#[test]
fn a_trigger_is_found_wherever_a_prefill_is_cut() {
    let script = Script { faults: Faults::On, ..script() };
    for (text, fault) in [("ab!!fail!!cd", Fault::Fail), ("ab!!hang!!cd", Fault::Hang)] {
        let prompt = text_ids(text);
        for cut in 1..prompt.len() {
            let mut engine = Scripted::new(&script);
            let (head, tail) = prompt.split_at(cut);
            let (head, tail) =
                ([slice(SEQUENCE, 0, head, LogitsOf::None)], [slice(SEQUENCE, cut, tail, LogitsOf::Last)]);
            let at_head = engine.planned_fault(&head);
            if at_head.is_none() {
                engine.forward(&head, &mut LogitsBuffer::default()).unwrap();
                assert_eq!(engine.planned_fault(&tail), Some(fault), "{text} cut at {cut}");
            } else {
                assert_eq!((at_head, cut >= 10), (Some(fault), true), "{text} cut at {cut}");
            }
        }
    }
}

#[test]
fn answers_end_as_often_as_the_script_says() {
    let prompt = text_ids("How long is a piece of string?");
    let ends = |every: Option<u32>| {
        let script = Script { eos_every: every.and_then(NonZeroU32::new), ..script() };
        greedy(&script, &prompt, 20_000).into_iter().filter(|&token| token == EOS).count()
    };
    assert_eq!(ends(None), 0);
    assert_eq!(ends(Some(1)), 20_000);
    // One in 64 of 20,000 is 312, with a deviation of 18; the text is fixed, so this never flickers.
    assert!((240..390).contains(&ends(Some(64))), "{}", ends(Some(64)));
}

#[test]
fn answers_are_readable_and_differ_by_salt() {
    let prompt = text_ids("Say something");
    let script = Script { eos_every: None, ..script() };
    let answer = greedy(&script, &prompt, 500);
    assert!(answer.iter().all(|token| matches!(token.0, 10 | 32..=126)));
    let distinct: HashSet<_> = answer.iter().collect();
    assert!(distinct.len() > 60, "{} characters in use", distinct.len());
    assert_ne!(answer, greedy(&Script { salt: 8, ..script }, &prompt, 500));
}

#[test]
fn the_digest_names_what_changes_answers_and_nothing_else() {
    let base = digest(&script());
    assert_ne!(base, digest(&Script { salt: 8, ..script() }));
    assert_ne!(base, digest(&Script { eos_every: None, ..script() }));
    let elsewhere = Script { step: Duration::from_secs(1), context: 99, faults: Faults::On, ..script() };
    assert_eq!(base, digest(&elsewhere));
}

#[test]
fn the_tokenizer_gives_every_byte_its_own_id_and_back() {
    let TokenizerBundle { tokenizer_json, bos, eos, fim, .. } = bundle();
    let tokenizer = tokenizers::Tokenizer::from_bytes(tokenizer_json).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), VOCAB);
    // U+0000..U+10FFFF in UTF-8 has every byte that valid text can have.
    let text: String = (0..0x800).chain((0x800..0x11_0000).step_by(0x1f7)).filter_map(char::from_u32).collect();
    let encoded = tokenizer.encode_fast(text.as_str(), false).unwrap();
    assert_eq!(encoded.get_ids(), text.bytes().map(u32::from).collect::<Vec<_>>());
    assert_eq!(tokenizer.decode(encoded.get_ids(), false).unwrap(), text);
    let spelled = ["<|bos|>", "<|eos|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
    let fim = fim.unwrap();
    let expected = [bos.unwrap(), eos[0], fim.prefix, fim.suffix, fim.middle];
    assert_eq!(spelled.map(|text| tokenizer.token_to_id(text)), expected.map(|id| Some(id.0)));
    let mixed = tokenizer.encode_fast("a<|eos|> b", false).unwrap();
    assert_eq!(mixed.get_ids(), [97, EOS.0, 32, 98]);
}
