//! Attention on a GPU.

use crate::kernel::Launch;
use crate::kernel::attend::AttendKernel;

/// Says why no emitter would take the kernel.
pub fn check(_: &AttendKernel) -> Result<(), String> {
    Err("is not generated for GPUs yet".into())
}

/// The generated functions.
pub fn launches(_: &AttendKernel) -> Vec<Launch> {
    Vec::new()
}

/// Bytes of each temporary.
pub fn temps(_: &AttendKernel) -> Vec<u64> {
    Vec::new()
}
