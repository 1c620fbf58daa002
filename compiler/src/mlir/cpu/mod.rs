//! CPU kernel emitters, one module per family.
//!
//! *Takes* a kernel description; *gives* its functions in a [`Unit`]; *promises* one function per launch, named [`symbol`], of type
//! `golf_runtime::plan::KernelFn`.

mod args;
pub mod attend;
mod gemm;
pub mod row;
pub mod scatter;

use super::emit::Unit;
use super::tier::Tier;
use crate::kernel::Kernel;

/// Linker symbol of one launch of a kernel.
pub fn symbol(kernel: &Kernel, entry: &str, tier: Tier) -> String {
    format!("{}_{entry}_{}", kernel.symbol(), tier.suffix())
}

/// Emits every function of a kernel.
pub fn emit(unit: &Unit, kernel: &Kernel, tier: Tier) -> Result<(), String> {
    match kernel {
        Kernel::Attend(k) => attend::emit(unit, k, tier, &|entry| symbol(kernel, entry, tier)),
        Kernel::Gemm(g) => gemm::emit(unit, kernel, g, tier),
        Kernel::Row(k) => row::emit(unit, k, &|entry| symbol(kernel, entry, tier)),
        Kernel::Scatter(k) => scatter::emit(unit, k, &|entry| symbol(kernel, entry, tier)),
        Kernel::Quantile(_) | Kernel::Feedback(_) => Err(format!("{kernel:?} is done by the runtime, not generated")),
    }
}
