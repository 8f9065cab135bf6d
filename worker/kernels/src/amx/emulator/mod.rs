//! The tile instructions of this crate in software, for tests on CPUs without them.
//!
//! Such a CPU raises #UD on them, which Linux turns into SIGILL. [`install`] sets a handler that decodes the instruction,
//! carries it out on tiles kept per thread, and lets the program go on behind it, in some microseconds. Where a CPU with
//! tiles would fault, the process says why and aborts. Any other SIGILL goes where it went before. What is asked before
//! tiles are used (CPUID, XGETBV, the kernel's permission) is not emulated. On a CPU that has tiles nothing traps.

use std::cell::{Cell, UnsafeCell};
use std::mem::MaybeUninit;
use std::sync::OnceLock;

mod decode;

use decode::{Address, Instruction, decode};

const TILES: usize = 8;
const ROWS: usize = 16;
const ROW_BYTES: usize = 64;

/// A tile's shape, and its bytes; those outside of the shape are zero.
#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    row_bytes: usize,
    data: [[u8; ROW_BYTES]; ROWS],
}

/// Those of a thread, or none while they are not configured.
type Tiles = Option<[Tile; TILES]>;

thread_local! {
    // Built at compile time and without a destructor: reaching them allocates and registers nothing, so a handler may.
    static TILES_OF_THREAD: UnsafeCell<Tiles> = const { UnsafeCell::new(None) };
    static EMULATED: Cell<u64> = const { Cell::new(0) };
    static IS_BROKEN: Cell<bool> = const { Cell::new(false) };
}

/// What SIGILL did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Emulates tiles from here on, in all threads. Again has no effect.
pub(super) fn install() {
    BEFORE.get_or_init(|| {
        // SAFETY: zeros are a `sigaction`: default action, no flags, empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_sigill as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO;
        let mut before = MaybeUninit::uninit();
        // SAFETY: both point to a `sigaction`; the second is written on success.
        unsafe {
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, before.as_mut_ptr()), 0, "sigaction failed");
            before.assume_init()
        }
    });
}

/// Instructions of this thread that have been emulated.
pub(super) fn emulated() -> u64 {
    EMULATED.get()
}

/// Whether this thread has tiles configured.
pub(super) fn is_configured() -> bool {
    // SAFETY: no reference to the thread's tiles lives outside of the handler.
    TILES_OF_THREAD.with(|tiles| unsafe { (*tiles.get()).is_some() })
}

/// Runs `work` on tiles of this thread that compute wrongly: one bit of one sum of every product.
pub(super) fn broken<T>(work: impl FnOnce() -> T) -> T {
    IS_BROKEN.set(true);
    let result = work();
    IS_BROKEN.set(false);
    result
}

extern "C" fn on_sigill(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO, Linux passes the interrupted thread's `ucontext_t`, which is the handler's to change.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    // SAFETY: RIP points to the instruction that trapped.
    let Some((instruction, length)) = (unsafe { decode(registers) }) else { return leave_to_others() };
    // SAFETY: the tiles are this thread's, and nothing in `execute` is emulated. The operand is the program's own promise.
    let done = TILES_OF_THREAD.with(|tiles| unsafe { execute(&mut *tiles.get(), &instruction) });
    if let Err(why) = done {
        die(why);
    }
    EMULATED.set(EMULATED.get() + 1);
    registers[libc::REG_RIP as usize] += length;
}

/// The action from before takes over, and the instruction traps again.
fn leave_to_others() {
    if let Some(before) = BEFORE.get() {
        // SAFETY: a `sigaction` as the system gave it out.
        unsafe { libc::sigaction(libc::SIGILL, before, std::ptr::null_mut()) };
    }
}

/// Says why and aborts, with calls only that a signal handler may make.
fn die(why: &str) -> ! {
    for part in ["tile emulator: ", why, "\n"] {
        // SAFETY: the bytes are readable.
        unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
    }
    std::process::abort();
}

/// Carries an instruction out, or says why the CPU would not.
///
/// # Safety
/// Its memory operand is readable, or writable for a store.
unsafe fn execute(tiles: &mut Tiles, instruction: &Instruction) -> Result<(), &'static str> {
    match *instruction {
        Instruction::Configure { from } => {
            // SAFETY: the caller's promise.
            *tiles = Some(configured(unsafe { &*(from as *const [u8; 64]) })?);
        }
        Instruction::Release => *tiles = None,
        Instruction::Zero { tile } => usable(tiles, tile)?.data = [[0; ROW_BYTES]; ROWS],
        Instruction::Load { tile, from } => {
            let tile = usable(tiles, tile)?;
            for row in 0..tile.rows {
                // SAFETY: the caller's promise.
                unsafe { row_at(from, row).copy_to_nonoverlapping(tile.data[row].as_mut_ptr(), tile.row_bytes) };
            }
        }
        Instruction::Store { tile, to } => {
            let tile = usable(tiles, tile)?;
            for row in 0..tile.rows {
                // SAFETY: the caller's promise.
                unsafe { row_at(to, row).copy_from_nonoverlapping(tile.data[row].as_ptr(), tile.row_bytes) };
            }
        }
        Instruction::Dot { sums, left, right } => {
            let (left, right) = (*usable(tiles, left)?, *usable(tiles, right)?);
            dot(usable(tiles, sums)?, &left, &right)?;
        }
    }
    Ok(())
}

fn row_at(address: Address, row: usize) -> *mut u8 {
    address.base.wrapping_add(address.stride.wrapping_mul(row as u64)) as *mut u8
}

fn usable(tiles: &mut Tiles, tile: usize) -> Result<&mut Tile, &'static str> {
    let tile = &mut tiles.as_mut().ok_or("a tile is used without a configuration (#UD)")?[tile];
    if tile.rows == 0 { Err("a tile is used that the configuration leaves empty (#UD)") } else { Ok(tile) }
}

/// Byte 0 is the palette, words from 16 on are bytes in a row, bytes from 48 on are rows; all others must be zero here.
fn configured(config: &[u8; 64]) -> Result<[Tile; TILES], &'static str> {
    if config[0] != 1 || config[1..16].iter().chain(&config[32..48]).chain(&config[56..]).any(|&byte| byte != 0) {
        return Err("a tile configuration's palette is unknown, or its reserved bytes are not zero (#GP)");
    }
    let mut tiles = [Tile { rows: 0, row_bytes: 0, data: [[0; ROW_BYTES]; ROWS] }; TILES];
    for (at, tile) in tiles.iter_mut().enumerate() {
        tile.row_bytes = usize::from(u16::from_le_bytes([config[16 + 2 * at], config[17 + 2 * at]]));
        tile.rows = usize::from(config[48 + at]);
        if tile.row_bytes > ROW_BYTES || tile.rows > ROWS || (tile.rows == 0) != (tile.row_bytes == 0) {
            return Err("a tile configuration has a shape that is none (#GP)");
        }
    }
    Ok(tiles)
}

/// Adds to each i32 of `sums` its row of `left` times its column of `right`: signed bytes, in fours.
fn dot(sums: &mut Tile, left: &Tile, right: &Tile) -> Result<(), &'static str> {
    let fits = sums.rows == left.rows && sums.row_bytes == right.row_bytes && left.row_bytes == 4 * right.rows;
    if !fits || !sums.row_bytes.is_multiple_of(4) {
        return Err("a product's tiles do not fit each other (#UD)");
    }
    for (sums, left) in sums.data[..sums.rows].iter_mut().zip(&left.data) {
        for (four, right) in left.as_chunks::<4>().0.iter().zip(&right.data[..right.rows]) {
            for (sum, other) in sums.as_chunks_mut::<4>().0.iter_mut().zip(right.as_chunks::<4>().0) {
                let product = |(&l, &r): (&u8, &u8)| i32::from(l.cast_signed()) * i32::from(r.cast_signed());
                let products: i32 = four.iter().zip(other).map(product).sum();
                *sum = i32::from_le_bytes(*sum).wrapping_add(products).to_le_bytes();
            }
        }
    }
    sums.data[0][0] ^= u8::from(IS_BROKEN.get());
    Ok(())
}
