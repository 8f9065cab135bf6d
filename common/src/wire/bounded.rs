//! Lists that stop at the first element too many. An element may take a few bytes of a frame and many times that of memory,
//! so that a frame of nothing else would become a multiple of its size.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// For `#[serde(deserialize_with)]`: at most `MOST` elements.
pub(super) fn few<'de, const MOST: usize, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Few<T, const MOST: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Few<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MOST} elements")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut announced: A) -> Result<Self::Value, A::Error> {
            let mut elements = Vec::new();
            while let Some(element) = announced.next_element()? {
                if elements.len() == MOST {
                    return Err(A::Error::invalid_length(MOST + 1, &self));
                }
                elements.push(element);
            }
            Ok(elements)
        }
    }

    deserializer.deserialize_seq(Few::<T, MOST>(PhantomData))
}
