//! What kernel descriptions mean on a GPU: launches, grids, tensor maps, temporaries.
//!
//! *Takes* a [`Kernel`] and an [`Arch`]; *gives* its launches; *promises* that the emitters in `mlir::gpu` write exactly these functions, with
//! these parameters. One module per family; nothing here needs MLIR. Row kernels and scatter-add are the same on every GPU; contractions and attention stand
//! in `gemm` and `attend` for Hopper, in `gemm::mma` and `attend::mma` for all others.

pub mod attend;
pub mod feedback;
pub mod gemm;
pub mod library;
pub mod quantile;
pub mod row;
pub mod scatter;
pub mod tuning;

use super::{Kernel, Launch};

/// Multiprocessors that work is spread over (H100 SXM, H200).
pub(crate) const PROCESSORS: usize = 132;
/// Shared memory of one of them, and what every block takes for itself, bytes.
pub(crate) const SHARED: usize = 228 << 10;
pub(crate) const SHARED_OF_BLOCK: usize = 1 << 10;

/// What the GPU's code may use. The names are the assembler's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// Hopper: bulk copies and products of warpgroups. Runs on devices of capability 9.0 only.
    Sm90a,
    /// Ampere and all later devices: products of warps. Where it runs the driver assembles it for the device it finds.
    Sm80,
}

impl Arch {
    /// All kinds, the best for a device that runs several first.
    pub const ALL: [Arch; 2] = [Arch::Sm90a, Arch::Sm80];

    /// Name in `--target`, in the plan and in ledgers.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Sm90a => "sm_90a",
            Arch::Sm80 => "sm_80",
        }
    }

    /// Largest dynamic shared memory of one block, bytes; of [`Arch::Sm80`] that of the smallest device (capabilities 8.6, 8.9, 12.0).
    pub fn shared_limit(self) -> u32 {
        match self {
            Arch::Sm90a => 227 << 10,
            Arch::Sm80 => 99 << 10,
        }
    }
}

/// Says why no emitter would take a kernel.
pub fn check(arch: Arch, kernel: &Kernel) -> Result<(), String> {
    match (kernel, arch) {
        (Kernel::Row(k), _) => row::check(k)?,
        (Kernel::Gemm(k), Arch::Sm90a) if k.library => return library::product(k).map(|_| ()),
        (Kernel::Gemm(k), _) => gemm::check(k)?,
        (Kernel::Attend(k), _) => attend::check(k)?,
        (Kernel::Scatter(k), _) => scatter::check(k)?,
        (Kernel::Quantile(k), _) => quantile::check(k)?,
        (Kernel::Feedback(k), _) => feedback::check(k)?,
    }
    let (limit, name) = (arch.shared_limit(), arch.name());
    let most = launches(arch, kernel).iter().filter_map(|l| l.gpu.as_ref()).map(|g| g.shared).max().unwrap_or(0);
    if most > limit {
        return Err(format!("a block needs {most} bytes of shared memory; {name} has {limit}"));
    }
    Ok(())
}

/// The generated functions, in launch order.
pub fn launches(arch: Arch, kernel: &Kernel) -> Vec<Launch> {
    match (kernel, arch) {
        (Kernel::Row(k), _) => row::launches(k),
        (Kernel::Gemm(k), Arch::Sm90a) if k.library => library::launches(k),
        (Kernel::Gemm(k), Arch::Sm90a) => gemm::launches(k),
        (Kernel::Attend(k), Arch::Sm90a) => attend::launches(k),
        (Kernel::Gemm(k), Arch::Sm80) => gemm::mma::launches(k),
        (Kernel::Attend(k), Arch::Sm80) => attend::mma::launches(k),
        (Kernel::Scatter(k), _) => scatter::launches(k),
        (Kernel::Quantile(k), _) => quantile::launches(k),
        (Kernel::Feedback(k), _) => feedback::launches(k),
    }
}

/// Bytes of each temporary.
pub fn temps(arch: Arch, kernel: &Kernel) -> Vec<u64> {
    match (kernel, arch) {
        (Kernel::Gemm(k), Arch::Sm90a) if k.library => library::temps(),
        (Kernel::Gemm(k), Arch::Sm90a) => gemm::temps(k),
        (Kernel::Gemm(k), Arch::Sm80) => gemm::mma::temps(k),
        (Kernel::Attend(k), _) => attend::temps(k),
        (Kernel::Row(k), _) => row::temps(k),
        (Kernel::Scatter(k), _) => scatter::temps(k),
        (Kernel::Quantile(_) | Kernel::Feedback(_), _) => Vec::new(),
    }
}
