//! Scatter-add on a GPU.

use crate::kernel::Launch;
use crate::kernel::scatter::Scatter;

/// Says why no emitter would take the kernel.
pub fn check(_: &Scatter) -> Result<(), String> {
    Err("is not generated for GPUs yet".into())
}

/// The generated functions.
pub fn launches(_: &Scatter) -> Vec<Launch> {
    Vec::new()
}
