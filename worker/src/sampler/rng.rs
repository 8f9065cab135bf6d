//! The counter-based generator behind every draw: Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers:
//! As Easy as 1, 2, 3", SC 2011). A draw is a function of (seed, choice, position) alone, so there is no state to lose
//! when a request moves to another worker. Called by the sampler; never seeded from the system.

/// Key and counter words of one block.
type Block = [u32; 4];

/// Multipliers of the two lanes (Random123, `philox.h`).
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Weyl increments of the key: the golden ratio and sqrt(3) - 1.
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Rounds for which the paper reports full BigCrush resistance with a margin.
const ROUNDS: usize = 10;
/// Third counter word: keeps these draws apart from any other use of the same seed.
const TOKEN_DRAW: u32 = 1;

/// One uniform number in `[0, 1)` with 53 random bits: the draw of token `position` of `choice`.
pub(super) fn uniform(seed: u64, choice: u32, position: u32) -> f64 {
    let key = [seed as u32, (seed >> 32) as u32];
    let [low, high, ..] = philox([position, choice, TOKEN_DRAW, 0], key);
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

fn philox(mut counter: Block, mut key: [u32; 2]) -> Block {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
        }
        let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kat_vectors` of the Random123 distribution, rows `philox4x32 10`.
    #[test]
    fn the_generator_gives_the_published_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_draw_depends_on_seed_choice_and_position() {
        let base = uniform(1, 0, 0);
        assert_eq!(base, uniform(1, 0, 0));
        for other in [uniform(2, 0, 0), uniform(1 | 1 << 32, 0, 0), uniform(1, 1, 0), uniform(1, 0, 1)] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn draws_stay_below_one() {
        let largest = (u64::MAX >> 11) as f64 / (1_u64 << 53) as f64;
        assert!(largest < 1.0);
        assert!((0..10_000).all(|position| (0.0..1.0).contains(&uniform(7, 3, position))));
    }
}
