//! What became of a graph: kernels, their work, the ops in them, and why neighbours are not fused.
//!
//! *Takes* a [`Planned`] precision; *gives* the data of `--explain` ([`kernels`], [`refusals`]) and its text ([`table`]); *promises* one line
//! per distinct kernel, in order of first use.

use super::plan::Planned;
use crate::graph::ir::{Graph, NodeId};
use std::collections::BTreeMap;
use std::fmt::Write;

/// A distinct kernel of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// Index into [`Planned::kernels`].
    pub kernel: usize,
    /// Runs per run of the graph.
    pub calls: usize,
    /// Floating-point operations of one run.
    pub flops: u64,
    /// Bytes one run has to move.
    pub bytes: u64,
    /// Independent tasks of the largest launch.
    pub tasks: u32,
    /// Nodes of the first run, in computable order.
    pub nodes: Vec<NodeId>,
}

/// The distinct kernels of one graph of a plan.
pub fn kernels(p: &Planned, graph: usize) -> Vec<Explained> {
    let mut at: BTreeMap<usize, usize> = BTreeMap::new();
    let mut out: Vec<Explained> = Vec::new();
    for (step, kernel) in p.graphs[graph].steps.iter().zip(&p.steps[graph]) {
        if let Some(i) = at.get(kernel) {
            out[*i].calls += 1;
            continue;
        }
        at.insert(*kernel, out.len());
        let launches = p.target.launches(&step.kernel);
        out.push(Explained {
            kernel: *kernel,
            calls: 1,
            flops: launches.iter().map(|l| l.flops).sum(),
            bytes: launches.iter().map(|l| l.bytes).sum(),
            tasks: launches.iter().map(|l| l.tasks).max().unwrap_or(0),
            nodes: step.nodes.clone(),
        });
    }
    out
}

/// Fusions that were not made, alike ones together: (op, family that did not take it, reason), and the nodes.
pub fn refusals(p: &Planned, graph: usize) -> BTreeMap<(&'static str, &'static str, String), Vec<NodeId>> {
    let s = &p.graphs[graph];
    let mut out: BTreeMap<_, Vec<NodeId>> = BTreeMap::new();
    for (n, r) in &s.refused {
        let op = crate::graph::ops::row(&s.graph.nodes[n.0 as usize].op).name;
        out.entry((op, r.family, r.why.clone())).or_default().push(*n);
    }
    out
}

/// Both as text.
pub fn table(p: &Planned, graph: usize) -> String {
    let mut s = String::new();
    // Writing to a string cannot fail.
    let _ =
        writeln!(s, "  {:<28} {:>5} {:>6} {:>9} {:>8} {:>7}  ops", "kernel", "calls", "tasks", "GFLOP", "MB", "FLOP/B");
    for k in kernels(p, graph) {
        let _ = writeln!(
            s,
            "  {:<28} {:>5} {:>6} {:>9.4} {:>8.2} {:>7.1}  {}",
            p.kernels[k.kernel].symbol(),
            k.calls,
            k.tasks,
            k.flops as f64 / 1e9,
            k.bytes as f64 / 1e6,
            k.flops as f64 / k.bytes.max(1) as f64,
            ops(&p.graphs[graph].graph, &k.nodes)
        );
    }
    let refusals = refusals(p, graph);
    if !refusals.is_empty() {
        let _ = writeln!(s, "  not fused:");
        for ((op, family, why), nodes) in refusals {
            let g = &p.graphs[graph].graph;
            let example = crate::graph::text::print_node(g, nodes[0]);
            let _ = writeln!(s, "  {:>5} x {op} into {family}: {why}; {}", nodes.len(), example.trim());
        }
    }
    s
}

/// Names of ops in order, repeats counted; constants left out.
fn ops(g: &Graph, nodes: &[NodeId]) -> String {
    let mut names: Vec<(&str, usize)> = Vec::new();
    for n in nodes {
        let node = &g.nodes[n.0 as usize];
        let name = crate::graph::ops::row(&node.op).name;
        match names.last_mut() {
            _ if name == "const" => {}
            Some((last, count)) if *last == name => *count += 1,
            _ => names.push((name, 1)),
        }
    }
    let text = |(name, count): &(&str, usize)| if *count > 1 { format!("{name}*{count}") } else { name.to_string() };
    names.iter().map(text).collect::<Vec<_>>().join(" ")
}
