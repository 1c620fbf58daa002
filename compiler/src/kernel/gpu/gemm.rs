//! Contractions on a GPU.

use crate::kernel::Launch;
use crate::kernel::gemm::Gemm;

/// Says why no emitter would take the kernel.
pub fn check(_: &Gemm) -> Result<(), String> {
    Err("is not generated for GPUs yet".into())
}

/// The generated functions.
pub fn launches(_: &Gemm) -> Vec<Launch> {
    Vec::new()
}

/// Bytes of each temporary.
pub fn temps(_: &Gemm) -> Vec<u64> {
    Vec::new()
}
