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
        "  a chunk is adapted on only after it was scored; validation data reaches no training, averaging, calibration or packing graph: proven on the graphs"
    );
    for planned in &b.planned {
        fusion(&mut s, planned);
    }
    s
}

/// Which ops share a kernel, by distinct kernel of the training step, and why neighbours do not.
fn fusion(s: &mut String, planned: &Planned) {
    let Some(i) = planned.graphs.iter().position(|g| g.graph.name == "train.micro") else { return };
    let _ = writeln!(
        s,
        "\nkernels of {} {} train.micro (work of one call), {} distinct in all graphs:",
        planned.variant.device,
        planned.variant.precision,
        planned.kernels.len()
    );
    s.push_str(&crate::schedule::explain::table(planned, i));
}

fn variant(s: &mut String, v: &Variant, rss: u64) {
    let mb = |n: u64| format!("{:.1} MB", n as f64 / 1e6);
    let scratch = v.graphs.iter().map(|g| g.scratch).max().unwrap_or(0);
    let _ = writeln!(
        s,
        "{} {}: predicted peak memory of training {}: state {}, gradients {}, scratch {}, constants {}",
        v.device,
        v.precision,
        mb(rss),
        mb(v.state_bytes),
        mb(v.grad_bytes),
        mb(scratch),
        mb(v.constants.len() as u64)
    );
    for g in v.graphs.iter().filter(|g| !g.name.starts_with(golf_runtime::plan::PACK)) {
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
