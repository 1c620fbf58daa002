//! Recorded choices of how contractions are cut on `sm_90a`, by people or by measurements (`golfc --tuning FILE`).
//!
//! *Takes* text; *gives* the cut of a contraction, if one is recorded; *promises* that a choice that cannot be followed is an error, never ignored.
//!
//! One choice per line, `#` starts a comment: the symbol of a kernel as `run bench --kernels` and `--emit=kernels` name it without a choice, then a cut as [`Cut`]
//! prints it, or `cublaslt` (see [`library`]); or `*` and a cut for every contraction that the cut suits and no other line names.

use super::gemm::{Cut, Plan};
use super::library;
use crate::kernel::Kernel;
use std::collections::{BTreeMap, BTreeSet};

/// What does a contraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// Our code, cut so.
    Cut(Cut),
    /// cuBLASLt.
    Library,
}

/// A table of choices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    all: Option<Cut>,
    /// Line and choice, by symbol.
    named: BTreeMap<String, (usize, Choice)>,
}

impl Tuning {
    /// Reads a table. Errors name the line.
    pub fn parse(text: &str) -> Result<Tuning, String> {
        let mut table = Tuning::default();
        for (i, line) in text.lines().enumerate() {
            let n = i + 1;
            let words: Vec<&str> = line.split('#').next().unwrap_or("").split_whitespace().collect();
            let (symbol, choice) = match words[..] {
                [] => continue,
                [symbol, library::NAME] => (symbol, Choice::Library),
                [symbol, cut] => (symbol, Choice::Cut(cut.parse().map_err(|e| format!("line {n}: {e}"))?)),
                _ => return Err(format!("line {n}: expected a kernel and its cut, found {} words", words.len())),
            };
            let twice = match (symbol, choice) {
                ("*", Choice::Cut(cut)) => table.all.replace(cut).is_some(),
                ("*", Choice::Library) => {
                    return Err(format!("line {n}: {} is chosen kernel by kernel", library::NAME));
                }
                _ => table.named.insert(symbol.into(), (n, choice)).is_some(),
            };
            if twice {
                return Err(format!("line {n}: {symbol} has a choice already"));
            }
        }
        Ok(table)
    }

    /// Writes the choices into kernels without any.
    pub fn apply<'k>(&self, kernels: impl Iterator<Item = &'k mut Kernel>) -> Result<(), String> {
        if *self == Tuning::default() {
            return Ok(());
        }
        for kernel in kernels {
            let symbol = kernel.symbol();
            let Kernel::Gemm(g) = kernel else { continue };
            let wrong = |line: usize, why: String| format!("line {line}: {symbol}: {why}");
            match self.named.get(&symbol) {
                Some((line, Choice::Cut(cut))) => {
                    Plan::suits(g, *cut).map_err(|why| wrong(*line, why))?;
                    g.cut = Some(*cut);
                }
                Some((line, Choice::Library)) => {
                    library::product(g).map_err(|why| wrong(*line, format!("cuBLASLt cannot: {why}")))?;
                    g.library = true;
                }
                None => g.cut = self.all.filter(|cut| Plan::suits(g, *cut).is_ok()),
            }
        }
        Ok(())
    }

    /// Says which lines name none of a program's kernels, whose choices are written in.
    pub fn check_used<'k>(&self, kernels: impl Iterator<Item = &'k Kernel>) -> Result<(), String> {
        let used: BTreeSet<String> = kernels.map(Kernel::plain_symbol).collect();
        let stale = self.named.iter().filter(|(symbol, _)| !used.contains(*symbol));
        let stale: Vec<String> = stale.map(|(symbol, (line, _))| format!("line {line}: {symbol}")).collect();
        match stale.is_empty() {
            true => Ok(()),
            false => Err(format!("no contraction of this program on sm_90a is named so: {}", stale.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_strictly() {
        let table = Tuning::parse("# measured\n\ngemm_00 128x256/4 # 3 us less\n* 128x128-turns\n").unwrap();
        assert_eq!(table.all.unwrap().to_string(), "128x128-turns");
        assert_eq!(table.named["gemm_00"], (3, Choice::Cut("128x256/4".parse().unwrap())));
        for (text, why) in [
            ("gemm_00", "line 1: expected a kernel and its cut, found 1 words"),
            ("\ngemm_00 96x96", "line 2: no cut is named 96x96"),
            ("gemm_00 64x64/0", "line 1: 0 is no number of pieces"),
            ("* 64x64\n* 64x64", "line 2: * has a choice already"),
            ("a 64x64\na 128x64", "line 2: a has a choice already"),
        ] {
            let found = Tuning::parse(text).unwrap_err();
            assert!(found.contains(why), "{found}");
        }
        let stale = table.check_used([].into_iter()).unwrap_err();
        assert!(stale.ends_with("line 3: gemm_00"), "{stale}");
    }
}
