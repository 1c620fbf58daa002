//! The graph: what a golf program computes, before anybody decides how.
//!
//! *Takes* nothing; *gives* the data types that every later stage reads; *promises* only what the verifier
//! ([`super::verify`]) checks.
//!
//! A [`Graph`] is a list of pure values ([`Node`]s, each only using earlier ones) plus a list of [`Effect`]s that say which
//! buffers receive which values when all values have been computed. `Read` gives the content of a buffer *before* any
//! effect of the same graph. Buffers are known by name across the graphs of a program: the parameter
//! `blocks.0.attn.c_q.weight` is the same memory in the training, scoring and adaptation graphs.
//!
//! Floats inside a graph are real numbers typed `F32`, whatever the dtype of the buffer they were read from. Rounding happens
//! at three places only: `Cast`, the storage of a value between kernels (decided by the schedule from
//! [`Graph::compute`]), and the operands of `Dot` and `Attend` (rounded to [`Graph::compute`]; sums are f32).

/// Index of an axis in [`Graph::axes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AxisId(pub u32);

/// Index of a node in [`Graph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// Index of a buffer in [`Graph::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// Storage and value types: those of the plan. Floats inside a graph are `F32`; `Bf16`, `F16`, `I8` occur as buffer dtypes and as the result of `Cast`;
/// integers wrap.
pub use golf_runtime::plan::DType;

/// What an axis stands for; legality and the schedule ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AxisRole {
    /// Rows of a batch, independent of each other.
    Batch,
    /// Positions in stream order.
    Time,
    /// Anything else.
    Plain,
}

/// A named extent. Two axes of one size stay different axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Axis {
    /// Name in the program, unique within a graph.
    pub name: String,
    /// Number of positions, at least 1.
    pub size: usize,
    /// Batch, time or plain.
    pub role: AxisRole,
}

/// Dtype and axes of a value. The order of `axes` is the storage order (outermost first), never meaning.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Each axis at most once.
    pub axes: Vec<AxisId>,
}

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BufferKind {
    /// A parameter of the model.
    Param,
    /// The gradient accumulator of a parameter, name `grad.NAME`.
    Grad,
    /// Optimiser or averaging state, lives in the state segment.
    State,
    /// Written by the host before the graph runs (tokens, targets, scalars of the schedule).
    Input,
    /// Read by the host after the graph ran.
    Output,
    /// A table of constants folded while compiling; its values are in [`Graph::constants`].
    Const,
}

/// Memory that outlives one run of a graph or is shared with the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Buffer {
    /// Unique within a graph; the same name in two graphs of a program is the same memory.
    pub name: String,
    /// Storage dtype (may be narrower than the `F32` its `Read` has) and storage order.
    pub ty: Type,
    /// Purpose.
    pub kind: BufferKind,
}

/// One-operand element-wise operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Unary {
    Neg,
    Exp,
    Log,
    Tanh,
    Sigmoid,
    Sin,
    Cos,
    Sqrt,
    Rsqrt,
    Abs,
    Recip,
    /// Half to even.
    Round,
    Floor,
    /// -1, 0, 1.
    Sign,
    /// Boolean negation.
    Not,
}

/// Two-operand element-wise operations. Comparisons give `Bool`; bit operations take `I32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// First operand on ties.
    Min,
    /// First operand on ties.
    Max,
    Pow,
    /// Euclidean remainder on integers (result has the sign of the divisor), `a - b*floor(a/b)` on floats.
    Mod,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// Reductions over whole axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Reduce {
    Sum,
    Max,
    Min,
}

/// Which operand's gradient an `AttendGrad` node gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum AttendArg {
    Q,
    K,
    V,
}

/// Attributes shared by `Attend`, `AttendLse`, `AttendGrad`. Axes of q: batch axes + `time` + group axes (q only) + `dim`;
/// of k and v: batch axes + `time` + `dim`. Axes of q that k has too (besides time and dim) are batch axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attend {
    /// The position axis, the same for queries and keys.
    pub time: AxisId,
    /// The contracted axis of scores, and the value axis of the result.
    pub dim: AxisId,
    /// Factor on the scores before softmax, usually 1/sqrt(dim).
    pub scale: Bits,
    /// Key position <= query position.
    pub causal: bool,
    /// Keys at most this many positions back (query - key < window); `None`: unbounded.
    pub window: Option<u32>,
    /// A document id tensor [batch.., time] i32 is the last argument and positions of other documents are masked.
    pub document: bool,
}

/// An `f64` attribute, compared and hashed by bits so that kernels can be deduplicated.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bits(pub u64);

impl Bits {
    /// Wraps a number.
    pub fn new(x: f64) -> Self {
        Bits(x.to_bits())
    }
    /// The number.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl std::fmt::Debug for Bits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

/// The primitive operations. Result axes follow the rule given; `N` means "the node's own type says".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Content of a buffer before the graph's effects. Float buffers read as `F32`.
    Read(BufferId),
    /// A scalar constant (no axes) of the node's dtype.
    Const(Bits),
    /// Position along an axis, `I32`, type `[axis]`.
    Iota(AxisId),
    /// Element-wise.
    Unary(Unary),
    /// Element-wise; the axes of one operand contain those of the other, the result has (and stores) the larger operand's.
    Binary(Binary),
    /// `select(cond: Bool, then, else)`, element-wise, axes of the largest operand.
    Select,
    /// Round to a dtype. The result of a float cast can be used wherever an `F32` can.
    Cast(DType),
    /// Identity with zero derivative.
    StopGradient,
    /// `straight_through(f, x)`: value of the first operand, derivative goes to the second.
    StraightThrough,
    /// Repeat along new axes: result axes contain the operand's (N).
    Broadcast,
    /// Reduce over the given axes.
    Reduce(Reduce, Vec<AxisId>),
    /// Sum of products over the given axes. Axes shared by both operands and not in the list are batch axes. Result order is N.
    Dot(Vec<AxisId>),
    /// `gather(table [axis, rest..], index [I..])` gives `[I.., rest..]`; indices out of range are clamped by contract of the loader's check.
    Gather(AxisId),
    /// `scatter_add(index [I..], src [I.., rest..])` gives `[axis, rest..]`: sum of src rows by index, in ascending index-position order.
    ScatterAdd(AxisId),
    /// One axis into several, outermost first; sizes multiply out.
    Split(AxisId, Vec<AxisId>),
    /// Several axes (outermost first) into one.
    Merge(Vec<AxisId>, AxisId),
    /// Another name of the same size.
    Rename(AxisId, AxisId),
    /// Positions `start..start+size(to)` of `from` become the axis `to`.
    Slice {
        #[allow(missing_docs)]
        from: AxisId,
        #[allow(missing_docs)]
        to: AxisId,
        #[allow(missing_docs)]
        start: usize,
    },
    /// Inverse of `Slice`: `from` is placed at `start` of the larger `to`, zeros elsewhere.
    Pad {
        #[allow(missing_docs)]
        from: AxisId,
        #[allow(missing_docs)]
        to: AxisId,
        #[allow(missing_docs)]
        start: usize,
    },
    /// One position of an axis; the axis disappears.
    Index(AxisId, usize),
    /// Inverse of `Index`: the operand at one position of a new axis (N says where it is stored), zeros elsewhere.
    Place(AxisId, usize),
    /// Operands side by side: operand i has `from[i]` where the result has `to`.
    Concat(Vec<AxisId>, AxisId),
    /// `y[t] = x[t - n]`, zero outside; n may be negative.
    Shift(AxisId, i64),
    /// Running sum along an axis; `true` runs from the end.
    Cumsum(AxisId, bool),
    /// `h[t] = a[t] h[t-1] + b[t]` along an axis, h before the start is 0; `true` runs from the end.
    Scan(AxisId, bool),
    /// Softmax attention: `(q, k, v [, document])`, result axes as q.
    Attend(Attend),
    /// Log-sum-exp (natural) of the scaled scores `(q, k [, document])`: axes of q without dim.
    AttendLse(Attend),
    /// Gradient of `Attend`: `(q, k, v, y, lse, dy [, document])`.
    AttendGrad(Attend, AttendArg),
    /// `-log softmax(logits over axis)[target]`: `(logits [.., axis], target [..] I32)` gives `[..]`.
    CrossEntropy(AxisId),
    /// `(softmax(logits) - onehot(target)) * g`: `(logits, target, g [..])`, axes as logits.
    CrossEntropyGrad(AxisId),
    /// The `q`-quantile along an axis, linear between order statistics (numpy's default): `(x)` loses the axis.
    Quantile(AxisId, Bits),
    /// Rounding to multiples of a scale, each column's error fed to those that come later: `(w [R.., axis], scale [R..], order [axis] I32, upper [axis, K])`
    /// gives codes, axes as w. Visit j = 0, 1, ... is of column c = order[j], order being a permutation:
    /// `q = clamp(round(w[r, c] / scale[r]), low, high)` (half to even), `e = (w[r, c] - q scale[r]) / upper[j, j]`, then
    /// `w[r, order[k]] -= e upper[j, k]` for all k > j, and the result's `[r, c]` is q. Along `upper`, `axis` counts visits j and the other axis visits k.
    FeedbackRound {
        #[allow(missing_docs)]
        axis: AxisId,
        /// Least code.
        low: Bits,
        /// Largest code.
        high: Bits,
    },
    /// The k largest values along `from`, descending, ties by lower index first; result axis `to`.
    TopKValues(AxisId, AxisId),
    /// Their positions, `I32`.
    TopKIndices(AxisId, AxisId),
    /// Counter-based random numbers (Philox4x32-10): key, then `(counter: I32 scalar)`; uniform in [0,1) when false, normal when true. Axes N.
    Random {
        #[allow(missing_docs)]
        key: u64,
        #[allow(missing_docs)]
        normal: bool,
    },
}

/// A pure value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Operands, all with smaller ids.
    pub args: Vec<NodeId>,
    /// Result type.
    pub ty: Type,
}

/// How an effect changes its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EffectMode {
    /// The buffer becomes the value (rounded to the buffer's dtype).
    Assign,
    /// The value is added to the buffer; contraction sums continue the buffer's own accumulation chain.
    Accumulate,
}

/// A value written to a buffer when the graph has run. Each buffer at most once per graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Effect {
    /// Target; the value has the same set of axes.
    pub buffer: BufferId,
    /// Value.
    pub value: NodeId,
    /// Assign or accumulate.
    pub mode: EffectMode,
}

/// Where a node came from. Side table, so that rewriting never has to carry it inside the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Source place, if the node was written by a user: file number in the source map, byte range.
    pub span: Option<(u32, u32, u32)>,
    /// Visit path of the layer application, such as `blocks.4@2`.
    pub visit: String,
}

/// A pure computation over named buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Name within the program (`train.micro`, `score`, ...).
    pub name: String,
    /// Dtype of stored activations and of contraction operands: `F32` or `Bf16`.
    pub compute: DType,
    /// All axes.
    pub axes: Vec<Axis>,
    /// All buffers.
    pub buffers: Vec<Buffer>,
    /// All values, operands first.
    pub nodes: Vec<Node>,
    /// Writes, in order.
    pub effects: Vec<Effect>,
    /// Origins by node; may be shorter than `nodes` (missing entries have none).
    pub origins: Vec<Origin>,
    /// Values of `Const` buffers, row-major, by buffer (absent: not a constant).
    pub constants: std::collections::BTreeMap<BufferId, Vec<f64>>,
}

/// Number of positions of an axis.
pub fn size(g: &Graph, axis: AxisId) -> usize {
    g.axes[axis.0 as usize].size
}

/// Number of elements over some axes.
pub fn numel(g: &Graph, axes: &[AxisId]) -> usize {
    axes.iter().map(|a| size(g, *a)).product()
}

/// Axes of a node.
pub fn axes(g: &Graph, n: NodeId) -> &[AxisId] {
    &g.nodes[n.0 as usize].ty.axes
}
