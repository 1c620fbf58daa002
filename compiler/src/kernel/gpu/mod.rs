//! What kernel descriptions mean on a GPU: launches, grids, tensor maps, temporaries.
//!
//! *Takes* a [`Kernel`]; *gives* its launches on `sm_90a`; *promises* that the emitters in `mlir::gpu` write exactly these functions, with
//! these parameters. One module per family; nothing here needs MLIR.

pub mod attend;
pub mod gemm;
pub mod row;
pub mod scatter;

use super::{Kernel, Launch};

/// Largest dynamic shared memory of one block, bytes.
pub const SHARED_LIMIT: u32 = 227 << 10;

/// Says why no emitter would take a kernel.
pub fn check(kernel: &Kernel) -> Result<(), String> {
    match kernel {
        Kernel::Row(k) => row::check(k),
        Kernel::Gemm(k) => gemm::check(k),
        Kernel::Attend(k) => attend::check(k),
        Kernel::Scatter(k) => scatter::check(k),
        Kernel::Host(k) => Err(format!("{:?} is a routine of the CPU", k.builtin)),
    }
}

/// The generated functions, in launch order.
pub fn launches(kernel: &Kernel) -> Vec<Launch> {
    match kernel {
        Kernel::Row(k) => row::launches(k),
        Kernel::Gemm(k) => gemm::launches(k),
        Kernel::Attend(k) => attend::launches(k),
        Kernel::Scatter(k) => scatter::launches(k),
        Kernel::Host(_) => Vec::new(),
    }
}

/// Bytes of each temporary.
pub fn temps(kernel: &Kernel) -> Vec<u64> {
    match kernel {
        Kernel::Gemm(k) => gemm::temps(k),
        Kernel::Attend(k) => attend::temps(k),
        Kernel::Row(k) => row::temps(k),
        Kernel::Scatter(k) => scatter::temps(k),
        Kernel::Host(_) => Vec::new(),
    }
}
