//! Random numbers by counter.
//!
//! *Takes* a seed and a name (the stream), a (step, document) pair and an element; *gives* bits, uniforms, normals; *promises*
//! that a number depends on nothing else: not on order, threads, ranks or machine (Philox4x32-10 of Salmon et al., SC 2011;
//! normals by Box–Muller in f64 with libm).

/// One stream of random numbers, keyed by (seed, name).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
}

impl Stream {
    /// The stream of `name` under `seed`.
    pub fn new(seed: u64, name: &str) -> Stream {
        let mut hash = blake3::Hasher::new();
        hash.update(b"golf random stream 1").update(&seed.to_le_bytes()).update(name.as_bytes());
        let hash = hash.finalize();
        let word = |i: usize| u32::from_le_bytes([0, 1, 2, 3].map(|b| hash.as_bytes()[i + b]));
        Stream { key: [word(0), word(4)] }
    }

    /// Four words. `step` and `document` are below 2³².
    pub fn block(&self, step: u32, document: u32, block: u64) -> [u32; 4] {
        philox([block as u32, (block >> 32) as u32, document, step], self.key)
    }

    /// Two uniforms in [0, 1) with 53 bits, elements `2 * pair` and `2 * pair + 1` of the stream at step 0, document 0.
    pub fn uniform_pair(&self, pair: u64) -> [f64; 2] {
        let w = self.block(0, 0, pair);
        [unit(w[0], w[1]), unit(w[2], w[3])]
    }

    /// Two standard normals, elements `2 * pair` and `2 * pair + 1`.
    pub fn normal_pair(&self, pair: u64) -> [f64; 2] {
        let [a, b] = self.uniform_pair(pair);
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - a));
        let (sin, cos) = libm::sincos(2.0 * std::f64::consts::PI * b);
        [radius * cos, radius * sin]
    }
}

/// 53 bits of two words as a number in [0, 1).
fn unit(low: u32, high: u32) -> f64 {
    ((u64::from(high) << 32 | u64::from(low)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Philox4x32-10.
fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (p, q) = (0xD251_1F53_u64 * u64::from(c[0]), 0xCD9E_8D57_u64 * u64::from(c[2]));
        c = [(q >> 32) as u32 ^ c[1] ^ k[0], q as u32, (p >> 32) as u32 ^ c[3] ^ k[1], p as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123's kat_vectors.
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normals_have_the_moments_of_normals() {
        let stream = Stream::new(7, "w");
        let n = 50_000;
        let x: Vec<f64> = (0..n).flat_map(|i| stream.normal_pair(i)).collect();
        let moment = |p: i32| x.iter().map(|v| libm::pow(*v, f64::from(p))).sum::<f64>() / x.len() as f64;
        // Standard errors at 100,000 samples: 0.0032, 0.0045, 0.012, 0.031.
        assert!(moment(1).abs() < 0.015 && (moment(2) - 1.0).abs() < 0.02);
        assert!(moment(3).abs() < 0.06 && (moment(4) - 3.0).abs() < 0.15);
        assert!(x.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn streams_differ_by_seed_and_name() {
        let a = Stream::new(1, "a");
        assert_eq!(a, Stream::new(1, "a"));
        assert_ne!(a, Stream::new(2, "a"));
        assert_ne!(a, Stream::new(1, "b"));
        assert_ne!(a.block(0, 0, 0), a.block(1, 0, 0));
        assert_ne!(a.block(0, 1, 0), a.block(1, 0, 0));
        assert_eq!(a.uniform_pair(3), a.uniform_pair(3));
        assert!((0..1000).all(|i| a.uniform_pair(i).iter().all(|u| (0.0..1.0).contains(u))));
    }
}
