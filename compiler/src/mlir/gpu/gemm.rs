//! Contractions for `sm_90a`.

use crate::kernel::gemm::Gemm;
use crate::mlir::emit::Unit;

/// Emits the functions of [`crate::kernel::gpu::gemm::launches`].
pub fn emit(_: &Unit, _: &Gemm, _: &dyn Fn(&str) -> String) -> Result<(), String> {
    Err("is not generated for GPUs yet".into())
}
