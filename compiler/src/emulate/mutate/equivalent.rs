//! Mutants that mean the same on the hardware.
//!
//! *Takes* the original module and what its runs showed; *gives* for a mutant the reason why the hardware cannot tell it from the original, if there is
//! one; *promises* reasons that follow from the rules of the hardware and the original alone, whatever the emulator says of the mutant.

use std::collections::BTreeSet;

use super::super::launch::Code;
use super::super::text::{Line, accumulator, parse};
use super::Mutant;

/// Elements along m or n up to which an operand is one swizzled group wide.
const GROUP: usize = 64;

/// Registers of a multiprocessor for each of 128 threads.
const REGISTERS: i64 = 512;

const FENCE: &str =
    "a fence before products whose registers nothing but products has touched, which are ordered without";
const WAITED: &str = "a wait for products that have all been waited for";
const NEAR: &str = "a distance the hardware does not read: swizzled rows along k, or no more than 64 along m or n";
const UNUSED: &str = "a value that no operation uses";
const FLOOR: &str = "less than the 16 bytes that addresses in descriptors count";
const ZEROS: &str = "a product that adds to zeros instead of starting from zero";
const FEWER: &str = "fewer registers asked for: the assembler keeps to them";
const FITS: &str = "more registers kept, and all fit";

/// What is known of the original.
pub(super) struct Facts<'a> {
    /// Functions: their lines by number in the module. Names mean something inside of one only.
    functions: Vec<Vec<(usize, Line<'a>)>>,
    /// Lines with fences that products needed, and waits for products that were under way.
    needed: BTreeSet<usize>,
}

impl<'a> Facts<'a> {
    /// Of a module that has run.
    pub(super) fn of(text: &'a str, code: &Code) -> Result<Facts<'a>, String> {
        let mut functions: Vec<Vec<(usize, Line)>> = vec![];
        for (i, text) in text.lines().enumerate() {
            match parse(text)? {
                Some(line) if line.name == "llvm.func" => functions.push(vec![]),
                Some(line) => functions.last_mut().into_iter().for_each(|f| f.push((i, line.clone()))),
                None => {}
            }
        }
        Ok(Facts { functions, needed: code.needed() })
    }

    /// Why a mutant that passes is as right as the original.
    pub(super) fn equivalent(&self, mutant: &Mutant) -> Option<&'static str> {
        let number = mutant.line?;
        let lines = self.functions.iter().find(|f| f.iter().any(|(i, _)| *i == number))?;
        let line = lines.iter().find(|(i, _)| *i == number).map(|(_, l)| l)?;
        let all =
            |right: &dyn Fn(&Line, usize) -> bool| sinks(lines, number, line.result).iter().all(|(l, i)| right(l, *i));
        match (line.name, mutant.change.as_str()) {
            ("nvvm.wgmma.fence.aligned", "dropped") if !self.needed.contains(&number) => Some(FENCE),
            ("nvvm.wgmma.wait.group.sync.aligned", "dropped")
            | ("nvvm.wgmma.wait.group.sync.aligned" | "llvm.inline_asm", "one group less waited for")
                if !self.needed.contains(&number) =>
            {
                Some(WAITED)
            }
            ("nvvm.wgmma.mma_async", "accumulates or not") if starts_from_zeros(lines, line) => Some(ZEROS),
            ("nvvm.setmaxregister", change) => registers(lines, line, change, mutant),
            ("arith.constant" | "llvm.getelementptr", _) if all(&|_, _| false) => Some(UNUSED),
            ("arith.constant", change)
                if change.starts_with("leading distance") && all(&|l, i| !reads_leading(l, i)) =>
            {
                Some(NEAR)
            }
            ("llvm.getelementptr", "shared offset +8") if all(&is_descriptor) => Some(FLOOR),
            _ => None,
        }
    }
}

/// Operations that do something with a value, or with what addresses and arithmetic make of it; with the operand's number.
fn sinks<'l, 'a>(lines: &'l [(usize, Line<'a>)], from: usize, name: &'a str) -> Vec<(&'l Line<'a>, usize)> {
    let (mut names, mut out) = (BTreeSet::from([name]), vec![]);
    for (_, line) in lines.iter().skip_while(|(i, _)| *i <= from) {
        let touched: Vec<usize> = (0..line.operands.len()).filter(|&i| names.contains(line.operands[i])).collect();
        let pure = line.name.starts_with("arith.") || ["llvm.getelementptr", "llvm.ptrtoint"].contains(&line.name);
        match touched.is_empty() {
            true => {}
            false if pure => _ = names.insert(line.result),
            false => out.extend(touched.into_iter().map(|i| (line, i))),
        }
    }
    out
}

/// A product's operand in shared memory.
fn is_descriptor(line: &Line, operand: usize) -> bool {
    match line.name {
        "nvvm.wgmma.mma_async" => operand == 1 || operand == 2,
        "llvm.inline_asm" => operand + 1 == line.operands.len(),
        _ => false,
    }
}

/// Whether the hardware reads the leading distance of a descriptor here: where more than one group along m or n is contiguous. A is 64 rows.
fn reads_leading(line: &Line, operand: usize) -> bool {
    let wide = accumulator(line.results).map_or(true, |n| 2 * n > GROUP);
    match line.name {
        _ if !is_descriptor(line, operand) => true,
        "nvvm.wgmma.mma_async" => operand == 2 && wide && line.property("layoutB").unwrap_or("").contains("row"),
        _ => wide,
    }
}

/// Whether a product that starts from zero has zeros as its accumulator.
fn starts_from_zeros(lines: &[(usize, Line)], product: &Line) -> bool {
    let made = lines.iter().find(|(_, l)| l.result == product.operands[0]);
    product.properties.contains("scale_out<zero>") && made.is_some_and(|(_, l)| l.name == "llvm.mlir.zero")
}

/// Warpgroups give registers back and take more: fewer never hurt, more do if they do not fit.
fn registers(lines: &[(usize, Line)], line: &Line, change: &str, mutant: &Mutant) -> Option<&'static str> {
    let increases = |l: &Line| l.properties.contains("increase");
    let fewer = change == "registers -8" || change == "dropped" && increases(line);
    if fewer {
        return Some(FEWER);
    }
    let threads = mutant.launches.iter().filter_map(|l| l.gpu.as_ref()).map(|g| i64::from(g.threads)).max()?;
    let taken = lines.iter().find(|(_, l)| l.name == line.name && increases(l))?.1.integer("regCount").ok()?;
    let kept = line.integer("regCount").ok()? + 8;
    (!increases(line) && kept + (threads / 128 - 1) * taken <= REGISTERS).then_some(FITS)
}
