//! GPU kernel emitters, one module per family, for Hopper (`sm_90a`).
//!
//! *Takes* a kernel description; *gives* its functions in a [`Unit`] as `nvvm`, `llvm`, `scf`, `arith` operations; *promises* the functions
//! that [`crate::kernel::gpu`] lists, named by [`symbol`], and MLIR that means the same on the emulator and on the hardware.

pub mod attend;
pub mod gemm;
pub mod ops;
pub mod row;
pub mod scatter;
#[cfg(test)]
mod tests;

use super::emit::Unit;
use crate::kernel::Kernel;

/// Entry of one launch of a kernel in its PTX.
pub fn symbol(kernel: &Kernel, entry: &str) -> String {
    format!("{}_{entry}", kernel.symbol())
}

/// Emits every function of a kernel.
pub fn emit(unit: &Unit, kernel: &Kernel) -> Result<(), String> {
    let name = |entry: &str| symbol(kernel, entry);
    match kernel {
        Kernel::Attend(k) => attend::emit(unit, k, &name),
        Kernel::Gemm(k) => gemm::emit(unit, k, &name),
        Kernel::Row(k) => row::emit(unit, k, &name),
        Kernel::Scatter(k) => scatter::emit(unit, k, &name),
        Kernel::Host(builtin) => Err(format!("{builtin:?} is implemented by the runtime, not generated")),
    }
}
