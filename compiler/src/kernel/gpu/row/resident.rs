//! Scratch that needs no memory: what a thread leaves for itself stays in registers.
//!
//! Nests whose positions go round the crew evenly and are written out give position `rank + round * size` to a thread in every round. A nest over the same loops with the
//! same lanes finds there what an earlier one stored at the same address. Scratch that is only read so takes no shared memory and no barrier.

use super::{by_columns, carried, free, group, loads, product};
use crate::kernel::row::loops::{Affine, Mem, Nest, Program, Step};
use std::collections::BTreeSet;

/// Operations times lanes that may be written out in a row.
const BUDGET: usize = 600;
/// Copies of a nest's body that are written out: at least and at most.
const COPIES: (usize, usize) = (2, 8);

/// The loops of a nest as threads share them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Even {
    sizes: Vec<usize>,
    vector: Option<usize>,
    lanes: usize,
}

/// Copies of a nest's body that may be written out.
pub fn copies(nest: &Nest, lanes: usize) -> usize {
    let size = (nest.body.len() + nest.stores.len()).max(1) * lanes;
    (BUDGET / size).clamp(COPIES.0, COPIES.1)
}

/// The loops of a nest if a crew of `size` threads shares them evenly and all rounds are written out.
pub fn even(p: &Program, nest: &Nest, lanes: usize, size: usize) -> Option<Even> {
    let depth = nest.dims.len();
    if depth == 0 {
        return None;
    }
    let copies = copies(nest, lanes);
    let count = |range: std::ops::Range<usize>| {
        product(nest, range.clone()) / if nest.vector.is_some_and(|v| range.contains(&v)) { lanes } else { 1 }
    };
    let written_out = |n: usize, threads: usize| n.is_multiple_of(threads) && n / threads <= copies;
    let fits = if carried(p, nest).is_empty() {
        written_out(count(0..depth), size)
    } else if by_columns(p, nest) {
        false
    } else {
        let free = free(nest);
        let (results, chunks) = (count(0..free), count(free..depth));
        let stores = nest.stores.iter().any(|s| s.depth > free);
        let group = group(chunks, results, size, stores, p.rows() > 1);
        match results {
            1 => group == size && written_out(chunks, size),
            _ => chunks == group && written_out(results, size / group),
        }
    };
    let sizes = nest.dims.iter().map(|d| d.size).collect();
    fits.then_some(Even { sizes, vector: nest.vector, lanes })
}

/// Scratch of the row section that stays in registers, given the lanes of each nest and the size of a team.
pub fn resident(p: &Program, lanes: &dyn Fn(&Nest) -> usize, size: usize) -> BTreeSet<usize> {
    let nests: Vec<(&Nest, Option<Even>)> = p
        .row
        .iter()
        .filter_map(|s| if let Step::Nest(n) = s { Some(n) } else { None })
        .map(|n| (n, even(p, n, lanes(n), size)))
        .collect();
    (0..p.scratch.len()).filter(|&i| stays(p, &nests, Mem::Scratch(i))).collect()
}

fn stays(p: &Program, nests: &[(&Nest, Option<Even>)], mem: Mem) -> bool {
    let elsewhere = |s: &Step| match s {
        Step::Def(id) => loads(p, &[*id]).any(|(m, _)| m == mem),
        Step::Zero(i) => Mem::Scratch(*i) == mem,
        Step::Nest(n) => loads(p, &n.body).any(|(m, _)| m == mem) || n.stores.iter().any(|s| s.mem == mem),
    };
    let outside = p.task.iter().chain(&p.end).any(elsewhere);
    let uniform = p.row.iter().any(|s| matches!(s, Step::Def(_)) && elsewhere(s));
    if outside || uniform {
        return false;
    }
    let stored = |n: &Nest, at: Option<&Affine>| {
        n.stores.iter().any(|s| s.mem == mem && at.is_none_or(|at| s.at == *at && each_lane(n, at)))
    };
    let plain = |n: &Nest| n.stores.iter().filter(|s| s.mem == mem).all(|s| !s.add && s.depth == n.dims.len());
    nests.iter().enumerate().all(|(k, (n, loops))| {
        let mut loads = loads(p, &n.body).filter(|(m, _)| *m == mem);
        let written = stored(n, None);
        let served = |at: &Affine| nests[..k].iter().any(|(w, other)| other == loops && stored(w, Some(at)));
        (!written || loops.is_some() && plain(n)) && loads.all(|(_, at)| loops.is_some() && served(at))
    })
}

/// Whether every lane has an address of its own.
pub fn each_lane(nest: &Nest, at: &Affine) -> bool {
    nest.vector.is_none_or(|v| at.dim(v) != 0)
}
