//! Counter-based random numbers: Philox4x32-10 and the numbers made of it.
//!
//! *Takes* a key, a counter and an element number; *gives* words, uniforms and normals; *promises* the same bits on every host.
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
//!
//! Elements e and e + 1 (row-major numbers, e even) of a tensor come from the Philox block with counter words `(low and high word of
//! e / 2, 0, counter)` and the key's low and high word, the layout of the runtime's streams. Words 0, 1 and 2, 3 give two numbers of 53
//! bits in [0, 1). A uniform is that number cut to 24 bits, so that it is an f32 below 1; normals are made of the two by
//! Box-Muller: cosine for even elements, sine for odd.

/// Ten rounds of Philox on one counter.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
    }
    counter
}

/// The two 53-bit numbers in [0, 1) that an element's pair shares.
fn pair(key: u64, counter: i32, element: usize) -> [f64; 2] {
    let number = element as u64 / 2;
    let words = philox([number as u32, (number >> 32) as u32, 0, counter as u32], [key as u32, (key >> 32) as u32]);
    let unit = |lo: u32, hi: u32| ((u64::from(hi) << 32 | u64::from(lo)) >> 11) as f64 / (1u64 << 53) as f64;
    [unit(words[0], words[1]), unit(words[2], words[3])]
}

/// Uniform in [0, 1), a multiple of 2^-24.
pub fn uniform(key: u64, counter: i32, element: usize) -> f64 {
    let bits = f64::from(1 << 24);
    libm::floor(pair(key, counter, element)[element % 2] * bits) / bits
}

/// Standard normal.
pub fn normal(key: u64, counter: i32, element: usize) -> f64 {
    let [a, b] = pair(key, counter, element);
    let radius = libm::sqrt(-2.0 * libm::log(1.0 - a));
    let (sin, cos) = libm::sincos(2.0 * std::f64::consts::PI * b);
    radius * if element.is_multiple_of(2) { cos } else { sin }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Known answers of the authors' Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let n = 20_000;
        let mean = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
        assert!((mean(&|e| uniform(7, 3, e)) - 0.5).abs() < 0.01);
        assert!((mean(&|e| uniform(7, 3, e) * uniform(7, 3, e)) - 1.0 / 3.0).abs() < 0.01);
        assert!(mean(&|e| normal(7, 3, e)).abs() < 0.03);
        assert!((mean(&|e| normal(7, 3, e) * normal(7, 3, e)) - 1.0).abs() < 0.04);
        assert!(mean(&|e| normal(7, 3, e) * normal(7, 3, e + 1)).abs() < 0.03);
        assert!(mean(&|e| normal(7, 3, e) * normal(7, 4, e)).abs() < 0.03);
    }
}
