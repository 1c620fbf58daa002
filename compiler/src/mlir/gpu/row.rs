//! Row kernels for `sm_90a`.

use crate::kernel::row::Row;
use crate::mlir::emit::Unit;

/// Emits the functions of [`crate::kernel::gpu::row::launches`].
pub fn emit(_: &Unit, _: &Row, _: &dyn Fn(&str) -> String) -> Result<(), String> {
    Err("is not generated for GPUs yet".into())
}
