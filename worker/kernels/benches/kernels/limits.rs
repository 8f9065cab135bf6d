//! What this machine can do at best: reading memory, and the bare instructions that kernels are made of.

use std::fmt;
use std::hint::black_box;
use std::num::NonZero;
use std::thread;
use std::time::Instant;

/// The machine's limits over all threads.
pub(crate) struct Limits {
    threads: NonZero<usize>,
    /// GB/s of reading what no cache holds.
    pub(crate) read: f64,
    /// GOP/s of int8 dot products out of registers; a multiply-add is two. Without VNNI, with an addition in 16 bits for each
    /// instruction that multiplies: what products of four bits are made of.
    pub(crate) dots: f64,
    /// GFLOP/s of f32 multiply-adds out of registers.
    pub(crate) fma: f64,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { threads, read, dots, fma } = self;
        write!(f, "limits on {threads} threads: read {read:.1} GB/s, int8 {dots:.0} GOP/s, f32 {fma:.0} GFLOP/s")
    }
}

/// Measures, for about a second.
pub(crate) fn measure(threads: NonZero<usize>) -> Limits {
    Limits {
        threads,
        read: on_all(threads, read),
        dots: on_all(threads, || instructions(Instruction::Dots)),
        fma: on_all(threads, || instructions(Instruction::MultiplyAdds)),
    }
}

/// The sum over threads of the best of three.
fn on_all(threads: NonZero<usize>, rate: impl Fn() -> f64 + Sync) -> f64 {
    let once = || -> f64 {
        thread::scope(|scope| {
            let all: Vec<_> = (0..threads.get()).map(|_| scope.spawn(&rate)).collect();
            all.into_iter().map(|one| one.join().expect("it does not panic")).sum()
        })
    };
    (0..3).map(|_| once()).fold(0.0, f64::max)
}

fn read() -> f64 {
    let values = vec![1u64; 32 << 20];
    let begin = Instant::now();
    let mut lanes = [0u64; 32];
    for chunk in values.as_chunks::<32>().0 {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*value);
        }
    }
    black_box(lanes);
    size_of_val(&values[..]) as f64 / begin.elapsed().as_secs_f64() / 1e9
}

#[derive(Clone, Copy)]
enum Instruction {
    Dots,
    MultiplyAdds,
}

const ROUNDS: u32 = 20_000_000;

#[cfg(target_arch = "x86_64")]
fn instructions(which: Instruction) -> f64 {
    let has_512 = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512f");
    let has_256 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    if !has_512 && !has_256 {
        return f64::NAN;
    }
    let begin = Instant::now();
    // SAFETY: the CPU has them.
    let lanes = unsafe {
        match (which, has_512) {
            (Instruction::Dots, true) => x86::dots(ROUNDS),
            (Instruction::Dots, false) => x86::dots_256(ROUNDS),
            (Instruction::MultiplyAdds, true) => x86::multiply_adds(ROUNDS),
            (Instruction::MultiplyAdds, false) => x86::multiply_adds_256(ROUNDS),
        }
    };
    2.0 * f64::from(ROUNDS) * lanes / begin.elapsed().as_secs_f64() / 1e9
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions(_which: Instruction) -> f64 {
    f64::NAN
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Chains enough to hide the latency of any instruction.
    const CHAINS: usize = 12;

    /// # Safety
    /// The CPU has AVX-512 VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn dots(rounds: u32) -> f64 {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(5)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
        (CHAINS * 64) as f64
    }

    /// # Safety
    /// The CPU has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn multiply_adds(rounds: u32) -> f64 {
        let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
        (CHAINS * 16) as f64
    }

    /// # Safety
    /// The CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn dots_256(rounds: u32) -> f64 {
        let b = _mm256_set1_epi8(black_box(5));
        let mut sums = [_mm256_set1_epi8(black_box(3)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(*sum, b));
            }
        }
        black_box(sums);
        (CHAINS * 32) as f64
    }

    /// # Safety
    /// The CPU has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn multiply_adds_256(rounds: u32) -> f64 {
        let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
        (CHAINS * 8) as f64
    }
}
