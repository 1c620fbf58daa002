//! `submission.json` and the run's README, from the ledger alone.
//!
//! *Takes* the entries of a ledger; *gives* the challenge's April schema (specification 6.1) plus val_loss, bytes_total and bytes_code, and a README whose tables
//! are the same numbers; *promises* that nothing is typed by hand, and that a partial score says so wherever it appears.

use super::record::{Calibration, Entry, Record, Start, Validation};
use crate::error::{Error, Result};
use crate::files::{self, Faults};
use crate::plan::Program;
use serde_json::{Value, json};
use std::path::Path;

/// (steps done, N, milliseconds) of the training in a ledger; zeros without one.
pub fn trained(entries: &[Entry]) -> (u64, u64, f64) {
    let last = entries.iter().rev().find_map(|e| match &e.record {
        Record::Trained { steps, of, train_ms, .. } => Some((*steps, *of, *train_ms)),
        _ => None,
    });
    last.unwrap_or((0, 0, 0.0))
}

/// The last score of each kind, in the order final, plain, sliding, adapted.
fn scores(entries: &[Entry]) -> Vec<&Validation> {
    let last = |name: &str| {
        entries.iter().rev().find_map(|e| match &e.record {
            Record::Validation(v) if v.name == name => Some(v),
            _ => None,
        })
    };
    ["final", "plain", "sliding", "adapted"].into_iter().filter_map(last).collect()
}

struct Bytes {
    model: u64,
    code: u64,
    executable: u64,
    cap: u64,
}

fn bytes(entries: &[Entry]) -> Option<Bytes> {
    entries.iter().rev().find_map(|e| match &e.record {
        Record::Packed { bytes_model, bytes_code, bytes_executable, cap, .. } => {
            Some(Bytes { model: *bytes_model, code: *bytes_code, executable: *bytes_executable, cap: *cap })
        }
        _ => None,
    })
}

/// The last calibration.
fn calibration(entries: &[Entry]) -> Option<&Calibration> {
    entries.iter().rev().find_map(|e| match &e.record {
        Record::Calibrated(c) => Some(c),
        _ => None,
    })
}

fn start(entries: &[Entry]) -> Option<&Start> {
    entries.iter().find_map(|e| match &e.record {
        Record::Run(s) => Some(s),
        _ => None,
    })
}

/// `YYYY-MM-DD` of a Unix time (proleptic Gregorian, UTC).
pub fn date(seconds: f64) -> String {
    // Days to civil date (H. Hinnant's algorithm).
    let z = (seconds / 86_400.0).floor() as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    format!("{:04}-{month:02}-{day:02}", yoe + era * 400 + i64::from(month <= 2))
}

/// The submission object. `None` when nothing was scored.
pub fn json(p: &Program, entries: &[Entry]) -> Option<Value> {
    let scores = scores(entries);
    let best = *scores.last()?;
    let (steps, of, train_ms) = trained(entries);
    let b = bytes(entries);
    let total = b.as_ref().map(|b| b.model + b.code);
    let start = start(entries);
    let seed = start.map_or(0, |s| s.seed);
    let eval: f64 = scores.iter().filter(|v| v.name != "final").map(|v| v.seconds).sum();
    let by_name: serde_json::Map<String, Value> = scores
        .iter()
        .map(|v| (v.name.clone(), json!({"val_loss": v.loss, "val_bpb": v.bpb, "partial": v.partial})))
        .collect();
    let result = json!({
        "val_loss": best.loss, "val_bpb": best.bpb, "artifact_bytes": b.as_ref().map(|b| b.model),
        "steps": steps, "iterations": of, "step_avg_ms": (steps > 0).then(|| train_ms / steps as f64),
        "eval_time_s": eval, "scores": by_name,
    });
    let calibration = calibration(entries);
    let train_seconds = train_ms / 1e3 + calibration.map_or(0.0, |c| c.seconds);
    let mut all = json!({
        "author": "", "github_id": "", "name": p.name, "date": entries.first().map(|e| date(e.time)), "track": "10min_16mb",
        "val_loss": best.loss, "val_bpb": best.bpb, "val_bpb_std": null, "partial": best.partial, "targets": best.targets,
        "seeds": [seed], "seed_results": { seed.to_string(): result },
        "hardware": start.map(|s| s.machine.clone()), "device": start.map(|s| s.device.clone()),
        "precision": start.map(|s| s.precision.clone()), "pytorch_version": null, "golfc": p.golfc,
        "bytes_total": total, "bytes_model": b.as_ref().map(|b| b.model), "bytes_code": b.as_ref().map(|b| b.code),
        "bytes_executable": b.as_ref().map(|b| b.executable),
        "technique_summary": p.techniques.join("; "),
        "compliance": {
            "train_under_600s": train_seconds <= 600.0, "artifact_under_16mb": total.map(|t| t <= 16_000_000),
            "eval_under_600s": eval <= 600.0, "no_slot": true, "no_pre_quant_ttt": true, "no_etlb": true, "no_ngram_cache": true,
            "score_first_ttt": best.name == "adapted", "three_seeds": false,
        },
        "attribution": {}, "overrides": p.overrides,
    });
    if let Some(c) = calibration {
        all["calibration"] = json!({
            "tokens": c.tokens, "sequences": c.sequences, "matrices": c.matrices, "seconds": c.seconds,
            "seconds_before_deadline": c.left(), "past_deadline": c.left().map(|left| left < 0.0),
        });
    }
    Some(all)
}

/// The README of a run, Markdown.
pub fn readme(p: &Program, entries: &[Entry]) -> String {
    let mut s = format!("# {}\n\nMade by the program itself from its ledger; compiled by golfc {}.\n", p.name, p.golfc);
    if let Some(x) = start(entries) {
        let (n, of) = (x.threads, x.parameters);
        s += &format!(
            "\nSeed {}, {} {} on {} ({n} threads), {of} parameters.\n",
            x.seed, x.device, x.precision, x.machine
        );
    }
    if !p.overrides.is_empty() {
        let list: String = p.overrides.iter().map(|o| format!("--set {o}\n")).collect();
        s += &format!("\nCompiled with:\n\n```\n{list}```\n");
    }
    let (steps, of, ms) = trained(entries);
    if steps > 0 {
        s += "\n## Training\n\n| steps | of | time, s | ms per step |\n| ---: | ---: | ---: | ---: |\n";
        s += &format!(
            "| {steps} | {of} | {:.1} | {:.1} |\n\n![training curve](curve.svg)\n",
            ms / 1e3,
            ms / steps as f64
        );
    }
    if let Some(c) = calibration(entries) {
        s += &format!(
            "\nCalibration of the quantisers, after training: {} training tokens in {} sequences, {} matrices, {:.1} s",
            c.tokens, c.sequences, c.matrices, c.seconds
        );
        s += &match (c.late(), c.left()) {
            (Some(late), _) => format!(".\n\n**{late}.**\n"),
            (None, Some(left)) => format!(", {left:.1} s before the deadline of {} s.\n", c.stop),
            (None, None) => ".\n".into(),
        };
    }
    let scores = scores(entries);
    if !scores.is_empty() {
        s += "\n## Scores\n\n| score | val_loss | val_bpb | targets | seconds |\n| --- | ---: | ---: | ---: | ---: |\n";
        for v in &scores {
            let name = if v.partial { format!("{} (partial)", v.name) } else { v.name.clone() };
            s += &format!("| {name} | {:.6} | {:.6} | {} | {:.1} |\n", v.loss, v.bpb, v.targets, v.seconds);
        }
        s += "\n`final`: the trained weights over contiguous windows. `plain`, `sliding`, `adapted`: the packed artifact. `adapted`\n\
              scores each chunk before it is trained on; `receipt.jsonl` records it and `verify --data DIR --replay` re-executes it.\n";
    }
    if let Some(b) = bytes(entries) {
        s += "\n## Bytes\n\n| bytes_model | bytes_code | total | cap | bytes_executable |\n| ---: | ---: | ---: | ---: | ---: |\n";
        s += &format!("| {} | {} | {} | {} | {} |\n", b.model, b.code, b.model + b.code, b.cap, b.executable);
        s += "\nbytes_code are the exact bytes of the .golf source after `--set` plus every prelude definition it uses; the toolchain\n\
              stands where PyTorch stands. This reading is golf's own.\n";
    }
    if !p.techniques.is_empty() {
        s += "\n## Techniques\n\n";
        s += &p.techniques.iter().map(|t| format!("- {t}\n")).collect::<String>();
    }
    s
}

/// Writes `submission.json` and `README.md`.
pub fn publish(out: &Path, p: &Program, entries: &[Entry], faults: &Faults) -> Result<()> {
    if let Some(value) = json(p, entries) {
        let mut text = serde_json::to_string_pretty(&value).map_err(|e| Error::machine(e.to_string()))?;
        text.push('\n');
        files::atomic_bytes(&out.join("submission.json"), "submission", faults, text.as_bytes())?;
    }
    files::atomic_bytes(&out.join("README.md"), "readme", faults, readme(p, entries).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0.0), "1970-01-01");
        assert_eq!(date(951_782_400.0), "2000-02-29");
        assert_eq!(date(1_774_569_600.0), "2026-03-27");
    }
}
