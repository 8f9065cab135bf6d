//! Whether tiles may be used: the CPU has them, the system keeps them across context switches and grants them, and they
//! compute what they should. Asked by [`crate::Isa::available`], once per process.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv, CpuidResult};
use std::sync::OnceLock;

use super::check;
use crate::Isa;

/// In the second feature register (ECX) of leaf 1: XGETBV is there.
const OSXSAVE: u32 = 1 << 27;
/// In EDX of leaf 7: tiles, and their int8 products.
const AMX_TILE: u32 = 1 << 24;
const AMX_INT8: u32 = 1 << 25;
/// In the register that XGETBV reads: the system saves tile configurations and tiles.
const XTILE: u64 = 1 << 17 | 1 << 18;

/// `arch_prctl`, its request for a part of the CPU's state that is off by default, and the number of the tiles among those.
const SYS_ARCH_PRCTL: usize = 158;
const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
const XFEATURE_XTILEDATA: usize = 18;

/// Whether products may be computed on tiles, in every thread of this process. AVX-512 must be known to be there.
pub(crate) fn is_available() -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| {
        // SAFETY: the CPU has tiles, and the system has granted them.
        has_tiles() && ask_for_tiles() && check::has_the_portable_bits(unsafe { Isa::amx() })
    })
}

/// Whether the CPU has tiles and the system knows of them.
fn has_tiles() -> bool {
    if cpuid(0).eax < 7 || cpuid(1).ecx & OSXSAVE == 0 || cpuid(7).edx & (AMX_TILE | AMX_INT8) != AMX_TILE | AMX_INT8 {
        return false;
    }
    // SAFETY: XGETBV is there.
    unsafe { _xgetbv(0) & XTILE == XTILE }
}

#[allow(unused_unsafe, reason = "older compilers call it unsafe")]
fn cpuid(leaf: u32) -> CpuidResult {
    // SAFETY: every x86-64 CPU has the instruction.
    unsafe { if leaf < 7 { __cpuid(leaf) } else { __cpuid_count(leaf, 0) } }
}

/// Asks Linux to let this process use tiles. Threads that are started later may too, and so may those that run.
fn ask_for_tiles() -> bool {
    let mut result = SYS_ARCH_PRCTL;
    // SAFETY: a system call that changes what this process may do and touches none of its memory. It overwrites RCX and R11.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    result == 0
}
