//! The interpreter: what a graph means, computed in f64.
//!
//! *Takes* a verified [`Graph`] and the contents of its buffers; *gives* the contents after its effects, or the values of chosen
//! nodes; *promises* the semantics of [`super::ir`] in real arithmetic as far as f64 carries: casts round, nothing else does unless
//! [`Options::round_storage`] asks. It is the reference that kernels, derivatives and constant folding are checked against, and it
//! is slow on purpose.

mod attend;
mod contract;
mod elementwise;
pub mod random;
pub mod tensor;

use super::ir::{AxisId, BufferId, BufferKind, DType, EffectMode, Graph, Node, NodeId, Op, Type};
use super::scalar;
use std::collections::BTreeMap;
pub use tensor::Tensor;

/// How exactly to compute.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Round every float value to f32, operands of `Dot` and `Attend` to [`Graph::compute`], and assigned values to their buffer's
    /// dtype: the finest rounding a schedule may do. Off: real numbers.
    pub round_storage: bool,
}

/// Why a graph cannot be interpreted.
#[derive(Clone, Debug, PartialEq)]
pub enum InterpretError {
    /// A buffer that is read was not given.
    Missing {
        /// Its name.
        buffer: String,
    },
    /// A buffer was given with other extents.
    Shape {
        /// Its name.
        buffer: String,
        /// Extents it has in the graph.
        expected: Vec<usize>,
        /// Extents given.
        found: Vec<usize>,
    },
    /// A value has no meaning: integer division by zero, a target that is no class.
    Value {
        /// The node.
        node: NodeId,
        /// The reason.
        why: String,
    },
}

impl std::fmt::Display for InterpretError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            InterpretError::Missing { buffer } => write!(f, "the buffer `{buffer}` is read but was not given"),
            InterpretError::Shape { buffer, expected, found } => {
                write!(f, "the buffer `{buffer}` has extents {expected:?}, but {found:?} was given")
            }
            InterpretError::Value { node, why } => write!(f, "%{}: {why}", node.0),
        }
    }
}

impl std::error::Error for InterpretError {}

/// A reason without a place.
struct Fault(String);

/// Buffer contents by name, in storage order.
pub type Contents = BTreeMap<String, Tensor>;

/// Runs the graph: all given buffers as they are after the effects, and every buffer the effects write. Buffers of kind `Grad`
/// that are not given start at zero.
pub fn interpret(g: &Graph, inputs: &Contents) -> Result<Contents, InterpretError> {
    interpret_with(g, inputs, &Options::default())
}

/// [`interpret`] with options.
pub fn interpret_with(g: &Graph, inputs: &Contents, options: &Options) -> Result<Contents, InterpretError> {
    let wanted: Vec<_> = g.effects.iter().map(|e| e.value).collect();
    let results = values(g, inputs, &wanted, options)?;
    let eval = Eval { g, inputs, options };
    let mut out = inputs.clone();
    for (effect, value) in g.effects.iter().zip(results) {
        let buffer = &g.buffers[effect.buffer.0 as usize];
        let from = &g.nodes[effect.value.0 as usize].ty.axes;
        let mut value = eval.arranged(&value, from, &buffer.ty.axes);
        if effect.mode == EffectMode::Accumulate {
            let old = eval.content(effect.buffer)?;
            value.data.iter_mut().zip(&old.data).for_each(|(v, o)| *v += o);
        }
        if options.round_storage {
            value.data.iter_mut().for_each(|v| *v = scalar::cast(*v, buffer.ty.dtype));
        }
        out.insert(buffer.name.clone(), value);
    }
    Ok(out)
}

/// Values of chosen nodes, before any effect, each in its own storage order.
pub fn values(
    g: &Graph,
    inputs: &Contents,
    wanted: &[NodeId],
    options: &Options,
) -> Result<Vec<Tensor>, InterpretError> {
    let eval = Eval { g, inputs, options };
    // Number of uses still to come, so that a value is dropped after its last.
    let mut uses = vec![0usize; g.nodes.len()];
    wanted.iter().for_each(|x| uses[x.0 as usize] += 1);
    for i in (0..g.nodes.len()).rev() {
        if uses[i] > 0 {
            g.nodes[i].args.iter().for_each(|a| uses[a.0 as usize] += 1);
        }
    }
    let mut store: Vec<Option<Tensor>> = vec![None; g.nodes.len()];
    for (i, node) in g.nodes.iter().enumerate() {
        if uses[i] == 0 {
            continue;
        }
        let value = eval.node(NodeId(i as u32), node, &store)?;
        store[i] = Some(value);
        for arg in &node.args {
            let left = &mut uses[arg.0 as usize];
            *left -= 1;
            if *left == 0 {
                store[arg.0 as usize] = None;
            }
        }
    }
    Ok(wanted.iter().filter_map(|x| store[x.0 as usize].clone()).collect())
}

struct Eval<'a> {
    g: &'a Graph,
    inputs: &'a Contents,
    options: &'a Options,
}

impl Eval<'_> {
    fn size(&self, axis: AxisId) -> usize {
        self.g.axes[axis.0 as usize].size
    }

    fn dims(&self, axes: &[AxisId]) -> Vec<usize> {
        axes.iter().map(|a| self.size(*a)).collect()
    }

    fn content(&self, id: BufferId) -> Result<Tensor, InterpretError> {
        let buffer = &self.g.buffers[id.0 as usize];
        let expected = self.dims(&buffer.ty.axes);
        if let Some(values) = self.g.constants.get(&id) {
            return Ok(Tensor { dims: expected, data: values.clone() });
        }
        match self.inputs.get(&buffer.name) {
            Some(given) if given.dims == expected => Ok(given.clone()),
            Some(given) => {
                Err(InterpretError::Shape { buffer: buffer.name.clone(), expected, found: given.dims.clone() })
            }
            None if buffer.kind == BufferKind::Grad => Ok(Tensor::fill(&expected, 0.0)),
            None => Err(InterpretError::Missing { buffer: buffer.name.clone() }),
        }
    }

    fn node(&self, id: NodeId, node: &Node, store: &[Option<Tensor>]) -> Result<Tensor, InterpretError> {
        let none = Tensor::scalar(0.0);
        let rounded: Vec<Option<Tensor>> = node.args.iter().map(|a| self.operand(node, *a, store)).collect();
        let args: Vec<(&Tensor, &Type)> = node
            .args
            .iter()
            .zip(&rounded)
            .map(|(a, rounded)| {
                // Operands come first and are kept until their last use.
                let value = rounded.as_ref().or(store[a.0 as usize].as_ref()).unwrap_or(&none);
                (value, &self.g.nodes[a.0 as usize].ty)
            })
            .collect();
        let mut value = match &node.op {
            Op::Read(buffer) => self.content(*buffer)?,
            _ => self.apply(node, &args).map_err(|Fault(why)| InterpretError::Value { node: id, why })?,
        };
        if self.options.round_storage && node.ty.dtype.is_float() {
            value.data.iter_mut().for_each(|v| *v = scalar::cast(*v, DType::F32));
        }
        Ok(value)
    }

    /// The rounded operand of a contraction, when rounding is asked for.
    fn operand(&self, node: &Node, arg: NodeId, store: &[Option<Tensor>]) -> Option<Tensor> {
        let contraction = matches!(node.op, Op::Dot(_) | Op::Attend(_) | Op::AttendLse(_) | Op::AttendGrad(..));
        let float = self.g.nodes[arg.0 as usize].ty.dtype.is_float();
        if !self.options.round_storage || !contraction || !float || self.g.compute == DType::F32 {
            return None;
        }
        // The log-sum-exp given to AttendGrad stays f32.
        if matches!(node.op, Op::AttendGrad(..)) && node.args.get(4) == Some(&arg) {
            return None;
        }
        let mut value = store[arg.0 as usize].clone()?;
        value.data.iter_mut().for_each(|v| *v = scalar::cast(*v, self.g.compute));
        Some(value)
    }

    fn apply(&self, node: &Node, args: &[(&Tensor, &Type)]) -> Result<Tensor, Fault> {
        let ty = &node.ty;
        let x = || args[0].0;
        let axes = || &args[0].1.axes[..];
        Ok(match &node.op {
            Op::Read(_) => return Err(Fault("a read has no operands".to_string())),
            Op::Const(value) => Tensor::scalar(value.get()),
            Op::Iota(axis) => self.iota(*axis),
            Op::Unary(op) => self.unary(*op, x(), ty),
            Op::Binary(op) => self.binary(*op, [args[0], args[1]], ty)?,
            Op::Select => self.select([args[0], args[1], args[2]], ty),
            Op::Cast(to) => {
                Tensor { dims: x().dims.clone(), data: x().data.iter().map(|v| scalar::cast(*v, *to)).collect() }
            }
            Op::StopGradient => x().clone(),
            Op::StraightThrough => x().clone(),
            Op::Broadcast => self.arranged(x(), axes(), &ty.axes),
            Op::Reduce(op, _) => self.reduce(*op, x(), axes(), ty),
            Op::Dot(over) => self.dot(args[0], args[1], over, ty),
            Op::Gather(axis) => self.gather(args[0], args[1].0, *axis, ty),
            Op::ScatterAdd(axis) => self.scatter_add(args[0], args[1], *axis, ty),
            Op::Split(..) | Op::Rename(..) => self.reshaped(x(), ty),
            Op::Merge(parts, to) => self.merge(x(), axes(), parts, *to, ty),
            Op::Slice { from, to, start } => {
                self.slice(x(), elementwise::position(axes(), *from), *start, ty, self.size(*to))
            }
            Op::Pad { from, to, start } => {
                self.pad(x(), elementwise::position(&ty.axes, *to), *start, self.size(*from), ty)
            }
            Op::Index(axis, at) => self.slice(x(), elementwise::position(axes(), *axis), *at, ty, 1),
            Op::Place(axis, at) => {
                let rest: Vec<_> = ty.axes.iter().copied().filter(|a| a != axis).collect();
                let x = self.arranged(x(), axes(), &rest);
                self.pad(&x, elementwise::position(&ty.axes, *axis), *at, 1, ty)
            }
            Op::Concat(from, to) => self.concat(args, from, *to, ty),
            Op::Shift(axis, n) => self.shift(x(), elementwise::position(axes(), *axis), *n),
            Op::Cumsum(axis, reverse) => self.cumsum(x(), *axis, *reverse, ty),
            Op::Scan(axis, reverse) => self.scan(args[0], args[1], *axis, *reverse, ty),
            Op::Attend(how) => self.attend(*how, args[0], args[1], Some(args[2]), args.get(3).copied(), ty),
            Op::AttendLse(how) => self.attend(*how, args[0], args[1], None, args.get(2).copied(), ty),
            Op::AttendGrad(how, which) => self.attend_grad(*how, *which, args, ty),
            Op::CrossEntropy(axis) => self.cross_entropy(args[0], args[1], None, *axis, ty)?,
            Op::CrossEntropyGrad(axis) => self.cross_entropy(args[0], args[1], Some(args[2]), *axis, ty)?,
            Op::Quantile(axis, q) => self.quantile(x(), axes(), *axis, q.get(), ty),
            Op::FeedbackRound { axis, low, high } => {
                self.feedback_round([args[0], args[1], args[2], args[3]], *axis, (low.get(), high.get()), ty)?
            }
            Op::TopKValues(from, to) => self.top_k(x(), axes(), *from, *to, true),
            Op::TopKIndices(from, to) => self.top_k(x(), axes(), *from, *to, false),
            Op::Random { key, normal } => {
                let counter = x().data[0] as i32;
                let draw = if *normal { random::normal } else { random::uniform };
                Tensor::from_fn(&self.dims(&ty.axes), |e| draw(*key, counter, e))
            }
        })
    }
}
