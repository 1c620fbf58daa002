//! Schedule: from a graph to a list of kernels, and from all graphs of a program to its plan.
//!
//! *Takes* verified graphs; *gives* kernels in launch order with their arguments ([`schedule`]) and the [`plan`] with every offset in memory
//! fixed; *promises* the meaning of the interpreter up to rounding, the same answer for the same graph, and a kernel for every op (an
//! emitter may still lack one and say so).
//!
//! The road: [`prepare`] (normal form, operands that lie right) → [`fuse`] (which node is computed in which kernel) → [`store`] (which
//! values cross kernels, which are cheaper to compute again) → [`lower`] (kernel descriptions) → [`order`] (launch order, in-place
//! effects) → [`memory`] (offsets) → [`plan`].
//!
//! Storage rule for values that cross kernels: a cast value has its own dtype; a float value with the time axis and at least 32 elements
//! per position is an activation and has [`Graph::compute`]; a value that only contractions read has [`Graph::compute`]; everything else f32. On a GPU, what lies in
//! f32 is stored in [`Graph::compute`] too if contractions read it.
//!
//! [`Graph::compute`]: crate::graph::ir::Graph::compute

mod cluster;
mod contract;
pub mod depend;
pub mod explain;
mod flatten;
mod fuse;
mod layout;
mod lift;
mod lower;
mod lower_epilogue;
mod lower_gemm;
mod lower_row;
pub mod memory;
mod order;
mod outputs;
pub mod plan;
mod prepare;
pub mod reference;
mod store;
mod symmetry;
#[cfg(test)]
mod tests;
pub mod trial;

use crate::graph::ir::{BufferId, DType, Graph, NodeId};
use crate::graph::rewrite;
use crate::kernel::{Kernel, Target};
use std::collections::{BTreeMap, BTreeSet};

/// How much to fuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Fuse at all. Off: every op is a kernel of its own and every value is stored (slow, for comparison).
    pub fuse: bool,
    /// What the kernels are for.
    pub target: Target,
}

impl Default for Options {
    fn default() -> Self {
        Options { fuse: true, target: Target::Cpu }
    }
}

/// A value in scratch memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// What it is, for people: `%12`, `%12 partial`, ...
    pub name: String,
    /// Storage dtype.
    pub dtype: DType,
    /// Elements.
    pub numel: usize,
}

/// Memory an argument points into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    /// A buffer of [`Scheduled::graph`].
    Buffer(BufferId),
    /// An entry of [`Scheduled::values`].
    Value(u32),
    /// A table entry with these f32 bits (only after [`plan::plan`] made kernels of different layers equal).
    Constant(u32),
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arg {
    /// Where.
    pub memory: Memory,
    /// Bytes from its start, a multiple of 64.
    pub offset: u64,
}

/// One kernel run.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What to run.
    pub kernel: Kernel,
    /// On what, in the kernel's order.
    pub args: Vec<Arg>,
    /// Nodes of [`Scheduled::graph`] that it computes; several steps may compute the same one.
    pub nodes: Vec<NodeId>,
}

/// A graph as kernels in launch order.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheduled {
    /// The graph in normal form (without effects). Buffers are those of the graph that was scheduled.
    pub graph: Graph,
    /// Scratch values.
    pub values: Vec<Value>,
    /// Kernels.
    pub steps: Vec<Step>,
    /// Why a node is not in the kernel of one of its operands.
    pub refused: BTreeMap<NodeId, Refused>,
}

/// A fusion that was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Family of the kernel that did not take the node.
    pub family: &'static str,
    /// Why, as the end of a sentence about the node.
    pub why: String,
}

/// Schedules a verified graph.
pub fn schedule(graph: &Graph) -> Result<Scheduled, Error> {
    schedule_with(graph, &Options::default())
}

/// [`schedule`] with options. An epilogue of attention that no emitter takes becomes a row kernel again; another fused kernel makes the whole graph
/// unfused; a kernel that is not taken even then is an error.
pub fn schedule_with(graph: &Graph, options: &Options) -> Result<Scheduled, Error> {
    checked(graph, options, &Taken::default())
}

/// Code that the emitters of one target take, by its text.
type Taken = std::sync::Mutex<BTreeSet<String>>;

/// [`schedule_with`], with a memory of what emitters take.
fn checked(graph: &Graph, options: &Options, taken: &Taken) -> Result<Scheduled, Error> {
    // On the CPU the gradient of a parameter is one chain of sums over all micro-batches, which a scale around it would break.
    let unscaled = (options.target != Target::Cpu).then(|| rewrite::unscale(graph));
    let graph = unscaled.as_ref().unwrap_or(graph);
    let mut options = *options;
    // Attention that stays alone, and why.
    let mut plain = BTreeMap::new();
    loop {
        let s = once(graph, &options, &plain)?;
        let refused = |step: &Step| {
            let epilogue = matches!(&step.kernel, Kernel::Attend(k) if k.epilogue.is_some());
            refusal(&step.kernel, options.target, taken).map(|why| (epilogue.then(|| step.nodes.clone()), why))
        };
        match s.steps.iter().find_map(refused) {
            None => return Ok(s),
            Some((Some(nodes), why)) => plain.extend(nodes.into_iter().map(|n| (n, why.clone()))),
            Some((_, why)) if !options.fuse => return Err(Error::new(&graph.name, why)),
            Some(_) => options.fuse = false,
        }
    }
}

/// Why no emitter takes a kernel.
fn refusal(k: &Kernel, target: Target, taken: &Taken) -> Option<String> {
    // A poisoned lock only means that another thread panicked; the set is still good.
    let lock = || taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let text = k.code().text();
    if lock().contains(&text) {
        return None;
    }
    let why = target.check(k).err();
    if why.is_none() {
        lock().insert(text);
    }
    why
}

fn once(graph: &Graph, options: &Options, plain: &BTreeMap<NodeId, String>) -> Result<Scheduled, Error> {
    let prepared = prepare::prepare(graph, options.target)?;
    let mut clusters = fuse::fuse(&prepared, options.fuse, plain)?;
    let bodies = store::store(&mut clusters, options.fuse)?;
    let mut waiting = BTreeSet::new();
    let (kernels, sizes, order) = loop {
        let (kernels, sizes) = lower::lower(&clusters, &bodies, &waiting, options.target)?;
        match order::order(&kernels, &prepared.effects, &waiting).map_err(|why| Error::new(&graph.name, why))? {
            order::Ordered::Order(order) => break (kernels, sizes, order),
            order::Ordered::Wait(more) => waiting.extend(more),
        }
    };
    let mut number = BTreeMap::new();
    let mut values = Vec::new();
    let mut steps = Vec::new();
    for i in order {
        let lower::Lowered { kernel, args, nodes, .. } = kernels[i].clone();
        let args = args
            .into_iter()
            .map(|slot| {
                let memory = match slot.memory {
                    lower::Memory::Buffer(b) => Memory::Buffer(b),
                    other => Memory::Value(*number.entry(other).or_insert_with(|| {
                        let (dtype, numel) = sizes[&other];
                        values.push(Value { name: lower::name(other), dtype, numel });
                        values.len() as u32 - 1
                    })),
                };
                Arg { memory, offset: slot.offset }
            })
            .collect();
        steps.push(Step { kernel, args, nodes });
    }
    let refused = clusters.refused.iter();
    let refused =
        refused.map(|(n, (c, why))| (*n, Refused { family: clusters.list[*c].kind.family(), why: why.clone() }));
    let refused = refused.collect();
    Ok(Scheduled { graph: prepared.graph.clone(), values, steps, refused })
}

/// Why a graph cannot be scheduled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Graph name.
    pub graph: String,
    /// A sentence.
    pub message: String,
}

impl Error {
    fn new(graph: &str, message: impl Into<String>) -> Error {
        Error { graph: graph.to_string(), message: message.into() }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "graph `{}`: {}", self.graph, self.message)
    }
}

impl std::error::Error for Error {}
