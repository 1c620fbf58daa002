//! Wrong kernels, made from right ones: how well the emulator notices mistakes.
//!
//! *Takes* a kernel; *gives* variants of its code and launches that differ in one place ([`Mutant`]) and which of them the emulator takes for right
//! ([`survey`]); *promises* one change at a time: a wait, fence, barrier, arrival or commit dropped, a count, parity, offset, coordinate, box or
//! stride off by a little, operands or layouts exchanged.
//!
//! Some mutants are as right as the original on the hardware too; [`equivalent`] says which, and why.

mod equivalent;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use golf_runtime::plan::TensorMap;

use super::launch::{Code, Options, text};
use super::text::{Line, parse};
use crate::kernel::gpu::Arch;
use crate::kernel::{Kernel, Launch, gpu};
use crate::schedule::trial::Trial;
use equivalent::Facts;

/// A changed kernel.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// What is changed.
    pub change: String,
    /// The operation, or launch, as it was.
    pub place: String,
    /// The operation's line in the module, from 0.
    pub line: Option<usize>,
    /// Its module in generic form.
    pub text: String,
    /// Its launches.
    pub launches: Vec<Launch>,
}

/// What [`survey`] found.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Number of mutants that were noticed.
    pub caught: usize,
    /// Those that mean the same on the hardware, by the reason.
    pub equivalent: BTreeMap<&'static str, usize>,
    /// Those that passed for right and are not.
    pub missed: Vec<String>,
}

impl Survey {
    /// Number of mutants tried.
    pub fn tried(&self) -> usize {
        self.caught + self.missed.len() + self.equivalent.values().sum::<usize>()
    }

    /// Share of the mutants that matter that was noticed.
    pub fn share(&self) -> f64 {
        self.caught as f64 / (self.caught + self.missed.len()).max(1) as f64
    }
}

/// Operations whose absence is a mistake.
const DROPPED: [&str; 14] = [
    "nvvm.barrier",
    "nvvm.bar.warp.sync",
    "nvvm.fence.mbarrier.init",
    "nvvm.mbarrier.init",
    "nvvm.mbarrier.arrive",
    "nvvm.mbarrier.arrive.expect_tx",
    "nvvm.mbarrier.try_wait.parity",
    "nvvm.fence.proxy",
    "nvvm.wgmma.fence.aligned",
    "nvvm.wgmma.commit.group.sync.aligned",
    "nvvm.wgmma.wait.group.sync.aligned",
    "nvvm.cp.async.bulk.commit.group",
    "nvvm.cp.async.bulk.wait_group",
    "nvvm.setmaxregister",
];

/// An operation with some operands replaced; `extra` comes before it.
fn with_operands(line: &Line, extra: &str, change: &[(usize, &str)]) -> String {
    let mut operands: Vec<&str> = line.operands.clone();
    change.iter().for_each(|&(i, name)| operands[i] = name);
    rebuild(line, &operands, line.properties, extra)
}

fn rebuild(line: &Line, operands: &[&str], properties: &str, extra: &str) -> String {
    let assign = if line.result.is_empty() { String::new() } else { format!("{} = ", line.result) };
    let braces = if properties.is_empty() { String::new() } else { format!(" <{{{properties}}}>") };
    let mut out = extra.to_string();
    write!(out, "{assign}\"{}\"({}){braces}", line.name, operands.join(", ")).expect("strings take everything");
    write!(out, " : ({}) -> {}", line.types.join(", "), line.results).expect("strings take everything");
    out
}

/// `operand` of type i32 plus a constant, as `%mutant`.
fn plus(operand: &str, n: i64) -> String {
    format!(
        "%mutant_n = llvm.mlir.constant({n} : i32) : i32\n\
         %mutant = \"arith.addi\"({operand}, %mutant_n) <{{overflowFlags = #arith.overflow<none>}}> : (i32, i32) -> i32\n"
    )
}

/// All changes of one line: a description and what replaces the line.
fn changes(line: &Line) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = vec![];
    let mut add = |what: &str, text: String| out.push((what.to_string(), text));
    if DROPPED.contains(&line.name) && line.result.is_empty() {
        add("dropped", String::new());
    }
    let mut off = |operand: usize, by: &[i64], name: &str| {
        for &n in by {
            let text = with_operands(line, &plus(line.operands[operand], n), &[(operand, "%mutant")]);
            add(&format!("{name} {n:+}"), text);
        }
    };
    match line.name {
        "nvvm.mbarrier.init" => off(1, &[-1, 1], "count"),
        "nvvm.mbarrier.arrive.expect_tx" => off(1, &[-16, 16], "bytes"),
        "nvvm.barrier" if line.operands.len() == 2 => off(1, &[-32, 32], "threads"),
        "nvvm.cp.async.bulk.tensor.shared.cluster.global" => {
            (2..line.operands.len() - 1).for_each(|i| off(i, &[1], &format!("coordinate {}", i - 2)));
        }
        "nvvm.cp.async.bulk.tensor.global.shared.cta" => {
            (2..line.operands.len()).for_each(|i| off(i, &[1], &format!("coordinate {}", i - 2)));
        }
        "nvvm.mbarrier.try_wait.parity" => {
            let parity = line.operands[1];
            let extra = format!(
                "%mutant_n = llvm.mlir.constant(1 : i32) : i32\n%mutant = \"arith.xori\"({parity}, %mutant_n) : (i32, i32) -> i32\n"
            );
            add("other parity", with_operands(line, &extra, &[(1, "%mutant")]));
        }
        "nvvm.wgmma.wait.group.sync.aligned" | "nvvm.cp.async.bulk.wait_group" => {
            if let Ok(n) = line.integer("group") {
                let properties = line.properties.replace(&format!("group = {n} "), &format!("group = {} ", n + 1));
                add("one group less waited for", rebuild(line, &line.operands, &properties, ""));
            }
        }
        "nvvm.setmaxregister" => {
            if let Ok(n) = line.integer("regCount") {
                for by in [-8, 8] {
                    let properties =
                        line.properties.replace(&format!("regCount = {n} "), &format!("regCount = {} ", n + by));
                    add(&format!("registers {by:+}"), rebuild(line, &line.operands, &properties, ""));
                }
            }
        }
        "llvm.inline_asm" => {
            let asm = line.property("asm_string").unwrap_or("");
            if let Some(n) = asm.trim_matches('"').strip_prefix("wgmma.wait_group.sync.aligned ") {
                let n = n.trim_end_matches(';');
                let more = n.parse::<u32>().map_or(0, |n| n + 1);
                let properties = line.properties.replace(&format!("aligned {n};"), &format!("aligned {more};"));
                add("one group less waited for", rebuild(line, &line.operands, &properties, ""));
            } else if let Some((head, tail)) = line.properties.split_once(", 1, 1, ") {
                let flip = if tail.starts_with('0') { '1' } else { '0' };
                let properties = format!("{head}, 1, 1, {flip}{}", &tail[1..]);
                add("B of the other major", rebuild(line, &line.operands, &properties, ""));
                let scale = head.len() - 1;
                let flip = if head.ends_with('0') { '1' } else { '0' };
                let properties = format!("{}{flip}, 1, 1, {tail}", &head[..scale]);
                add("accumulates or not", rebuild(line, &line.operands, &properties, ""));
            }
        }
        "nvvm.wgmma.mma_async" => {
            add("operands exchanged", with_operands(line, "", &[(1, line.operands[2]), (2, line.operands[1])]));
            for (layout, what) in [("layoutA", "A of the other major"), ("layoutB", "B of the other major")] {
                let now = line.property(layout).unwrap_or("");
                let other = if now.contains("row") { "#nvvm.mma_layout<col>" } else { "#nvvm.mma_layout<row>" };
                let properties = line.properties.replace(&format!("{layout} = {now}"), &format!("{layout} = {other}"));
                add(what, rebuild(line, &line.operands, &properties, ""));
            }
            let (now, other) = match line.properties.contains("scale_out<zero>") {
                true => ("scale_out<zero>", "scale_out<one>"),
                false => ("scale_out<one>", "scale_out<zero>"),
            };
            add("accumulates or not", rebuild(line, &line.operands, &line.properties.replace(now, other), ""));
        }
        "nvvm.stmatrix" | "nvvm.ldmatrix" => {
            let (now, other) = match line.properties.contains("mma_layout<row>") {
                true => ("mma_layout<row>", "mma_layout<col>"),
                false => ("mma_layout<col>", "mma_layout<row>"),
            };
            add("transposed or not", rebuild(line, &line.operands, &line.properties.replace(now, other), ""));
        }
        // Descriptors: 64-bit constants with a layout in their highest bits.
        "arith.constant" if line.results == "i64" => {
            let value = line.property("value").and_then(|v| v.split(' ').next()).and_then(|v| v.parse::<i64>().ok());
            for bits in value.filter(|&v| (v as u64) >> 62 != 0 && v > 0).into_iter() {
                for (shift, what) in [(16, "leading distance"), (32, "stride of groups")] {
                    let properties = format!("value = {} : i64", bits + (8 << shift));
                    add(&format!("{what} + 128"), rebuild(line, &[], &properties, ""));
                }
                let properties = format!("value = {} : i64", bits ^ (3 << 62));
                add("other swizzle", rebuild(line, &[], &properties, ""));
            }
        }
        "llvm.getelementptr" if line.results == "!llvm.ptr<3>" && line.operands.len() == 1 => {
            let now = line.property("rawConstantIndices").unwrap_or("");
            let n = now.trim_start_matches("array<i32: ").trim_end_matches('>').parse::<i64>();
            if let Ok(n) = n {
                for by in [8, 1024] {
                    let properties = line.properties.replace(now, &format!("array<i32: {}>", n + by));
                    add(&format!("shared offset {by:+}"), rebuild(line, &line.operands, &properties, ""));
                }
            }
        }
        _ => {}
    }
    out
}

/// All changes of a tensor map.
fn map_changes(map: &TensorMap) -> Vec<(String, TensorMap)> {
    let mut out = vec![];
    let mut add = |what: String, map: TensorMap| out.push((what, map));
    for (i, _) in map.dims.iter().enumerate() {
        let mut m = map.clone();
        m.dims[i] -= 1;
        if m.dims[i] > 0 {
            add(format!("extent {i} - 1"), m);
        }
        if i > 0 {
            let mut m = map.clone();
            m.tile[i] = if m.tile[i] > 8 { m.tile[i] - 8 } else { m.tile[i] + 1 };
            add(format!("tile {i} {}", m.tile[i]), m);
            let mut m = map.clone();
            m.strides[i - 1] += 16;
            add(format!("stride {i} + 16"), m);
        }
    }
    add("no swizzle".into(), TensorMap { swizzle: if map.swizzle == 0 { 128 } else { 0 }, ..map.clone() });
    add("offset + 16".into(), TensorMap { offset: map.offset + 16, ..map.clone() });
    out
}

/// Every mutant of a kernel.
pub fn mutants(kernel: &Kernel) -> Result<Vec<Mutant>, String> {
    let (whole, launches) = (text(kernel, Arch::Sm90a)?, gpu::launches(Arch::Sm90a, kernel));
    let lines: Vec<&str> = whole.lines().collect();
    let mut out = vec![];
    for (i, text) in lines.iter().enumerate() {
        let Some(line) = parse(text)? else { continue };
        for (change, replacement) in changes(&line) {
            let mut all = lines.clone();
            all[i] = &replacement;
            let place = text.trim().chars().take(160).collect();
            out.push(Mutant { change, place, line: Some(i), text: all.join("\n"), launches: launches.clone() });
        }
    }
    for (l, launch) in launches.iter().enumerate() {
        let mut add = |what: String, change: &dyn Fn(&mut Launch)| {
            let mut launches = launches.clone();
            change(&mut launches[l]);
            let place = format!("launch {}", launch.entry);
            out.push(Mutant { change: what, place, line: None, text: whole.clone(), launches });
        };
        if launch.tasks > 1 {
            add("a block less".into(), &|l| l.tasks -= 1);
        }
        let Some(grid) = &launch.gpu else { continue };
        if grid.shared > 0 {
            add("1024 bytes of shared memory less".into(), &|l| {
                l.gpu.iter_mut().for_each(|g| g.shared = g.shared.saturating_sub(1024));
            });
        }
        for (m, map) in grid.maps.iter().enumerate() {
            for (what, changed) in map_changes(map) {
                add(format!("map {m}: {what}"), &|l| l.gpu.iter_mut().for_each(|g| g.maps[m] = changed.clone()));
            }
        }
    }
    Ok(out)
}

/// Order of threads, and whether copies and products run late: those of [`super::check`], then more for what passed so far, in turn on [`TRIALS`] trials.
const RUNS: [(u64, bool); 6] = [(3, true), (0, false), (5, true), (7, false), (9, true), (11, true)];

/// Arguments that a mutant is tried on: what happens to one row of many may be too small to see with some.
const TRIALS: u64 = 3;

/// A kernel and its trials, the same for all of its mutants.
struct Subject<'a> {
    kernel: &'a Kernel,
    trials: Vec<Trial>,
}

impl Subject<'_> {
    /// What is wrong with the code, if anything.
    fn run(&self, code: &Code, launches: &[Launch]) -> Result<(), String> {
        for ((seed, lazy), trial) in RUNS.into_iter().zip(self.trials.iter().cycle()) {
            let mut args = trial.args.clone();
            let options = Options { seed, lazy, workers: 1 };
            code.run_launches(self.kernel, launches, &mut args, &options)?;
            trial.compare(&args)?;
        }
        Ok(())
    }

    fn passes(&self, mutant: &Mutant) -> bool {
        Code::of_text(&mutant.text, Arch::Sm90a).is_ok_and(|code| self.run(&code, &mutant.launches).is_ok())
    }
}

/// Runs every `step`-th mutant of a kernel for `sm_90a` against the reference.
pub fn survey(kernel: &Kernel, seed: u64, step: usize) -> Result<Survey, String> {
    let trials = (seed..seed + TRIALS).map(|seed| Trial::new(kernel, seed)).collect::<Result<_, _>>()?;
    let subject = Subject { kernel, trials };
    let whole = text(kernel, Arch::Sm90a)?;
    let code = Code::of_text(&whole, Arch::Sm90a)?;
    subject.run(&code, &gpu::launches(Arch::Sm90a, kernel))?;
    let facts = Facts::of(&whole, &code)?;
    let all = mutants(kernel)?;
    let chosen: Vec<&Mutant> = all.iter().step_by(step.max(1)).collect();
    let (next, passed) = (AtomicUsize::new(0), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..Options::default().workers {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(mutant) = chosen.get(i) else { break };
                    if subject.passes(mutant)
                        && let Ok(mut passed) = passed.lock()
                    {
                        passed.push(i);
                    }
                }
            });
        }
    });
    let mut passed = passed.into_inner().map_err(|_| "a thread of the survey has failed")?;
    passed.sort_unstable();
    let mut survey = Survey { caught: chosen.len() - passed.len(), ..Survey::default() };
    for mutant in passed.into_iter().map(|i| chosen[i]) {
        match facts.equivalent(mutant) {
            Some(reason) => *survey.equivalent.entry(reason).or_default() += 1,
            None => survey.missed.push(format!("{}: {}", mutant.change, mutant.place)),
        }
    }
    Ok(survey)
}
