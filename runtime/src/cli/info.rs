//! `run info`: what this program is.

use std::fmt::Write;

use crate::device::{Code, tier};
use crate::error::Result;
use crate::plan::PACK;
use crate::report::output;

/// Prints everything the plan says, or the source.
pub fn info(code: &Code, source: bool) -> Result<()> {
    let p = &code.program;
    if source {
        output::text(&p.source)?;
        return output::text(&format!("\n# ---- prelude definitions used ----\n\n{}", p.prelude));
    }
    output::text(&describe(code))
}

fn describe(code: &Code) -> String {
    let p = &code.program;
    let mut out = String::new();
    let mut row = |key: &str, value: String| {
        let _ = writeln!(out, "{key:<14} {value}");
    };
    let first = &p.variants[0];
    let numel = |unused: bool| -> u64 {
        let of = first.params.iter().filter(|x| x.unused == unused);
        of.map(|x| first.state[x.buffer as usize].numel() as u64).sum()
    };
    let tiers = p.tiers.iter().map(|t| match tier::supported(&t.name) {
        true => t.name.clone(),
        false => format!("{} (not on this machine)", t.name),
    });
    row("program", format!("{} ({})", p.name, code.hash.to_hex()));
    row("compiled by", format!("golfc {} on glibc {}; needs that or newer", p.golfc, p.glibc));
    for o in &p.overrides {
        row("override", o.clone());
    }
    row(
        "parameters",
        format!("{} in {} tensors, {} of them unused", numel(false) + numel(true), first.params.len(), numel(true)),
    );
    row("vocabulary", p.vocab.to_string());
    let mut kinds: Vec<String> = tiers.collect();
    for v in p.variants.iter().filter(|v| v.device != "cpu") {
        if !kinds.contains(&v.device) {
            kinds.push(v.device.clone());
        }
    }
    row("device kinds", kinds.join(", "));
    let t = &p.train;
    row(
        "batch",
        format!("{} tokens in {} logical shards, rows of {}, {} at a time", t.batch, t.ranks, t.seq, first.rows.train),
    );
    row("stops", format!("after {} s or {} steps", p.budget(), t.iterations));
    if let Some(c) = &p.quantize.calibrate {
        let (tokens, reserve) = (c.sequences * u64::from(t.seq), c.reserve);
        row(
            "calibration",
            format!(
                "{tokens} tokens from the start of {}, in the {reserve} s that training leaves of {} s",
                c.data, t.stop
            ),
        );
    }
    row("work", format!("{:.3} MFLOP per training token", p.flops_per_token as f64 / 1e6));
    let averages = t.averages.iter().map(|a| a.name.as_str()).collect::<Vec<_>>();
    row("averages", if averages.is_empty() { "none".into() } else { averages.join(", else ") });
    let e = &p.evaluate;
    let limit = e.limit.map(|l| format!(", at most {l} targets (partial)")).unwrap_or_default();
    row("evaluation", format!("windows of {}, stride {}{limit}", e.window, e.stride));
    if let Some(a) = &e.adapt {
        row(
            "adaptation",
            format!("chunks of {} targets, {} epochs, {} sequences an update", a.chunk, a.epochs, a.batch),
        );
    }
    row(
        "artifact",
        format!("{} level {}, at most {} bytes with the code", p.quantize.codec, p.quantize.level, p.quantize.cap),
    );
    row(
        "code bytes",
        format!("{} source + {} prelude = {}", p.source.len(), p.prelude.len(), p.source.len() + p.prelude.len()),
    );
    for (v, rss) in p.variants.iter().zip(&p.predicted_rss) {
        let mb = |b: u64| format!("{:.1} MB", b as f64 / 1e6);
        let scratch = v.graphs.iter().map(|g| g.scratch).max().unwrap_or(0);
        let _ = writeln!(
            out,
            "\n{} {}: state {}, gradients {}, activations {}, constants {}; predicted peak {}; {} kernels",
            v.device,
            v.precision,
            mb(v.state_bytes),
            mb(v.grad_bytes),
            mb(scratch),
            mb(v.constants.len() as u64),
            mb(*rss),
            v.kernels.len()
        );
        // Packing has one small graph per parameter: counted together.
        let (packing, graphs): (Vec<_>, Vec<_>) = v.graphs.iter().partition(|g| g.name.starts_with(PACK));
        for g in graphs {
            let flops: u64 = g.calls.iter().map(|c| v.kernels[c.kernel as usize].flops).sum();
            let _ = writeln!(
                out,
                "  {:<22} {:>5} calls {:>12} scratch {:>12.3} GFLOP",
                g.name,
                g.calls.len(),
                mb(g.scratch),
                flops as f64 / 1e9
            );
        }
        for (i, k) in v.kernels.iter().enumerate() {
            let Some(p) = &k.product else { continue };
            let calls = v.graphs.iter().flat_map(|g| &g.calls).filter(|c| c.kernel as usize == i).count();
            let _ = writeln!(
                out,
                "  {}: {calls} calls of cuBLASLt, {} x {} x {}, {} matrices",
                k.symbol, p.m, p.n, p.k, p.batch
            );
        }
        let calls: usize = packing.iter().map(|g| g.calls.len()).sum();
        if !packing.is_empty() {
            let _ = writeln!(out, "  {:<22} {calls:>5} calls in {} graphs", "pack.*", packing.len());
        }
    }
    if !p.techniques.is_empty() {
        let _ = writeln!(out, "\ntechniques");
        for t in &p.techniques {
            let _ = writeln!(out, "  {t}");
        }
    }
    out
}
