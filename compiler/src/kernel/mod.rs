//! Kernel descriptions: what the schedule asks for and an emitter writes.
//!
//! *Takes* nothing; *gives* one plain-data description per kernel family; *promises* that equal descriptions mean equal code, so
//! that a description's [`Kernel::symbol`] (a hash of its text) identifies the generated functions and equal kernels are
//! emitted once.
//!
//! A description names its arguments by position only. A kernel may need several launches (pack, then multiply): each
//! [`Launch`] is one generated function, its tasks are independent, launches run in order. Fused element-wise work is carried as a small
//! [`Graph`] over the kernel's own axes, so there is one semantics (the graph interpreter's) for everything that is fused.

pub mod attend;
pub mod epilogue;
pub mod feedback;
pub mod gemm;
pub mod gpu;
pub mod quantile;
pub mod row;
pub mod scatter;
mod text;

use crate::graph::ir::{EffectMode, Graph, Op};

/// One generated function of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Suffix of the symbol: `pack_b`, `main`, ...
    pub entry: &'static str,
    /// Number of independent tasks.
    pub tasks: u32,
    /// Pointers, in order.
    pub args: Vec<LaunchArg>,
    /// Private scratch bytes per thread.
    pub scratch: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes that must move.
    pub bytes: u64,
    /// Launches of a GPU: block size, shared memory, tensor maps (their [`golf_runtime::plan::TensorMap::arg`] counts [`Launch::args`]);
    /// `tasks` is the number of blocks. The module is filled in by the plan.
    pub gpu: Option<golf_runtime::plan::Grid>,
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// x86-64, all tiers.
    Cpu,
    /// NVIDIA GPUs.
    Gpu(gpu::Arch),
}

impl Target {
    /// [`golf_runtime::plan::Variant::device`].
    pub fn device(self) -> &'static str {
        match self {
            Target::Cpu => "cpu",
            Target::Gpu(arch) => arch.name(),
        }
    }

    /// Says why no emitter of this target would take a kernel.
    pub fn check(self, kernel: &Kernel) -> Result<(), String> {
        match self {
            Target::Cpu => kernel.check(),
            Target::Gpu(arch) => gpu::check(arch, kernel),
        }
    }

    /// The generated functions of a kernel that [`Target::check`] takes, in launch order.
    pub fn launches(self, kernel: &Kernel) -> Vec<Launch> {
        match self {
            Target::Cpu => kernel.launches(),
            Target::Gpu(arch) => gpu::launches(arch, kernel),
        }
    }

    /// The routine of the runtime that does a kernel's work, where that is no generated code.
    pub fn builtin(self, kernel: &Kernel) -> Option<golf_runtime::plan::Builtin> {
        match (self, kernel) {
            (Target::Cpu, Kernel::Quantile(k)) => Some(golf_runtime::plan::Builtin::Quantile { n: k.n as u64, q: k.q }),
            (Target::Cpu, Kernel::Feedback(k)) => Some(k.builtin()),
            _ => None,
        }
    }

    /// The product that a library of the machine does instead of generated code.
    pub fn product(self, kernel: &Kernel) -> Option<golf_runtime::plan::Product> {
        match (self, kernel) {
            (Target::Gpu(_), Kernel::Gemm(g)) if g.library => gpu::library::product(g).ok(),
            _ => None,
        }
    }

    /// Bytes of each temporary that lives from a kernel's first launch to its last.
    pub fn temps(self, kernel: &Kernel) -> Vec<u64> {
        match self {
            Target::Cpu => kernel.temps(),
            Target::Gpu(arch) => gpu::temps(arch, kernel),
        }
    }
}

/// A pointer of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchArg {
    /// Argument of the kernel.
    Arg(usize),
    /// Temporary of the kernel, see [`Kernel::temps`].
    Temp(usize),
}

/// Whether a kernel reads or writes an argument (for ordering and liveness).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Access {
    Read,
    Write,
    /// Reads the old content and writes the new one.
    Update,
}

/// A kernel of any family.
#[derive(Clone, Debug, PartialEq)]
pub enum Kernel {
    /// Row-wise chains with reductions, gathers, losses.
    Row(row::Row),
    /// Contractions with fused epilogue.
    Gemm(gemm::Gemm),
    /// Attention, forward or backward.
    Attend(attend::AttendKernel),
    /// Deterministic scatter-add.
    Scatter(scatter::Scatter),
    /// Quantiles of rows.
    Quantile(quantile::Quantile),
    /// Rounding with feedback.
    Feedback(feedback::Feedback),
}

impl Kernel {
    /// Family name as in [`golf_runtime::plan::Kernel::family`].
    pub fn family(&self) -> &'static str {
        match self {
            Kernel::Row(_) => "row",
            Kernel::Gemm(_) => "gemm",
            Kernel::Attend(a) => match a.pass {
                attend::Pass::Forward => "attend",
                attend::Pass::Backward => "attend_grad",
            },
            Kernel::Scatter(_) => "scatter",
            Kernel::Quantile(_) => "quantile",
            Kernel::Feedback(_) => "feedback",
        }
    }

    /// The description whose generated functions serve this one too, with this one's number of tasks (see [`row::Row::code`]).
    pub fn code(&self) -> Kernel {
        match self {
            Kernel::Row(k) => Kernel::Row(k.code()),
            Kernel::Gemm(_) | Kernel::Attend(_) | Kernel::Scatter(_) | Kernel::Quantile(_) | Kernel::Feedback(_) => {
                self.clone()
            }
        }
    }

    /// Symbol stem: the family and a hash of [`Kernel::text`]. Generated functions are `{symbol}_{entry}_{tier}`. A contraction with a chosen cut has the
    /// stem of the same without, and the cut after it.
    pub fn symbol(&self) -> String {
        let plain = self.plain_symbol();
        match self {
            Kernel::Gemm(gemm::Gemm { cut: Some(cut), .. }) => {
                format!("{plain}_{}", cut.to_string().replace(['-', '/', '@'], "_"))
            }
            _ => plain,
        }
    }

    /// [`Kernel::symbol`], whatever was chosen for it.
    pub fn plain_symbol(&self) -> String {
        let text = match self {
            Kernel::Gemm(g) => Kernel::Gemm(gemm::Gemm { cut: None, library: false, ..g.clone() }).text(),
            _ => self.text(),
        };
        format!("{}_{}", self.family(), &blake3::hash(text.as_bytes()).to_hex().as_str()[..16])
    }

    /// The whole description as canonical text (`--emit=kernels`): equal text means equal code.
    pub fn text(&self) -> String {
        text::kernel(self)
    }

    /// Says why no emitter of the CPU would take this description; see [`Target::check`].
    pub fn check(&self) -> Result<(), String> {
        match self {
            Kernel::Row(k) => k.check().and_then(|()| row::lower::lower(k).map(|_| ())),
            Kernel::Attend(k) => k.check(),
            Kernel::Gemm(_) | Kernel::Scatter(_) | Kernel::Quantile(_) | Kernel::Feedback(_) => Ok(()),
        }
    }

    /// The CPU's generated functions, in launch order; see [`Target::launches`].
    pub fn launches(&self) -> Vec<Launch> {
        match self {
            Kernel::Row(k) => k.launches(),
            Kernel::Gemm(k) => k.launches(),
            Kernel::Attend(k) => k.launches(),
            Kernel::Scatter(k) => k.launches(),
            Kernel::Quantile(k) => k.launches(),
            Kernel::Feedback(k) => k.launches(),
        }
    }

    /// Bytes of each temporary that lives from the first launch to the last, on the CPU; see [`Target::temps`].
    pub fn temps(&self) -> Vec<u64> {
        match self {
            Kernel::Gemm(k) => k.temps(),
            Kernel::Attend(k) => k.temps(),
            Kernel::Row(_) | Kernel::Scatter(_) | Kernel::Quantile(_) | Kernel::Feedback(_) => Vec::new(),
        }
    }

    /// How each argument is used, in order.
    pub fn accesses(&self) -> Vec<Access> {
        match self {
            Kernel::Row(k) => body_accesses(&k.graph),
            Kernel::Gemm(k) => {
                let mut all = vec![Access::Read, Access::Read];
                // Buffer 0 is the pseudo-buffer `acc`.
                all.extend(body_accesses(&k.epilogue).into_iter().skip(1));
                if k.accumulate {
                    all.iter_mut().skip(2).filter(|a| **a == Access::Write).for_each(|a| *a = Access::Update);
                }
                all
            }
            Kernel::Attend(k) => k.accesses(),
            Kernel::Scatter(k) => {
                vec![Access::Read, Access::Read, if k.accumulate { Access::Update } else { Access::Write }]
            }
            Kernel::Quantile(_) => vec![Access::Read, Access::Write],
            Kernel::Feedback(_) => vec![Access::Read, Access::Read, Access::Read, Access::Read, Access::Write],
        }
    }
}

/// Ops that are kernels of their own, whatever else is fused to them: no row kernel computes them, and their operands lie in memory.
pub fn is_own_kernel(op: &Op) -> bool {
    matches!(
        op,
        Op::Dot(_)
            | Op::ScatterAdd(_)
            | Op::Attend(_)
            | Op::AttendLse(_)
            | Op::AttendGrad(..)
            | Op::Quantile(..)
            | Op::FeedbackRound { .. }
    )
}

/// How a fused body uses each of its buffers.
fn body_accesses(body: &Graph) -> Vec<Access> {
    let mut read = vec![false; body.buffers.len()];
    let mut written = vec![false; body.buffers.len()];
    for node in &body.nodes {
        if let Op::Read(b) = node.op {
            read[b.0 as usize] = true;
        }
    }
    for effect in &body.effects {
        written[effect.buffer.0 as usize] = true;
        read[effect.buffer.0 as usize] |= effect.mode == EffectMode::Accumulate;
    }
    let access = |(r, w)| match (r, w) {
        (_, false) => Access::Read,
        (false, true) => Access::Write,
        (true, true) => Access::Update,
    };
    read.into_iter().zip(written).map(access).collect()
}

/// Rounds up to a multiple.
pub fn round_up(x: usize, to: usize) -> usize {
    x.div_ceil(to) * to
}
