//! What this machine's arithmetic can do, for `bench`'s "% of peak".
//!
//! *Takes* a pool and a tier; *gives* measured operations per second of registers-only multiply-add loops; *promises* to be a
//! ceiling for the generated code on the same threads. For a GPU the ceiling is its data sheet's ([`HOPPER`]).

use std::time::{Duration, Instant};

use super::pool::Pool;

/// Highest arithmetic rates, floating-point operations per second: of a CPU measured over all threads of the pool, of a GPU from its data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// f32 multiply-add.
    pub f32: f64,
    /// bf16 products accumulated in f32; equal to `f32` on tiers without such an instruction.
    pub bf16: f64,
    /// Measured here, not a data-sheet figure.
    pub measured: bool,
}

/// NVIDIA's figures for H100 SXM and H200, without sparsity: bf16 on the tensor cores, f32 on the CUDA cores.
pub const HOPPER: Peak = Peak { f32: 66.9e12, bf16: 989.4e12, measured: false };

impl Peak {
    /// Measures for about a tenth of a second. `None` on machines other than x86-64 or below `cpu-v3`.
    pub fn measure(pool: &mut Pool, tier: &str) -> Option<Peak> {
        if !super::tier::supported("cpu-v3") {
            return None;
        }
        let wide = tier == "cpu-avx512bf16" && super::tier::supported(tier);
        let f32 = rate(pool, if wide { fma_512 } else { fma_256 }, if wide { 32.0 } else { 16.0 });
        let bf16 = if wide { rate(pool, dot_bf16_512, 64.0) } else { f32 };
        Some(Peak { f32, bf16, measured: true })
    }
}

/// Instructions in one trip of a loop below.
const UNROLL: u64 = 12;

/// Best of several rounds of `body` on every thread; one instruction is `flops` operations.
fn rate(pool: &mut Pool, body: fn(u64), flops: f64) -> f64 {
    const TRIPS: u64 = 200_000;
    let threads = pool.threads() as u32;
    let (begin, mut best) = (Instant::now(), Duration::MAX);
    while begin.elapsed() < Duration::from_millis(50) {
        let start = Instant::now();
        pool.run(threads, &|_, _| body(TRIPS));
        best = best.min(start.elapsed());
    }
    f64::from(threads) * (TRIPS * UNROLL) as f64 * flops / best.as_secs_f64()
}

macro_rules! loop_of {
    ($(#[$doc:meta])* $name:ident, $op:literal, $r:literal) => {
        $(#[$doc])*
        #[cfg(target_arch = "x86_64")]
        fn $name(trips: u64) {
            // SAFETY: registers only. It zeroes vector registers 0 to 15, all declared as clobbered, works in them, and counts
            // `trips` (not 0) down. The caller checked that the CPU has the instructions.
            unsafe {
                std::arch::asm!(
                    "vzeroall",
                    "2:",
                    concat!($op, " ", $r, "0, ", $r, "12, ", $r, "13"),
                    concat!($op, " ", $r, "1, ", $r, "12, ", $r, "13"),
                    concat!($op, " ", $r, "2, ", $r, "12, ", $r, "13"),
                    concat!($op, " ", $r, "3, ", $r, "12, ", $r, "13"),
                    concat!($op, " ", $r, "4, ", $r, "12, ", $r, "13"),
                    concat!($op, " ", $r, "5, ", $r, "12, ", $r, "13"),
                    concat!($op, " ", $r, "6, ", $r, "12, ", $r, "13"),
                    concat!($op, " ", $r, "7, ", $r, "12, ", $r, "13"),
                    concat!($op, " ", $r, "8, ", $r, "12, ", $r, "13"),
                    concat!($op, " ", $r, "9, ", $r, "12, ", $r, "13"),
                    concat!($op, " ", $r, "10, ", $r, "12, ", $r, "13"),
                    concat!($op, " ", $r, "11, ", $r, "12, ", $r, "13"),
                    "dec {trips}",
                    "jnz 2b",
                    "vzeroupper",
                    trips = inout(reg) trips => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                    out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    options(nomem, nostack),
                );
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        fn $name(_: u64) {}
    };
}

loop_of!(
    /// 8 f32 multiply-adds an instruction.
    fma_256, "vfmadd231ps", "ymm"
);
loop_of!(
    /// 16 f32 multiply-adds an instruction.
    fma_512, "vfmadd231ps", "zmm"
);
loop_of!(
    /// 32 bf16 products into 16 f32 sums an instruction.
    dot_bf16_512, "vdpbf16ps", "zmm"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_something_plausible() {
        let mut pool = Pool::new(1).unwrap();
        let Some(peak) = Peak::measure(&mut pool, "cpu-avx512bf16") else { return };
        // Between a slow laptop core shared with others and anything built so far.
        assert!((1e8..1e13).contains(&peak.f32), "{peak:?}");
        assert!(peak.bf16 >= 0.5 * peak.f32, "{peak:?}");
    }
}
