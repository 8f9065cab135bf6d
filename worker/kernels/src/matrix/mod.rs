//! Weights of linear layers, packed once: the right side of every matmul.
//!
//! A **panel** is 16 outputs. Its quants lie in tiles of 32 inputs: line j of a tile of bytes holds inputs 4j..4j+4 of
//! each of the 16 outputs; line j of a tile of nibbles holds those in its low nibbles, and inputs 16+4j.. in its high ones.
//! Scales (and minima) lie apart, 16 to a tile: one for each output.

mod encoding;

use half::f16;

pub(crate) use self::encoding::Bytes;
pub use self::encoding::{Encoding, SUPER_BLOCK};
use self::encoding::{pack_quants, quant_of};
use crate::memory::{Arena, Piece};
use crate::pool::Pool;
use crate::rows::{BLOCK, Shared, padded};
use crate::simd::LANES;

/// Outputs of a panel.
pub(crate) const PANEL: usize = LANES;

/// One output's weights, to be packed.
#[derive(Debug)]
pub struct Weights {
    /// `[padded(inputs)]`: 0 to 15 for nibbles, 0 to 63 for six bits; any for bytes, as two's complement.
    pub quants: Vec<u8>,
    /// One for each group; for six bits the whole number.
    pub scales: Vec<f32>,
    /// One for each 256 weights: the common scales of six bits; unused otherwise.
    pub supers: Vec<f32>,
    /// One for each group; unused without minima.
    pub minima: Vec<f32>,
}

/// Outputs of one encoding.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) encoding: Encoding,
    pub(crate) outputs: usize,
    /// Where its outputs begin in a row of the matrix's outputs.
    pub(crate) at: usize,
    /// `[panels, blocks, lines of a tile]`
    quants: Piece<Bytes>,
    /// `[panels, blocks, groups of a block, PANEL]`, of which one is used.
    half_scales: Piece<[u16; PANEL]>,
    half_minima: Piece<[u16; PANEL]>,
    scales: Piece<[f32; PANEL]>,
    minima: Piece<[f32; PANEL]>,
    /// Of six bits: the whole numbers as above, and `[panels, super-blocks, PANEL]`.
    whole_scales: Piece<[i8; PANEL]>,
    supers: Piece<[u16; PANEL]>,
    /// `[panels, PANEL]`, or nothing.
    bias: Vec<[f32; PANEL]>,
}

/// The weights of a linear layer, or of several that share their inputs. Outputs of each part begin at a whole block of the
/// output row.
#[derive(Debug, Default)]
pub struct Matrix {
    inputs: usize,
    parts: Vec<Part>,
    arena: Arena,
}

impl Matrix {
    /// A matrix of `inputs` without outputs. What is pushed lies in `arena`.
    pub fn new(inputs: usize, arena: &Arena) -> Self {
        Self { inputs, parts: Vec::new(), arena: arena.clone() }
    }

    /// Inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Width of a row of outputs: each part's, padded, but not the last.
    pub fn width(&self) -> usize {
        self.parts.last().map_or(0, |part| part.at + part.outputs)
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(Part::bytes).sum()
    }

    /// Bytes that `outputs` outputs of `inputs` weights take once they are packed.
    pub fn bytes_of(encoding: Encoding, inputs: usize, outputs: usize) -> usize {
        let weights = outputs.next_multiple_of(PANEL) * padded(inputs);
        let groups = weights / encoding.group();
        if encoding == Encoding::SixBits {
            let supers = outputs.next_multiple_of(PANEL) * super_blocks(inputs.div_ceil(BLOCK));
            return weights * 6 / 8 + groups + supers * size_of::<u16>();
        }
        let each = if encoding.scales_are_halves() { size_of::<u16>() } else { size_of::<f32>() };
        let numbers = if encoding.has_minima() { 2 } else { 1 };
        weights * encoding.lines() / 8 + groups * each * numbers
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn blocks(&self) -> usize {
        self.inputs.div_ceil(BLOCK)
    }

    /// Appends `outputs` outputs. `read` fills in the weights of one output; `bias` is `[outputs]`.
    pub fn push(
        &mut self,
        pool: &mut Pool,
        encoding: Encoding,
        outputs: usize,
        bias: Option<&[f32]>,
        read: impl Fn(usize, &mut Weights) + Sync,
    ) {
        let (panels, blocks) = (outputs.div_ceil(PANEL), self.blocks());
        let scales = panels * blocks * BLOCK / encoding.group();
        let [halves, wide, whole] = match encoding {
            Encoding::SixBits => [0, 0, scales],
            _ if encoding.scales_are_halves() => [scales, 0, 0],
            _ => [0, scales, 0],
        };
        let minima = |count: usize| if encoding.has_minima() { count } else { 0 };
        let mut part = Part {
            encoding,
            outputs,
            at: padded(self.width()),
            quants: self.arena.zeros(panels * blocks * encoding.lines()),
            half_scales: self.arena.zeros(halves),
            half_minima: self.arena.zeros(minima(halves)),
            scales: self.arena.zeros(wide),
            minima: self.arena.zeros(minima(wide)),
            whole_scales: self.arena.zeros(whole),
            supers: self.arena.zeros(if whole > 0 { panels * super_blocks(blocks) } else { 0 }),
            bias: Vec::new(),
        };
        if let Some(bias) = bias {
            assert_eq!(bias.len(), outputs, "biases");
            let lanes = |bias: &[f32]| std::array::from_fn(|lane| bias.get(lane).copied().unwrap_or(0.0));
            part.bias = bias.chunks(PANEL).map(lanes).collect();
        }
        part.pack(pool, blocks, &read);
        self.parts.push(part);
    }

    /// The weights of output `output` of the first part as f32, `[inputs]`: an embedding where the head is tied to it.
    pub fn weights_of(&self, output: usize, to: &mut [f32]) {
        self.parts[0].weights_of(self.blocks(), output, &mut to[..self.inputs]);
    }
}

impl Part {
    pub(crate) fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.quants[..])
            + size_of_val(&self.half_scales[..])
            + size_of_val(&self.half_minima[..])
            + size_of_val(&self.scales[..])
            + size_of_val(&self.minima[..])
            + size_of_val(&self.whole_scales[..])
            + size_of_val(&self.supers[..])
    }

    fn pack(&mut self, pool: &mut Pool, blocks: usize, read: &(impl Fn(usize, &mut Weights) + Sync)) {
        let (encoding, outputs) = (self.encoding, self.outputs);
        let (lines, groups) = (blocks * encoding.lines(), blocks * BLOCK / encoding.group());
        let quants = Shared::new(&mut self.quants);
        let [half_scales, half_minima] = [&mut self.half_scales, &mut self.half_minima].map(|v| Shared::new(v));
        let [scales, minima] = [&mut self.scales, &mut self.minima].map(|v| Shared::new(v));
        let (whole_scales, supers) = (Shared::new(&mut self.whole_scales), Shared::new(&mut self.supers));
        let commons = super_blocks(blocks);
        pool.split(outputs.div_ceil(PANEL), 4, |_, panels| {
            let mut weights = Weights {
                quants: vec![0; blocks * BLOCK],
                scales: vec![0.0; groups],
                supers: vec![0.0; commons],
                minima: vec![0.0; groups],
            };
            for panel in panels {
                for (lane, output) in (panel * PANEL..outputs.min((panel + 1) * PANEL)).enumerate() {
                    weights.quants.fill(0);
                    weights.scales.fill(0.0);
                    weights.supers.fill(0.0);
                    weights.minima.fill(0.0);
                    read(output, &mut weights);
                    // SAFETY: each panel is packed by one thread, and the parts of different panels are disjoint. The
                    // vectors that the encoding does not use are empty, and so are their parts.
                    unsafe {
                        pack_quants(encoding, lane, &weights.quants, quants.part(panel * lines, lines));
                        let at = panel * groups;
                        if encoding == Encoding::SixBits {
                            pack_whole(lane, &weights.scales, whole_scales.part(at, groups));
                            pack_halves(lane, &weights.supers, supers.part(panel * commons, commons));
                        } else if encoding.scales_are_halves() {
                            pack_halves(lane, &weights.scales, half_scales.part(at, groups));
                        } else {
                            pack_wide(lane, &weights.scales, scales.part(at, groups));
                        }
                        if encoding.has_minima() && encoding.scales_are_halves() {
                            pack_halves(lane, &weights.minima, half_minima.part(at, groups));
                        } else if encoding.has_minima() {
                            pack_wide(lane, &weights.minima, minima.part(at, groups));
                        }
                    }
                }
            }
        });
    }

    /// The tiles of a panel, line by line.
    pub(crate) fn lines(&self, panel: usize) -> &[Bytes] {
        part_of(&self.quants, panel, self.panels())
    }

    /// The tiles of a panel.
    pub(crate) fn quants(&self, panel: usize) -> *const u8 {
        self.lines(panel).as_ptr().cast()
    }

    pub(crate) fn half_scales(&self, panel: usize) -> &[[u16; PANEL]] {
        part_of(&self.half_scales, panel, self.panels())
    }

    pub(crate) fn half_minima(&self, panel: usize) -> &[[u16; PANEL]] {
        part_of(&self.half_minima, panel, self.panels())
    }

    pub(crate) fn scales(&self, panel: usize) -> &[[f32; PANEL]] {
        part_of(&self.scales, panel, self.panels())
    }

    pub(crate) fn minima(&self, panel: usize) -> &[[f32; PANEL]] {
        part_of(&self.minima, panel, self.panels())
    }

    pub(crate) fn whole_scales(&self, panel: usize) -> &[[i8; PANEL]] {
        part_of(&self.whole_scales, panel, self.panels())
    }

    pub(crate) fn supers(&self, panel: usize) -> &[[u16; PANEL]] {
        part_of(&self.supers, panel, self.panels())
    }

    pub(crate) fn bias(&self, panel: usize) -> Option<&[f32; PANEL]> {
        self.bias.get(panel)
    }

    fn weights_of(&self, blocks: usize, output: usize, to: &mut [f32]) {
        assert!(output < self.outputs, "output {output} of {}", self.outputs);
        let (panel, lane) = (output / PANEL, output % PANEL);
        let lines = blocks * self.encoding.lines();
        let quants = &self.quants[panel * lines..][..lines];
        for (input, to) in to.iter_mut().enumerate() {
            let group = input / self.encoding.group();
            let (scale, minimum) = if self.encoding == Encoding::SixBits {
                let common = f16::from_bits(self.supers(panel)[input / SUPER_BLOCK][lane]).to_f32();
                (common * f32::from(self.whole_scales(panel)[group][lane]), 0.0)
            } else if self.encoding.scales_are_halves() {
                let widen =
                    |values: &[[u16; PANEL]]| values.get(group).map_or(0.0, |v| f16::from_bits(v[lane]).to_f32());
                (widen(self.half_scales(panel)), widen(self.half_minima(panel)))
            } else {
                let take = |values: &[[f32; PANEL]]| values.get(group).map_or(0.0, |v| v[lane]);
                (take(self.scales(panel)), take(self.minima(panel)))
            };
            *to = quant_of(self.encoding, quants, lane, input) as f32 * scale;
            if self.encoding.has_minima() {
                *to += minimum;
            }
        }
    }
}

fn part_of<T>(values: &[T], panel: usize, panels: usize) -> &[T] {
    let length = values.len() / panels;
    &values[panel * length..(panel + 1) * length]
}

fn super_blocks(blocks: usize) -> usize {
    (blocks * BLOCK).div_ceil(SUPER_BLOCK)
}

/// Values that came from half precision: nothing is lost.
fn pack_halves(lane: usize, values: &[f32], to: &mut [[u16; PANEL]]) {
    for (to, &value) in to.iter_mut().zip(values) {
        to[lane] = f16::from_f32(value).to_bits();
    }
}

fn pack_whole(lane: usize, values: &[f32], to: &mut [[i8; PANEL]]) {
    for (to, &value) in to.iter_mut().zip(values) {
        to[lane] = value as i8;
    }
}

fn pack_wide(lane: usize, values: &[f32], to: &mut [[f32; PANEL]]) {
    for (to, &value) in to.iter_mut().zip(values) {
        to[lane] = value;
    }
}
