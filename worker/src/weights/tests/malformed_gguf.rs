//! GGUF files made wrong: each class that has broken a reader of such files is refused for its own reason, and no damage
//! whatever makes opening panic.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::builder::{ARRAY, Gguf, STRING, Tensor, UINT32, array, boolean, float32, string, uint32};
use super::tokenizers::four_letter_bpe;
use super::{golden, open_gguf, read_all};
use crate::weights::gguf::Header;
use crate::weights::{HeaderFault, RopeConfig, RopeScaling, WeightsError};

/// What is wrong with `change`d one-tensor file.
fn fault(change: impl FnOnce(&mut Gguf)) -> HeaderFault {
    let mut gguf = Gguf::one_tensor();
    change(&mut gguf);
    Header::parse(&gguf.build()).unwrap_err()
}

fn tensor_fault(change: impl FnOnce(&mut Tensor)) -> HeaderFault {
    fault(|gguf| change(&mut gguf.tensors[0]))
}

#[test]
fn a_sound_header_is_taken() {
    Header::parse(&Gguf::one_tensor().build()).unwrap();
    Header::parse(&Gguf { version: 2, ..Gguf::one_tensor() }.build()).unwrap();
}

#[test]
fn other_formats_versions_and_byte_orders_are_refused() {
    assert_eq!(fault(|gguf| gguf.magic = *b"PK\x03\x04"), HeaderFault::NotGguf);
    assert_eq!(fault(|gguf| gguf.version = 1), HeaderFault::Version(1));
    assert_eq!(fault(|gguf| gguf.version = 4), HeaderFault::Version(4));
    assert_eq!(fault(|gguf| gguf.version = 3u32.swap_bytes()), HeaderFault::BigEndian);
    assert!(matches!(open_gguf(b"\x80\x02}q\x00"), Err(WeightsError::UnknownFormat { .. })), "a pickle was taken");
}

#[test]
fn a_tensor_beyond_the_end_of_the_file_is_refused() {
    let beyond = HeaderFault::BeyondEnd { name: "t".to_owned() };
    assert_eq!(tensor_fault(|tensor| tensor.dims = vec![9]), beyond);
    assert_eq!(tensor_fault(|tensor| tensor.offset = 32), beyond);
    assert_eq!(tensor_fault(|tensor| tensor.offset = u64::MAX - 31), beyond);
    assert_eq!(fault(|gguf| gguf.data = 31), beyond);
}

#[test]
fn a_product_of_dimensions_that_overflows_is_refused() {
    let overflow = HeaderFault::Overflow { name: "t".to_owned() };
    assert_eq!(tensor_fault(|tensor| tensor.dims = vec![1 << 32, 1 << 32]), overflow);
    assert_eq!(tensor_fault(|tensor| tensor.dims = vec![u64::MAX, u64::MAX, u64::MAX, u64::MAX]), overflow);
    assert_eq!(tensor_fault(|tensor| tensor.dims = vec![1 << 62]), overflow, "the bytes overflow, not the elements");
}

#[test]
fn dimensions_of_zero_and_strange_ranks_are_refused() {
    assert_eq!(tensor_fault(|tensor| tensor.dims = vec![0]), HeaderFault::ZeroDimension { name: "t".to_owned() });
    assert_eq!(tensor_fault(|tensor| tensor.dims = vec![8, 0]), HeaderFault::ZeroDimension { name: "t".to_owned() });
    assert_eq!(tensor_fault(|tensor| tensor.dims = vec![]), HeaderFault::Rank { name: "t".to_owned(), rank: 0 });
    assert_eq!(tensor_fault(|tensor| tensor.dims = vec![1; 5]), HeaderFault::Rank { name: "t".to_owned(), rank: 5 });
}

#[test]
fn an_alignment_that_is_no_power_of_two_from_8_to_4096_is_refused() {
    for bad in [0, 1, 3, 4, 12, 8192, 1 << 31, u32::MAX] {
        let found = fault(|gguf| gguf.set("general.alignment", uint32(bad)));
        assert_eq!(found, HeaderFault::Alignment, "{bad} was taken");
    }
    assert_eq!(fault(|gguf| gguf.set("general.alignment", string("32"))), HeaderFault::Alignment);
    let unaligned = HeaderFault::Unaligned { name: "t".to_owned(), offset: 8 };
    assert_eq!(tensor_fault(|tensor| tensor.offset = 8), unaligned);
}

#[test]
fn counts_that_the_file_has_no_room_for_are_refused() {
    for count in [2, 1000, 1 << 40, u64::MAX] {
        let found = fault(|gguf| gguf.tensor_count = Some(count));
        assert!(matches!(found, HeaderFault::TooMany { .. } | HeaderFault::BadName { .. }), "{count}: {found}");
        let found = fault(|gguf| gguf.metadata_count = Some(count));
        assert!(!matches!(found, HeaderFault::Version(_)), "{count}: {found}");
    }
    for count in [1 << 20, 1 << 40, u64::MAX / 4 + 2, u64::MAX] {
        let found = fault(|gguf| gguf.set("a", array(UINT32, count, &[0; 64])));
        assert_eq!(found, HeaderFault::TooMany { what: "array elements", count });
        let found = fault(|gguf| gguf.set("a", array(STRING, count, &[0; 64])));
        assert_eq!(found, HeaderFault::TooMany { what: "array elements", count });
    }
}

#[test]
fn a_string_longer_than_the_file_is_refused() {
    for length in [1u64 << 20, 1 << 63, u64::MAX] {
        let value = [&STRING.to_le_bytes()[..], &length.to_le_bytes()].concat();
        let found = fault(|gguf| gguf.set("a", value));
        assert!(matches!(found, HeaderFault::Truncated { what: "a string", .. }), "{found}");
    }
}

#[test]
fn arrays_in_arrays_are_refused_at_any_depth() {
    let mut nested = array(UINT32, 1, &[0; 4]);
    for _ in 0..10_000 {
        nested = [&ARRAY.to_le_bytes()[..], &ARRAY.to_le_bytes(), &1u64.to_le_bytes(), &nested[4..]].concat();
    }
    assert_eq!(fault(|gguf| gguf.set("a", nested)), HeaderFault::NestedArray);
}

#[test]
fn names_are_unique_printable_and_short() {
    let duplicate = fault(|gguf| gguf.metadata.push(gguf.metadata[0].clone()));
    assert!(matches!(duplicate, HeaderFault::Duplicate { what: "metadata key", .. }), "{duplicate}");
    let duplicate = fault(|gguf| gguf.add("t", &[8]));
    assert!(matches!(duplicate, HeaderFault::Duplicate { what: "tensor name", .. }), "{duplicate}");
    for bad in ["", "a b", "ä", "a\0", "a\n", &"a".repeat(257)] {
        assert_eq!(fault(|gguf| gguf.set(bad, uint32(0))), HeaderFault::BadName { what: "metadata key" });
        let found = tensor_fault(|tensor| tensor.name = bad.to_owned());
        assert_eq!(found, HeaderFault::BadName { what: "tensor name" });
    }
}

#[test]
fn unknown_types_and_values_are_refused() {
    // 4 and 5 were removed from the format, 9 and 15 exist in memory only, 16 to 24 are not supported.
    for number in [4, 5, 9, 15, 16, 24, 31, u32::MAX] {
        let found = tensor_fault(|tensor| tensor.dtype = number);
        assert_eq!(found, HeaderFault::TensorType { name: "t".to_owned(), number });
    }
    assert_eq!(fault(|gguf| gguf.set("a", boolean(2))), HeaderFault::Boolean(2));
    assert_eq!(fault(|gguf| gguf.set("a", 13u32.to_le_bytes().to_vec())), HeaderFault::ValueType(13));
}

#[test]
fn a_row_that_ends_inside_a_block_is_refused() {
    let partial = HeaderFault::PartialBlock { name: "t".to_owned(), cols: 8, block: 32 };
    assert_eq!(tensor_fault(|tensor| tensor.dtype = 3), partial);
}

#[test]
fn tensors_that_share_a_byte_are_refused() {
    let found = fault(|gguf| {
        gguf.tensors.push(Tensor { name: "u".to_owned(), dims: vec![1], dtype: 0, offset: 0 });
    });
    assert!(matches!(found, HeaderFault::Overlap { .. }), "{found}");
}

#[test]
fn settings_that_would_divide_by_zero_or_contradict_the_tensors_are_refused() {
    let whole = || Gguf::model(four_letter_bpe());
    open_gguf(&whole().build()).unwrap();
    let keys = ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"];
    for key in keys.iter().chain(&["attention.head_count_kv", "attention.key_length", "rope.dimension_count"]) {
        for value in [0, 3, 5, 1 << 31, u32::MAX] {
            if (*key, value) == ("context_length", 3) || (*key, value) == ("context_length", 5) {
                continue;
            }
            let mut gguf = whole();
            gguf.set(&format!("llama.{key}"), uint32(value));
            assert!(open_gguf(&gguf.build()).is_err(), "llama.{key} = {value} was taken");
        }
    }
}

#[test]
fn rope_settings_are_read_in_every_form_converters_have_written() {
    let rope = |change: &dyn Fn(&mut Gguf)| {
        let mut gguf = Gguf::model(four_letter_bpe());
        change(&mut gguf);
        open_gguf(&gguf.build()).map(|model| model.config.rope)
    };
    assert_eq!(rope(&|_| ()).unwrap(), RopeConfig { theta: 10_000.0, dims: 4, scaling: RopeScaling::None });
    let linear = rope(&|gguf| {
        gguf.set("llama.rope.scaling.type", string("linear"));
        gguf.set("llama.rope.scaling.factor", float32(4.0));
    });
    assert_eq!(linear.unwrap().scaling, RopeScaling::Linear { factor: 4.0 });
    let old = rope(&|gguf| gguf.set("llama.rope.scale_linear", float32(2.0)));
    assert_eq!(old.unwrap().scaling, RopeScaling::Linear { factor: 2.0 });
    // The builder's tensors are zeros: divisors that were found and refused, for one would be divided by them.
    assert!(matches!(rope(&|gguf| gguf.add("rope_freqs.weight", &[2])), Err(WeightsError::Dimension { .. })));
    let theta = rope(&|gguf| gguf.set("llama.rope.freq_base", float32(f32::INFINITY)));
    assert!(matches!(theta, Err(WeightsError::Dimension { .. })));
}

#[test]
fn models_that_would_be_computed_wrongly_are_refused_by_name() {
    let refusal = |change: &dyn Fn(&mut Gguf)| {
        let mut gguf = Gguf::model(four_letter_bpe());
        change(&mut gguf);
        open_gguf(&gguf.build()).unwrap_err().to_string()
    };
    let refused = refusal(&|gguf| gguf.set("llama.expert_count", uint32(8)));
    assert_eq!(refused, "the model is a mixture of 8 experts, which is not supported");
    let refused = refusal(&|gguf| gguf.set("llama.rope.scaling.type", string("yarn")));
    assert_eq!(refused, "the model has the rope scaling \"yarn\", which is not supported");
    let refused = refusal(&|gguf| gguf.tensors[0].dtype = 23);
    let hint = "llama-quantize makes Q4_K_M or Q8_0 of its original";
    assert_eq!(refused, format!("the model has weights of the type IQ4_XS ({hint}), which is not supported"));
    let refused = refusal(&|gguf| gguf.set("split.count", uint32(3)));
    let hint = "llama-gguf-split --merge makes one of them";
    assert_eq!(refused, format!("the model is one of 3 files of a split one ({hint}), which is not supported"));
    let refused = refusal(&|gguf| gguf.add("blk.0.attn_output.bias", &[8]));
    assert_eq!(refused, "the model has the tensor \"blk.0.attn_output.bias\", which is not supported");
    let refused = refusal(&|gguf| gguf.add("blk.00.attn_q.weight", &[8, 8]));
    assert_eq!(refused, "the model has the tensor \"blk.00.attn_q.weight\", which is not supported");
    let refused = refusal(&|gguf| gguf.add("blk.7.attn_q.weight", &[8, 8]));
    assert_eq!(
        refused,
        "the model has the surplus tensor model.layers.7.self_attn.q_proj.weight, which is not supported"
    );
    let refused = refusal(&|gguf| drop(gguf.tensors.pop()));
    assert_eq!(refused, "the model has no tensor model.layers.0.mlp.down_proj.weight");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = Gguf::model(four_letter_bpe()).build();
    open_gguf(&whole).unwrap();
    for length in 0..whole.len() {
        assert!(open_gguf(&whole[..length]).is_err(), "the first {length} bytes were taken for a model");
    }
}

/// Damages a copy of `sound` in one to four places, with random bytes or with numbers that readers trip over.
fn damaged(sound: &[u8], within: usize, random: &mut StdRng) -> Vec<u8> {
    const NUMBERS: [u64; 10] = [0, 1, 2, 1 << 31, u32::MAX as u64, 1 << 32, 1 << 40, 1 << 63, u64::MAX - 31, u64::MAX];
    let mut file = sound.to_vec();
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..within - 8);
        if random.random_bool(0.5) {
            file[at] = random.random();
        } else {
            let number = NUMBERS[random.random_range(0..NUMBERS.len())].to_le_bytes();
            let width = [4, 8][random.random_range(0..2)];
            file[at..at + width].copy_from_slice(&number[..width]);
        }
    }
    file
}

#[test]
fn a_damaged_file_is_refused_or_can_be_read_whole() {
    let small = Gguf::model(four_letter_bpe());
    let (small_header, small) = (small.header().len(), small.build());
    let tiny = std::fs::read(golden("tiny/gguf/tiny-q4_1.gguf")).unwrap();
    let mut outcomes = [0, 0];
    for (sound, header, cases) in [(&small, small_header, 20_000), (&tiny, 14_246, 3_000)] {
        for seed in 0..cases {
            let file = damaged(sound, header, &mut StdRng::seed_from_u64(seed));
            match open_gguf(&file) {
                Ok(model) => {
                    read_all(&model);
                    outcomes[0] += 1;
                }
                Err(_) => outcomes[1] += 1,
            }
        }
    }
    assert!(outcomes.iter().all(|&count| count > 100), "the damage always has one outcome: {outcomes:?}");
}
