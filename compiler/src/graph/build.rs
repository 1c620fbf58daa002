//! The typed builder: every node of every graph is made here.
//!
//! *Takes* axes, buffers and ops; *gives* node ids; *promises* that each node has the type of [`super::infer`], that identical
//! nodes exist once, and that the obvious simplifications of [`super::simplify`] have been made, so `b.mul(x, one)` may give `x`.
//!
//! The current origin ([`Builder::set_origin`]) is stamped on nodes as they appear; a node found again keeps its first origin.

use super::error::TypeError;
use super::infer;
use super::ir::{
    Axis, AxisId, AxisRole, Bits, Buffer, BufferId, BufferKind, DType, Effect, EffectMode, Graph, Node, NodeId, Op,
    Origin, Type,
};
use std::collections::{BTreeMap, HashMap};

/// Result of making a node.
pub type Made = Result<NodeId, TypeError>;

/// A graph under construction. Op methods are in [`super::build_ops`].
#[derive(Clone, Debug)]
pub struct Builder {
    graph: Graph,
    origin: Origin,
    // Look-up only: its order is never observed.
    known: HashMap<Node, NodeId>,
    axes: HashMap<String, AxisId>,
    buffers: HashMap<String, BufferId>,
    constants: HashMap<Vec<u64>, Vec<BufferId>>,
}

impl Builder {
    /// An empty graph. `compute` is the dtype of stored activations and contraction operands: `F32` or `Bf16`.
    pub fn new(name: &str, compute: DType) -> Self {
        Self::extend(Graph {
            name: name.to_string(),
            compute,
            axes: Vec::new(),
            buffers: Vec::new(),
            nodes: Vec::new(),
            effects: Vec::new(),
            origins: Vec::new(),
            constants: BTreeMap::new(),
        })
    }

    /// Continues an existing graph; its ids stay valid.
    pub fn extend(graph: Graph) -> Self {
        let mut known = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            known.entry(node.clone()).or_insert(NodeId(i as u32));
        }
        let axes = graph.axes.iter().enumerate().map(|(i, a)| (a.name.clone(), AxisId(i as u32))).collect();
        let buffers = graph.buffers.iter().enumerate().map(|(i, b)| (b.name.clone(), BufferId(i as u32))).collect();
        let mut constants: HashMap<_, Vec<_>> = HashMap::new();
        for (id, values) in &graph.constants {
            constants.entry(bits(values)).or_default().push(*id);
        }
        Builder { graph, origin: Origin::default(), known, axes, buffers, constants }
    }

    /// The finished graph.
    pub fn finish(self) -> Graph {
        self.graph
    }

    /// The graph so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Origin stamped on nodes made from now on.
    pub fn set_origin(&mut self, origin: Origin) {
        self.origin = origin;
    }

    /// The origin now being stamped.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Origin of a node (empty when none was recorded).
    pub fn origin_of(&self, x: NodeId) -> Origin {
        self.graph.origins.get(x.0 as usize).cloned().unwrap_or_default()
    }

    // ---- axes ----

    /// The axis of this name; made if new. An error if it exists with another size or role.
    pub fn axis(&mut self, name: &str, size: usize, role: AxisRole) -> Result<AxisId, TypeError> {
        if size == 0 {
            return Err(TypeError::Invalid { op: "axis", why: format!("the axis `{name}` has size 0") });
        }
        if let Some(id) = self.axes.get(name) {
            let old = &self.graph.axes[id.0 as usize];
            if old.size == size && old.role == role {
                return Ok(*id);
            }
            return Err(TypeError::Redeclared {
                what: "axis",
                name: name.to_string(),
                first: format!("size {} ({:?})", old.size, old.role),
                now: format!("size {size} ({role:?})"),
            });
        }
        let id = AxisId(self.graph.axes.len() as u32);
        self.graph.axes.push(Axis { name: name.to_string(), size, role });
        self.axes.insert(name.to_string(), id);
        Ok(id)
    }

    /// A new axis named `stem`, or `stem.1`, `stem.2`, ... if that is taken. `size` is at least 1.
    pub fn fresh_axis(&mut self, stem: &str, size: usize, role: AxisRole) -> AxisId {
        let mut name = stem.to_string();
        let mut n = 0;
        while self.axes.contains_key(&name) {
            n += 1;
            name = format!("{stem}.{n}");
        }
        let id = AxisId(self.graph.axes.len() as u32);
        self.graph.axes.push(Axis { name: name.clone(), size: size.max(1), role });
        self.axes.insert(name, id);
        id
    }

    /// A second name for an axis (same size and role), the same one each time it is asked for.
    pub fn twin(&mut self, axis: AxisId) -> AxisId {
        let Axis { name, size, role } = self.graph.axes[axis.0 as usize].clone();
        let name = format!("{name}'");
        match self.axis(&name, size, role) {
            Ok(id) => id,
            Err(_) => self.fresh_axis(&name, size, role),
        }
    }

    /// The axis of this name.
    pub fn find_axis(&self, name: &str) -> Option<AxisId> {
        self.axes.get(name).copied()
    }

    /// Number of positions of an axis.
    pub fn size(&self, axis: AxisId) -> usize {
        self.graph.axes[axis.0 as usize].size
    }

    /// Name of an axis.
    pub fn axis_name(&self, axis: AxisId) -> &str {
        &self.graph.axes[axis.0 as usize].name
    }

    // ---- buffers ----

    /// The buffer of this name; made if new. An error if it exists with another type or kind, or has an axis twice.
    pub fn buffer(
        &mut self,
        name: &str,
        dtype: DType,
        axes: &[AxisId],
        kind: BufferKind,
    ) -> Result<BufferId, TypeError> {
        let new = Buffer { name: name.to_string(), ty: Type { dtype, axes: axes.to_vec() }, kind };
        if let Some(id) = self.buffers.get(name) {
            let old = &self.graph.buffers[id.0 as usize];
            if *old == new {
                return Ok(*id);
            }
            let (first, now) = (self.describe(old), self.describe(&new));
            return Err(TypeError::Redeclared { what: "buffer", name: name.to_string(), first, now });
        }
        for (i, axis) in axes.iter().enumerate() {
            if axes[..i].contains(axis) {
                let names = axes.iter().map(|a| self.axis_name(*a).to_string()).collect();
                return Err(TypeError::DuplicateAxis {
                    op: "buffer",
                    axis: self.axis_name(*axis).to_string(),
                    axes: names,
                });
            }
        }
        Ok(self.add_buffer(new))
    }

    /// A table of constants (row-major over `axes`), one buffer per distinct content. The number of values must match.
    pub fn const_buffer(&mut self, dtype: DType, axes: &[AxisId], values: Vec<f64>) -> Result<BufferId, TypeError> {
        let numel: usize = axes.iter().map(|a| self.size(*a)).product();
        if values.len() != numel {
            let why = format!("a table of {numel} values was given {}", values.len());
            return Err(TypeError::Invalid { op: "const_buffer", why });
        }
        let ty = Type { dtype, axes: axes.to_vec() };
        let key = bits(&values);
        let same = self.constants.get(&key).into_iter().flatten();
        if let Some(id) = same.copied().find(|b| self.graph.buffers[b.0 as usize].ty == ty) {
            return Ok(id);
        }
        let mut n = self.graph.constants.len();
        while self.buffers.contains_key(&format!("const.{n}")) {
            n += 1;
        }
        let id = self.add_buffer(Buffer { name: format!("const.{n}"), ty, kind: BufferKind::Const });
        self.graph.constants.insert(id, values);
        self.constants.entry(key).or_default().push(id);
        Ok(id)
    }

    /// The buffer of this name.
    pub fn find_buffer(&self, name: &str) -> Option<BufferId> {
        self.buffers.get(name).copied()
    }

    fn add_buffer(&mut self, buffer: Buffer) -> BufferId {
        let id = BufferId(self.graph.buffers.len() as u32);
        self.buffers.insert(buffer.name.clone(), id);
        self.graph.buffers.push(buffer);
        id
    }

    fn describe(&self, b: &Buffer) -> String {
        let axes: Vec<_> = b.ty.axes.iter().map(|a| self.axis_name(*a)).collect();
        format!("{:?} {} [{}]", b.kind, infer::dtype_name(b.ty.dtype), axes.join(" "))
    }

    // ---- nodes ----

    /// Type of a node.
    pub fn ty(&self, x: NodeId) -> &Type {
        &self.graph.nodes[x.0 as usize].ty
    }

    /// Axes of a node, in storage order.
    pub fn axes(&self, x: NodeId) -> &[AxisId] {
        &self.ty(x).axes
    }

    /// Element type of a node.
    pub fn dtype(&self, x: NodeId) -> DType {
        self.ty(x).dtype
    }

    /// A node.
    pub fn node(&self, x: NodeId) -> &Node {
        &self.graph.nodes[x.0 as usize]
    }

    /// Number of elements of a node.
    pub fn numel(&self, x: NodeId) -> usize {
        self.axes(x).iter().map(|a| self.size(*a)).product()
    }

    /// The number if the node is a scalar constant, or a broadcast of one.
    pub fn const_value(&self, x: NodeId) -> Option<f64> {
        let node = self.node(x);
        match (&node.op, node.args.first()) {
            (Op::Const(v), _) => Some(v.get()),
            (Op::Broadcast, Some(inner)) => self.const_value(*inner),
            _ => None,
        }
    }

    /// Makes a node: type check, simplification, then the existing node if an identical one is known. `stated` is the result type
    /// of N ops (see [`super::ir::Op`]).
    pub fn push(&mut self, op: Op, args: &[NodeId], stated: Option<&Type>) -> Made {
        let ty = infer::result(&self.graph, &op, args, stated)?;
        let node = Node { op, args: args.to_vec(), ty };
        match super::simplify::simplify(self, &node) {
            Some(simpler) => Ok(simpler),
            None => Ok(self.intern(node)),
        }
    }

    /// Adds a node whose type is already right, or finds it.
    pub(super) fn intern(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.known.get(&node) {
            return *id;
        }
        let id = NodeId(self.graph.nodes.len() as u32);
        self.known.insert(node.clone(), id);
        self.graph.nodes.push(node);
        if self.origin != Origin::default() {
            self.graph.origins.resize(id.0 as usize, Origin::default());
            self.graph.origins.push(self.origin.clone());
        }
        id
    }

    // ---- effects ----

    /// The buffer becomes the value.
    pub fn assign(&mut self, buffer: BufferId, value: NodeId) -> Result<(), TypeError> {
        self.effect("assign", Effect { buffer, value, mode: EffectMode::Assign })
    }

    /// The value is added to the buffer.
    pub fn accumulate(&mut self, buffer: BufferId, value: NodeId) -> Result<(), TypeError> {
        self.effect("accumulate", Effect { buffer, value, mode: EffectMode::Accumulate })
    }

    fn effect(&mut self, op: &'static str, effect: Effect) -> Result<(), TypeError> {
        check_effect(&self.graph, op, &effect)?;
        if self.graph.effects.iter().any(|e| e.buffer == effect.buffer) {
            let name = &self.graph.buffers[effect.buffer.0 as usize].name;
            return Err(TypeError::Invalid { op, why: format!("the buffer `{name}` is written twice") });
        }
        self.graph.effects.push(effect);
        Ok(())
    }

    /// A scalar constant of a dtype; the number must be a value of it (floats: any).
    pub fn constant_of(&mut self, dtype: DType, x: f64) -> Made {
        self.push(Op::Const(Bits::new(x)), &[], Some(&Type { dtype, axes: Vec::new() }))
    }

    /// An F32 scalar.
    pub fn constant(&mut self, x: f64) -> NodeId {
        self.intern(Node {
            op: Op::Const(Bits::new(x)),
            args: Vec::new(),
            ty: Type { dtype: DType::F32, axes: Vec::new() },
        })
    }

    /// An I32 scalar.
    pub fn int(&mut self, x: i32) -> NodeId {
        let ty = Type { dtype: DType::I32, axes: Vec::new() };
        self.intern(Node { op: Op::Const(Bits::new(f64::from(x))), args: Vec::new(), ty })
    }

    /// A Bool scalar.
    pub fn boolean(&mut self, x: bool) -> NodeId {
        let ty = Type { dtype: DType::Bool, axes: Vec::new() };
        self.intern(Node { op: Op::Const(Bits::new(super::scalar::truth(x))), args: Vec::new(), ty })
    }
}

/// The rules of one effect on its own: same axis set, a value of the buffer's kind, a buffer that may be written.
pub(super) fn check_effect(g: &Graph, op: &'static str, effect: &Effect) -> Result<(), TypeError> {
    let missing = |what: &str| TypeError::Invalid { op, why: format!("no such {what}") };
    let buffer = g.buffers.get(effect.buffer.0 as usize).ok_or_else(|| missing("buffer"))?;
    let value = &g.nodes.get(effect.value.0 as usize).ok_or_else(|| missing("value"))?.ty;
    if matches!(buffer.kind, BufferKind::Const | BufferKind::Input) {
        return Err(TypeError::Invalid {
            op,
            why: format!("the buffer `{}` is read-only ({:?})", buffer.name, buffer.kind),
        });
    }
    let same = value.axes.len() == buffer.ty.axes.len() && value.axes.iter().all(|a| buffer.ty.axes.contains(a));
    if !same {
        let name = |a: &AxisId| g.axes.get(a.0 as usize).map_or_else(|| format!("#{}", a.0), |a| a.name.clone());
        let names = |axes: &[AxisId]| axes.iter().map(name).collect();
        return Err(TypeError::Axes { op, left: names(&buffer.ty.axes), right: names(&value.axes) });
    }
    let fits = match effect.mode {
        EffectMode::Assign => infer::value_dtype(buffer.ty.dtype) == infer::value_dtype(value.dtype),
        EffectMode::Accumulate => {
            buffer.ty.dtype.is_float() && value.dtype.is_float()
                || buffer.ty.dtype == DType::I32 && value.dtype == DType::I32
        }
    };
    if !fits {
        let expected = format!("a value of `{}`, {}", buffer.name, infer::dtype_name(buffer.ty.dtype));
        return Err(TypeError::DType { op, expected, found: vec![value.dtype] });
    }
    Ok(())
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|x| x.to_bits()).collect()
}
