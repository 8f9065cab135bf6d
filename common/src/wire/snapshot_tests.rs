//! The bytes of every message: a change to one of these snapshots is a change to the protocol and needs a new
//! version of it (see `quic::version`).
//! [`examples`] serves the other tests too.

use std::num::NonZeroU32;

use super::blob::{BlobHeader, BlobRequest, FimTokens, MAX_NEARER, Nearer, TokenizerBundle};
use super::codec::{CodecError, Frame, decode, encode};
use super::hello::{
    AdapterOrder, AdapterState, AdapterTier, Capacity, Hello, Lending, Locality, ModelCard, Refusal, RouterControl,
    StageReport, Status, WorkerControl, WorkerState,
};
use super::message::{
    BranchEnd, BranchStart, BranchToken, EndRules, GroupFailure, GroupFrame, GroupOrder, PromptIds, StreamOpen, Submit,
    TokenScore, WorkerOpen,
};
use super::stage::{HeadFrame, StageAdapter, StageFrame, StageHello, StageRefusal, StageSlice, StageStep};
use crate::adapter::Geometry;
use crate::block_hash::CacheSalt;
use crate::fingerprint::Fingerprint;
use crate::ids::{BranchIndex, Digest, Generation, Incarnation, LayerRange, Name, TokenId, Zone};
use crate::sampling::{Bias, MinP, Penalty, RepetitionPenalty, SamplingParams, Temperature, TopP};

/// One encoded message and how its kind is decoded.
pub(super) struct Example {
    pub(super) name: &'static str,
    pub(super) body: Vec<u8>,
    /// Decodes a body and encodes what it got.
    pub(super) again: fn(&[u8]) -> Result<Vec<u8>, CodecError>,
}

/// At least one example of every variant of every frame.
pub(super) fn examples() -> Vec<Example> {
    let mut all = Vec::new();
    all.extend(worker_control().iter().map(|frame| example(worker_control_name(frame), frame)));
    all.extend(router_control().iter().map(|frame| example(router_control_name(frame), frame)));
    all.extend(stream_open().iter().map(|frame| example(stream_open_name(frame), frame)));
    all.extend(group_frames().iter().map(|frame| example(group_frame_name(frame), frame)));
    all.push(example("group_order_stop_branch", &GroupOrder::StopBranch(BranchIndex(3))));
    let wanted = BlobRequest { digest: Digest([0x33; 32]) };
    all.extend(head_frames().iter().map(|frame| example(head_frame_name(frame), frame)));
    all.extend(stage_frames().iter().map(|frame| example(stage_frame_name(frame), frame)));
    all.push(example("worker_open_blob", &WorkerOpen::Blob(wanted)));
    all.push(example("worker_open_nearer", &WorkerOpen::Nearer(wanted)));
    all.push(example("nearer", &Nearer { len: 2_104_556, peers: vec![name("w-1"), name("w-2")] }));
    all.push(example("blob_header_found", &BlobHeader::Found { len: 2_104_556 }));
    all.push(example("blob_header_not_found", &BlobHeader::NotFound));
    all.push(example("blob_header_busy", &BlobHeader::Busy));
    all.push(example("tokenizer_bundle", &bundle()));
    all
}

fn example<F: Frame>(name: &'static str, value: &F) -> Example {
    Example { name, body: encode(value).unwrap(), again: |body| encode(&decode::<F>(body)?) }
}

// The names are exhaustive matches: a new variant does not compile until it has one.

fn worker_control_name(frame: &WorkerControl) -> &'static str {
    match frame {
        WorkerControl::Hello(_) => "worker_control_hello",
        WorkerControl::Status(Status { state: WorkerState::Ready, .. }) => "worker_control_status_ready",
        WorkerControl::Status(Status { state: WorkerState::Draining, .. }) => "worker_control_status_draining",
        WorkerControl::Stages(_) => "worker_control_stages",
        WorkerControl::Died(_) => "worker_control_died",
        WorkerControl::Status(Status { state: WorkerState::Incomplete, .. }) => "worker_control_status_incomplete",
        WorkerControl::Adapter(state) => match state.tier {
            AdapterTier::Memory => "worker_control_adapter_memory",
            AdapterTier::Disk => "worker_control_adapter_disk",
            AdapterTier::Loading => "worker_control_adapter_loading",
            AdapterTier::Quarantined => "worker_control_adapter_quarantined",
            AdapterTier::Gone => "worker_control_adapter_gone",
        },
    }
}

fn router_control_name(frame: &RouterControl) -> &'static str {
    match frame {
        RouterControl::Welcome { .. } => "router_control_welcome",
        RouterControl::Drain => "router_control_drain",
        RouterControl::Undrain => "router_control_undrain",
        RouterControl::Adapter(order) => match order {
            AdapterOrder::Load(_) => "router_control_adapter_load",
            AdapterOrder::Pin(_) => "router_control_adapter_pin",
            AdapterOrder::Unpin(_) => "router_control_adapter_unpin",
            AdapterOrder::Forget(_) => "router_control_adapter_forget",
        },
        RouterControl::Refused(refusal) => match refusal {
            Refusal::DuplicateName => "router_control_refused_duplicate_name",
            Refusal::WrongCertificate => "router_control_refused_wrong_certificate",
            Refusal::ModelMismatch { .. } => "router_control_refused_model_mismatch",
            Refusal::BadTokenizer(_) => "router_control_refused_bad_tokenizer",
            Refusal::IncompleteModel => "router_control_refused_incomplete_model",
        },
    }
}

fn stream_open_name(frame: &StreamOpen) -> &'static str {
    match frame {
        StreamOpen::Group(submit) if submit.branches.is_empty() => "stream_open_group_scores_only",
        StreamOpen::Group(_) => "stream_open_group",
        StreamOpen::Blob(_) => "stream_open_blob",
    }
}

fn group_frame_name(frame: &GroupFrame) -> &'static str {
    match frame {
        GroupFrame::Accepted => "group_frame_accepted",
        GroupFrame::PromptScores { .. } => "group_frame_prompt_scores",
        GroupFrame::Step(_) => "group_frame_step",
        GroupFrame::Busy { .. } => "group_frame_busy",
        GroupFrame::Failed(failure) => match failure {
            GroupFailure::WrongFingerprint => "group_frame_failed_wrong_fingerprint",
            GroupFailure::Invalid => "group_frame_failed_invalid",
            GroupFailure::Deadline => "group_frame_failed_deadline",
            GroupFailure::ShuttingDown => "group_frame_failed_shutting_down",
            GroupFailure::Engine => "group_frame_failed_engine",
            GroupFailure::AdapterRefused => "group_frame_failed_adapter_refused",
            GroupFailure::AdapterUnavailable => "group_frame_failed_adapter_unavailable",
            GroupFailure::Incomplete => "group_frame_failed_incomplete",
        },
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn fingerprint() -> Fingerprint {
    Fingerprint::new(Digest([0x11; 32]), None, Digest([0x22; 32]), "reference-f32")
}

fn generation() -> Generation {
    Generation(Digest([0x33; 32]))
}

fn worker_control() -> Vec<WorkerControl> {
    let model = ModelCard {
        name: name("org/smol"),
        weights: Digest([0x11; 32]),
        tokenizer: Digest([0x22; 32]),
        fingerprint: fingerprint(),
        numerics_class: "reference-f32".into(),
        layers: LayerRange { begin: 0, end: 30 },
        layer_count: 30,
        vocab_size: 49_152,
        context: 8192,
        geometry: Geometry { layers: 30, hidden: 576, intermediate: 1536, queries: 576, keys: 192 },
    };
    let capacity = Capacity { slots: 32, kv_tokens: 1 << 20, groups: 256, adapter_slots: 16, adapter_bytes: 512 << 20 };
    let hello = Hello {
        worker: name("w-1"),
        incarnation: Incarnation(u64::MAX),
        build: "0.1.0".into(),
        capacity,
        model,
        locality: Some(Locality { zone: Zone::new("rack-7").unwrap(), lending: Lending::Workers }),
    };
    let ready = Status {
        state: WorkerState::Ready,
        progress: 5_000_000_000,
        running: 31,
        waiting: 251,
        queued_tokens: 65_536,
        kv_used: 0,
        tokens_per_second: 250,
        looked_up_tokens: 70_000,
        cached_tokens: 250,
        preemptions: 0,
    };
    let [draining, incomplete] =
        [WorkerState::Draining, WorkerState::Incomplete].map(|state| Status { state, ..ready });
    let loaded = AdapterState {
        generation: generation(),
        tier: AdapterTier::Memory,
        bytes: 9 << 20,
        rank: 8,
        load_ms: Some(65),
        idle_ms: Some(1000),
        pinned: true,
        reason: None,
    };
    let quarantined = AdapterState {
        tier: AdapterTier::Quarantined,
        load_ms: None,
        idle_ms: None,
        pinned: false,
        reason: Some("not a LoRA".into()),
        ..loaded.clone()
    };
    let elsewhere = [AdapterTier::Disk, AdapterTier::Loading, AdapterTier::Gone];
    let elsewhere = elsewhere.map(|tier| WorkerControl::Adapter(AdapterState { tier, ..loaded.clone() }));
    let mut all = vec![
        WorkerControl::Hello(Box::new(hello)),
        WorkerControl::Status(ready),
        WorkerControl::Status(draining),
        WorkerControl::Status(incomplete),
        WorkerControl::Adapter(loaded),
        WorkerControl::Adapter(quarantined),
        WorkerControl::Stages(stages()),
        WorkerControl::Died(Incarnation(0x0123_4567_89ab_cdef)),
    ];
    all.extend(elsewhere);
    all
}

fn stages() -> Vec<StageReport> {
    let head = StageReport {
        worker: name("w-1"),
        incarnation: Some(Incarnation(u64::MAX)),
        address: None,
        layers: LayerRange { begin: 0, end: 12 },
        reason: None,
        steps: 300,
        computing_us: 70_000,
        busy_permille: 620,
    };
    let away = StageReport {
        worker: name("w-2"),
        incarnation: None,
        address: Some("gpu2:8444".into()),
        layers: LayerRange { begin: 12, end: 30 },
        reason: Some("no answer".into()),
        ..head.clone()
    };
    vec![head, away]
}

fn router_control() -> Vec<RouterControl> {
    let mismatch =
        Refusal::ModelMismatch { model: name("org/smol"), expected: Digest([0x11; 32]), got: Digest([0x33; 32]) };
    vec![
        RouterControl::Welcome { router: Incarnation(0x0123_4567_89ab_cdef) },
        RouterControl::Drain,
        RouterControl::Undrain,
        RouterControl::Adapter(AdapterOrder::Load(generation())),
        RouterControl::Adapter(AdapterOrder::Pin(generation())),
        RouterControl::Adapter(AdapterOrder::Unpin(generation())),
        RouterControl::Adapter(AdapterOrder::Forget(generation())),
        RouterControl::Refused(Refusal::DuplicateName),
        RouterControl::Refused(Refusal::WrongCertificate),
        RouterControl::Refused(mismatch),
        RouterControl::Refused(Refusal::BadTokenizer("no vocabulary".into())),
        RouterControl::Refused(Refusal::IncompleteModel),
    ]
}

/// Every number that has a range is one of a kind, so that a test can find it among the bytes.
pub(super) fn sampling() -> SamplingParams {
    SamplingParams {
        logit_bias: vec![(TokenId(7), Bias::new(-99.5).unwrap()), (TokenId(300), Bias::new(100.0).unwrap())],
        repetition_penalty: RepetitionPenalty::new(1.125).unwrap(),
        frequency_penalty: Penalty::new(-0.375).unwrap(),
        presence_penalty: Penalty::new(0.625).unwrap(),
        temperature: Temperature::new(0.8125).unwrap(),
        min_p: MinP::new(0.0625).unwrap(),
        top_k: NonZeroU32::new(0x7fff_1234),
        top_p: TopP::new(0.9375).unwrap(),
        seed: 0xfeed_beef_0123_4567,
    }
}

pub(super) fn submit() -> Submit {
    let emitted = |ids: &[u32]| PromptIds(ids.iter().copied().map(TokenId).collect());
    Submit {
        fingerprint: fingerprint(),
        adapter: Some(generation()),
        prompt: emitted(&[1, 250, 251, 65_535, 65_536, u32::MAX]),
        branches: vec![
            BranchStart { choice: 0, emitted: emitted(&[]) },
            BranchStart { choice: 1, emitted: emitted(&[9, 10]) },
        ],
        sampling: sampling(),
        end: EndRules { max_tokens: 256, min_tokens: 1, stop_ids: vec![TokenId(0), TokenId(2)] },
        score_tokens: Some(20),
        score_prompt: Some(5),
        share_key: 0x5151_5151_5151_5151,
        cache_salt: CacheSalt(0x6161_6161_6161_6161),
        deadline_ms: Some(30_000),
    }
}

fn stream_open() -> Vec<StreamOpen> {
    let scores_only = Submit {
        adapter: None,
        branches: Vec::new(),
        sampling: SamplingParams::default(),
        end: EndRules { max_tokens: 0, min_tokens: 0, stop_ids: Vec::new() },
        score_tokens: None,
        deadline_ms: None,
        ..submit()
    };
    vec![
        StreamOpen::Group(Box::new(submit())),
        StreamOpen::Group(Box::new(scores_only)),
        StreamOpen::Blob(BlobRequest { digest: Digest([0x22; 32]) }),
    ]
}

fn group_frames() -> Vec<GroupFrame> {
    let score = |token, logprob| TokenScore { token: TokenId(token), logprob, alternatives: Vec::new() };
    let chosen = TokenScore { alternatives: vec![(TokenId(5), -0.25), (TokenId(900), -7.5)], ..score(5, -0.25) };
    let token = |branch, score: TokenScore, end| BranchToken {
        branch: BranchIndex(branch),
        position: 17,
        token: score.token,
        score: Some(score),
        end,
    };
    vec![
        GroupFrame::PromptScores { first: 1, scores: vec![chosen.clone(), score(70_000, f32::NEG_INFINITY)] },
        GroupFrame::Step(vec![
            token(0, chosen, None),
            token(1, score(2, -0.5), Some(BranchEnd::StopToken)),
            BranchToken { score: None, ..token(15, score(3, -1.5), Some(BranchEnd::Length)) },
        ]),
        GroupFrame::Accepted,
        GroupFrame::Busy { retry_after_ms: 1500 },
        GroupFrame::Failed(GroupFailure::WrongFingerprint),
        GroupFrame::Failed(GroupFailure::Invalid),
        GroupFrame::Failed(GroupFailure::Deadline),
        GroupFrame::Failed(GroupFailure::ShuttingDown),
        GroupFrame::Failed(GroupFailure::Engine),
        GroupFrame::Failed(GroupFailure::AdapterRefused),
        GroupFrame::Failed(GroupFailure::AdapterUnavailable),
        GroupFrame::Failed(GroupFailure::Incomplete),
    ]
}

fn head_frame_name(frame: &HeadFrame) -> &'static str {
    match frame {
        HeadFrame::Hello(_) => "head_frame_hello",
        HeadFrame::Step(_) => "head_frame_step",
        HeadFrame::Adapter(_) => "head_frame_adapter",
        HeadFrame::Release(_) => "head_frame_release",
    }
}

fn head_frames() -> Vec<HeadFrame> {
    let hello = StageHello {
        head: name("w-1"),
        incarnation: Incarnation(7),
        epoch: 3,
        weights: Digest([0x11; 32]),
        numerics_class: "int8".into(),
        numerics_version: 1,
        layers: LayerRange { begin: 15, end: 30 },
        blocks: 4096,
    };
    let slice = StageSlice { start: 100, count: 12, blocks: vec![0, 250, 251, 65_536], adapter: Some(generation()) };
    let step = StageStep { step: 9, copies: vec![(3, 4)], slices: vec![slice] };
    let of_adapters = [HeadFrame::Adapter(generation()), HeadFrame::Release(generation())];
    [HeadFrame::Hello(Box::new(hello)), HeadFrame::Step(step)].into_iter().chain(of_adapters).collect()
}

fn stage_frame_name(frame: &StageFrame) -> &'static str {
    match frame {
        StageFrame::Ready { .. } => "stage_frame_ready",
        StageFrame::Done { .. } => "stage_frame_done",
        StageFrame::Failed { .. } => "stage_frame_failed",
        StageFrame::Adapter(_, StageAdapter::Ready) => "stage_frame_adapter_ready",
        StageFrame::Adapter(_, StageAdapter::Refused) => "stage_frame_adapter_refused",
        StageFrame::Adapter(_, StageAdapter::Unavailable) => "stage_frame_adapter_unavailable",
        StageFrame::Refused(refusal) => match refusal {
            StageRefusal::WrongCertificate => "stage_frame_refused_wrong_certificate",
            StageRefusal::OtherModel { .. } => "stage_frame_refused_other_model",
            StageRefusal::OtherLayers(_) => "stage_frame_refused_other_layers",
            StageRefusal::TooManyBlocks(_) => "stage_frame_refused_too_many_blocks",
            StageRefusal::Taken(_) => "stage_frame_refused_taken",
            StageRefusal::OldEpoch => "stage_frame_refused_old_epoch",
            StageRefusal::Draining => "stage_frame_refused_draining",
        },
    }
}

fn stage_frames() -> Vec<StageFrame> {
    let other =
        StageRefusal::OtherModel { weights: Digest([0x11; 32]), numerics_class: "int8".into(), numerics_version: 1 };
    let refusals = vec![
        StageRefusal::WrongCertificate,
        other,
        StageRefusal::OtherLayers(LayerRange { begin: 10, end: 20 }),
        StageRefusal::TooManyBlocks(300),
        StageRefusal::Taken(name("w-2")),
        StageRefusal::OldEpoch,
        StageRefusal::Draining,
    ];
    let adapters = [StageAdapter::Ready, StageAdapter::Refused, StageAdapter::Unavailable];
    let mut all = vec![
        StageFrame::Ready { incarnation: Incarnation(8) },
        StageFrame::Done { step: 9, took_us: 1500 },
        StageFrame::Failed { step: 10 },
    ];
    all.extend(refusals.into_iter().map(StageFrame::Refused));
    all.extend(adapters.into_iter().map(|what| StageFrame::Adapter(generation(), what)));
    all
}

fn bundle() -> TokenizerBundle {
    TokenizerBundle {
        tokenizer_json: br#"{"version":"1.0"}"#.to_vec(),
        bos: Some(TokenId(1)),
        add_bos: true,
        eos: vec![TokenId(2), TokenId(128_009)],
        document_separator: None,
        fim: Some(FimTokens { prefix: TokenId(3), suffix: TokenId(4), middle: TokenId(5) }),
        chat_template: Some("{{ messages }}".into()),
    }
}

/// 16 bytes a line, as hex and as ASCII.
fn dump(body: &[u8]) -> String {
    let line = |row: &[u8]| {
        let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String =
            row.iter().map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { '.' }).collect();
        format!("{:<47}  {text}", hex.join(" "))
    };
    body.chunks(16).map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_bytes_of_every_message_are_fixed() {
    for Example { name, body, .. } in examples() {
        insta::assert_snapshot!(name, dump(&body));
    }
}

#[test]
fn a_frame_is_its_body_behind_its_length() {
    let mut out = b"before".to_vec();
    super::codec::encode_frame(&BlobHeader::Found { len: 3 }, &mut out).unwrap();
    assert_eq!(out, b"before\x02\0\0\0\x00\x03");
}

#[test]
fn no_more_peers_are_taken_than_may_be_named() {
    let nearer = |count| encode(&Nearer { len: 1, peers: vec![name("w"); count] }).unwrap();
    assert!(decode::<Nearer>(&nearer(MAX_NEARER)).is_ok());
    assert!(decode::<Nearer>(&nearer(MAX_NEARER + 1)).is_err());
    let longest = "a".repeat(Name::MAX_LEN);
    assert!(encode(&Nearer { len: u64::MAX, peers: vec![name(&longest); MAX_NEARER] }).is_ok());
}
