//! Device kinds an executable carries code for: kinds of x86-64 and of GPUs.
//!
//! *Takes* nothing; *gives* names, LLVM CPU strings and what this host can run; *promises* that f32 arithmetic has the same bits on every
//! tier (FMA only where written, no contraction, 16 virtual lanes), so only kernels with bf16 products or results differ.

use super::sys::Machine;
use crate::graph::ir::DType;
use crate::kernel::Kernel;
use crate::kernel::gpu::Arch;

/// A device kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// x86-64-v3: AVX2 and FMA. bf16 is a storage format only.
    V3,
    /// AVX-512 with `vdpbf16ps` (Zen 4, Cooper Lake, Sapphire Rapids and later).
    Avx512Bf16,
    /// NVIDIA GPUs. Their code is PTX, never linked, and their plans are variants of their own.
    Gpu(Arch),
}

impl Tier {
    /// The CPU's tiers, best last, as the plan lists them.
    pub const ALL: [Tier; 2] = [Tier::V3, Tier::Avx512Bf16];

    /// Whether this is a kind of GPU.
    pub fn is_gpu(self) -> bool {
        matches!(self, Tier::Gpu(_))
    }

    /// Name in the plan, in `--isa` and in ledgers.
    pub fn name(self) -> &'static str {
        match self {
            Tier::V3 => "cpu-v3",
            Tier::Avx512Bf16 => "cpu-avx512bf16",
            Tier::Gpu(arch) => arch.name(),
        }
    }

    /// Last part of a generated symbol.
    pub fn suffix(self) -> &'static str {
        match self {
            Tier::V3 => "v3",
            Tier::Avx512Bf16 => "avx512bf16",
            Tier::Gpu(arch) => arch.name(),
        }
    }

    /// LLVM's CPU name and feature string.
    pub fn cpu(self) -> (&'static str, &'static str) {
        match self {
            Tier::V3 => ("x86-64-v3", ""),
            Tier::Avx512Bf16 => ("x86-64-v4", "+avx512bf16"),
            // PTX 8.6: Hopper is complete in it, and drivers of CUDA 12.7 and later take it.
            Tier::Gpu(Arch::Sm90a) => (Arch::Sm90a.name(), "+ptx86"),
            // PTX 8.0: what drivers of CUDA 12.0 take, the oldest that are used.
            Tier::Gpu(Arch::Sm80) => (Arch::Sm80.name(), "+ptx80"),
        }
    }

    /// The code generator of this tier.
    pub fn machine(self) -> Result<Machine, String> {
        let (cpu, features) = self.cpu();
        let attributes: &[(&str, &str)] = match self {
            Tier::V3 => &[],
            // LLVM prefers 256-bit registers unless told; the kernels are written for 512.
            Tier::Avx512Bf16 => &[("prefer-vector-width", "512"), ("min-legal-vector-width", "512")],
            Tier::Gpu(_) => return Machine::nvptx(cpu, features),
        };
        Machine::x86(cpu, features, attributes)
    }

    /// Whether this process runs on a CPU that can execute the tier.
    pub fn runs_here(self) -> bool {
        match self {
            Tier::V3 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("bmi2")
                    && std::arch::is_x86_feature_detected!("f16c")
            }
            Tier::Avx512Bf16 => {
                std::arch::is_x86_feature_detected!("avx512bf16")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
            }
            Tier::Gpu(_) => false,
        }
    }

    /// The tier whose code `kernel` uses on `self`: kernels without bf16 products or results are compiled once, for v3, and serve both.
    pub fn of_kernel(self, kernel: &Kernel) -> Tier {
        if self.is_gpu() {
            return self;
        }
        let own = match kernel {
            Kernel::Gemm(g) => g.compute == DType::Bf16,
            Kernel::Attend(a) => a.dtype == DType::Bf16,
            // Rounding to bf16 is one instruction there and ten on v3, where it takes half of a kernel's time.
            Kernel::Row(r) => {
                r.graph.effects.iter().any(|e| r.graph.buffers[e.buffer.0 as usize].ty.dtype == DType::Bf16)
            }
            Kernel::Scatter(_) | Kernel::Quantile(_) | Kernel::Feedback(_) => false,
        };
        if own { self } else { Tier::V3 }
    }
}
