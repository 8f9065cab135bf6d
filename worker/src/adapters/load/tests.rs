//! What is loaded is what the files say, at the site where it belongs.

use safetensors::Dtype;
use shoal_common::adapter::{Bundle, Dtype as FileDtype, Geometry, Linear, Update, Values, check, read_directory};
use shoal_common::ids::{Digest, Generation, LayerRange};
use shoal_kernels::{Precision, padded};

use super::{LoadError, LoadFor};
use crate::adapters::recipe::Recipe;
use crate::adapters::{Adapter, Site};
use crate::backend::bench::golden;

const SMOLLM2: Geometry = Geometry { layers: 30, hidden: 576, intermediate: 1536, queries: 576, keys: 192 };
/// Widths of which none is a whole block.
const ODD: Geometry = Geometry { layers: 3, hidden: 44, intermediate: 50, queries: 40, keys: 20 };
const GENERATION: Generation = Generation(Digest([7; 32]));

fn whole(geometry: &Geometry) -> LoadFor {
    let layers = LayerRange { begin: 0, end: geometry.layers };
    LoadFor { geometry: *geometry, layers, precision: Precision::Exact }
}

/// Every update of `bundle` is in the adapter and nothing else is.
fn assert_holds(adapter: &Adapter, bundle: &[u8], load_for: &LoadFor) {
    let LoadFor { geometry, layers: hosted, precision } = load_for;
    let bundle = Bundle::parse(bundle).unwrap();
    let checked = check(&bundle, geometry).unwrap();
    for layer in hosted.begin..hosted.end {
        for site in Site::ALL {
            let mut at = 0;
            let update = adapter.update((layer - hosted.begin) as usize, site);
            let mut parts = update.into_iter().flat_map(|update| update.unpack());
            for linear in site.linears() {
                let is_it = |update: &&Update<'_>| (update.layer, update.linear) == (layer, *linear);
                if let Some(expected) = checked.updates.iter().find(is_it) {
                    let part = parts.next().unwrap();
                    assert_eq!((part.at, part.rank, part.scale), (at, expected.rank as usize, expected.scale));
                    assert_kept(*precision, &part.a, expected.a);
                    assert_kept(*precision, &part.b, expected.b);
                }
                at += padded(linear.shape(geometry)[0]);
            }
            assert_eq!(parts.next(), None, "{site:?} of {layer}");
        }
    }
    assert!(adapter.update((hosted.end - hosted.begin) as usize, Site::Qkv).is_none());
}

/// Numbers are what the file says, or as near to it as `precision` allows.
fn assert_kept(precision: Precision, ours: &[f32], file: Values<'_>) {
    let exact = file.to_f32();
    let is_rounded = precision == Precision::Fixed16 && file.dtype() == FileDtype::F32;
    let largest = exact.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let bound = if is_rounded { largest / 32_768.0 } else { 0.0 };
    assert_eq!(ours.len(), exact.len());
    for (ours, exact) in ours.iter().zip(&exact) {
        assert!((ours - exact).abs() <= bound, "{ours} for {exact}");
    }
}

#[test]
fn every_golden_adapter_is_loaded_as_its_files_say() {
    // What its numbers take where nothing may be lost: 16 bits where the file has them so.
    for (name, width) in [("upper", 4), ("pirate", 2), ("json", 2), ("french", 4)] {
        let (config, weights) = read_directory(&golden(&format!("adapters/{name}")), u64::MAX).unwrap();
        let bundle = Bundle { config: &config, weights: &weights };
        let values = check(&bundle, &SMOLLM2).unwrap().values();
        let bundle = bundle.to_bytes().unwrap();
        for (precision, width) in [(Precision::Exact, width), (Precision::Fixed16, 2)] {
            let load_for = LoadFor { precision, ..whole(&SMOLLM2) };
            let adapter = Adapter::load(GENERATION, &bundle, &load_for).unwrap();
            assert_holds(&adapter, &bundle, &load_for);
            assert_eq!(adapter.generation(), GENERATION);
            let numbers = values * width;
            assert!((numbers..numbers + (64 << 10)).contains(&adapter.bytes()), "{name}: {} bytes", adapter.bytes());
        }
    }
}

#[test]
fn a_worker_keeps_the_layers_that_it_hosts() {
    let linears = &[Linear::K, Linear::O, Linear::Up];
    let recipe = Recipe { geometry: ODD, linears, rank: 5, dtype: Dtype::F16, seed: 3 };
    let bundle = recipe.bundle();
    for (begin, end) in [(0, 3), (1, 3), (0, 1), (2, 3), (1, 1)] {
        let load_for = LoadFor { layers: LayerRange { begin, end }, ..whole(&ODD) };
        let adapter = Adapter::load(GENERATION, &bundle, &load_for).unwrap();
        assert_holds(&adapter, &bundle, &load_for);
        assert_eq!(adapter.rank(), 5);
    }
}

#[test]
fn layers_before_the_first_that_is_changed_have_nothing() {
    let (config, weights) = read_directory(&golden("adapters/pirate"), u64::MAX).unwrap();
    let bundle = Bundle { config: &config, weights: &weights }.to_bytes().unwrap();
    let load_for = LoadFor { layers: LayerRange { begin: 8, end: 12 }, ..whole(&SMOLLM2) };
    let adapter = Adapter::load(GENERATION, &bundle, &load_for).unwrap();
    assert_eq!(
        (0..4).map(|layer| adapter.update(layer, Site::Qkv).is_some()).collect::<Vec<_>>(),
        [false, false, true, true]
    );
    assert_holds(&adapter, &bundle, &load_for);
}

#[test]
fn what_is_no_adapter_of_this_model_is_refused() {
    let bundle = Recipe { geometry: ODD, linears: &[Linear::Q], rank: 2, dtype: Dtype::F32, seed: 1 }.bundle();
    let load = |bundle, geometry| Adapter::load(GENERATION, bundle, &whole(geometry)).unwrap_err();
    assert!(matches!(load(&bundle, &SMOLLM2), LoadError::Adapter(_)));
    assert!(matches!(load(&bundle[1..], &ODD), LoadError::Bundle(_)));
}
