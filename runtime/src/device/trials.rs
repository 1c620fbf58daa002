//! One trial on a GPU.
//!
//! *Takes* a [`Trial`], its code and a [`Gpu`]; *gives* what came of it ([`Outcome`]) or why it failed; *promises* to look at every expected element, at
//! memory around every argument, and at the bits of a second run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cuda::{Allocation, Gpu, Launch, Module};
use crate::error::{Error, Result};
use crate::trial::Trial;

/// Bytes before and after every argument that no kernel may change. A multiple of every alignment that kernels rely on.
const GUARD: u64 = 4096;
/// What is in them.
const MARK: u8 = 0x5a;
/// Launches timed, and device time after which no more are.
const REPEAT: usize = 20;
const ENOUGH: f64 = 50.0;

/// What a trial showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Largest difference in units of what is allowed.
    pub worst: f64,
    /// Shortest run, milliseconds.
    pub ms: f64,
}

/// How a trial ended when not with an outcome.
pub enum Failure {
    /// Wrong results, and the device is fine.
    Wrong(String),
    /// The device is lost to this process.
    Lost(String),
}

struct Memory<'a> {
    gpu: &'a Gpu,
    blocks: Vec<Allocation>,
    sizes: Vec<usize>,
}

impl Memory<'_> {
    fn fill(&self, contents: &[Vec<u8>]) -> Result<()> {
        for (block, bytes) in self.blocks.iter().zip(contents) {
            self.gpu.fill(block, 0, block.bytes(), MARK)?;
            self.gpu.upload(block, GUARD, bytes)?;
        }
        Ok(())
    }

    /// Contents and the number of the first argument around which something was written.
    fn read(&self) -> Result<(Vec<Vec<u8>>, Option<usize>)> {
        let (mut all, mut spoilt) = (Vec::new(), None);
        for (i, (block, &size)) in self.blocks.iter().zip(&self.sizes).enumerate() {
            let mut bytes = vec![0; block.bytes() as usize];
            self.gpu.download(block, 0, &mut bytes)?;
            let mut after = bytes.split_off(GUARD as usize);
            let end = after.split_off(size);
            if bytes.iter().chain(&end).any(|&b| b != MARK) {
                spoilt.get_or_insert(i);
            }
            all.push(after);
        }
        Ok((all, spoilt))
    }
}

/// Tries it. `limit` is for each wait on the device.
pub fn attempt(gpu: &Gpu, trial: &Trial, modules: &[Result<Module>], limit: Duration) -> Result<Outcome, Failure> {
    let lost = |e: Error| Failure::Lost(e.to_string());
    let wrong = |e: Error| Failure::Wrong(e.to_string());
    let contents: Vec<Vec<u8>> = trial.arguments.iter().enumerate().map(|(i, a)| a.bytes(trial.seed, i)).collect();
    let mut memory = Memory { gpu, blocks: Vec::new(), sizes: contents.iter().map(Vec::len).collect() };
    for bytes in &contents {
        let block = gpu.alloc(bytes.len() as u64 + 2 * GUARD).map_err(lost)?;
        memory.blocks.push(block.ok_or_else(|| Failure::Wrong("out of memory on the GPU".into()))?);
    }
    let mut launches = Vec::new();
    for c in &trial.calls {
        let module = modules.get(c.grid.module as usize).ok_or_else(|| Failure::Wrong("no such module".into()))?;
        let module = module.as_ref().map_err(|e| wrong(e.clone()))?;
        let function = module.function(&c.symbol, c.grid.threads, c.grid.shared).map_err(wrong)?;
        let address = |&a: &u32| memory.blocks[a as usize].address() + GUARD;
        let pointers: Vec<u64> = c.args.iter().map(address).collect();
        let maps = c.grid.maps.iter().map(|m| gpu.map(m, pointers[m.arg as usize]));
        let maps = maps.collect::<Result<_>>().map_err(wrong)?;
        launches.push(Launch {
            function,
            blocks: c.blocks,
            threads: c.grid.threads,
            shared: c.grid.shared,
            pointers,
            maps,
        });
    }
    let start = || launches.iter().try_for_each(|l| gpu.launch(l));
    let run = || -> Result<(Vec<Vec<u8>>, Option<usize>), Failure> {
        memory.fill(&contents).map_err(lost)?;
        start().map_err(lost)?;
        match gpu.wait(limit).map_err(lost)? {
            true => memory.read().map_err(lost),
            false => Err(Failure::Lost(format!("does not end within {limit:?}"))),
        }
    };
    let (after, spoilt) = run()?;
    let mut worst: f64 = 0.0;
    for e in &trial.expected {
        let i = e.arg as usize;
        worst = worst.max(e.compare(trial.arguments[i].dtype, &after[i]).map_err(Failure::Wrong)?);
    }
    if let Some(i) = spoilt {
        return Err(Failure::Wrong(format!("wrote outside of argument {i}")));
    }
    let (again, _) = run()?;
    if let Some(e) = trial.expected.iter().find(|e| after[e.arg as usize] != again[e.arg as usize]) {
        return Err(Failure::Wrong(format!("argument {}: a second run gave other bits", e.arg)));
    }
    let (mut ms, mut total) = (f64::INFINITY, 0.0);
    for _ in 0..REPEAT {
        let one = gpu.time(start).map_err(lost)?;
        (ms, total) = (ms.min(one), total + one);
        if total > ENOUGH {
            break;
        }
    }
    Ok(Outcome { worst, ms })
}
