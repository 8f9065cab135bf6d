//! The scripted engine as a backend like any other, and its promises to tests.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;
use shoal_common::wire::blob::TokenizerBundle;

use shoal_common::ids::Generation;

use super::*;
use crate::adapters::Adapter;
use crate::backend::LogitsOf;
use crate::backend::tables::{Name, Tables};

fn script() -> Script {
    Script { step: Duration::ZERO, salt: 7, ..Script::default() }
}

fn text_ids(text: &str) -> Vec<TokenId> {
    text.bytes().map(|byte| TokenId(u32::from(byte))).collect()
}

/// An engine with the sequences it holds.
struct Bench {
    engine: Scripted,
    tables: Tables,
}

impl Bench {
    fn new(script: &Script) -> Self {
        let mut engine = Scripted::new(script);
        let tables = Tables::reserve(&mut engine, 128);
        Self { engine, tables }
    }

    /// All rows of `tokens` fed from `start` on, cut into chunks.
    fn extend(&mut self, name: Name, start: usize, tokens: &[TokenId], chunk: usize) -> Vec<Vec<f32>> {
        let mut buffer = LogitsBuffer::default();
        let mut rows = Vec::new();
        self.tables.grow(name, start + tokens.len());
        for (index, part) in tokens.chunks(chunk).enumerate() {
            let slice = self.tables.slice(name, start + index * chunk, part, LogitsOf::All);
            self.engine.forward(&[slice], &mut buffer).unwrap();
            rows.extend((0..part.len()).map(|row| buffer.row(row).to_vec()));
        }
        rows
    }

    /// All rows of a sequence of its own.
    fn alone(&mut self, tokens: &[TokenId], chunk: usize) -> Vec<Vec<f32>> {
        let name = self.tables.name();
        let rows = self.extend(name, 0, tokens, chunk);
        self.tables.release(name);
        rows
    }
}

fn refusal(result: Result<(), BackendError>) -> ScriptedError {
    let error = result.expect_err("was accepted");
    *error.source.downcast::<ScriptedError>().expect("is one of ours")
}

fn tokens(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<TokenId>> {
    prop::collection::vec((0..VOCAB as u32).prop_map(TokenId), length)
}

proptest! {
    #[test]
    fn every_chunking_gives_the_same_bits(tokens in tokens(1..150)) {
        let whole: Vec<_> = (1..=tokens.len()).map(|end| logits(&script(), None, &tokens[..end])).collect();
        let mut bench = Bench::new(&script());
        for chunk in [1, 7, 64, tokens.len()] {
            prop_assert_eq!(&bench.alone(&tokens, chunk), &whole);
        }
    }

    #[test]
    fn a_fork_equals_recomputing_its_prefix(tokens in tokens(2..60), rest in tokens(1..20), cut in 1_usize..60) {
        let cut = cut.min(tokens.len());
        let mut bench = Bench::new(&script());
        let root = bench.tables.name();
        bench.extend(root, 0, &tokens, 64);
        let fork = bench.tables.fork(&mut bench.engine, root, cut).unwrap();
        let forked = bench.extend(fork, cut, &rest, 64);
        let fresh = bench.alone(&[&tokens[..cut], &rest[..]].concat(), 64);
        prop_assert_eq!(forked, fresh[cut..].to_vec());
        // The source is as it was.
        let more = bench.extend(root, tokens.len(), &rest, 64);
        let all = bench.alone(&[&tokens[..], &rest[..]].concat(), 64);
        prop_assert_eq!(more, all[tokens.len()..].to_vec());
    }

    #[test]
    fn strangers_in_a_step_change_nothing(ours in tokens(1..40), theirs in tokens(1..40)) {
        let mut bench = Bench::new(&script());
        let names = [(); 3].map(|()| bench.tables.name());
        names.iter().for_each(|name| bench.tables.grow(*name, 40));
        let step = [
            bench.tables.slice(names[0], 0, &theirs, LogitsOf::None),
            bench.tables.slice(names[1], 0, &ours, LogitsOf::Last),
            bench.tables.slice(names[2], 0, &theirs, LogitsOf::All),
        ];
        let mut buffer = LogitsBuffer::default();
        bench.engine.forward(&step, &mut buffer).unwrap();
        prop_assert_eq!(buffer.row(0), &logits(&script(), None, &ours)[..]);
        prop_assert_eq!(buffer.row(theirs.len()), &logits(&script(), None, &theirs)[..]);
    }

    #[test]
    fn the_best_token_leads_by_a_clear_margin(history in tokens(0..40), salt in any::<u64>()) {
        let mut row = logits(&Script { salt, ..script() }, None, &history);
        row.sort_by(|a, b| b.total_cmp(a));
        prop_assert!(row[0] - row[1] >= 0.5 && row.iter().all(|logit| logit.is_finite()));
    }
}

#[test]
fn the_oracle_is_the_argmax_of_the_engine_s_rows() {
    let mut history = text_ids("Once upon a time");
    let expected = greedy(&script(), None, &history, 50);
    for token in expected {
        let row = logits(&script(), None, &history);
        assert!(row.iter().all(|&logit| logit <= row[token.index()]));
        history.push(token);
    }
}

#[test]
fn a_wrong_step_is_refused_and_changes_nothing() {
    let mut bench = Bench::new(&Script { context: 5, ..script() });
    let (name, abc) = (bench.tables.name(), text_ids("abc"));
    bench.extend(name, 0, &abc, 3);
    let table = bench.tables.slice(name, 0, &abc, LogitsOf::Last).blocks.to_vec();
    let slice = |start, tokens| Slice { start, tokens, blocks: &table, adapter: None, logits: LogitsOf::Last };
    let outside = [TokenId(VOCAB as u32)];
    let elsewhere =
        Slice { start: 0, tokens: &outside, blocks: &[BlockId(100)], adapter: None, logits: LogitsOf::Last };
    let wrong: [(&[Slice<'_>], BadStep); 4] = [
        (&[slice(3, &[])], BadStep::Empty { slice: 0 }),
        (&[slice(3, &abc)], BadStep::BeyondContext { slice: 0 }),
        (&[slice(3, &abc[..1]), elsewhere], BadStep::OutsideVocabulary { slice: 1 }),
        (&[slice(3, &abc[..1]), slice(3, &abc[..1])], BadStep::Clobbered(table[0])),
    ];
    for (step, expected) in wrong {
        let refused = refusal(bench.engine.forward(step, &mut LogitsBuffer::default()));
        assert!(matches!(refused, ScriptedError::BadStep(bad) if bad == expected), "{refused}");
    }
    assert_eq!(bench.extend(name, 3, &abc[..1], 1), [logits(&script(), None, &text_ids("abca"))]);
}

#[test]
fn a_wrong_copy_and_a_pool_too_large_are_refused() {
    let mut bench = Bench::new(&script());
    let refused = refusal(bench.engine.copy_block(BlockId(0), BlockId(128)));
    assert!(matches!(refused, ScriptedError::BadStep(BadStep::OutsidePool(BlockId(128)))));
    assert!(matches!(refusal(bench.engine.reserve(usize::MAX / 64)), ScriptedError::NoMemory(_)));
}

#[test]
fn a_clobbered_block_changes_the_answer() {
    let mut bench = Bench::new(&script());
    let (ours, theirs) = (bench.tables.name(), bench.tables.name());
    let tokens = text_ids("A text that is a good deal longer than one block.");
    bench.extend(ours, 0, &tokens, 64);
    bench.extend(theirs, 0, &text_ids("Another text, seventeen."), 64);
    let blocks = |name| bench.tables.slice(name, 0, &[], LogitsOf::None).blocks[0];
    let (mine, other) = (blocks(ours), blocks(theirs));
    bench.engine.copy_block(other, mine).unwrap();
    let next = bench.extend(ours, tokens.len(), &text_ids("!"), 1);
    assert_ne!(next, [logits(&script(), None, &[tokens, text_ids("!")].concat())]);
}

#[test]
fn an_adapter_gives_other_answers_than_the_base_model_and_than_another_adapter() {
    let adapters = [None, Some(b"a"), Some(b"b")].map(|content| content.map(|of| Generation(Digest::of(of))));
    let mut bench = Bench::new(&script());
    let text = text_ids("Once upon a time there was a step with several adapters.");
    let names = adapters.map(|_| bench.tables.name());
    names.iter().for_each(|name| bench.tables.grow(*name, text.len()));
    let loaded = adapters.map(|generation| generation.map(Adapter::empty));
    let slice =
        |at: usize| Slice { adapter: loaded[at].as_ref(), ..bench.tables.slice(names[at], 0, &text, LogitsOf::Last) };
    let mut buffer = LogitsBuffer::default();
    bench.engine.forward(&[slice(0), slice(1), slice(2)], &mut buffer).unwrap();
    for (row, generation) in adapters.into_iter().enumerate() {
        assert_eq!(buffer.row(row), logits(&script(), generation, &text));
    }
    assert!(buffer.row(0) != buffer.row(1) && buffer.row(0) != buffer.row(2) && buffer.row(1) != buffer.row(2));
}

#[test]
fn a_sequence_that_changes_its_adapter_is_refused_and_nothing_changes() {
    let [a, b] = [b"a", b"b"].map(|content| Adapter::empty(Generation(Digest::of(content))));
    let prompt = text_ids("longer than one block");
    for adapters in [[Some(&a), Some(&b)], [Some(&a), None], [None, Some(&a)]] {
        // At a block's end and within one.
        for cut in [16, 18] {
            let mut bench = Bench::new(&script());
            let name = bench.tables.name();
            bench.tables.grow(name, prompt.len());
            let head = bench.tables.slice(name, 0, &prompt[..cut], LogitsOf::None);
            let tail = bench.tables.slice(name, cut, &prompt[cut..], LogitsOf::Last);
            let with = |adapter, slice| [Slice { adapter, ..slice }];
            let mut buffer = LogitsBuffer::default();
            bench.engine.forward(&with(adapters[0], head), &mut buffer).unwrap();
            let refused = refusal(bench.engine.forward(&with(adapters[1], tail), &mut buffer));
            assert!(matches!(refused, ScriptedError::OtherAdapter(0)), "{refused}");
            bench.engine.forward(&with(adapters[0], tail), &mut buffer).unwrap();
            assert_eq!(buffer.row(0), logits(&script(), adapters[0].map(Adapter::generation), &prompt));
        }
    }
}

#[test]
fn a_failing_prompt_fails_its_step_and_only_where_faults_are_on() {
    let poisoned = text_ids("please !!fail!! now");
    Bench::new(&script()).alone(&poisoned, 64);
    let mut faulty = Bench::new(&Script { faults: Faults::On, ..script() });
    let name = faulty.tables.name();
    faulty.tables.grow(name, poisoned.len());
    let step = [faulty.tables.slice(name, 0, &poisoned, LogitsOf::Last)];
    let refused = refusal(faulty.engine.forward(&step, &mut LogitsBuffer::default()));
    assert!(matches!(refused, ScriptedError::Scripted));
    faulty.alone(&text_ids("harmless"), 64);
}

#[test]
fn a_trigger_is_found_wherever_a_prefill_is_cut() {
    let script = Script { faults: Faults::On, ..script() };
    for (text, fault) in
        [("A lot of text!!fail!!cd", Fault::Fail), ("ab!!hang!!cd", Fault::Hang), ("!!crash!!cd", Fault::Crash)]
    {
        let prompt = text_ids(text);
        for cut in 1..prompt.len() {
            let mut bench = Bench::new(&script);
            let name = bench.tables.name();
            bench.tables.grow(name, prompt.len());
            let head = [bench.tables.slice(name, 0, &prompt[..cut], LogitsOf::None)];
            let tail = [bench.tables.slice(name, cut, &prompt[cut..], LogitsOf::Last)];
            let at_head = bench.engine.planned_fault(&head);
            if at_head.is_none() {
                bench.engine.forward(&head, &mut LogitsBuffer::default()).unwrap();
                assert_eq!(bench.engine.planned_fault(&tail), Some(fault), "{text} cut at {cut}");
            } else {
                assert_eq!((at_head, cut >= prompt.len() - 2), (Some(fault), true), "{text} cut at {cut}");
            }
        }
    }
}

#[test]
fn answers_end_as_often_as_the_script_says() {
    let prompt = text_ids("How long is a piece of string?");
    let ends = |every: Option<u32>| {
        let script = Script { eos_every: every.and_then(NonZeroU32::new), ..script() };
        greedy(&script, None, &prompt, 20_000).into_iter().filter(|&token| token == EOS).count()
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
    let answer = greedy(&script, None, &prompt, 500);
    assert!(answer.iter().all(|token| matches!(token.0, 10 | 32..=126)));
    let distinct: HashSet<_> = answer.iter().collect();
    assert!(distinct.len() > 60, "{} characters in use", distinct.len());
    assert_ne!(answer, greedy(&Script { salt: 8, ..script }, None, &prompt, 500));
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
