//! The inner product of the emulator, in vector instructions where this CPU has them: tests are built without much optimisation.
#![allow(unsafe_code)]

/// `sum[64][n] += a[64][16] b[16][n]`, k ascending, each product and sum rounded (no fused operation). `n` is a multiple of 8.
pub(super) fn add(sum: &mut [f32], a: &[f32], b: &[f32], n: usize) {
    assert!(n % 8 == 0 && sum.len() == 64 * n && a.len() == 64 * 16 && b.len() == 16 * n, "extents of a product");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the CPU has AVX, and the slices have the lengths just checked.
        unsafe { avx(sum, a, b, n) };
        return;
    }
    for (row, sums) in sum.chunks_exact_mut(n).enumerate() {
        for k in 0..16 {
            let x = a[row * 16 + k];
            sums.iter_mut().zip(&b[k * n..(k + 1) * n]).for_each(|(s, y)| *s += x * y);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn avx(sum: &mut [f32], a: &[f32], b: &[f32], n: usize) {
    use std::arch::x86_64::{_mm256_add_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps};
    for row in 0..64 {
        for j in (0..n).step_by(8) {
            // SAFETY: `row < 64`, `j + 8 <= n`, `k < 16`: inside of the slices, whose lengths the caller has checked.
            unsafe {
                let at = sum.as_mut_ptr().add(row * n + j);
                let mut s = _mm256_loadu_ps(at);
                for k in 0..16 {
                    let x = _mm256_set1_ps(*a.as_ptr().add(row * 16 + k));
                    s = _mm256_add_ps(s, _mm256_mul_ps(x, _mm256_loadu_ps(b.as_ptr().add(k * n + j))));
                }
                _mm256_storeu_ps(at, s);
            }
        }
    }
}
