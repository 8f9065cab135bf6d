//! Whatever is sent arrives, for any values that the types allow.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::blob::{BlobHeader, BlobRequest, FimTokens, MAX_NEARER, Nearer, TokenizerBundle};
use super::codec::{Frame, FrameReader, decode, encode, encode_frame};
use super::hello::{
    AdapterOrder, AdapterState, AdapterTier, Capacity, Hello, Lending, Locality, ModelCard, Refusal, RouterControl,
    StageReport, Status, WorkerControl, WorkerState,
};
use super::message::{
    BranchEnd, BranchStart, BranchToken, EndRules, GroupFailure, GroupFrame, GroupOrder, PromptIds, StreamOpen, Submit,
    TokenScore, WorkerOpen,
};
use super::stage::{HeadFrame, StageFrame, StageHello, StageSlice, StageStep};
use crate::adapter::Geometry;
use crate::block_hash::CacheSalt;
use crate::fingerprint::Fingerprint;
use crate::ids::{BranchIndex, Digest, Generation, Incarnation, LayerRange, Name, TokenId, Zone};
use crate::sampling::{Bias, MinP, Penalty, RepetitionPenalty, SamplingParams, Temperature, TopP};

/// Any value, with the ends of the range and of each width of the variable-length encoding well represented.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(250),
        Just(251),
        Just(u64::from(u16::MAX)),
        Just(u64::from(u16::MAX) + 1),
        Just(u64::from(u32::MAX)),
        Just(u64::from(u32::MAX) + 1),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

fn number32() -> impl Strategy<Value = u32> {
    number().prop_map(|wide| u32::try_from(wide).unwrap_or(wide as u32))
}

fn token() -> impl Strategy<Value = TokenId> {
    number32().prop_map(TokenId)
}

fn tokens() -> impl Strategy<Value = Vec<TokenId>> {
    vec(token(), 0..50)
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn fingerprint() -> impl Strategy<Value = Fingerprint> {
    (digest(), option::of(generation()), digest(), any::<String>())
        .prop_map(|(weights, adapter, tokenizer, class)| Fingerprint::new(weights, adapter, tokenizer, &class))
}

fn name() -> impl Strategy<Value = Name> {
    "n[aZ7._-]{0,63}(/[aZ7_-][aZ7._-]{0,62})?".prop_map(|text| Name::new(text).unwrap())
}

/// Every bit pattern: NaN with any payload, both infinities, both zeros, subnormals.
fn logprob() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits)
}

/// `low..=high` with both ends likely.
fn within(low: f64, high: f64) -> impl Strategy<Value = f64> {
    prop_oneof![Just(low), Just(high), low..=high]
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    let bias = (token(), within(-100.0, 100.0).prop_map(|x| Bias::new(x).unwrap()));
    let penalty = || within(-2.0, 2.0).prop_map(|x| Penalty::new(x).unwrap());
    (
        vec(bias, 0..20),
        within(f64::MIN_POSITIVE, 10.0).prop_map(|x| RepetitionPenalty::new(x).unwrap()),
        (penalty(), penalty()),
        within(0.0, 2.0).prop_map(|x| Temperature::new(x).unwrap()),
        within(0.0, 1.0).prop_map(|x| MinP::new(x).unwrap()),
        number32().prop_map(std::num::NonZeroU32::new),
        within(0.0, 1.0).prop_map(|x| TopP::new(x).unwrap()),
        number(),
    )
        .prop_map(
            |(logit_bias, repetition_penalty, (frequency, presence), temperature, min_p, top_k, top_p, seed)| {
                SamplingParams {
                    logit_bias,
                    repetition_penalty,
                    frequency_penalty: frequency,
                    presence_penalty: presence,
                    temperature,
                    min_p,
                    top_k,
                    top_p,
                    seed,
                }
            },
        )
}

fn submit() -> impl Strategy<Value = Submit> {
    let branch =
        (number32(), tokens()).prop_map(|(choice, emitted)| BranchStart { choice, emitted: PromptIds(emitted) });
    let end = (number32(), number32(), tokens()).prop_map(|(max_tokens, min_tokens, stop_ids)| EndRules {
        max_tokens,
        min_tokens,
        stop_ids,
    });
    let asked = (
        option::of(generation()),
        option::of(any::<u8>()),
        option::of(any::<u8>()),
        number(),
        number(),
        option::of(number32()),
    );
    (fingerprint(), tokens(), vec(branch, 0..17), sampling(), end, asked).prop_map(
        |(
            fingerprint,
            prompt,
            branches,
            sampling,
            end,
            (adapter, score_tokens, score_prompt, share_key, salt, deadline_ms),
        )| {
            Submit {
                fingerprint,
                adapter,
                prompt: PromptIds(prompt),
                branches,
                sampling,
                end,
                score_tokens,
                score_prompt,
                share_key,
                cache_salt: CacheSalt(salt),
                deadline_ms,
            }
        },
    )
}

fn stream_open() -> impl Strategy<Value = StreamOpen> {
    prop_oneof![
        submit().prop_map(|submit| StreamOpen::Group(Box::new(submit))),
        digest().prop_map(|digest| StreamOpen::Blob(BlobRequest { digest })),
    ]
}

fn score() -> impl Strategy<Value = TokenScore> {
    (token(), logprob(), vec((token(), logprob()), 0..=20)).prop_map(|(token, logprob, alternatives)| TokenScore {
        token,
        logprob,
        alternatives,
    })
}

fn group_frame() -> impl Strategy<Value = GroupFrame> {
    let end = option::of(prop_oneof![Just(BranchEnd::StopToken), Just(BranchEnd::Length)]);
    let step = (any::<u16>(), number32(), token(), option::of(score()), end).prop_map(
        |(branch, position, token, score, end)| BranchToken {
            branch: BranchIndex(branch),
            position,
            token,
            score,
            end,
        },
    );
    let failure = prop_oneof![
        Just(GroupFailure::WrongFingerprint),
        Just(GroupFailure::Invalid),
        Just(GroupFailure::Deadline),
        Just(GroupFailure::ShuttingDown),
        Just(GroupFailure::Engine),
        Just(GroupFailure::AdapterRefused),
        Just(GroupFailure::AdapterUnavailable),
        Just(GroupFailure::Incomplete),
    ];
    prop_oneof![
        (number32(), vec(score(), 0..30)).prop_map(|(first, scores)| GroupFrame::PromptScores { first, scores }),
        vec(step, 0..20).prop_map(GroupFrame::Step),
        Just(GroupFrame::Accepted),
        number32().prop_map(|retry_after_ms| GroupFrame::Busy { retry_after_ms }),
        failure.prop_map(GroupFrame::Failed),
    ]
}

fn model_card() -> impl Strategy<Value = ModelCard> {
    let layers = (number32(), number32()).prop_map(|(begin, end)| LayerRange { begin, end });
    let sizes = (number32(), number32(), number32());
    let geometry = (number32(), number32(), number32(), number32(), number32()).prop_map(
        |(layers, hidden, intermediate, queries, keys)| Geometry { layers, hidden, intermediate, queries, keys },
    );
    (name(), digest(), digest(), fingerprint(), any::<String>(), layers, sizes, geometry).prop_map(
        |(name, weights, tokenizer, fingerprint, numerics_class, layers, sizes, geometry)| {
            let (layer_count, vocab_size, context) = sizes;
            ModelCard {
                name,
                weights,
                tokenizer,
                fingerprint,
                numerics_class,
                layers,
                layer_count,
                vocab_size,
                context,
                geometry,
            }
        },
    )
}

fn generation() -> impl Strategy<Value = Generation> {
    digest().prop_map(Generation)
}

fn adapter_state() -> impl Strategy<Value = AdapterState> {
    let tier = prop_oneof![
        Just(AdapterTier::Memory),
        Just(AdapterTier::Disk),
        Just(AdapterTier::Loading),
        Just(AdapterTier::Quarantined),
        Just(AdapterTier::Gone),
    ];
    let times = (option::of(number32()), option::of(number32()));
    (generation(), tier, number(), number32(), times, any::<bool>(), option::of(any::<String>())).prop_map(
        |(generation, tier, bytes, rank, (load_ms, idle_ms), pinned, reason)| AdapterState {
            generation,
            tier,
            bytes,
            rank,
            load_ms,
            idle_ms,
            pinned,
            reason,
        },
    )
}

fn worker_control() -> impl Strategy<Value = WorkerControl> {
    let capacity = (number32(), number(), number32(), number32(), number()).prop_map(
        |(slots, kv_tokens, groups, adapter_slots, adapter_bytes)| Capacity {
            slots,
            kv_tokens,
            groups,
            adapter_slots,
            adapter_bytes,
        },
    );
    let zone = "[A-Za-z0-9][A-Za-z0-9._-]{0,31}".prop_map(|text| Zone::new(text).unwrap());
    let locality = (zone, prop_oneof![Just(Lending::Nobody), Just(Lending::Workers)])
        .prop_map(|(zone, lending)| Locality { zone, lending });
    let hello = (name(), number(), any::<String>(), capacity, model_card(), option::of(locality)).prop_map(
        |(worker, incarnation, build, capacity, model, locality)| {
            let incarnation = Incarnation(incarnation);
            WorkerControl::Hello(Box::new(Hello { worker, incarnation, build, capacity, model, locality }))
        },
    );
    let state = prop_oneof![Just(WorkerState::Ready), Just(WorkerState::Draining), Just(WorkerState::Incomplete)];
    let load = (number(), number32(), number32(), number(), number(), number32());
    let totals = (number(), number(), number());
    let status = (state, load, totals).prop_map(|(state, load, (looked_up_tokens, cached_tokens, preemptions))| {
        let (progress, running, waiting, queued_tokens, kv_used, tokens_per_second) = load;
        WorkerControl::Status(Status {
            state,
            progress,
            running,
            waiting,
            queued_tokens,
            kv_used,
            tokens_per_second,
            looked_up_tokens,
            cached_tokens,
            preemptions,
        })
    });
    let stages = vec(stage_report(), 0..5).prop_map(WorkerControl::Stages);
    let died = any::<u64>().prop_map(|life| WorkerControl::Died(Incarnation(life)));
    prop_oneof![hello, status, adapter_state().prop_map(WorkerControl::Adapter), stages, died]
}

fn stage_report() -> impl Strategy<Value = StageReport> {
    let layers = (number32(), number32()).prop_map(|(begin, end)| LayerRange { begin, end });
    let texts = (option::of(any::<String>()), option::of(any::<String>()));
    (name(), option::of(number()), layers, texts, (number(), number(), any::<u16>())).prop_map(
        |(worker, incarnation, layers, (address, reason), (steps, computing_us, busy_permille))| StageReport {
            worker,
            incarnation: incarnation.map(Incarnation),
            address,
            layers,
            reason,
            steps,
            computing_us,
            busy_permille,
        },
    )
}

fn router_control() -> impl Strategy<Value = RouterControl> {
    let refusal = prop_oneof![
        Just(Refusal::DuplicateName),
        Just(Refusal::WrongCertificate),
        (name(), digest(), digest()).prop_map(|(model, expected, got)| Refusal::ModelMismatch { model, expected, got }),
        any::<String>().prop_map(Refusal::BadTokenizer),
        Just(Refusal::IncompleteModel),
    ];
    prop_oneof![
        number().prop_map(|router| RouterControl::Welcome { router: Incarnation(router) }),
        refusal.prop_map(RouterControl::Refused),
        Just(RouterControl::Drain),
        Just(RouterControl::Undrain),
        (generation(), 0..4).prop_map(|(generation, order)| {
            let orders = [AdapterOrder::Load, AdapterOrder::Pin, AdapterOrder::Unpin, AdapterOrder::Forget];
            RouterControl::Adapter(orders[order as usize](generation))
        }),
    ]
}

fn head_frame() -> impl Strategy<Value = HeadFrame> {
    let layers = (number32(), number32()).prop_map(|(begin, end)| LayerRange { begin, end });
    let numbers = (number(), number(), number32(), number32());
    let hello = (name(), numbers, digest(), any::<String>(), layers).prop_map(
        |(head, (incarnation, epoch, numerics_version, blocks), weights, numerics_class, layers)| {
            let incarnation = Incarnation(incarnation);
            let hello =
                StageHello { head, incarnation, epoch, weights, numerics_class, numerics_version, layers, blocks };
            HeadFrame::Hello(Box::new(hello))
        },
    );
    let slice = (number32(), number32(), vec(number32(), 0..50), option::of(generation()))
        .prop_map(|(start, count, blocks, adapter)| StageSlice { start, count, blocks, adapter });
    let step = (number(), vec((number32(), number32()), 0..5), vec(slice, 0..20))
        .prop_map(|(step, copies, slices)| HeadFrame::Step(StageStep { step, copies, slices }));
    let of_adapters = [HeadFrame::Adapter as fn(_) -> _, HeadFrame::Release];
    let of_adapters = (generation(), prop::sample::select(of_adapters.to_vec())).prop_map(|(of, frame)| frame(of));
    prop_oneof![hello, step, of_adapters]
}

fn bundle() -> impl Strategy<Value = TokenizerBundle> {
    let fim = (token(), token(), token()).prop_map(|(prefix, suffix, middle)| FimTokens { prefix, suffix, middle });
    (
        vec(any::<u8>(), 0..3000),
        option::of(token()),
        any::<bool>(),
        tokens(),
        option::of(token()),
        option::of(fim),
        option::of(any::<String>()),
    )
        .prop_map(|(tokenizer_json, bos, add_bos, eos, document_separator, fim, chat_template)| TokenizerBundle {
            tokenizer_json,
            bos,
            add_bos,
            eos,
            document_separator,
            fim,
            chat_template,
        })
}

fn same<F: Frame + PartialEq + std::fmt::Debug>(value: &F) -> Result<(), TestCaseError> {
    let body = encode(value).unwrap();
    prop_assert_eq!(&decode::<F>(&body).unwrap(), value);
    Ok(())
}

/// Decoding never panics, and what it accepts is a value like any other.
fn harmless<F: Frame>(body: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(value) = decode::<F>(body) {
        let canonical = encode(&value).unwrap();
        prop_assert_eq!(&encode(&decode::<F>(&canonical).unwrap()).unwrap(), &canonical);
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_stream_opening_arrives_as_it_was_sent(frame in stream_open()) {
        same(&frame)?;
    }

    #[test]
    fn a_workers_stream_opening_arrives_as_it_was_sent(digest in digest()) {
        same(&WorkerOpen::Blob(BlobRequest { digest }))?;
        same(&WorkerOpen::Nearer(BlobRequest { digest }))?;
    }

    #[test]
    fn a_heads_frame_arrives_as_it_was_sent(frame in head_frame()) {
        same(&frame)?;
    }

    #[test]
    fn a_stages_frame_arrives_as_it_was_sent(step in number(), took_us in number()) {
        same(&StageFrame::Done { step, took_us })?;
        same(&StageFrame::Failed { step })?;
    }

    #[test]
    fn what_follows_a_frame_raw_arrives_however_the_stream_is_cut(
        step in number(),
        raw in vec(any::<u8>(), 0..30_000),
        pipe in 1_usize..20_000,
    ) {
        let mut bytes = Vec::new();
        encode_frame(&StageFrame::Failed { step }, &mut bytes).unwrap();
        bytes.extend_from_slice(&raw);
        encode_frame(&StageFrame::Failed { step: 1 }, &mut bytes).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut near, far) = tokio::io::duplex(pipe);
            let writing = tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut near, &bytes).await });
            let mut reader = FrameReader::new(far);
            let mut arrived = Vec::new();
            assert_eq!(reader.next::<StageFrame>().await.unwrap(), StageFrame::Failed { step });
            reader.raw(raw.len(), &mut arrived).await.unwrap();
            assert_eq!(arrived, raw);
            assert_eq!(reader.next::<StageFrame>().await.unwrap(), StageFrame::Failed { step: 1 });
            assert!(reader.raw(1, &mut arrived).await.is_err(), "nothing is left");
            writing.await.unwrap().unwrap();
        });
    }

    #[test]
    fn a_group_order_arrives_as_it_was_sent(branch in any::<u16>()) {
        same(&GroupOrder::StopBranch(BranchIndex(branch)))?;
    }

    #[test]
    fn a_group_frame_arrives_bit_by_bit_even_where_a_logprob_is_no_number(frame in group_frame()) {
        let body = encode(&frame).unwrap();
        let arrived: GroupFrame = decode(&body).unwrap();
        // NaN differs from itself: the debug text shows every field, the bytes every bit.
        prop_assert_eq!(format!("{arrived:?}"), format!("{frame:?}"));
        prop_assert_eq!(encode(&arrived).unwrap(), body);
    }

    #[test]
    fn a_workers_control_frame_arrives_as_it_was_sent(frame in worker_control()) {
        same(&frame)?;
    }

    #[test]
    fn a_routers_control_frame_arrives_as_it_was_sent(frame in router_control()) {
        same(&frame)?;
    }

    #[test]
    fn a_blob_header_arrives_as_it_was_sent(len in option::of(number())) {
        same(&len.map_or(BlobHeader::NotFound, |len| BlobHeader::Found { len }))?;
        same(&BlobHeader::Busy)?;
    }

    #[test]
    fn a_hint_arrives_as_it_was_sent(len in number(), peers in vec(name(), 0..=MAX_NEARER)) {
        same(&Nearer { len, peers })?;
    }

    #[test]
    fn a_tokenizer_bundle_arrives_as_it_was_sent(bundle in bundle()) {
        same(&bundle)?;
    }

    #[test]
    fn frames_arrive_in_order_however_the_stream_is_cut(
        frames in vec(router_control(), 0..10),
        pipe in 1_usize..100,
    ) {
        let mut bytes = Vec::new();
        for frame in &frames {
            encode_frame(frame, &mut bytes).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let arrived = runtime.block_on(async {
            let (mut near, far) = tokio::io::duplex(pipe);
            let write = async move { tokio::io::AsyncWriteExt::write_all(&mut near, &bytes).await.unwrap() };
            let read = async {
                let mut arrived = Vec::new();
                let mut reader = FrameReader::new(far);
                while let Ok(frame) = reader.next::<RouterControl>().await {
                    arrived.push(frame);
                }
                arrived
            };
            tokio::join!(write, read).1
        });
        prop_assert_eq!(arrived, frames);
    }

    #[test]
    fn no_bytes_can_do_harm(body in vec(any::<u8>(), 0..400)) {
        harmless::<StreamOpen>(&body)?;
        harmless::<GroupOrder>(&body)?;
        harmless::<GroupFrame>(&body)?;
        harmless::<WorkerControl>(&body)?;
        harmless::<RouterControl>(&body)?;
        harmless::<WorkerOpen>(&body)?;
        harmless::<HeadFrame>(&body)?;
        harmless::<StageFrame>(&body)?;
        harmless::<BlobHeader>(&body)?;
        harmless::<Nearer>(&body)?;
        harmless::<TokenizerBundle>(&body)?;
    }

    #[test]
    fn one_wrong_byte_can_do_no_harm(frame in stream_open(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut body = encode(&frame).unwrap();
        let at = at.index(body.len());
        body[at] = to;
        harmless::<StreamOpen>(&body)?;
    }
}
