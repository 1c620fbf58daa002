//! Row kernels on a GPU.

use crate::kernel::Launch;
use crate::kernel::row::Row;

/// Says why no emitter would take the kernel.
pub fn check(_: &Row) -> Result<(), String> {
    Err("is not generated for GPUs yet".into())
}

/// The generated functions.
pub fn launches(_: &Row) -> Vec<Launch> {
    Vec::new()
}

/// Bytes of each temporary.
pub fn temps(_: &Row) -> Vec<u64> {
    Vec::new()
}
