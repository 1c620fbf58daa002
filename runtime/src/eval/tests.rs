//! Protocol and receipts on a model small enough to check by hand: one logit per token id, plain SGD.

use super::engine::Engine;
use super::protocol::{Files, Outcome, evaluate};
use super::receipt::{self, Header, Line};
use super::score::{AdaptPlan, Stream};
use super::verify;
use super::window::Windows;
use crate::error::Result;
use std::collections::BTreeMap;
use std::path::Path;

#[allow(dead_code)]
#[path = "../../examples/forge.rs"]
mod forge;

const VOCAB: usize = 5;

/// p(token) = softmax(w), whatever the context. Counts what it is asked, and can be told to die.
struct Unigram {
    w: [f32; VOCAB],
    lr: f64,
    adapts: usize,
    die_at: Option<usize>,
}

impl Unigram {
    fn new() -> Unigram {
        Unigram { w: [0.5, -0.25, 0.0, 1.0, 0.125], lr: 0.5, adapts: 0, die_at: None }
    }
    fn nll(&self, t: i32) -> f32 {
        let z: f64 = self.w.iter().map(|&x| libm::exp(x as f64)).sum();
        (libm::log(z) - self.w[t as usize] as f64) as f32
    }
}

impl Engine for Unigram {
    fn rows(&self) -> usize {
        3
    }
    fn score(&mut self, tokens: &[i32], targets: &[i32]) -> Result<Vec<f32>> {
        assert_eq!(tokens.len(), targets.len());
        Ok(targets.iter().map(|&t| self.nll(t)).collect())
    }
    fn adapt(&mut self, _tokens: &[i32], targets: &[i32], chunk: u64, chunks: u64) -> Result<(f64, f64)> {
        self.adapts += 1;
        if Some(self.adapts) == self.die_at {
            return Err(crate::error::Error::machine("killed"));
        }
        let lr = self.hypers(chunk, chunks)["lr"];
        let z: f64 = self.w.iter().map(|&x| libm::exp(x as f64)).sum();
        let mut loss = 0.0;
        let mut g = [0f64; VOCAB];
        for (v, g) in g.iter_mut().enumerate() {
            *g = libm::exp(self.w[v] as f64) / z;
        }
        for &t in targets {
            loss += self.nll(t) as f64;
            g[t as usize] -= 1.0 / targets.len() as f64;
        }
        for (w, g) in self.w.iter_mut().zip(g) {
            *w -= (lr * g) as f32;
        }
        Ok((loss / targets.len() as f64, 0.0))
    }
    fn hypers(&self, chunk: u64, chunks: u64) -> BTreeMap<String, f64> {
        BTreeMap::from([("lr".into(), self.lr * (1.0 - chunk as f64 / chunks as f64))])
    }
    fn weights_hash(&mut self) -> Result<String> {
        Ok(receipt::hash_f32(&self.w))
    }
    fn snapshot(&mut self) -> Result<Vec<u8>> {
        Ok(bytemuck::cast_slice(&self.w).to_vec())
    }
    fn restore(&mut self, s: &[u8]) -> Result<()> {
        for (w, b) in self.w.iter_mut().zip(s.chunks(4)) {
            *w = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }
        Ok(())
    }
}

fn header(targets: u64) -> Header {
    let h = "0".repeat(64);
    Header {
        version: 1,
        name: "unigram".into(),
        program: h.clone(),
        executable: h.clone(),
        artifact: h.clone(),
        tokenizer: h.clone(),
        val: vec![h.clone()],
        device: "test".into(),
        precision: "f32".into(),
        seed: 1,
        targets,
        partial: false,
        window: 16,
        stride: 4,
        chunk: 32,
        adapt: true,
        weights: h,
        attempts: 1,
    }
}

struct Case {
    tokens: Vec<i32>,
    bytes: Vec<u16>,
    windows: Windows,
    plan: AdaptPlan,
}

impl Case {
    fn new(n: u64) -> Case {
        let tokens: Vec<i32> = (0..=n).map(|i| ((i * i + 3 * i) % 7 % VOCAB as u64) as i32).collect();
        let bytes = tokens[1..].iter().map(|&t| 1 + t as u16).collect();
        let windows = Windows { targets: n, window: 16, stride: 4 };
        Case {
            tokens,
            bytes,
            windows,
            plan: AdaptPlan { window: 16, chunk: 32, chunks: n.div_ceil(32), epochs: 2, batch: 1 },
        }
    }
    fn stream(&self) -> Stream<'_> {
        Stream { tokens: &self.tokens, bytes: &self.bytes, targets: self.windows.targets }
    }
    fn replay(
        &self,
        files: &Files,
        r: &receipt::Receipt,
        nll: &[f32],
        engine: &mut Unigram,
        same_device: bool,
    ) -> Result<verify::Replay> {
        let (stream, path) = (self.stream(), files.receipt.as_path());
        let (windows, plan, range) = (&self.windows, Some(&self.plan), 0..7);
        verify::replay(
            &verify::Request { path, receipt: r, nll, stream: &stream, windows, plan, same_device, range },
            engine,
            &mut |_| {},
        )
    }
    fn run(&self, engine: &mut Unigram, out: &Path) -> Result<Outcome> {
        evaluate(
            engine,
            &self.stream(),
            &self.windows,
            Some(&self.plan),
            header(self.windows.targets),
            &Files::of(out),
            &mut |_, _| {},
        )
    }
}

#[test]
fn scores_first_and_verifies_at_every_level() {
    let dir = tempfile::tempdir().unwrap();
    let case = Case::new(200);
    let out = case.run(&mut Unigram::new(), dir.path()).unwrap();
    assert_eq!(out.nll.len(), 200);
    // Chunk 0 is scored with the starting weights: closed form.
    let start = Unigram::new();
    for i in 0..32 {
        assert_eq!(out.nll[i], start.nll(case.tokens[i + 1]));
    }
    // Adapting on a stationary stream must help.
    let plain: f64 = case.tokens[1..].iter().map(|&t| start.nll(t) as f64).sum();
    assert!(out.totals.sum_nll < plain);
    // 7 chunks, the last not trained, 2 sequences each, batch 1, 2 epochs.
    assert_eq!(out.updates.len(), 6 * 2 * 2);

    let files = Files::of(dir.path());
    let (r, totals) = verify::alone(&files.receipt, &files.nll).unwrap();
    assert_eq!(totals.sum_nll.to_bits(), out.totals.sum_nll.to_bits());
    verify::against_data(&files.receipt, &r, &case.stream(), &case.windows).unwrap();
    let replayed = case.replay(&files, &r, &out.nll, &mut Unigram::new(), true).unwrap();
    assert!(replayed.same_bits && replayed.difference == 0.0);
    // Other weights do not replay.
    let mut other = Unigram::new();
    other.w[0] += 1.0;
    let e = case.replay(&files, &r, &out.nll, &mut other, true).unwrap_err();
    assert_eq!(e.exit_code(), 1);
}

#[test]
fn damaged_receipts_fail_alone() {
    let dir = tempfile::tempdir().unwrap();
    let case = Case::new(200);
    case.run(&mut Unigram::new(), dir.path()).unwrap();
    let files = Files::of(dir.path());
    let text = std::fs::read_to_string(&files.receipt).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut damaged: Vec<(String, String)> = Vec::new();
    let join = |l: &[&str]| l.iter().map(|x| format!("{x}\n")).collect::<String>();
    for i in 0..lines.len() {
        let mut drop = lines.clone();
        drop.remove(i);
        damaged.push((format!("drop {i}"), join(&drop)));
        let mut twice = lines.clone();
        twice.insert(i, lines[i]);
        damaged.push((format!("duplicate {i}"), join(&twice)));
        if i + 1 < lines.len() {
            let mut swap = lines.clone();
            swap.swap(i, i + 1);
            damaged.push((format!("swap {i}"), join(&swap)));
        }
        let digit = lines[i].rfind(|c: char| c.is_ascii_digit()).unwrap();
        let mut edit = lines[i].to_string();
        edit.replace_range(digit..=digit, if &lines[i][digit..=digit] == "1" { "2" } else { "1" });
        let mut edited = lines.clone();
        edited[i] = &edit;
        damaged.push((format!("edit {i}"), join(&edited)));
    }
    for cut in (0..text.len()).step_by(97) {
        damaged.push((format!("truncate at {cut}"), text[..cut].into()));
    }
    for (what, bad) in damaged {
        std::fs::write(&files.receipt, bad).unwrap();
        assert!(verify::alone(&files.receipt, &files.nll).is_err(), "{what} was accepted");
    }
}

#[test]
fn a_consistent_forgery_passes_alone_and_fails_replay() {
    let dir = tempfile::tempdir().unwrap();
    let case = Case::new(200);
    case.run(&mut Unigram::new(), dir.path()).unwrap();
    let files = Files::of(dir.path());
    let nll = forge::forge(dir.path()).unwrap();
    let (forged, _) = verify::alone(&files.receipt, &files.nll).unwrap();
    verify::against_data(&files.receipt, &forged, &case.stream(), &case.windows).unwrap();
    for same_device in [true, false] {
        let result = case.replay(&files, &forged, &nll, &mut Unigram::new(), same_device);
        assert!(result.is_err());
    }
}

#[test]
fn an_interrupted_evaluation_is_set_aside_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let case = Case::new(200);
    let files = Files::of(dir.path());
    for (attempt, die_at) in [(1, 3), (2, 9)] {
        let mut dying = Unigram::new();
        dying.die_at = Some(die_at);
        assert!(case.run(&mut dying, dir.path()).is_err(), "attempt {attempt}");
    }
    let out = case.run(&mut Unigram::new(), dir.path()).unwrap();
    assert_eq!(out.attempts, 3);
    let clean = tempfile::tempdir().unwrap();
    let reference = case.run(&mut Unigram::new(), clean.path()).unwrap();
    assert_eq!(out.nll, reference.nll);
    assert!(verify::alone(&files.receipt, &files.nll).is_ok());
    let aborted = std::fs::read_to_string(&files.aborted).unwrap();
    assert_eq!(aborted.lines().filter(|l| l.contains("\"kind\":\"header\"")).count(), 2);
}

#[test]
fn lines_round_trip() {
    let line = Line::Header(header(7));
    let text = serde_json::to_string(&line).unwrap();
    assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
    assert_eq!(receipt::parse_f64(&receipt::hex_f64(-0.1)), Some(-0.1));
}
