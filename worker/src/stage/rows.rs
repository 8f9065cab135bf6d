//! Activations on the wire: f32, little-endian, nothing lost.

/// Bytes of a value.
pub(super) const VALUE: usize = size_of::<f32>();

/// Appends `rows` to `out`.
pub(super) fn encode(rows: &[f32], out: &mut Vec<u8>) {
    out.reserve(rows.len() * VALUE);
    rows.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

/// Overwrites `rows` with what `bytes` says, as many values.
pub(super) fn decode(bytes: &[u8], rows: &mut [f32]) {
    assert_eq!(bytes.len(), rows.len() * VALUE, "bytes of the rows");
    let (values, _) = bytes.as_chunks::<VALUE>();
    rows.iter_mut().zip(values).for_each(|(row, value)| *row = f32::from_le_bytes(*value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_travels() {
        let rows = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE / 2.0, 1.0 / 3.0];
        let (mut bytes, mut arrived) = (Vec::new(), [7.0; 6]);
        encode(&rows, &mut bytes);
        decode(&bytes, &mut arrived);
        assert_eq!(arrived.map(f32::to_bits), rows.map(f32::to_bits));
        assert_eq!(bytes[20..], (1.0_f32 / 3.0).to_le_bytes());
    }
}
