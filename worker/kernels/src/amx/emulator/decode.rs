//! Machine code of the tile instructions, in the encodings that assemblers emit for 64-bit mode: a three-byte VEX prefix
//! (0F38 map, W0, L0), and no others.
//!
//! | instruction                | VEX prefix, opcode, ModRM              |
//! |----------------------------|----------------------------------------|
//! | `ldtilecfg [m512]`         | none 49 /0, memory                     |
//! | `tilerelease`              | none 49 C0                             |
//! | `tilezero tmm`             | F2 49, register, tile in `reg`         |
//! | `tileloadd tmm, [sib]`     | F2 4B, memory with SIB                 |
//! | `tilestored [sib], tmm`    | F3 4B, memory with SIB                 |
//! | `tdpbssd tmm1, tmm2, tmm3` | F2 5E, register: `reg`, `rm`, VEX.vvvv |

/// Rows of a tile in memory.
#[derive(Clone, Copy)]
pub(super) struct Address {
    pub(super) base: u64,
    pub(super) stride: u64,
}

/// An instruction on tiles.
pub(super) enum Instruction {
    Configure { from: u64 },
    Release,
    Zero { tile: usize },
    Load { tile: usize, from: Address },
    Store { tile: usize, to: Address },
    Dot { sums: usize, left: usize, right: usize },
}

/// The registers in the order of their numbers in instructions.
const NUMBERED: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

const NONE: u8 = 0;
const F3: u8 = 2;
const F2: u8 = 3;

/// The bytes of an instruction, from RIP on.
struct Bytes {
    at: u64,
}

impl Bytes {
    /// # Safety
    /// The byte belongs to the instruction: it may be the last of its page.
    unsafe fn next(&mut self) -> u8 {
        self.at += 1;
        // SAFETY: the caller's promise.
        unsafe { ((self.at - 1) as *const u8).read() }
    }
}

/// The instruction at RIP and its length, if it is one of ours.
///
/// # Safety
/// RIP points to a whole instruction.
pub(super) unsafe fn decode(registers: &[libc::greg_t; 23]) -> Option<(Instruction, i64)> {
    let start = registers[libc::REG_RIP as usize] as u64;
    let mut bytes = Bytes { at: start };
    // SAFETY: a byte is read only once those before say that it is there.
    let mut next = || unsafe { bytes.next() };
    if next() != 0xC4 {
        return None;
    }
    // R, X and B, inverted, and the map; then W, vvvv, inverted, L and the prefix.
    let (high, rest) = (next(), next());
    let (opcode, modrm) = (next(), next());
    let (vvvv, prefix) = (!rest >> 3 & 15, rest & 3);
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), modrm & 7);
    // There are eight tiles: a fourth bit of a number would name one that is not there.
    let names_a_high_tile = high & 0x80 == 0 || (mode == 3 && high & 0x20 == 0) || vvvv > 7;
    if high & 0x1F != 2 || rest & 0x84 != 0 || names_a_high_tile || (opcode != 0x5E && vvvv != 0) {
        return None;
    }
    let instruction = match (mode, opcode, prefix) {
        (3, 0x49, NONE) if modrm == 0xC0 => Instruction::Release,
        (3, 0x49, F2) if rm == 0 => Instruction::Zero { tile: reg },
        (3, 0x5E, F2) => Instruction::Dot { sums: reg, left: usize::from(rm), right: usize::from(vvvv) },
        (0..=2, 0x49, NONE) if reg == 0 => {
            // SAFETY: such an instruction has a memory operand here.
            let Address { base, stride } = unsafe { address(registers, &mut bytes, high, modrm) }?;
            Instruction::Configure { from: base.wrapping_add(stride) }
        }
        (0..=2, 0x4B, F2 | F3) if rm == 4 => {
            // SAFETY: as above.
            let address = unsafe { address(registers, &mut bytes, high, modrm) }?;
            if prefix == F2 {
                Instruction::Load { tile: reg, from: address }
            } else {
                Instruction::Store { tile: reg, to: address }
            }
        }
        _ => return None,
    };
    Some((instruction, (bytes.at - start) as i64))
}

/// A memory operand; none if it has no base.
///
/// # Safety
/// `bytes` are those behind the ModRM byte of an instruction with such an operand.
unsafe fn address(registers: &[libc::greg_t; 23], bytes: &mut Bytes, high: u8, modrm: u8) -> Option<Address> {
    let register = |high: u8, low: u8| registers[NUMBERED[usize::from((high & 1) << 3 | low)] as usize] as u64;
    // SAFETY: the bytes before say what there is.
    let mut next = || unsafe { bytes.next() };
    let (mode, mut base, mut stride) = (modrm >> 6, modrm & 7, 0);
    if base == 4 {
        let sib = next();
        let index = sib >> 3 & 7;
        // Index 4 is none, R12 is one.
        if index != 4 || !high >> 6 & 1 == 1 {
            stride = register(!high >> 6, index) << (sib >> 6);
        }
        base = sib & 7;
    }
    if mode == 0 && base == 5 {
        return None;
    }
    let displacement = match mode {
        0 => 0,
        1 => i64::from(next().cast_signed()),
        _ => i64::from(i32::from_le_bytes([next(), next(), next(), next()])),
    };
    Some(Address { base: register(!high >> 5, base).wrapping_add_signed(displacement), stride })
}
