//! Which instruction sets this CPU has. Asked once, when a [`crate::Pool`] is made; kernels are told, they never ask.

use std::fmt;
use std::num::NonZero;

/// An instruction set that kernels are written for and that this CPU has. The bits of their results are the same on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What every CPU has. Says what the bits are; slow.
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 as above, and AMX int8 tiles: granted by the system, and found to compute what the portable code does.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
    /// NEON with dot products.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// What every CPU can run.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// What this CPU can run, from the slowest to the fastest; [`Isa::PORTABLE`] is the first.
    ///
    /// AMX is asked for and tried out at the first call (Linux only): it is in the list if the CPU has it, the kernel grants
    /// it to this process, and a small product of every encoding has the portable code's bits.
    pub fn available() -> Vec<Self> {
        let mut found = vec![Kind::Portable];
        found.extend(native());
        found.into_iter().map(Self).collect()
    }

    /// The fastest that this CPU can run.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::PORTABLE)
    }

    /// AMX, before it is known to work.
    ///
    /// # Safety
    /// The CPU has all that [`Kind::Amx`] names, or something that stands in for it, and the system has granted it.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub(crate) unsafe fn amx() -> Self {
        Self(Kind::Amx)
    }

    /// Rows of which a product costs about as much together as one of them does: tiles have as many lines.
    pub fn rows_together(self) -> NonZero<usize> {
        match self.0 {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Kind::Amx => const { NonZero::new(crate::activations::TOGETHER).expect("not zero") },
            _ => NonZero::<usize>::MIN,
        }
    }

    /// Whether products may use AMX tiles.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub(crate) fn has_tiles(self) -> bool {
        self.0 == Kind::Amx
    }

    pub(crate) fn kind(self) -> Kind {
        self.0
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512-vnni",
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Kind::Amx => "amx-int8",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon-dotprod",
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn native() -> Vec<Kind> {
    use std::arch::is_x86_feature_detected as has;
    let mut found = Vec::new();
    if has!("avx2") && has!("fma") && has!("f16c") {
        found.push(Kind::Avx2);
        if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") && has!("avx512vnni") {
            found.push(Kind::Avx512);
            #[cfg(target_os = "linux")]
            if crate::amx::is_available() {
                found.push(Kind::Amx);
            }
        }
    }
    found
}

#[cfg(target_arch = "aarch64")]
fn native() -> Vec<Kind> {
    let has_dot = std::arch::is_aarch64_feature_detected!("dotprod") && std::arch::is_aarch64_feature_detected!("fp16");
    if has_dot { vec![Kind::Neon] } else { Vec::new() }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn native() -> Vec<Kind> {
    Vec::new()
}
