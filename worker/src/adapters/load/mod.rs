//! From a bundle's bytes to an [`Adapter`]: checked against the model's geometry, and the hosted layers packed for the
//! kernels. Called on a thread that may block: a large one takes seconds.

use shoal_common::adapter::{AdapterError, BadBundle, Bundle, Checked, Geometry, Update, check};
use shoal_common::ids::{Generation, LayerRange};
use shoal_kernels::{Arena, Factors, LowRank, Precision, padded};

use super::{Adapter, Site};

#[cfg(test)]
mod tests;

/// Why a bundle cannot be used with a model: a fact about its content.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The bytes are not two files.
    #[error(transparent)]
    Bundle(#[from] BadBundle),
    /// The files are not an adapter for this model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

/// What an adapter is loaded for.
#[derive(Clone, Copy, Debug)]
pub struct LoadFor {
    /// The model's.
    pub geometry: Geometry,
    /// The hosted layers.
    pub layers: LayerRange,
    /// What the backend asks for.
    pub precision: Precision,
}

impl Adapter {
    /// Loads the `bundle` of `generation`. All of it is checked; of the layers only those that are hosted are kept.
    pub fn load(generation: Generation, bundle: &[u8], load_for: &LoadFor) -> Result<Self, LoadError> {
        let bundle = Bundle::parse(bundle)?;
        let checked = check(&bundle, &load_for.geometry)?;
        Ok(Self { generation, rank: checked.rank(), layers: pack(&checked, load_for) })
    }
}

/// The hosted layers, up to the last one that is changed.
fn pack(checked: &Checked<'_>, load_for: &LoadFor) -> Vec<[Option<LowRank>; Site::ALL.len()]> {
    let (mut layers, arena): (Vec<_>, _) = (Vec::new(), Arena::default());
    let hosted = load_for.layers;
    for updates in checked.updates.chunk_by(|one, next| one.layer == next.layer) {
        let layer = updates[0].layer;
        if (hosted.begin..hosted.end).contains(&layer) {
            layers.resize_with((layer - hosted.begin) as usize, Default::default);
            layers.push(Site::ALL.map(|site| pack_site(&arena, updates, site, load_for)));
        }
    }
    layers.shrink_to_fit();
    layers
}

/// What a layer's updates add at a site.
fn pack_site(arena: &Arena, updates: &[Update<'_>], site: Site, load_for: &LoadFor) -> Option<LowRank> {
    let (LoadFor { geometry, precision, .. }, mut at, mut widened) = (load_for, 0, Vec::new());
    for linear in site.linears() {
        if let Some(update) = updates.iter().find(|update| update.linear == *linear) {
            widened.push(Widened { at, update, a: update.a.to_f32(), b: update.b.to_f32() });
        }
        at += padded(linear.shape(geometry)[0]);
    }
    let factors: Vec<Factors<'_>> = widened.iter().map(|widened| widened.factors(geometry)).collect();
    let [_, inputs] = site.linears()[0].shape(geometry);
    (!factors.is_empty()).then(|| LowRank::pack(arena, *precision, inputs, &factors))
}

/// The update of one linear layer, in f32.
struct Widened<'a> {
    /// Where the layer's outputs begin.
    at: usize,
    update: &'a Update<'a>,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Widened<'_> {
    fn factors(&self, geometry: &Geometry) -> Factors<'_> {
        let Self { at, update, a, b } = self;
        let [outputs, _] = update.linear.shape(geometry);
        Factors { at: *at, outputs, rank: update.rank as usize, scale: update.scale, a, b }
    }
}
