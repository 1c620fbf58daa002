//! Constant folding and removal of dead nodes.
//!
//! *Takes* a graph; *gives* one in which whatever depends on constants alone is a table (rotary cos and sin) or a scalar, and in which
//! every node serves an effect; *promises* the same effects, and the same tables on every host (the interpreter's `libm` arithmetic).
//!
//! Buffers, except tables nobody reads any more, and axes stay as they are.

use super::build::Builder;
use super::interpret::{Contents, Options, values};
use super::ir::{BufferId, BufferKind, Graph, Node, NodeId, Op, Origin};
use std::collections::BTreeMap;

/// Largest table made, in elements: beyond it, recomputing is cheaper than carrying a table in the executable.
pub const LARGEST_TABLE: usize = 1 << 18;

/// Makes the graph again, node by node, through a builder: `make` gets each live node with its operands already replaced and says what
/// takes its place. Effects are moved along.
pub fn rebuild(g: &Graph, mut make: impl FnMut(&mut Builder, NodeId, &Node) -> NodeId) -> Graph {
    let live = effective(g);
    let mut b = Builder::extend(Graph {
        name: g.name.clone(),
        compute: g.compute,
        axes: g.axes.clone(),
        buffers: g.buffers.clone(),
        nodes: Vec::new(),
        effects: Vec::new(),
        origins: Vec::new(),
        constants: g.constants.clone(),
    });
    let mut new: Vec<NodeId> = Vec::with_capacity(g.nodes.len());
    for (i, node) in g.nodes.iter().enumerate() {
        if !live[i] {
            // Never used: no live node has it as an operand.
            new.push(NodeId(u32::MAX));
            continue;
        }
        b.set_origin(g.origins.get(i).cloned().unwrap_or_default());
        let args = node.args.iter().map(|a| new[a.0 as usize]).collect();
        let node = Node { op: node.op.clone(), args, ty: node.ty.clone() };
        new.push(make(&mut b, NodeId(i as u32), &node));
    }
    b.set_origin(Origin::default());
    let mut out = b.finish();
    out.effects = g.effects.clone();
    out.effects.iter_mut().for_each(|e| e.value = new[e.value.0 as usize]);
    out
}

/// The node as it is, in the new graph. A type error here is a fault of the pass that made the operands.
pub(super) fn keep(b: &mut Builder, node: &Node) -> NodeId {
    match b.push(node.op.clone(), &node.args, Some(&node.ty)) {
        Ok(id) => id,
        Err(error) => panic!("internal: a pass changed the type of an operand: {error}"),
    }
}

/// Which nodes serve an effect.
fn effective(g: &Graph) -> Vec<bool> {
    live(g, g.effects.iter().map(|e| e.value))
}

/// Which nodes some roots need.
pub fn live(g: &Graph, roots: impl IntoIterator<Item = NodeId>) -> Vec<bool> {
    let mut live = vec![false; g.nodes.len()];
    roots.into_iter().for_each(|r| live[r.0 as usize] = true);
    for i in (0..g.nodes.len()).rev() {
        if live[i] {
            g.nodes[i].args.iter().for_each(|a| live[a.0 as usize] = true);
        }
    }
    live
}

/// Removes nodes that serve no effect, and tables that no node reads.
pub fn dead_code(g: &Graph) -> Graph {
    prune_tables(rebuild(g, |b, _, node| b.intern(node.clone())))
}

/// Evaluates what depends on constants alone: scalars become `Const`, uniform values a broadcast of one, the rest tables of at most
/// [`LARGEST_TABLE`] elements. Positions along one axis (`Iota`) and broadcasts are left to be computed, random numbers to be drawn.
pub fn fold(g: &Graph) -> Graph {
    let constant = constant(g);
    let tables = tables(g, &constant);
    let out = rebuild(g, |b, id, node| match tables.get(&id) {
        Some(values) => table(b, node, values).unwrap_or_else(|| keep(b, node)),
        None => keep(b, node),
    });
    dead_code(&out)
}

/// Nodes that depend on constants alone.
fn constant(g: &Graph) -> Vec<bool> {
    let mut constant = vec![false; g.nodes.len()];
    for (i, node) in g.nodes.iter().enumerate() {
        constant[i] = match node.op {
            Op::Read(b) => g.buffers[b.0 as usize].kind == BufferKind::Const,
            Op::Random { .. } => false,
            _ => node.args.iter().all(|a| constant[a.0 as usize]),
        };
    }
    constant
}

/// Values of the constant nodes to be replaced: those that something else uses and that are small enough.
fn tables(g: &Graph, constant: &[bool]) -> BTreeMap<NodeId, Vec<f64>> {
    let numel = |i: usize| g.nodes[i].ty.axes.iter().map(|a| g.axes[a.0 as usize].size).product::<usize>();
    let is_leaf = |op: &Op| matches!(op, Op::Read(_) | Op::Const(_) | Op::Iota(_));
    // Not to be replaced themselves: their operands are looked at instead.
    let passed = |i: usize| g.nodes[i].op == Op::Broadcast || numel(i) > LARGEST_TABLE;
    let live = effective(g);
    let mut wanted = vec![false; g.nodes.len()];
    g.effects.iter().for_each(|e| wanted[e.value.0 as usize] = true);
    for i in (0..g.nodes.len()).rev() {
        if live[i] && (!constant[i] || wanted[i] && passed(i)) {
            g.nodes[i].args.iter().for_each(|a| wanted[a.0 as usize] = true);
        }
    }
    let mut out = BTreeMap::new();
    for (i, node) in g.nodes.iter().enumerate() {
        if !(wanted[i] && live[i] && constant[i]) || passed(i) || is_leaf(&node.op) {
            continue;
        }
        // What has no value (an integer divided by zero) is left for the interpreter or the device to meet.
        if let Ok(found) = values(g, &Contents::new(), &[NodeId(i as u32)], &Options::default()) {
            out.extend(found.into_iter().map(|t| (NodeId(i as u32), t.data)));
        }
    }
    out
}

/// The node of a table's content.
fn table(b: &mut Builder, node: &Node, values: &[f64]) -> Option<NodeId> {
    let first = *values.first()?;
    if values.iter().all(|v| v.to_bits() == first.to_bits()) {
        let scalar = b.constant_of(node.ty.dtype, first).ok()?;
        return b.broadcast(scalar, &node.ty.axes).ok();
    }
    let buffer = b.const_buffer(node.ty.dtype, &node.ty.axes, values.to_vec()).ok()?;
    b.read(buffer).ok()
}

/// Drops tables that no node reads.
fn prune_tables(mut g: Graph) -> Graph {
    let mut read = vec![false; g.buffers.len()];
    g.nodes.iter().for_each(|n| {
        if let Op::Read(b) = n.op {
            read[b.0 as usize] = true;
        }
    });
    let stays: Vec<bool> = g.buffers.iter().zip(&read).map(|(b, read)| *read || b.kind != BufferKind::Const).collect();
    let mut new = Vec::with_capacity(stays.len());
    let mut next = 0;
    for stays in &stays {
        new.push(BufferId(next));
        next += u32::from(*stays);
    }
    let mut it = stays.iter();
    g.buffers.retain(|_| it.next() == Some(&true));
    g.constants =
        g.constants.into_iter().filter(|(b, _)| stays[b.0 as usize]).map(|(b, v)| (new[b.0 as usize], v)).collect();
    g.nodes.iter_mut().for_each(|n| {
        if let Op::Read(b) = &mut n.op {
            *b = new[b.0 as usize];
        }
    });
    g.effects.iter_mut().for_each(|e| e.buffer = new[e.buffer.0 as usize]);
    g
}
