//! Scatter-add for `sm_90a`.

use crate::kernel::scatter::Scatter;
use crate::mlir::emit::Unit;

/// Emits the functions of [`crate::kernel::gpu::scatter::launches`].
pub fn emit(_: &Unit, _: &Scatter, _: &dyn Fn(&str) -> String) -> Result<(), String> {
    Err("is not generated for GPUs yet".into())
}
