//! The plan: everything an executable knows about its program, as plain data.
//!
//! *Takes* nothing; *gives* the types that golfc writes (postcard, zstd) into the executable and the runtime reads; *promises*
//! to depend on nothing but serde, so that compiler and runtime agree by construction.
//!
//! An executable holds one [`Program`]. A program has one [`Variant`] per precision; a variant has one static list of kernel
//! [`Call`]s per graph. All memory is in four segments whose layouts are fixed when compiling: see [`Segment`].

use serde::{Deserialize, Serialize};

/// What the names of quantisers' graphs begin with; the parameter's name follows.
pub const PACK: &str = "pack.";

/// Name of the graph that gathers what contractions read.
pub const CALIBRATE: &str = "calibrate";

/// What the names of the buffers that [`CALIBRATE`] fills begin with; the name of the first parameter that has it follows.
pub const TAP: &str = "tap.";

/// Raised whenever the layout of anything here changes.
pub const PLAN_VERSION: u32 = 4;

/// Dtype of a buffer in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// The upper half of binary32.
    Bf16,
    /// IEEE binary16 (quantiser scales).
    F16,
    /// Token ids, hashes, positions; two's complement.
    I32,
    /// Quantiser codes.
    I8,
    /// Result of comparisons, one byte.
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::I8 | DType::Bool => 1,
        }
    }

    /// True for the three float types.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16 | DType::F16)
    }
}

/// Where a buffer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Segment {
    /// Parameters, optimiser state, averages, counters: what a checkpoint is. Same offsets for all graphs of a variant.
    State,
    /// Gradient accumulators. Same offsets for all graphs; never saved.
    Grad,
    /// Intermediates of one graph, inputs and outputs; planned by liveness, sized for the largest graph.
    Scratch,
    /// Constant tables, from [`Variant::constants`].
    Const,
}

/// A place in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Which segment.
    pub segment: Segment,
    /// Bytes from its start, a multiple of 64.
    pub offset: u64,
}

/// A named buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Buffer {
    /// Name in the program, e.g. `blocks.0.attn.c_q.weight`, `muon.m.blocks.0.attn.c_q.weight`, `tokens`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents, outermost first (row-major, dense).
    pub shape: Vec<usize>,
    /// Where.
    pub place: Place,
}

impl Buffer {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
    /// Size in memory, bytes.
    pub fn bytes(&self) -> usize {
        self.numel() * self.dtype.bytes()
    }
}

/// How a parameter or state starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Init {
    /// Every element the same number.
    Fill(f64),
    /// Normal with mean 0 and this standard deviation; Philox keyed by (seed, name), see `rng`.
    Normal(f64),
    /// Uniform in [-a, a).
    Uniform(f64),
    /// Random orthonormal rows or columns, times a gain: the Q of a normal matrix's QR factorisation with a positive diagonal of R (f64
    /// host linear algebra; what the published systems compute). Two axes.
    Orthogonal(f64),
    /// One number per position of the first axis.
    Rows(Vec<f64>),
    /// Copy of a parameter's initial value (averages that start from the weights).
    CopyOf(String),
}

/// A parameter: a State-segment buffer with a name others rely on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Param {
    /// Index into [`Variant::state`].
    pub buffer: u32,
    /// Initial value.
    pub init: Init,
    /// Group tag (`matrices`, `embeddings`, ...).
    pub group: String,
    /// Declared `unused`: kept and counted, never stepped, no gradient.
    pub unused: bool,
}

/// A scalar program evaluated by the host in f64 (schedules, conditions). Values are pushed in order; the last is the result.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct HostExpr {
    /// Operations; operands are indices of earlier operations.
    pub ops: Vec<HostOp>,
}

/// One operation of a [`HostExpr`]. Booleans are 0 and 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum HostOp {
    Const(f64),
    /// A clock field by name. In the schedule and the hypers of training: `step` (steps done before this one), `progress` (time used /
    /// budget), `step_time` (seconds), `budget` (seconds, [`Program::budget`]); hypers also see `scale`, the schedule's result. In conditions of averages,
    /// evaluated after a step: the same, `step` counting that step, and `scale`. In adaptation: `chunk`, `chunks`.
    Clock(String),
    Unary(HostUnary, u32),
    Binary(HostBinary, u32, u32),
    Select(u32, u32, u32),
}

/// See [`HostOp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum HostUnary {
    Neg,
    Exp,
    Log,
    Sin,
    Cos,
    Sqrt,
    Abs,
    Round,
    Floor,
    Sign,
    Not,
    Tanh,
}

/// See [`HostOp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum HostBinary {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    Pow,
    Mod,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Index into [`Variant::kernels`].
    pub kernel: u32,
    /// The kernel runs for task numbers `0..tasks`, in any order and on any thread: tasks write disjoint memory. On a GPU: blocks of the grid.
    pub tasks: u32,
    /// Pointers passed, in the kernel's order.
    pub args: Vec<Place>,
    /// GPU: earlier calls of the graph that must be complete, by number; calls not ordered by these, directly or through others, may run side by side.
    /// Empty on the CPU, where each call completes before the next.
    pub after: Vec<u32>,
}

/// What a kernel is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Linker symbol stem, or the name of a runtime built-in when [`Kernel::builtin`].
    pub symbol: String,
    /// Family for `bench` and `--explain`: `gemm`, `pack`, `row`, `attend`, `attend_grad`, `scatter`, `quantile`, `feedback`.
    pub family: String,
    /// Work of one call, floating-point operations.
    pub flops: u64,
    /// Bytes one call must read and write.
    pub bytes: u64,
    /// Bytes of private scratch one thread needs, 64-byte aligned.
    pub scratch: u64,
    /// Implemented by the runtime (host linear algebra, quantile), not generated.
    pub builtin: Option<Builtin>,
    /// Of a GPU: done by cuBLASLt.
    pub product: Option<Product>,
    /// Variants of a GPU: how one call is launched; [`Kernel::symbol`] is an entry of the module [`Grid::module`].
    pub gpu: Option<Grid>,
}

/// How a GPU kernel is launched: a one-dimensional grid of [`Call::tasks`] blocks. Its parameters are the pointers of [`Call::args`], in
/// order, then one 128-byte tensor map by value for each of [`Grid::maps`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grid {
    /// Index into [`Variant::modules`].
    pub module: u32,
    /// Threads per block.
    pub threads: u32,
    /// Dynamic shared memory per block, bytes.
    pub shared: u32,
    /// Tensor maps of the bulk copy engine.
    pub maps: Vec<TensorMap>,
}

/// A tensor in memory as the bulk copy engine sees it (`cuTensorMapEncodeTiled`, no interleave, out-of-bounds elements read as zero).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorMap {
    /// Which of the call's arguments holds the tensor.
    pub arg: u32,
    /// Bytes from the argument's pointer to the first element; address and strides are multiples of 16.
    pub offset: u64,
    /// Element type: `F32` or `Bf16`.
    pub dtype: DType,
    /// Extents, innermost first, 1 to 5.
    pub dims: Vec<u64>,
    /// Byte strides of the dimensions after the innermost, which is contiguous.
    pub strides: Vec<u64>,
    /// Extents of the box one copy moves, innermost first, each at most 256.
    pub tile: Vec<u32>,
    /// Swizzle span of shared memory in bytes: 0 (none), 32, 64 or 128.
    pub swizzle: u32,
}

/// A product that cuBLASLt does, where a tuning table says so: `D = A B` or `D += A B` for each matrix of a batch, in f32 sums of bf16 factors. Arguments of its
/// call: A, B, D, workspace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Product {
    /// Rows of A and D.
    pub m: u64,
    /// Columns of B and D.
    pub n: u64,
    /// Columns of A, rows of B.
    pub k: u64,
    /// Matrices.
    pub batch: u64,
    /// A \[m, k\].
    pub a: Factor,
    /// B \[k, n\].
    pub b: Factor,
    /// D \[m, n\], n contiguous.
    pub d: Factor,
    /// D is added to, not replaced.
    pub accumulate: bool,
    /// Bytes of the last argument.
    pub workspace: u64,
}

/// How a matrix of a [`Product`] lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Factor {
    /// Bf16, or F32 for D.
    pub dtype: DType,
    /// Elements from the argument to the first.
    pub offset: u64,
    /// k is contiguous (of D: n), else the other index.
    pub inner: bool,
    /// Elements between neighbours of the index that is not contiguous.
    pub pitch: u64,
    /// Elements between matrices of the batch.
    pub batch: u64,
}

/// Kernels the runtime itself provides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Builtin {
    /// args: x f32 \[rows, n\], out f32 \[rows\]; one task per row. The `q`-quantile of each row, linear interpolation.
    Quantile {
        /// Row length.
        n: u64,
        /// In [0, 1].
        q: f64,
    },
    /// args: w f32 \[rows, n\], scale f32 \[rows\], order i32 \[n\] (a permutation of 0..n), upper f32 \[n, n\], out f32 \[rows, n\]; one task per
    /// [`FEEDBACK_ROWS`] rows. Codes of w in units of scale, the columns visited in this order and the error of each fed to the later ones
    /// ([`crate::quant::feedback`]).
    FeedbackRound {
        /// Rows.
        rows: u64,
        /// Columns.
        n: u64,
        /// Least code.
        low: f32,
        /// Largest code.
        high: f32,
    },
}

/// Rows of a task of [`Builtin::FeedbackRound`].
pub const FEEDBACK_ROWS: u64 = 16;

/// A graph as a list of launches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraphPlan {
    /// `train.micro`, `train.shard`, `train.update`, `score`, ... (see `Program` docs).
    pub name: String,
    /// Launches, in order, each complete before the next.
    pub calls: Vec<Call>,
    /// Host-written buffers.
    pub inputs: Vec<Buffer>,
    /// Host-read buffers.
    pub outputs: Vec<Buffer>,
    /// Scratch bytes this graph needs.
    pub scratch: u64,
}

/// A scalar the host computes before a graph runs and writes as f32 into the input buffer of the same name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hyper {
    /// Input buffer name, e.g. `hyper.muon.matrices.lr`.
    pub name: String,
    /// Its value from the clock.
    pub value: HostExpr,
}

/// One weight average of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Average {
    /// `swa`, `ema`.
    pub name: String,
    /// Non-zero after a step: run `update`.
    pub when: HostExpr,
    /// Graph that folds the current weights in.
    pub update: String,
    /// Graph that writes the average into the parameters at the end. The first average in program order with at least one update is used.
    pub finish: String,
}

/// What `train` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Train {
    /// Shard file pattern, e.g. `fineweb_train_*.bin`.
    pub data: String,
    /// Logical shards of a batch.
    pub ranks: u32,
    /// Tokens per step over all ranks; a multiple of `ranks * seq`.
    pub batch: u64,
    /// Tokens per row.
    pub seq: u32,
    /// Time budget, seconds, of training and calibration together ([`Program::budget`] is what training has of it).
    pub stop: f64,
    /// Step cap shown as N in `step:i/N` and never exceeded.
    pub iterations: u64,
    /// Learning-rate multiplier from the clock.
    pub schedule: HostExpr,
    /// Scalars of `train.update` and `train.shard`. They see `scale`.
    pub hypers: Vec<Hyper>,
    /// Averages, in order of preference.
    pub averages: Vec<Average>,
}

/// One parameter's packing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackParam {
    /// Parameter name.
    pub name: String,
    /// Rule name (`int6`, `int8`, `f16`, ...).
    pub rule: String,
    /// Graph with outputs `codes` (I8, shape of the parameter), `scale` (F16, rows) and `dequant` (F32); `None`: stored as fp16 as it is.
    pub graph: Option<String>,
    /// What the host computes for the graph from the calibration, if its quantiser asks for it.
    pub inverse: Option<InverseFactor>,
}

/// A host step between calibration and a quantiser: from the sum of squares H \[n, n\] of the inputs that a parameter \[rows, n\] is multiplied with, a factor of the
/// inverse of H, and the order in which columns are rounded. In f64:
/// 1. where `H[c, c] = 0` nothing ever came in: `H[c, c] = 1`, `live[c] = 0`; elsewhere `live[c] = 1`;
/// 2. `damp` times the mean of the diagonal is added to the diagonal;
/// 3. `order`: columns by descending diagonal (ties: lower number first) if [`InverseFactor::descending`], else 0, 1, 2 …;
/// 4. with rows and columns of H in that order, `upper` is the upper triangular U with positive diagonal and `inverse(H) = transpose(U) U`.
///
/// Written into the inputs of the pack graph: `order` I32 \[n\], `live` F32 \[n\], `upper` F32 \[n, n\] (zeros below the diagonal).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InverseFactor {
    /// Buffer of H in the gradient segment, f32, filled by the graph `calibrate`.
    pub tap: String,
    /// Share of the mean diagonal that is added.
    pub damp: f64,
    /// Columns by descending diagonal.
    pub descending: bool,
}

/// `quantize { calibrate = … }`: which tokens the inputs of contractions are gathered over, with the final weights, before packing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibrate {
    /// Training shard file pattern.
    pub data: String,
    /// Sequences of [`Train::seq`] tokens, from the start of the stream; a multiple of [`Rows::calibrate`].
    pub sequences: u64,
    /// Seconds of the training budget [`Train::stop`] that are kept for calibration: training itself ends that much earlier.
    pub reserve: f64,
}

/// What `quantize` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantize {
    /// Every parameter, in state order (unused ones too).
    pub params: Vec<PackParam>,
    /// Codec name, `zstd`.
    pub codec: String,
    /// Codec level.
    pub level: i32,
    /// `bytes_model + bytes_code` may not exceed this.
    pub cap: u64,
    /// Calibration, if any quantiser takes what contractions read.
    pub calibrate: Option<Calibrate>,
}

/// Score-first adaptation in chunks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adapt {
    /// Targets per chunk.
    pub chunk: u64,
    /// Passes over a chunk.
    pub epochs: u32,
    /// Sequences (of `window` tokens) per update.
    pub batch: u32,
    /// Scalars of `adapt.update` from `chunk`, `chunks`.
    pub hypers: Vec<Hyper>,
}

/// What `evaluate` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluate {
    /// Shard file pattern.
    pub data: String,
    /// Window length in tokens.
    pub window: u32,
    /// Targets newly scored per window.
    pub stride: u32,
    /// Score at most this many targets (marked `partial`).
    pub limit: Option<u64>,
    /// Chunked adaptation, if declared.
    pub adapt: Option<Adapt>,
}

/// Rows in one run of a graph: a choice of the compiler for the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// `train.micro`, rows of [`Train::seq`] tokens; divides `batch / ranks / seq`.
    pub train: u32,
    /// `score`, rows of [`Evaluate::window`] tokens.
    pub score: u32,
    /// `adapt.micro`, rows of [`Evaluate::window`] tokens.
    pub adapt: u32,
    /// `calibrate`, rows of [`Train::seq`] tokens; 0: the program does not calibrate.
    pub calibrate: u32,
}

/// All graphs of one precision on one kind of device.
///
/// Graphs by name (buffers in parentheses; B, T as in [`Train`]/[`Evaluate`]):
/// - `train.micro`: inputs `tokens` I32 \[B,T\], `targets` I32 \[B,T\], `scale` F32 \[\] (weight of one token's loss: 1 / tokens of
///   the logical shard); output `nll` F32 \[B,T\]; adds to every `grad.NAME`.
/// - `train.shard`: after the micro-batches of one logical shard: adds (clipped if `per shard`) `grad.*` / ranks to `total.*`;
///   output `grad_norm` F32 \[\]. The host zeroes `grad.*` before each shard and `total.*` before each step.
///   With `ranks = 1` there is no `total.*`: the graph clips `grad.*` in place.
/// - `train.update`: reads the totals and the hypers, writes parameters and optimiser state; output `grad_norm` if the clip is here.
/// - `average.NAME.update`, `average.NAME.finish`.
/// - `score`: inputs `tokens`, `targets` \[rows, window\]; output `nll` F32 \[rows, window\].
/// - `adapt.micro` (as `train.micro`, T = window), `adapt.update` (clip, optimiser; state `adapt.*`).
/// - `calibrate`: input `tokens` I32 \[rows, seq\]; adds the sums of squares of what contractions with parameters read to the buffers `tap.NAME`
///   F32 \[n, n\] of the gradient segment, which the host zeroes before the first run. They may lie where `grad.*` and `total.*` lie: their content
///   is lost, and the next step of training or adaptation zeroes its own.
/// - `pack.NAME`: inputs `order`, `live`, `upper` where [`InverseFactor`] says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// `bf16` or `f32`.
    pub precision: String,
    /// `cpu`, or the GPU kind the kernels are for: `sm_90a`, `sm_80` (also for later ones). State and gradient segments have the same layout on all devices.
    pub device: String,
    /// Rows that one run of each graph takes.
    pub rows: Rows,
    /// GPU code: PTX texts.
    pub modules: Vec<String>,
    /// State segment, in offset order: parameters first, then optimiser state, averages.
    pub state: Vec<Buffer>,
    /// Initial values of the entries of `state` that are not parameters, by index.
    pub state_init: Vec<(u32, Init)>,
    /// State segment size, bytes.
    pub state_bytes: u64,
    /// Gradient segment: `grad.NAME`, `total.NAME`, `tap.NAME`.
    pub grads: Vec<Buffer>,
    /// Gradient segment size, bytes.
    pub grad_bytes: u64,
    /// Constant segment content.
    #[serde(with = "serde_bytes_vec")]
    pub constants: Vec<u8>,
    /// Parameters, in state order.
    pub params: Vec<Param>,
    /// Kernels of this variant.
    pub kernels: Vec<Kernel>,
    /// Graphs.
    pub graphs: Vec<GraphPlan>,
}

/// A device kind the object holds code for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tier {
    /// `cpu-v3`, `cpu-avx512bf16`.
    pub name: String,
}

/// The whole program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// [`PLAN_VERSION`] of the compiler.
    pub version: u32,
    /// Stem of the source file, e.g. `vrl11`.
    pub name: String,
    /// The .golf source after `--set`, exactly as counted in `bytes_code`.
    pub source: String,
    /// Every prelude definition the program uses, as counted in `bytes_code`.
    pub prelude: String,
    /// The overrides given, `PATH=EXPR` each.
    pub overrides: Vec<String>,
    /// Vocabulary size.
    pub vocab: u32,
    /// golfc's version.
    pub golfc: String,
    /// glibc of the build machine.
    pub glibc: String,
    /// One-line descriptions of the techniques in the program, from the source, for the generated README.
    pub techniques: Vec<String>,
    /// Predicted peak resident memory of training, bytes, by precision (as `variants`).
    pub predicted_rss: Vec<u64>,
    /// FLOPs per training token (6 N + attention), for MFU.
    pub flops_per_token: u64,
    /// Device kinds, best last.
    pub tiers: Vec<Tier>,
    /// The CPU's: `bf16` first if the program computes in bf16, then `f32`. Then those of GPUs, in the same order.
    pub variants: Vec<Variant>,
    /// Training.
    pub train: Train,
    /// Packing.
    pub quantize: Quantize,
    /// Evaluation.
    pub evaluate: Evaluate,
}

impl Program {
    /// Seconds that training may take: what calibration leaves of [`Train::stop`].
    pub fn budget(&self) -> f64 {
        self.train.stop - self.quantize.calibrate.as_ref().map_or(0.0, |c| c.reserve)
    }
}

mod serde_bytes_vec {
    use serde::{Deserializer, Serializer};
    pub fn serialize<S: Serializer>(v: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(v)
    }
    pub fn deserialize<'d, D: Deserializer<'d>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct V;
        impl serde::de::Visitor<'_> for V {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, b: &[u8]) -> Result<Vec<u8>, E> {
                Ok(b.to_vec())
            }
        }
        d.deserialize_bytes(V)
    }
}

/// The C-level table the generated object defines and hands to `golf_main`.
///
/// `plan` is the zstd-compressed postcard form of [`Program`]. `kernels[v]` has, for variant v, `tiers * kernels` entries:
/// `entry[tier * kernel_count + kernel]`, null for built-ins.
#[repr(C)]
pub struct ProgramTable {
    /// [`PLAN_VERSION`].
    pub version: u64,
    /// Compressed plan.
    pub plan: *const u8,
    /// Its length.
    pub plan_len: u64,
    /// One pointer per variant, each to an array of [`KernelFn`] or null.
    pub kernels: *const *const Option<KernelFn>,
}

/// A generated kernel: task number, argument pointers (in the order of [`Call::args`]), this thread's private scratch.
pub type KernelFn = unsafe extern "C" fn(task: u64, args: *const *mut u8, scratch: *mut u8);
