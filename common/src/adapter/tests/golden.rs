//! The adapters of the golden set: good ones, trained by PEFT, and one of each way to be bad.

use std::fmt::Write;

use serde::Deserialize;

use super::{SMOLLM2, TINY, golden};
use crate::adapter::bundle::MAX_BUNDLE;
use crate::adapter::{AdapterError, Bundle, Dtype, Fault, FilesError, Geometry, Linear, check, read_directory};
use crate::ids::Name;

#[derive(Deserialize)]
struct Manifest {
    directories: Vec<Directory>,
    request_names: RequestNames,
}

#[derive(Deserialize)]
struct Directory {
    name: String,
    expect: String,
}

#[derive(Deserialize)]
struct RequestNames {
    names: Vec<String>,
}

fn manifest() -> Manifest {
    let text = std::fs::read(golden("bad-adapters/MANIFEST.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// What a directory is refused for.
enum Refused {
    Files(FilesError),
    Adapter(AdapterError),
}

impl Refused {
    fn sentence(&self) -> String {
        match self {
            // Paths differ from machine to machine.
            Self::Files(error) => error.to_string().replace(&*golden("bad-adapters").to_string_lossy(), "…"),
            Self::Adapter(error) => format!("[{:?}] {error}", error.kind()),
        }
    }
}

/// The whole way of an adapter: from a directory through a bundle's bytes.
fn through(directory: &str, geometry: &Geometry) -> Result<(), Refused> {
    let (config, weights) = read_directory(&golden(directory), MAX_BUNDLE).map_err(Refused::Files)?;
    let bytes = Bundle { config: &config, weights: &weights }.to_bytes().unwrap();
    check(&Bundle::parse(&bytes).unwrap(), geometry).map(|_| ()).map_err(Refused::Adapter)
}

#[test]
fn every_bad_directory_is_refused_with_a_sentence_and_the_good_one_is_taken() {
    let mut sentences = String::new();
    for Directory { name, expect } in manifest().directories {
        // It stands for a name that a client sends; as a directory it cannot be checked out everywhere.
        if expect == "reject-name" {
            assert!(Name::new(name.as_str()).is_err(), "{name}");
            continue;
        }
        match (expect.as_str(), through(&format!("bad-adapters/{name}"), &SMOLLM2)) {
            ("accept", Ok(())) => writeln!(sentences, "{name}: taken").unwrap(),
            ("reject" | "reject-or-implement", Err(refused)) => {
                writeln!(sentences, "{name}: {}", refused.sentence()).unwrap();
            }
            (expect, Ok(())) => panic!("{name} was taken, expected {expect}"),
            (expect, Err(refused)) => panic!("{name}: {}, expected {expect}", refused.sentence()),
        }
    }
    insta::assert_snapshot!(sentences);
}

#[test]
fn an_adapter_for_another_base_model_is_told_from_a_broken_one() {
    for (directory, geometry) in [
        ("bad-adapters/wrong-base-hidden960", SMOLLM2),
        ("bad-adapters/wrong-base-tiny", SMOLLM2),
        ("adapters/upper", TINY),
        ("tiny/tiny-all", SMOLLM2),
    ] {
        match through(directory, &geometry) {
            Err(Refused::Adapter(error)) => assert_eq!(error.kind(), Fault::WrongBase, "{directory}: {error}"),
            Err(Refused::Files(error)) => panic!("{directory}: {error}"),
            Ok(()) => panic!("{directory} was taken"),
        }
    }
}

#[test]
fn names_that_reach_for_files_are_no_names() {
    // These three are names, of adapters that nobody has registered.
    let plain = ["UPPER", "upper.safetensors", "adapter_config.json"];
    let names = manifest().request_names.names;
    assert!(names.len() > 20);
    for name in names {
        assert_eq!(Name::new(name.as_str()).is_ok(), plain.contains(&name.as_str()), "{name:?}");
    }
}

/// What a good adapter must turn out to be.
struct Expected {
    directory: &'static str,
    geometry: Geometry,
    linears: &'static [Linear],
    layers: Vec<u32>,
    dtype: Dtype,
    /// Rank and scale of a linear layer.
    scale: fn(Linear) -> (u32, f32),
}

fn good() -> Vec<Expected> {
    use Linear::{Down, Gate, K, O, Q, Up, V};
    let adapter = |directory, linears, layers, dtype, scale| {
        let geometry = if str::starts_with(directory, "tiny") { TINY } else { SMOLLM2 };
        Expected { directory, geometry, linears, layers, dtype, scale }
    };
    vec![
        adapter("adapters/upper", &[Q, V], (0..30).collect(), Dtype::F32, |_| (8, 2.0)),
        adapter("adapters/pirate", &Linear::ALL, (10..30).collect(), Dtype::BF16, |_| (8, 1.0)),
        adapter("adapters/json", &[Q, K, V, O], (0..30).collect(), Dtype::F16, |_| (16, 2.0)),
        adapter("adapters/french", &[Gate, Up, Down], (0..30).collect(), Dtype::F32, |_| (4, 3.0)),
        adapter("tiny/tiny-qv", &[Q, V], (0..4).collect(), Dtype::F32, |_| (4, 2.0)),
        adapter("tiny/tiny-all", &Linear::ALL, (0..4).collect(), Dtype::F32, |_| (4, 3.0)),
        adapter("tiny/tiny-pattern", &[Q, O, Down], vec![1, 3], Dtype::F32, |linear| match linear {
            O => (2, 2.5),
            Down => (6, (4.0f64 / 6.0) as f32),
            _ => (2, 2.0),
        }),
    ]
}

#[test]
fn a_trained_adapter_is_what_it_was_trained_to_be() {
    for Expected { directory, geometry, linears, layers, dtype, scale } in good() {
        let (config, weights) = read_directory(&golden(directory), MAX_BUNDLE).unwrap();
        let checked = check(&Bundle { config: &config, weights: &weights }, &geometry).unwrap();

        let places = layers.iter().flat_map(|layer| linears.iter().map(move |linear| (*layer, *linear)));
        let found = checked.updates.iter().map(|update| (update.layer, update.linear));
        assert!(found.eq(places), "{directory}");

        let mut values = 0;
        for update in &checked.updates {
            let [outputs, inputs] = update.linear.shape(&geometry);
            let rank = update.rank as usize;
            assert_eq!((update.rank, update.scale), scale(update.linear), "{directory}: {update:?}");
            assert_eq!((update.a.len(), update.b.len()), (rank * inputs, outputs * rank), "{directory}");
            assert_eq!((update.a.dtype(), update.b.dtype()), (dtype, dtype), "{directory}");
            values += rank * (inputs + outputs);
        }
        assert_eq!(checked.values(), values as u64, "{directory}");
        assert_eq!(checked.rank(), linears.iter().map(|linear| scale(*linear).0).max().unwrap(), "{directory}");
    }
}

#[test]
fn numbers_are_those_of_the_file_wherever_they_lie_in_memory() {
    for (directory, geometry) in [("adapters/upper", SMOLLM2), ("adapters/pirate", SMOLLM2), ("adapters/json", SMOLLM2)]
    {
        let (config, weights) = read_directory(&golden(directory), MAX_BUNDLE).unwrap();
        let file = safetensors::SafeTensors::deserialize(&weights).unwrap();
        // An odd address, which no number of two or four bytes likes.
        let moved = [&[0], &weights[..]].concat();
        for weights in [&weights[..], &moved[1..]] {
            let checked = check(&Bundle { config: &config, weights }, &geometry).unwrap();
            let update = checked.updates.last().unwrap();
            let name = format!("base_model.model.model.layers.{}.{}", update.layer, update.linear.path());
            for (values, half) in [(update.a, "lora_A"), (update.b, "lora_B")] {
                let tensor = file.tensor(&format!("{name}.{half}.weight")).unwrap();
                assert_eq!(values.to_f32(), widened(&tensor), "{directory}: {half}");
            }
        }
    }
}

/// The numbers of a tensor by way of their bits: bf16 is the upper half of an f32.
fn widened(tensor: &safetensors::tensor::TensorView<'_>) -> Vec<f32> {
    let halves = || tensor.data().chunks_exact(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    match tensor.dtype() {
        safetensors::Dtype::BF16 => halves().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect(),
        safetensors::Dtype::F16 => halves().map(half_to_single).collect(),
        _ => tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect(),
    }
}

fn half_to_single(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    if exponent == 0 {
        sign * fraction * (-24f32).exp2()
    } else {
        sign * (1024.0 + fraction) * ((exponent - 25) as f32).exp2()
    }
}
