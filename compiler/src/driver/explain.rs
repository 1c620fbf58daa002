//! `--explain`: what a program costs and what the compiler made of it.

use super::program::Built;
use crate::lang::Model;
use crate::optim::Source;
use crate::schedule::plan::Planned;
use golf_runtime::plan::Variant;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The report.
pub(super) fn text(model: &Model, b: &Built) -> String {
    let mut s = String::new();
    let p = &b.program;
    // Writing to a string cannot fail.
    let _ = writeln!(
        s,
        "{}: {} parameters in {} tensors",
        p.name,
        thousands(model.numel() as u64),
        model.parameters().len()
    );
    let mut groups: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for q in model.parameters() {
        let g = groups.entry(if q.unused { "unused" } else { &q.group }).or_default();
        *g = (g.0 + 1, g.1 + q.numel() as u64);
    }
    for (name, (n, numel)) in groups {
        let _ = writeln!(s, "  {name:<12} {n:>4} tensors {:>14}", thousands(numel));
    }
    let _ = writeln!(
        s,
        "training: {} tokens per step, {} FLOP per token (forward and backward, causal attention)",
        thousands(p.train.batch),
        thousands(p.flops_per_token)
    );
    for (v, rss) in p.variants.iter().zip(&p.predicted_rss) {
        variant(&mut s, v, *rss);
    }
    let _ = writeln!(
        s,
        "bytes_code: {} (source after --set {} + prelude definitions used {})",
        p.source.len() + p.prelude.len(),
        p.source.len(),
        p.prelude.len()
    );
    let _ =
        writeln!(s, "bytes_model and bytes_executable: known after pack and link; cap {}", thousands(p.quantize.cap));
    let _ = writeln!(
        s,
        "legality: logits at t depend on tokens up to t of their own row, never on targets; normalised over {} ids by the compiler;",
        p.vocab
    );
    let _ = writeln!(
        s,
        "  a chunk is adapted on only after it was scored; validation data reaches no training, averaging or packing graph: proven on the graphs"
    );
    for planned in &b.planned {
        fusion(&mut s, planned);
    }
    s
}

/// Which ops share a kernel, by distinct kernel of the training step, and why neighbours do not.
fn fusion(s: &mut String, planned: &Planned) {
    let _ = writeln!(
        s,
        "\nkernels of {} train.micro (distinct; calls, work of one call, fused ops):",
        planned.variant.precision
    );
    for (g, steps) in planned.graphs.iter().zip(&planned.steps) {
        if g.graph.name != "train.micro" {
            continue;
        }
        let mut seen: BTreeMap<usize, (usize, String)> = BTreeMap::new();
        for (step, kernel) in g.steps.iter().zip(steps) {
            let entry = seen.entry(*kernel).or_insert_with(|| (0, ops_of(&g.graph, &step.nodes)));
            entry.0 += 1;
        }
        for (kernel, (calls, ops)) in seen {
            let k = &planned.kernels[kernel];
            let flops: u64 = k.launches().iter().map(|l| l.flops).sum();
            let _ = writeln!(s, "  {:<32} {calls:>4} x {:>9.4} GFLOP  {ops}", k.symbol(), flops as f64 / 1e9);
        }
        let mut why: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in g.refused.values() {
            *why.entry(reason).or_default() += 1;
        }
        let _ = writeln!(s, "not fused (ops, reason):");
        for (reason, n) in why {
            let _ = writeln!(s, "  {n:>5}  {reason}");
        }
    }
}

/// Names of the ops a kernel computes, in order, repeats counted.
fn ops_of(g: &crate::graph::ir::Graph, nodes: &[crate::graph::ir::NodeId]) -> String {
    let mut names: Vec<(&str, usize)> = Vec::new();
    for n in nodes {
        let name = crate::graph::ops::row(&g.nodes[n.0 as usize].op).name;
        match names.last_mut() {
            Some((last, count)) if *last == name => *count += 1,
            _ => names.push((name, 1)),
        }
    }
    let text = |(name, count): &(&str, usize)| if *count > 1 { format!("{name}x{count}") } else { name.to_string() };
    names.iter().map(text).collect::<Vec<_>>().join(" ")
}

fn variant(s: &mut String, v: &Variant, rss: u64) {
    let mb = |n: u64| format!("{:.1} MB", n as f64 / 1e6);
    let scratch = v.graphs.iter().map(|g| g.scratch).max().unwrap_or(0);
    let _ = writeln!(
        s,
        "{}: predicted peak memory of training {}: state {}, gradients {}, scratch {}, constants {}",
        v.precision,
        mb(rss),
        mb(v.state_bytes),
        mb(v.grad_bytes),
        mb(scratch),
        mb(v.constants.len() as u64)
    );
    for g in v.graphs.iter().filter(|g| !g.name.starts_with("pack.")) {
        let flops: u64 = g.calls.iter().map(|c| v.kernels[c.kernel as usize].flops).sum();
        let _ = writeln!(
            s,
            "  {:<20} {:>5} calls {:>9.3} GFLOP {:>10} scratch",
            g.name,
            g.calls.len(),
            flops as f64 / 1e9,
            mb(g.scratch)
        );
    }
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out
}
