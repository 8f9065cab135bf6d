//! The numbers of one tensor as the file holds them: little-endian, at any address, in one of three widths. Whoever computes
//! with them widens them to f32, which is exact for all three.

use half::{bf16, f16};

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    BF16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// A tensor's numbers, row after row. All of them are finite when they come out of [`check`](super::check::check).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Values<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
}

impl<'a> Values<'a> {
    /// `bytes` as numbers; a rest that is no whole number is left out, which the reader of the header has made sure there is not.
    pub(super) fn new(dtype: Dtype, bytes: &'a [u8]) -> Self {
        Self { dtype, bytes }
    }

    /// How they are stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, widened.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.write_f32(&mut out);
        out
    }

    /// All of them, widened, into `out`.
    ///
    /// # Panics
    /// Where `out` has another length than [`Values::len`].
    pub fn write_f32(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.len(), "a tensor is written as a whole");
        match self.dtype {
            Dtype::F32 => widen(self.bytes, out, f32::from_le_bytes),
            Dtype::F16 => widen(self.bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => widen(self.bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        }
    }

    /// Place of the first number that is NaN or infinite.
    pub fn first_not_finite(&self) -> Option<usize> {
        // An exponent of ones only, in each of the three.
        match self.dtype {
            Dtype::F32 => position(self.bytes, |bytes| u32::from_le_bytes(bytes) & 0x7f80_0000 == 0x7f80_0000),
            Dtype::F16 => position(self.bytes, |bytes| u16::from_le_bytes(bytes) & 0x7c00 == 0x7c00),
            Dtype::BF16 => position(self.bytes, |bytes| u16::from_le_bytes(bytes) & 0x7f80 == 0x7f80),
        }
    }
}

fn widen<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    let (numbers, _) = bytes.as_chunks::<N>();
    for (out, number) in out.iter_mut().zip(numbers) {
        *out = read(*number);
    }
}

fn position<const N: usize>(bytes: &[u8], found: impl Fn([u8; N]) -> bool) -> Option<usize> {
    let (numbers, _) = bytes.as_chunks::<N>();
    numbers.iter().position(|number| found(*number))
}

impl std::fmt::Debug for Values<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Values({} {:?})", self.len(), self.dtype)
    }
}
