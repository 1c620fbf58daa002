//! Attention for `sm_90a`.

use crate::kernel::attend::AttendKernel;
use crate::mlir::emit::Unit;

/// Emits the functions of [`crate::kernel::gpu::attend::launches`].
pub fn emit(_: &Unit, _: &AttendKernel, _: &dyn Fn(&str) -> String) -> Result<(), String> {
    Err("is not generated for GPUs yet".into())
}
