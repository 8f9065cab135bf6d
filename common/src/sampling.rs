//! The sampling parameters of a request, in types that cannot be out of range: the router's validation builds them, the
//! wire checks them again when it decodes, the worker's sampler only uses them. No arithmetic on logits here.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::ids::TokenId;

/// A number outside the range its field allows.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("must be {rule}")]
pub struct OutOfRange {
    /// The allowed range in words, for example `between 0 and 2`.
    pub rule: &'static str,
}

macro_rules! ranged {
    ($(#[$doc:meta])* $name:ident, $default:expr, $rule:literal, |$x:ident| $ok:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $name(f64);

        impl $name {
            /// Takes `value` if it is in range; NaN never is.
            pub fn new($x: f64) -> Result<Self, OutOfRange> {
                if $ok { Ok(Self($x)) } else { Err(OutOfRange { rule: $rule }) }
            }

            /// The value.
            pub fn get(self) -> f64 {
                self.0
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self($default)
            }
        }

        impl TryFrom<f64> for $name {
            type Error = OutOfRange;
            fn try_from(value: f64) -> Result<Self, OutOfRange> {
                Self::new(value)
            }
        }

        impl From<$name> for f64 {
            fn from(value: $name) -> f64 {
                value.0
            }
        }
    };
}

ranged!(
    /// Softmax temperature. 0 is greedy: the lowest id wins a tie.
    Temperature, 1.0, "between 0 and 2", |x| (0.0..=2.0).contains(&x)
);
ranged!(
    /// Nucleus mass kept. 0 keeps the best token only, 1 is off.
    TopP, 1.0, "between 0 and 1", |x| (0.0..=1.0).contains(&x)
);
ranged!(
    /// Floor relative to the largest probability after temperature. 0 is off.
    MinP, 0.0, "between 0 and 1", |x| (0.0..=1.0).contains(&x)
);
ranged!(
    /// Frequency or presence penalty, subtracted from the logits of generated tokens. 0 is off.
    Penalty, 0.0, "between -2 and 2", |x| (-2.0..=2.0).contains(&x)
);
ranged!(
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output. 1 is off.
    RepetitionPenalty, 1.0, "greater than 0 and at most 10", |x| x > 0.0 && x <= 10.0
);
ranged!(
    /// One value of `logit_bias`. Exactly -100 bans the token, exactly 100 leaves only such tokens.
    Bias, 0.0, "between -100 and 100", |x| (-100.0..=100.0).contains(&x)
);

impl Temperature {
    /// Whether the highest logit is taken without a draw.
    pub fn is_greedy(self) -> bool {
        self.0 == 0.0
    }
}

/// What one `logit_bias` value does to its token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BiasEffect {
    /// Added to the logit.
    Add(f64),
    /// The token cannot be chosen.
    Ban,
    /// Only tokens with this effect can be chosen.
    Only,
}

impl Bias {
    /// The effect this value stands for.
    pub fn effect(self) -> BiasEffect {
        match self.0 {
            -100.0 => BiasEffect::Ban,
            100.0 => BiasEffect::Only,
            added => BiasEffect::Add(added),
        }
    }
}

/// How tokens are drawn, the same for every branch of a request. Fields in the order in which the sampler applies them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Added to the raw logits first. Ids are unique and ascending.
    pub logit_bias: Vec<(TokenId, Bias)>,
    /// Over the set of prompt and generated tokens.
    pub repetition_penalty: RepetitionPenalty,
    /// Times the count among generated tokens.
    pub frequency_penalty: Penalty,
    /// Once per distinct generated token.
    pub presence_penalty: Penalty,
    /// Softmax temperature.
    pub temperature: Temperature,
    /// Relative floor.
    pub min_p: MinP,
    /// Keep the best k only; absent is off.
    pub top_k: Option<NonZeroU32>,
    /// Nucleus mass.
    pub top_p: TopP,
    /// Key of the counter-based generator. Always set: the router draws one where the request has none.
    pub seed: u64,
}
