//! GPU kernel emitters, one module per family: contractions and attention for Hopper (`sm_90a`), and in modules `mma` for every GPU since Ampere
//! (`sm_80`); the others for both.
//!
//! *Takes* a kernel description; *gives* its functions in a [`Unit`] as `nvvm`, `llvm`, `scf`, `arith` operations; *promises* the functions
//! that [`crate::kernel::gpu`] lists, named by [`symbol`], and MLIR that means the same on the emulator and on the hardware.

pub mod attend;
pub mod feedback;
pub mod gemm;
pub mod ops;
pub mod quantile;
pub mod row;
pub mod scatter;
#[cfg(test)]
mod tests;
mod tile;

use super::emit::Unit;
use crate::kernel::Kernel;
use crate::kernel::gpu::Arch;

/// Entry of one launch of a kernel in its PTX.
pub fn symbol(kernel: &Kernel, entry: &str) -> String {
    format!("{}_{entry}", kernel.symbol())
}

/// Emits every function of a kernel.
pub fn emit(unit: &Unit, arch: Arch, kernel: &Kernel) -> Result<(), String> {
    let name = |entry: &str| symbol(kernel, entry);
    match (kernel, arch) {
        (Kernel::Attend(k), Arch::Sm90a) => attend::emit(unit, k, &name),
        // A module without functions: the work is the library's.
        (Kernel::Gemm(k), Arch::Sm90a) if k.library => Ok(()),
        (Kernel::Gemm(k), Arch::Sm90a) => gemm::emit(unit, k, &name),
        (Kernel::Attend(k), Arch::Sm80) => attend::mma::emit(unit, k, &name),
        (Kernel::Gemm(k), Arch::Sm80) => gemm::mma::emit(unit, k, &name),
        (Kernel::Row(k), _) => row::emit(unit, k, &name),
        (Kernel::Scatter(k), _) => scatter::emit(unit, k, &name),
        (Kernel::Quantile(k), _) => quantile::emit(unit, k, &name),
        (Kernel::Feedback(k), _) => feedback::emit(unit, k, &name),
    }
}
